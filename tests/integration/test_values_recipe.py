"""`foreact eval values` and `foreact generate` for occupancy models,
on weights that `foreact train voc` made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.square_world import SPEC, write_squares

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.cli import main
from foreact.commands.imagine import generate_command
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.evals.occupancy_pictures import nearest_frames
from foreact.families.voc.evaluate_values import values
from foreact.families.voc.imagine import generate
from foreact.families.voc.model import VOC
from foreact.families.voc.train import VOCRun, train_voc
from foreact.runs.inputs import Inputs
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.tokenizers.vqkd import VQKD, VQKDConfig
from foreact.train.config import TrainConfig

TOKENIZER = VQConfig(
    channels=8,
    multipliers=(1, 1, 1),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    norm_groups=4,
    image_size=(16, 16),
)
MODEL = VOCConfig(width=16, heads=2, layers=1, frames=2, gammas=(0.5, 0.7), reward_hidden=8)
TRAINING = TrainConfig(
    steps=2,
    batch_size=8,
    lr=1e-3,
    warmup=1,
    workers=0,
    save_every=2,
    eval_every=2,
    best_k=0,
    tensorboard=False,
    precision="fp32",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Made:
    store: Path
    tokenizer: Path
    weights: Path
    acting: Path


def tokenizer(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(
        path, family="vq", config=TOKENIZER, state=VQTokenizer(TOKENIZER).state_dict(), spec=SPEC
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store, a tokenizer with random weights, and two models of
    it: one of behaviour, one of actions.
    """
    root = tmp_path_factory.mktemp("values")
    store, codes = write_squares(root / "squares.zarr"), tokenizer(root / "codes", 0)
    run = VOCRun(
        size="pocket",
        task="support.square_world",
        data=store,
        tokenizer=str(codes),
        out=root / "voc",
        val_ratio=0.5,
        device="cpu",
        model=MODEL,
        train=TRAINING,
    )
    acting = dataclasses.replace(
        run, out=root / "acting", actions=True, model=dataclasses.replace(MODEL, action_steps=2)
    )
    return Made(store, codes, train_voc(run), train_voc(acting))


