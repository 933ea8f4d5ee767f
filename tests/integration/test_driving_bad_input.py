"""Every mistake on the road of the driving models ends as one
sentence, status 2, and nothing half-written.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.driving_worlds import drive, write_token_store
from support.misbehaving_server import serving

from foreact.checkpoints.format import content_hash, load_checkpoint, save_checkpoint
from foreact.checkpoints.manifest import MANIFEST
from foreact.cli import main
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.families.driving.data.drives import FRONT, driving_spec
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer

Refused = Callable[..., str]
Capture = pytest.CaptureFixture[str]

GRID, CODES = (2, 3), 49
PICTURES = VQConfig(
    channels=4,
    multipliers=(1, 1, 1, 1),
    blocks=1,
    features=4,
    codes=CODES,
    norm_groups=2,
    image_size=(16, 24),
)
VIDEO = VaViMConfig(width=16, heads=2, layers=1, vocab=CODES + 1, frames=2, grid=GRID, base_width=8)
ACTION = VaVAMConfig(vavim=VIDEO, expert=ExpertConfig(width=8, horizon=3))
SHAPE = (
    "--model.width 16 --model.heads 2 --model.layers 1 --model.vocab 50 --model.frames 2 "
    "--model.base-width 8"
)
TRAIN = (
    "--train.steps 2 --train.warmup 0 --train.drop 0 --train.precision fp32 "
    "--train.no-tensorboard --device cpu"
)
INNER = f"{SHAPE} --model.grid 2 3".replace("--model.", "--model.vavim.")
VAVIM = f"train vavim {SHAPE} --model.grid 2 3 {TRAIN} --out run"
VAVAM = f"train vavam --model.expert.width 8 --model.expert.horizon 3 {TRAIN} --out run"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drives.zarr with tokens of the tokenizer vq; tokens/, the same
    as token folders; vavim and vavam; other-vq.
    """
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("vq", "other-vq")):
        torch.manual_seed(seed)
        save_checkpoint(
            root / name, family="vq", config=PICTURES, state=VQTokenizer(PICTURES).state_dict()
        )
    poses = [drive(40, seed=i, turn=0.6 * (i - 1), period=0.1) for i in range(3)]
    tokens = write_token_store(root / "drives.zarr", poses, grid=GRID, vocab=CODES)
    write_stream(
        root / "drives.zarr",
        "tokens_front",
        np.concatenate(tokens),
        attrs={"tokenizer": content_hash(root / "vq")},
    )
    for number, grids in enumerate(tokens):
        (root / f"tokens/{number}").mkdir(parents=True)
        for i, grid in enumerate(grids):
            np.save(root / f"tokens/{number}/t_{i:06d}.npy", grid)
    torch.manual_seed(0)
    for name, model in (("vavim", VaViM(VIDEO)), ("vavam", VaVAM(ACTION))):
        save_checkpoint(
            root / name,
            family=name,
            config=model.config,
            state=model.state_dict(),
            tokenizer=root / "vq",
        )
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy to damage; commands run in it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def words(command: str) -> list[str]:
    return command.split()


# --- sources --------------------------------------------------------------------------------------


