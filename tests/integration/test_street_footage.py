"""The example examples/street_footage.py from a film with cuts to its result, at tiny sizes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from foreact.checkpoints.format import load_checkpoint
from foreact.data.formats.video import read_video, write_mp4
from foreact.data.stores.store import open_store
from foreact.families.driving.vavim import VaViMConfig
from foreact.tokenizers.vq import VQConfig
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "street_footage.py"
LENGTHS = (24, 30, 10)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("street_footage", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes: a bright square moves to the right over walls of three colours."""
    scenes = []
    for colour, length in zip(((20, 40, 160), (150, 40, 20), (30, 140, 60)), LENGTHS, strict=True):
        frames = np.full((length, 48, 96, 3), colour, np.uint8)
        for t in range(length):
            frames[t, 16:32, 2 * t : 2 * t + 16] = 230
        scenes.append(frames)
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(path, np.concatenate(scenes), fps=25.0)
    return path


def test_a_film_becomes_shots_tokens_a_model_and_a_comparison(
    example: ModuleType, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    short = {"workers": 0, "tensorboard": False, "warmup": 1, "log_every": 2, "precision": "fp32"}
    street = example.Street(
        out=out,
        views=3,
        tokenizer=VQConfig(
            channels=8,
            multipliers=(1, 2, 2),
            blocks=1,
            features=8,
            codes=16,
            code_dim=4,
            norm_groups=4,
            image_size=(16, 32),
            entropy_weight=0.01,
        ),
        tokenizer_train=TrainConfig(
            steps=6, batch_size=8, lr=3e-3, eval_every=6, save_every=6, best_k=0, **short
        ),
        model=VaViMConfig(width=32, heads=2, layers=1, vocab=16, frames=2, grid=(4, 8)),
        train=TrainConfig(
            steps=6,
            batch_size=4,
            lr=4e-3,
            eval_every=2,
            save_every=2,
            best_metric="validation/loss",
            best_mode="min",
            ema=EMAConfig(enabled=False),
            **short,
        ),
    )
    result = json.loads(example.main(street, [film]).read_text())

    assert result["shots"] == {"film 0..23": 24, "film 24..53": 30}, "the third one is too short"
    parts = {part: open_store(out / "data" / f"{part}.zarr") for part in example.PARTS}
    for episode, length in enumerate(LENGTHS[:2]):
        lengths = [int(store.lengths[episode]) for store in parts.values()]
        assert sum(lengths) == length, "every frame is in one part and only one"
        assert lengths[-1] == pytest.approx(0.2 * length, abs=1)
    frames = np.concatenate(
        [store.read(0, 0, int(store.lengths[0]), ["front"])["front"] for store in parts.values()]
    )
    square = (frames[:, 7].max(axis=-1) > 190).argmax(axis=1)
    assert (np.diff(square) >= 0).all(), "the parts follow each other in time"
    assert square[-1] > square[0]

    assert [len(store) for store in parts.values()] == [2 * 3, 2, 2], (
        "only training has further views"
    )
    assert parts["train"].lengths.tolist() == parts["train"].lengths.tolist()[:2] * 3

    held_out = result["held-out"]
    windows = sum(int(n) - street.stride for n in parts["held-out"].lengths)
    assert (held_out["windows"], held_out["tokens"]) == (windows, windows * 32)
    assert held_out["gain"]["mean"] == pytest.approx(
        held_out["copy"]["mean"] - held_out["model"]["mean"]
    )
    assert held_out["gain"]["n"] == 2, "the interval is over shots"
    assert 0 <= result["copy_kept_with"] < 1
    assert [entry["step"] for entry in result["curve"]] == [2, 4, 6]
    best = min(entry["validation/loss"] for entry in result["curve"])
    assert result["validation"]["model"]["mean"] == pytest.approx(best, abs=1e-4), (
        "validation chose the step"
    )

    assert load_checkpoint(out / "vq" / "weights").family == "vq"
    assert read_video(out / "imagined.mp4")[0].shape[0] == sum(
        -(-int(n) // 2) for n in parts["held-out"].lengths
    )
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_wide_and_a_tall_picture_keep_their_middle(example: ModuleType) -> None:
    wide = np.zeros((1, 20, 100, 3), np.uint8)
    wide[:, :, 40:60] = 200
    assert (example.crop(wide, (16, 16)) == 200).all()
    assert (example.crop(wide.transpose(0, 2, 1, 3), (16, 16)) == 200).all()


def test_another_view_is_a_part_of_every_frame_in_one_order(example: ModuleType) -> None:
    """Brightness grows along time and is even in space, so a view
    has one level per frame, rising or falling.
    """
    shot = np.broadcast_to(
        np.arange(10, 110, 10, dtype=np.uint8)[:, None, None, None], (10, 40, 64, 3)
    )
    directions = set()
    for seed in range(8):
        view = example.another_view(shot, (16, 32), np.random.default_rng(seed))
        assert (view.shape, view.dtype) == ((10, 16, 32, 3), np.uint8)
        levels = view.astype(int).mean(axis=(1, 2, 3))
        assert np.ptp(view.reshape(10, -1, 3).astype(int), axis=1).max() == 0
        assert len(set(np.sign(np.diff(levels)))) == 1
        directions.add(np.sign(levels[-1] - levels[0]))
    assert directions == {-1, 1}
