"""Every mistake ends as one sentence, status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.tiny_world import World

from foreact.checkpoints.format import load_checkpoint
from foreact.cli import main
from foreact.data.stores.store import StoreWriter, open_store
from foreact.envs.pusht import PUSHT_SPEC
from foreact.runs import training as runs
from foreact.types import Batch

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(world: World, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(world.store, tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


@pytest.fixture
def run_dir(world: World, tmp_path: Path) -> Path:
    """A copy of the finished run of the joint stage."""
    shutil.copytree(world.uva.parent, tmp_path / "run")
    return tmp_path / "run"


def chunk_of(store: Path, stream: str) -> Path:
    return max(
        (p for p in (store / "data" / stream).iterdir() if not p.name.startswith(".")),
        key=lambda p: p.name,
    )


def opened(store: Path) -> zarr.Group:
    return zarr.open_group(str(store), mode="r+", use_consolidated=False)


def edited(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    raw = json.loads((run_dir / "config.json").read_text())
    change(raw)
    (run_dir / "config.json").write_text(json.dumps(raw))
    return run_dir


# --- stores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb",
    [
        "data check --store",
        "data stats --store",
        "data show --store",
        "train uva --data",
        "train kl-vae --data",
    ],
)
def test_missing_store(verb: str, world: World, refused: Callable[..., str]) -> None:
    tokenizer = (
        [
            "--tokenizer",
            str(world.vae),
            "--model.latent-channels",
            "4",
            "--model.grid",
            "4",
            "4",
            "--model.patch",
            "1",
        ]
        if "uva" in verb
        else []
    )
    sentence = refused(*verb.split(), "nowhere.zarr", *tokenizer)
    assert "nowhere.zarr" in sentence


def test_missing_store_of_tokenize_and_import(world: World, refused: Callable[..., str]) -> None:
    assert "nowhere.zarr" in refused(
        "tokenize", "--store", "nowhere.zarr", "--tokenizer", world.vae
    )
    assert "nowhere.zarr" in refused(
        "data", "import", "--src", "nowhere.zarr", "--out", "new.zarr", "--task", "pusht"
    )


def test_a_folder_that_is_no_store(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").write_text("hello")
    assert "plain" in refused("data", "check", "--store", "plain")


@pytest.mark.parametrize("stream", ["img", "action"])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_truncated_store(
    stream: str, damage: str, store: Path, world: World, refused: Callable[..., str]
) -> None:
    chunk = chunk_of(store, stream)
    if damage == "removed":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    assert "copy.zarr has errors" in refused("data", "check", "--store", store)
    if stream == "action":
        assert "copy.zarr" in refused("data", "stats", "--store", store)
    shutil.rmtree(store / "data" / "latents_img")
    sentence = refused(
        "train", "uva", "--from", world.uva.parent, "--data", store, "--out", "new", may_begin=True
    )
    assert "copy.zarr" in sentence
    assert "truncated" in sentence or "damaged" in sentence
    assert not Path("new/weights").exists()


def test_store_with_fewer_steps_than_its_episodes(store: Path, refused: Callable[..., str]) -> None:
    group: Any = opened(store)
    steps = group["data/action"].shape[0]
    group["data/action"].resize((steps - 5, 2))
    sentence = refused("data", "check", "--store", store)
    assert (
        f"'action' of {store} has {steps - 5} steps and meta/episode_ends says {steps}" in sentence
    )


@pytest.mark.parametrize("verb", ["check", "stats", "show"])
def test_foreign_store_needs_a_task(verb: str, store: Path, refused: Callable[..., str]) -> None:
    del opened(store).attrs["foreact_spec"]
    assert "--task" in refused("data", verb, "--store", store)


def test_store_of_another_task(store: Path, world: World, refused: Callable[..., str]) -> None:
    attrs = opened(store).attrs
    spec: Any = attrs["foreact_spec"]
    attrs["foreact_spec"] = {**spec, "fps": 30.0}
    sentence = refused("train", "uva", "--from", world.uva.parent, "--data", store, "--out", "new")
    assert "disagree on 'fps'" in sentence
    assert "30.0" in sentence
    assert "10.0" in sentence


@pytest.mark.parametrize(
    ("stream", "array", "found"),
    [
        ("action", np.zeros((1, 3), np.float32), "float32 ("),
        ("action", np.zeros((1, 2), np.complex64), "complex64 ("),
        ("img", np.zeros((1, 48, 96, 3), np.uint8), "uint8 ("),
        ("img", np.zeros((1, 96, 96, 3), np.int16), "int16 ("),
    ],
)
def test_wrong_shape_or_type(
    stream: str, array: np.ndarray, found: str, store: Path, refused: Callable[..., str]
) -> None:
    group: Any = opened(store)
    steps = group[f"data/{stream}"].shape[0]
    del group[f"data/{stream}"]
    group.create_array(f"data/{stream}", data=np.repeat(array, steps, axis=0))
    sentence = refused("data", "check", "--store", store)
    assert f"Stream '{stream}' of {store} should be" in sentence
    assert f"found {found}{steps}, " in sentence


def test_missing_stream(store: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(store / "data" / "action")
    assert "has no stream 'action'" in refused("data", "check", "--store", store)


def test_nan_actions(store: Path, world: World, refused: Callable[..., str]) -> None:
    group: Any = opened(store)
    group["data/action"][5::10, 1] = np.nan
    sentence = refused("train", "uva", "--from", world.uva.parent, "--data", store, "--out", "new")
    assert "'action' need at least 2 rows of finite numbers, found NaN" in sentence
    assert f"action of {store} hold NaN" in refused(
        "data", "stats", "--store", store, "--against", world.uva
    )
    assert "copy.zarr has errors" in refused("data", "check", "--store", store)


def test_data_check_says_where_the_nan_is(store: Path, capsys: Capture) -> None:
    group: Any = opened(store)
    group["data/action"][7, 1] = np.nan
    with pytest.raises(SystemExit):
        main(["data", "check", "--store", str(store)])
    assert (
        "'action' has 1 NaN or infinite values, the first in episode 0 at step 7, dim 'y'"
        in capsys.readouterr().out
    )


def test_all_episodes_shorter_than_a_window(
    world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    source = open_store(world.store)
    with StoreWriter(tmp_path / "short.zarr", PUSHT_SPEC) as writer:
        for start in (0, 3, 6):
            writer.append(source.read(0, start, start + 3, source.streams))
    sentence = refused(
        "train", "uva", "--from", world.uva.parent, "--data", "short.zarr", "--out", "new"
    )
    assert "none fits into 2 episodes of 3 to 3 steps" in sentence


def test_a_single_episode_cannot_be_split(
    world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    source = open_store(world.store)
    with StoreWriter(tmp_path / "one.zarr", PUSHT_SPEC) as writer:
        writer.append(source.read(0, 0, 60, source.streams))
    for verb in ("uva", "kl-vae"):
        folder = world.uva.parent if verb == "uva" else world.vae.parent
        sentence = refused("train", verb, "--from", folder, "--data", "one.zarr", "--out", "new")
        assert "one.zarr has 1 episode" in sentence
        assert "0 to validate" in sentence


def test_action_range_that_contradicts_the_checkpoint(
    store: Path, world: World, refused: Callable[..., str]
) -> None:
    group: Any = opened(store)
    group["data/action"][:] = group["data/action"][:] / 512.0
    sentence = refused("data", "stats", "--store", store, "--against", world.uva)
    assert "action" in sentence
    assert "lie outside the range" in sentence


def test_stats_against_a_checkpoint_without_any(world: World, refused: Callable[..., str]) -> None:
    assert "has no statistics" in refused(
        "data", "stats", "--store", world.store, "--against", world.vae
    )


# --- collecting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--env", "pushh"], "There is no environment called 'pushh'; did you mean 'pusht'?"),
        (["--episodes", "0"], "Expected episodes >= 1"),
        (["--first-seed", "99999", "--episodes", "2"], "test seeds"),
        (["--noise", "-1"], "Noise should be"),
    ],
)
def test_impossible_collection(options: list[str], part: str, refused: Callable[..., str]) -> None:
    assert part in refused("data", "collect", "--workers", "1", *options)
    assert not Path("data").exists()


# --- checkpoints ----------------------------------------------------------------------------------


def respecified(weights: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(weights, target)
    raw = json.loads((target / "spec.json").read_text())
    change(raw)
    (target / "spec.json").write_text(json.dumps(raw))
    return target


@pytest.mark.parametrize(
    ("name", "value"),
    [("fps", 20.0), ("cameras", {"img": [64, 64]}), ("state", {"pose": ["x", "y"]})],
)
def test_checkpoint_of_another_task(
    name: str, value: Any, world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other = respecified(world.uva, tmp_path / "other", lambda raw: raw.update({name: value}))
    for verb in (["eval", "closed-loop"], ["eval", "video"], ["generate"]):
        sentence = refused(*verb, "--weights", other, "--task", "pusht", "--out", "results")
        assert f"disagree on '{name}'" in sentence
    assert not Path("results").exists()


def test_checkpoint_without_actions_cannot_act(world: World, refused: Callable[..., str]) -> None:
    sentence = refused("eval", "closed-loop", "--weights", world.video, "--out", "results")
    assert "was trained to foresee video only and cannot act" in sentence
    assert not Path("results").exists()


def test_tokenizer_cannot_act(world: World, refused: Callable[..., str]) -> None:
    sentence = refused("eval", "closed-loop", "--weights", world.vae, "--out", "results")
    assert "kl_vae" in sentence


def test_baselines_imagine_nothing(world: World, refused: Callable[..., str]) -> None:
    for verb in (["eval", "video"], ["generate"]):
        assert "imagines nothing" in refused(*verb, "--weights", "random", "--data", world.store)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--execute", "9"], "execute is 9"),
        (["--seeds", "0"], "distinct seed"),
        (["--steps", "0"], "steps"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_impossible_evaluation(
    options: list[str], part: str, world: World, refused: Callable[..., str]
) -> None:
    assert part in refused(
        "eval",
        "closed-loop",
        "--weights",
        world.uva,
        "--out",
        "results",
        "--workers",
        "0",
        *options,
    )


def test_damaged_weights(world: World, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(world.uva, tmp_path / "uva")
    tensors = tmp_path / "uva" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    for argv in (["weights", "verify"], ["eval", "closed-loop", "--weights"]):
        assert "damaged or cut short" in refused(*argv, "uva")


def test_unsafe_or_unknown_file_is_not_converted(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused("weights", "convert", "evil.ckpt", "--out", "ours")
    refused("weights", "convert", "nothing.ckpt", "--out", "ours")
    assert not (tmp_path / "pwned").exists()


# --- configurations -------------------------------------------------------------------------------


def test_unknown_entry(run_dir: Path, refused: Callable[..., str]) -> None:
    edited(run_dir, lambda raw: raw["model"].update(widht=3))
    sentence = refused("train", "uva", "--from", run_dir)
    assert "config.json.model has an unknown entry 'widht'; did you mean 'width'?" in sentence


def test_ill_typed_entry(run_dir: Path, refused: Callable[..., str]) -> None:
    edited(run_dir, lambda raw: raw["train"].update(steps="many"))
    assert 'config.json.train.steps should be a whole number, found "many"' in refused(
        "train", "uva", "--from", run_dir
    )


def test_config_that_is_no_json(run_dir: Path, refused: Callable[..., str]) -> None:
    (run_dir / "config.json").write_text("{")
    assert "is not readable JSON" in refused("train", "uva", "--from", run_dir)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model.heads", "3"], "--model.width (256) should be a multiple of --model.heads (3)"),
        (["--model.horizon", "9"], "horizon of 9 actions does not spread evenly over 2 frames"),
        (
            ["--model.modes.policy", "-1"],
            "--model.modes should be at least 0 and not all 0, found {'policy': -1.0",
        ),
        (["--train.steps", "0"], "--train.steps should be at least 1"),
        (["--train.batch-size", "0"], "--train.batch-size should be at least 1"),
        (["--train.lr", "nan"], "lr should be a positive number"),
        (["--val-ratio", "2"], "val_ratio should lie in 0..1"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "gpu"], "gpu"),
        (["--eval-seeds", "-1"], "--eval-seeds should be 0 or more, found -1"),
        (["--model.grid", "6", "6", "--model.patch", "2"], "--model.grid 4 4"),
    ],
)
def test_impossible_value(
    options: list[str], part: str, world: World, refused: Callable[..., str]
) -> None:
    common = [
        "--data",
        world.store,
        "--tokenizer",
        world.vae,
        "--model.latent-channels",
        "4",
        "--out",
        "new",
    ]
    if "--model.grid" not in options:
        common += ["--model.grid", "4", "4", "--model.patch", "1"]
    assert part in refused("train", "uva", *common, *options)


def test_changed_run_is_not_resumed(run_dir: Path, refused: Callable[..., str]) -> None:
    sentence = refused("train", "uva", "--from", run_dir, "--model.width", "32")
    assert (
        f"{run_dir} holds a run with --model.width 16, now it is 32; give another --out" in sentence
    )
    sentence = refused("train", "uva", "--from", run_dir, "--train.lr", "0.5")
    assert "has --train.lr 0.001, now it is 0.5" in sentence
    sentence = refused("train", "uva", "--from", run_dir, "--train.best-metric", "judge/score")
    assert "--train.best-metric 'judge/score' belongs to no evaluator" in sentence


def test_missing_tokenizer(world: World, refused: Callable[..., str]) -> None:
    assert "'nowhere' is neither" in refused(
        "train", "uva", "--from", world.uva.parent, "--out", "new", "--tokenizer", "nowhere"
    )
    assert "'nowhere' is neither" in refused(
        "tokenize", "--store", world.store, "--tokenizer", "nowhere"
    )
    sentence = refused(
        "train", "uva", "--from", world.uva.parent, "--out", "new", "--tokenizer", world.uva
    )
    assert "--tokenizer takes those of kl_vae" in sentence


def test_missing_or_unfit_start(world: World, refused: Callable[..., str]) -> None:
    common = ["train", "uva", "--from", world.uva.parent, "--out", "new", "--init"]
    assert "'nowhere' is neither" in refused(*common, "nowhere")
    assert "--init takes those of uva" in refused(*common, world.vae)


# --- disk and keyboard ----------------------------------------------------------------------------


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "target",
    [
        "foreact.checkpoints.format.save_file",
        "foreact.checkpoints.format._sync",
        "foreact.train.checkpoint.state_dict_saver.save",
    ],
)
def test_full_disk(
    target: str,
    run_dir: Path,
    world: World,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load_checkpoint(run_dir / "weights").hash
    with monkeypatch.context() as patched:
        patched.setattr(target, full)
        sentence = refused("train", "uva", "--from", run_dir, "--train.steps", "3", may_begin=True)
    assert "No space left on device" in sentence
    assert load_checkpoint(run_dir / "weights").hash == before
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["step-00000002"]
    main(["train", "uva", "--from", str(run_dir), "--train.steps", "3"])
    assert load_checkpoint(run_dir / "weights").card["steps"] == 3


def test_full_disk_while_converting_and_encoding(
    world: World, store: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Path(__file__).parents[1] / "parity/goldens/uva/checkpoint_pusht/reference_format.ckpt"
    with monkeypatch.context() as patched:
        patched.setattr("foreact.checkpoints.format.save_file", full)
        sentence = refused("weights", "convert", golden, "--out", "ours", "--heads", "2", "2")
        assert "No space left on device" in sentence
    shutil.rmtree(store / "data" / "latents_img")
    with monkeypatch.context() as patched:
        patched.setattr("foreact.data.stores.derived.sync", full)
        sentence = refused("tokenize", "--store", store, "--tokenizer", world.vae, may_begin=True)
        assert "No space left on device" in sentence
    assert open_store(store).tokenizer_hash("latents_img") is None
    main(["tokenize", "--store", str(store), "--tokenizer", str(world.vae)])
    assert open_store(store).tokenizer_hash("latents_img") == load_checkpoint(world.vae).hash


def test_run_folder_that_cannot_be_made(
    world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("")
    for verb, folder in (("uva", world.uva.parent), ("kl-vae", world.vae.parent)):
        assert "file/new cannot be written" in refused(
            "train", verb, "--from", folder, "--out", "file/new"
        )


def test_ctrl_c_in_training_saves_and_says_how_to_go_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real = runs.batches

    def interrupted(*args: Any, **options: Any) -> Iterator[Batch]:
        for batch in real(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch
            break

    monkeypatch.setattr(runs, "batches", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "uva", "--from", str(world.uva.parent), "--out", str(tmp_path / "new")])
    assert exit_.value.code == 130
    out, err = capsys.readouterr()
    assert out.endswith(f"Go on with: foreact train uva --from {tmp_path / 'new'}\n")
    assert "Traceback" not in err
    assert (tmp_path / "new" / "checkpoints" / "step-00000001" / "train.json").is_file()


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def pressed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foreact.commands.doctor.importlib.util.find_spec", pressed)
    with pytest.raises(SystemExit) as exit_:
        main(["doctor"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "foreact: interrupted.\n"