def test_token_ids_outside_the_vocabulary_are_named_with_their_place(
    here: Path, refused: Refused
) -> None:
    tokens = open_store(here / "drives.zarr").gather("tokens_front", np.arange(120))
    tokens[65:, 1, 2] = 77
    write_stream(here / "drives.zarr", "tokens_front", tokens, attrs={})
    sentence = refused(*words(f"{VAVIM} --data.sources tokens@10 --data.val-sources drives.zarr"))
    assert re.search(
        r"should be in 0\.\.49, found 77 in step \d+ of 'drive-1' in drives.zarr", sentence
    )
    file = here / "tokens/0/t_000000.npy"
    np.save(file, np.full(GRID, -1))
    sentence = refused(*words(f"{VAVIM} --data.sources tokens@10 --data.val-sources tokens@10"))
    assert "found -1 in tokens/0/t_000000.npy" in sentence
    file.write_bytes(b"no array")
    assert "tokens/0/t_000000.npy cannot be read" in refused(
        *words(f"{VAVIM} --data.sources tokens@10")
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("", "Name what to learn from: --data.sources"),
        (
            "--data.sources drives.zarr --model.grid 3 2",
            "grids of 2 x 3 tokens, the model reads 3 x 2",
        ),
        ("--data.sources tokens", "do not tell their frame rate; write it after them: tokens@10"),
        (
            "--data.sources tokens@often",
            "should end with the frame rate of its files, as in tokens@10; found 'often'",
        ),
        ("--data.sources tokens@0", "should be a positive number"),
        ("--data.sources nowhere@10", "There is no token folder nowhere"),
        ("--data.sources nowhere.jsonl:tokens@2", "There is no trajectory file nowhere.jsonl"),
        (
            "--data.sources drives.zarr --data.rate-hz 3",
            "10 frames per second, of which 3 cannot be taken evenly",
        ),
        ("--data.sources drives.zarr --data.rate-hz 20", "of which 20 cannot be taken evenly"),
        ("--data.sources drives.zarr --data.rate-hz 0", "--data.rate-hz should be positive"),
        (
            "--data.sources drives.zarr tokens@10 --data.ratios 0.5 0.4",
            "sum to 1, found [0.5, 0.4]",
        ),
        ("--data.sources drives.zarr tokens@10 --data.ratios 1.0", "Expected 2 ratios"),
        (
            "--data.sources drives.zarr --data.total 9",
            "--data.total counts the windows of a mixture",
        ),
        (
            "--data.sources drives.zarr --data.hard-turns 2",
            "goes by plans, and a video model learns from none",
        ),
        (
            "--data.sources drives.zarr --data.only drives.zarr/nothing.json",
            "nothing.json is missing",
        ),
        ("--data.sources drives.zarr --data.val-ratio 0", "none is left to validate with"),
        ("--data.sources drives.zarr --model.frames 30", "A window spans 146 steps"),
        ("--data.sources drives.zarr --tokenizer other-vq", "were made with the tokenizer sha256:"),
        (
            "--data.sources drives.zarr --tokenizer vavim",
            "expects the tokenizer that made the tokens, a vq; vavim",
        ),
        (
            "--data.sources drives.zarr --init vavam",
            "vavam holds weights of the family 'vavam'; --init takes those of vavim",
        ),
        (
            "--data.sources drives.zarr --init vavim --model.width 32 --train.lr 1",
            "has other sizes than this run: ",
        ),
        (
            "--data.sources drives.zarr --size M",
            "--size should be one of debug, S, B, L, found 'M'",
        ),
        (
            "--data.sources drives.zarr --stage end",
            "--stage should be one of pretrain, finetune, found 'end'",
        ),
        ("--data.sources drives.zarr --stage finetune", "name its run with --train.start-from"),
    ],
)
def test_a_video_model_cannot_learn_so(
    options: str, part: str, here: Path, refused: Refused
) -> None:
    assert part in refused(*words(f"{VAVIM} {options}"))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--data.sources drives.zarr", "none is given: name one with --video"),
        (
            "--data.sources drives.zarr --video vq",
            "vq holds weights of the family 'vq'; --video takes those of vavim",
        ),
        ("--data.sources drives.zarr --video nowhere", "'nowhere' is neither"),
        (
            "--data.sources drives.zarr --video vavim --model.vavim.layers 2",
            "has other sizes than this run",
        ),
        (
            "--data.sources drives.zarr --video vavim --model.expert.commands 2",
            "know 3 commands (right, left, strai",
        ),
        (
            "--data.sources drives.zarr --video vavim --tokenizer other-vq",
            "were made with the tokenizer sha256:",
        ),
        ("--data.sources tokens@10 --video vavim", "has no ego poses to make plans from"),
        (
            f"--data.sources drives.zarr --init vavim {INNER}",
            "weights of the family 'vavim'; --init takes those of vavam",
        ),
    ],
)
def test_an_action_expert_cannot_learn_so(
    options: str, part: str, here: Path, refused: Refused
) -> None:
    assert part in refused(*words(f"{VAVAM} {options}"))