def test_values_are_measured_on_the_episodes_kept_for_validation(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values(
        str(made.weights), made.store, samples=4, states=9, candidates=4, out=tmp_path, device="cpu"
    )
    printed = capsys.readouterr().out
    assert "3 of 6 were not trained on" in printed
    assert printed.count("sampled futures") >= 2
    raw = json.loads((tmp_path / "values.json").read_text())
    assert [v["gamma"] for v in raw["values"]] == [0.5, 0.7]
    held_out = set(raw["values"][0]["states"]["episode"])
    assert len(held_out) == 3
    for found in raw["values"]:
        assert set(found["states"]["episode"]) == held_out
        assert len(found["states"]["truth"]) == 9
        assert found["accuracy"]["sampled futures"]["mse"]["mean"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "Values of states" in page
    assert "fast episodes alone" in page or "slow episodes alone" in page

    values(
        str(made.weights),
        made.store,
        (0.7,),
        samples=4,
        states=9,
        all_episodes=True,
        out=tmp_path / "all",
        device="cpu",
    )
    raw = json.loads((tmp_path / "all" / "values.json").read_text())
    assert [v["gamma"] for v in raw["values"]] == [0.7]
    assert set(raw["values"][0]["states"]["episode"]) == set(range(6))


def test_models_of_actions_are_given_those_of_the_data(made: Made, tmp_path: Path) -> None:
    values(
        str(made.acting),
        made.store,
        (0.5,),
        samples=2,
        states=4,
        candidates=2,
        out=tmp_path,
        device="cpu",
    )
    raw = json.loads((tmp_path / "values.json").read_text())
    assert np.isfinite(raw["values"][0]["states"]["sampled"]).all()


def test_pictures_show_true_and_sampled_futures(made: Made, tmp_path: Path) -> None:
    generate(str(made.weights), made.store, states=2, samples=3, out=tmp_path / "a", device="cpu")
    pictures = sorted((tmp_path / "a").glob("*.png"))
    assert len(pictures) == 2
    assert all(min(Image.open(p).size) > 200 for p in pictures)
    assert "tokenizer" in (tmp_path / "a" / "report.html").read_text()
    again = [
        "--weights",
        str(made.weights),
        "--data",
        str(made.store),
        "--states",
        "2",
        "--samples",
        "3",
    ]
    generate_command([*again, "--out", str(tmp_path / "b"), "--device", "cpu"])
    for one, other in zip(pictures, sorted((tmp_path / "b").glob("*.png")), strict=True):
        assert one.name == other.name
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


def test_codes_without_a_way_back_show_the_frame_with_the_nearest_codes(made: Made) -> None:
    store = open_store(made.store)
    codes = torch.from_numpy(
        store.gather("tokens_pixels", np.array([[40, 41], [7, 8]])).astype(np.int64)
    )
    shown = nearest_frames(store, "pixels")(codes)
    for row, picture in zip((41, 8), shown, strict=True):
        same = (
            store.gather("tokens_pixels", np.arange(180))
            == store.gather("tokens_pixels", np.array([row]))
        ).all((1, 2))
        first = np.flatnonzero(same)[0]
        assert np.array_equal(picture, store.gather("pixels", np.array([first]))[0])


def test_states_of_codes_without_a_way_back_are_shown_by_frames_of_the_data(tmp_path: Path) -> None:
    store = write_squares(tmp_path / "squares.zarr", episodes=4, steps=12)
    config = VQKDConfig(
        patch=4,
        width=8,
        depth=1,
        heads=1,
        mlp_ratio=1,
        codes=8,
        code_dim=4,
        features=3,
        position_grid=(4, 4),
        image_size=(16, 16),
    )
    torch.manual_seed(0)
    codes = VQKD(config)
    save_checkpoint(
        tmp_path / "codes", family="vqkd", config=config, state=codes.state_dict(), spec=SPEC
    )
    shape = dataclasses.replace(MODEL, vocab=8, code_dim=4, grid=(4, 4))
    voc = VOC(shape)
    voc.set_codebook(codes.codebook)
    inputs = Inputs(None, seed=0)
    inputs.split(open_store(store), 0.5)
    save_checkpoint(
        tmp_path / "voc",
        family="voc",
        config=shape,
        state=voc.state_dict(),
        spec=SPEC,
        tokenizer=tmp_path / "codes",
        card=inputs.to_json(),
    )
    (picture,) = generate(
        str(tmp_path / "voc"),
        store,
        (0.5,),
        states=1,
        samples=2,
        out=tmp_path / "out",
        device="cpu",
    )
    assert "know no way back to pixels" in picture.caption
    # Every picture of the sheet is a frame of the data: the sheet has its few colours, and the
    #     text's greys.
    colours = np.unique(np.asarray(Image.open(picture.path)).reshape(-1, 3), axis=0)
    assert all(len(set(c)) == 1 or list(c) == [240, 90, 40] for c in colours.tolist())


def test_bad_input_is_one_sentence(made: Made, tmp_path: Path) -> None:
    weights = str(made.weights)
    for gammas, words in (
        ((1.5,), r"in \(0, 1\), found 1.5"),
        ((0.0,), "found 0.0"),
        ((0.9,), r"\[0.5, 0.7\], found 0.9"),
    ):
        with pytest.raises(UserError, match=words):
            values(weights, made.store, gammas, out=tmp_path)
    with pytest.raises(UserError, match="takes those of voc"):
        values(str(made.tokenizer), made.store, out=tmp_path)

    other = tmp_path / "squares.zarr"
    write_squares(other, episodes=4)
    with pytest.raises(UserError, match=r"squares.zarr is not what .* was trained on; name that"):
        values(weights, other, out=tmp_path)

    recoded = tmp_path / "recoded" / "squares.zarr"
    write_squares(recoded)
    main(
        [
            "tokenize",
            "--store",
            str(recoded),
            "--tokenizer",
            str(tokenizer(tmp_path / "codes", 1)),
            "--device",
            "cpu",
        ]
    )
    with pytest.raises(UserError, match="were made with the tokenizer"):
        values(weights, recoded, out=tmp_path)

    bare = tmp_path / "bare" / "squares.zarr"
    with StoreWriter(bare, dataclasses.replace(SPEC, has_reward=False)) as writer:
        streams = open_store(made.store).read(0, 0, 30, ["pixels", "action"])
        writer.append(streams)
    with pytest.raises(UserError, match="disagree on 'has_reward'"):
        values(weights, bare, out=tmp_path)
    assert not (tmp_path / "report.html").exists()

    found = load_checkpoint(made.weights)
    nameless = tmp_path / "nameless"
    save_checkpoint(
        nameless,
        family="voc",
        config=dataclasses.replace(MODEL, vocab=16, code_dim=4, grid=(4, 4)),
        state=found.state,
        spec=found.spec,
        tokenizer=made.tokenizer,
    )
    with pytest.raises(UserError, match="does not say which episodes"):
        values(str(nameless), made.store, out=tmp_path)