def test_weights_of_another_tokenizer_than_the_datas(here: Path, refused: Refused) -> None:
    model = VaViM(VIDEO)
    save_checkpoint(
        here / "vavim",
        family="vavim",
        config=VIDEO,
        state=model.state_dict(),
        tokenizer=here / "other-vq",
    )
    for command in (f"{VAVIM} --init vavim", f"{VAVAM} --video vavim"):
        sentence = refused(*words(f"{command} --data.sources drives.zarr"))
        assert f"reads what the tokenizer {content_hash(here / 'other-vq')}" in sentence
        assert sentence.endswith("give that of the weights.")
    shutil.copytree(here / "drives.zarr", here / "again.zarr")
    tokens = open_store(here / "drives.zarr").gather("tokens_front", np.arange(120))
    write_stream(here / "again.zarr", "tokens_front", tokens, attrs={"tokenizer": "sha256:other"})
    for option in (
        "--data.sources drives.zarr again.zarr",
        "--data.sources drives.zarr --data.val-sources again.zarr",
    ):
        assert "were made with different tokenizers" in refused(*words(f"{VAVIM} {option}"))


def test_a_store_without_tokens_or_poses(here: Path, refused: Refused) -> None:
    shutil.rmtree(here / "drives.zarr/data/ego_pose")
    sentence = refused(*words(f"{VAVAM} --video vavim --data.sources drives.zarr"))
    assert "drives.zarr has no ego poses to make plans from" in sentence
    shutil.rmtree(here / "drives.zarr/data/tokens_front")
    assert "has no stream 'tokens_front'" in refused(*words(f"{VAVIM} --data.sources drives.zarr"))


def test_windows_across_a_gap_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    poses = [drive(40, seed=i, period=0.1) for i in range(2)]
    write_token_store(tmp_path / "drives.zarr", poses, gaps={0: 20, 1: 20})
    main(words(f"{VAVIM} --data.sources drives.zarr"))
    out, err = capsys.readouterr()
    assert err.count("foreact: 5 of 35 windows of drives.zarr cross a gap") == 1
    assert "30 to train on, 30 to validate" in out


def test_a_training_set_with_a_bad_id_ends_after_it_began_and_can_go_on(
    here: Path, refused: Refused
) -> None:
    file = here / "tokens/1/t_000003.npy"
    good = np.load(file)
    np.save(file, np.full(GRID, 50))
    command = words(
        f"{VAVIM} --train.batch-size 200 --data.sources tokens@10 --data.val-sources drives.zarr"
    )
    assert "found 50 in tokens/1/t_000003.npy" in refused(*command, may_begin=True)
    np.save(file, good)
    main(command)
    assert load_checkpoint(here / "run/weights").family == "vavim"


# --- the road of a release ------------------------------------------------------------------------


@pytest.fixture
def release(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """release/: an action model in the reference's layout, packed in parts."""
    monkeypatch.chdir(here)
    main(words("weights convert vavam --out VAM_width_768_pretrained_38k.pt --to reference"))
    size = (here / "VAM_width_768_pretrained_38k.pt").stat().st_size // 4
    (here / "release").mkdir()
    main(
        words(
            f"weights pack VAM_width_768_pretrained_38k.pt --out release/vavam --max-size {size}B"
        )
    )
    capsys.readouterr()
    return here / "release"


def corrupt(parts: list[Path]) -> None:
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 2] ^= 255
    parts[1].write_bytes(content)


def truncate(parts: list[Path]) -> None:
    os.truncate(parts[-1], parts[-1].stat().st_size - 9)


def swap(parts: list[Path]) -> None:
    one, other = parts[0].read_bytes(), parts[1].read_bytes()
    parts[0].write_bytes(other)
    parts[1].write_bytes(one)


def lose(parts: list[Path]) -> None:
    parts[1].unlink()


@pytest.mark.parametrize("known", [True, False], ids=["with-manifest", "without"])
@pytest.mark.parametrize("damage", [corrupt, truncate, swap, lose])
def test_damaged_archives_are_not_unpacked(
    damage: Callable[[list[Path]], None], known: bool, release: Path, refused: Refused
) -> None:
    parts = sorted(p for p in release.iterdir() if ".part_" in p.name)
    assert len(parts) > 2
    damage(parts)
    if not known:
        (release / MANIFEST).unlink()
    refused("weights", "unpack", "release", "--out", "unpacked", may_begin=True)
    assert not (release.parent / "unpacked").exists()
    assert [p.name for p in release.parent.iterdir() if p.name.startswith(".")] == []


def test_archives_that_climb_out_are_not_unpacked(here: Path, refused: Refused) -> None:
    with tarfile.open(here / "bad.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../outside.pt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    sentence = refused("weights", "unpack", "bad.tar.gz", "--out", "unpacked", may_begin=True)
    assert "../outside.pt" in sentence
    assert not (here / "unpacked").exists()
    assert not (here / "outside.pt").exists()


class Opens:
    def __reduce__(self) -> Any:
        return os.system, ("touch broken-in",)


def test_a_pickle_that_would_run_a_program_is_refused_by_name(here: Path, refused: Refused) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": Opens()}, here / "evil.ckpt")
    sentence = refused(*words("weights convert evil.ckpt --out ours"))
    assert f"{os.system.__module__}.system" in sentence
    assert not (here / "broken-in").exists()


@pytest.fixture
def server(release: Path) -> Iterator[Any]:
    with serving() as state:
        yield state


def test_a_release_is_got_checked_unpacked_converted_and_imagines(
    release: Path, here: Path, server: Any, refused: Refused, capsys: Capture
) -> None:
    name = "VAM_width_768_pretrained_38k.tar.gz"
    main(
        words(
            "weights pack VAM_width_768_pretrained_38k.pt --out packed/VAM_width_768_pretrained_38k"
        )
    )
    server.files[name] = (here / "packed" / name).read_bytes()
    get = (
        f"weights get vavam-s-38k-action --base-url {server.url} --out got --sha256 "
        f"packed/{MANIFEST}"
    )
    main(words(get))
    main(words("weights verify got"))
    assert f"1 file as {Path('got') / MANIFEST} says" in capsys.readouterr().out
    main(words(f"weights unpack got/{name} --out unpacked"))
    convert = "weights convert unpacked/VAM_width_768_pretrained_38k.pt"
    refused(*words(f"{convert} --out wrong-grid --grid 5 5"))
    main(words(f"{convert} --out ours --grid 2 3"))
    main(words("weights verify ours"))
    ours, before = load_checkpoint(here / "ours"), load_checkpoint(here / "vavam")
    assert set(ours.state) == set(before.state)
    assert all(torch.equal(ours.state[key], before.state[key]) for key in before.state)
    with StoreWriter(here / "pictures.zarr", driving_spec(2.0, PICTURES.image_size)) as writer:
        writer.append(
            {
                FRONT: np.random.default_rng(0).integers(
                    0, 255, (3, *PICTURES.image_size, 3), np.uint8
                )
            }
        )
    imagine = (
        "generate --weights ours --data pictures.zarr --context 1 --future 2 --windows 1 "
        "--device cpu --out shown"
    )
    assert "names no tokenizer; give one with --tokenizer" in refused(*words(imagine))
    main(words(f"{imagine} --tokenizer vq"))
    assert len(list((here / "shown").glob("*.mp4"))) == 1

    (here / "got" / name).write_bytes(b"something else")
    assert name in refused(*words("weights verify got"))
