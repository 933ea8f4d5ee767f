from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from foreact.data.formats.video import read_video
from foreact.errors import UserError
from foreact.evals.features import FeatureNetwork, Preprocessing
from foreact.evals.frechet import Moments, frechet_distance
from foreact.evals.report import write_report
from foreact.evals.video import ROUNDING_PSNR, film, save_examples
from foreact.families.driving.evals.driving_video import Distances, Imaginer, driving_video
from foreact.types import Batch, to_model_range

CONTEXT, FUTURE = 3, 2
STEP = 16


class GreyTokenizer:
    """One token per 8 x 8 block: its grey level in steps of 16."""

    vocab = 16

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        levels = (
            nn.functional.avg_pool2d(
                (video.flatten(0, 1).mean(1, keepdim=True) + 1) * 127.5 + 0.5, 8
            )
            // STEP
        )
        return levels[:, 0].long().unflatten(0, video.shape[:2])

    def decode(self, z: Tensor) -> Tensor:
        grey = z.float() * STEP / 127.5 - 1
        return (
            grey.repeat_interleave(8, -1)
            .repeat_interleave(8, -2)[:, :, None]
            .expand(-1, -1, 3, -1, -1)
        )


def batch(windows: int, seed: int, drives: list[int] | None = None) -> Batch:
    """Noise in steps of 16, so that the tokenizer loses nothing; every frame is drawn anew."""
    rng = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (windows, CONTEXT + FUTURE, 1, 2, 3), generator=rng)
    video = (
        (levels * STEP)
        .to(torch.uint8)
        .repeat_interleave(8, -1)
        .repeat_interleave(8, -2)
        .expand(-1, -1, 3, -1, -1)
    )
    drives = drives or list(range(windows))
    return Batch(
        video={"front": video}, index=torch.tensor([[d, 7 * i] for i, d in enumerate(drives)])
    )


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)[:, ::97]


def network(forward=pixels, **preprocessing) -> FeatureNetwork:
    return FeatureNetwork(
        "pixels", "sha256:0", Preprocessing(**preprocessing), forward, torch.device("cpu")
    )


def measure(
    batches, generate, *, context: int = CONTEXT, stride: int = 1, examples: int = 4, **distances
):
    imaginer = Imaginer(
        tokenizer=GreyTokenizer(), camera="front", context=context, generate=generate, device="cpu"
    )
    return driving_video(
        batches, imaginer, distances=Distances(**distances), stride=stride, examples=examples
    )


def rest_of(batches: list[Batch]):
    """A model that knows the future."""
    tokens = torch.cat([GreyTokenizer().encode(to_model_range(b.video["front"])) for b in batches])
    position = 0

    def generate(context: Tensor, frames: int) -> Tensor:
        nonlocal position
        rows = tokens[position : position + len(context)]
        position += len(context)
        assert torch.equal(rows[:, :CONTEXT], context), (
            "the model is shown the context and nothing else"
        )
        return rows[:, CONTEXT : CONTEXT + frames]

    return generate


def repeat_last(context: Tensor, frames: int) -> Tensor:
    return context[:, -1:].expand(-1, frames, -1, -1)


def test_a_model_that_knows_the_future_is_perfect() -> None:
    batches = [batch(5, 0), batch(3, 1)]
    found = measure(
        batches, rest_of(batches), fid_network=network(), fvd_network=network(lambda x: pixels(x))
    )
    assert found.quality.estimates["psnr"].mean == pytest.approx(ROUNDING_PSNR)
    assert found.quality.estimates["ssim"].mean == pytest.approx(1.0)
    for name in ("imagined", "tokenizer"):
        assert found.fid[name] == pytest.approx([0.0] * FUTURE, abs=1e-6)
        assert found.fvd[name] == pytest.approx(0.0, abs=1e-6)
    assert found.clips == 8


def test_repeating_the_last_frame_scores_like_the_copy_baseline() -> None:
    found = measure([batch(6, 0)], repeat_last)
    assert found.quality.estimates["psnr"] == found.quality.estimates["psnr_copy"]
    assert found.quality.estimates["psnr_tokenizer"].mean == pytest.approx(ROUNDING_PSNR)
    assert (found.fid, found.fvd, found.networks) == ({}, {}, {})


def test_without_a_model_the_tokenizer_is_measured(tmp_path: Path) -> None:
    blurred = batch(4, 0)
    blurred.video["front"] = blurred.video["front"] + 8  # half a step, which the tokenizer loses
    found = measure(
        [blurred], None, fid_network=network(), fvd_network=network(lambda x: pixels(x)), examples=1
    )
    assert found.quality.estimates["psnr_tokenizer"].mean == pytest.approx(20 * np.log10(255 / 8))
    assert set(found.quality.estimates) == {
        "psnr_tokenizer",
        "ssim_tokenizer",
        "psnr_copy",
        "ssim_copy",
    }
    assert set(found.fid) == set(found.fvd) == {"tokenizer"}
    assert list(found.quality.examples[0].futures()) == ["true", "tokenizer"]
    page = write_report(
        tmp_path / "report.html", title="Tokenizer", quality=[found.quality]
    ).read_text()
    assert "The tokenizer alone reaches" in page
    assert "imagined frames reach" not in page


def test_fid_compares_frame_k_with_true_frame_k() -> None:
    data = batch(20, 3)
    data.video["front"] = data.video["front"].clone()
    data.video["front"][:, -1] //= 4  # the last frame is darker
    found = measure([data], repeat_last, fid_network=network())
    frames = data.video["front"].movedim(2, -1).numpy()

    def moments(images: np.ndarray) -> Moments:
        rows = Moments()
        rows.add(network().images(images))
        return rows

    made = moments(frames[:, CONTEXT - 1])
    for k in range(FUTURE):
        expected = frechet_distance(moments(frames[:, CONTEXT + k]), made)
        assert found.fid["imagined"][k] == pytest.approx(expected, rel=1e-6)
    assert found.fid["imagined"][1] > found.fid["imagined"][0]


def test_the_references_real_set_rewards_repeating_the_context() -> None:
    data = [batch(30, 5)]
    dark = data[0].video["front"].clone()
    dark[:, CONTEXT:] //= 4
    data[0].video["front"] = dark
    correct = measure(data, repeat_last, fid_network=network())
    reference = measure(
        data, repeat_last, fid_network=network(), real="context", accumulation="reference"
    )
    assert reference.fid["imagined"][0] < reference.fid["tokenizer"][0]
    assert correct.fid["imagined"][0] > correct.fid["tokenizer"][0]
    assert (reference.real, reference.accumulation) == ("context", "reference")


def test_intervals_are_over_drives() -> None:
    found = measure([batch(6, 0, [0, 0, 0, 1, 1, 2])], repeat_last, examples=2)
    assert found.quality.estimates["psnr"].n == 3
    assert found.quality.windows == 6
    assert [(e.episode, e.anchor) for e in found.quality.examples] == [(0, 0), (1, 21)]


def test_stored_tokens_are_used_where_there_are_any() -> None:
    data = batch(2, 0)
    data.tokens["front"] = torch.full((2, CONTEXT + FUTURE, 2, 3), 5)
    found = measure([data], repeat_last, examples=1)
    predicted = found.quality.examples[0].predicted
    assert predicted is not None
    assert set(predicted.ravel().tolist()) == {5 * STEP}


def test_the_result_is_json_and_names_the_network() -> None:
    found = measure([batch(4, 0)], repeat_last, fid_network=network(multiple=8))
    raw = json.loads(json.dumps(found.to_json()))
    assert raw["networks"]["fid"]["hash"] == "sha256:0"
    assert raw["networks"]["fid"]["preprocessing"]["multiple"] == 8
    assert (
        raw["networks"]["fid"]["width"]
        == network().images(np.zeros((1, 16, 24, 3), np.uint8)).shape[1]
    )
    assert len(raw["fid"]["imagined"]) == FUTURE
    assert "examples" not in raw["quality"]


def test_true_tokenizer_and_imagined_are_shown_together(tmp_path: Path) -> None:
    found = measure([batch(2, 0)], repeat_last, stride=5, examples=1)
    picture, movie = save_examples(found.quality, tmp_path, fps=10.0)
    frames, fps = read_video(movie)
    assert len(frames) == CONTEXT + FUTURE
    assert fps == 4.0
    # Three futures: rows in the picture, columns in the film.
    assert Image.open(picture).height > 3 * 16 * 12
    example = found.quality.examples[0]
    assert list(example.futures()) == ["true", "tokenizer", "imagined"]
    shown = film(example, found.quality.steps_ahead)
    labels = shown[:, :14].astype(int)
    third = shown.shape[2] // 3
    # The context is marked alike in all three, the future is not.
    assert (labels[0][:, 3 : third - 3] == labels[0][:, third + 3 : 2 * third - 3]).all()
    assert (labels[-1][:, 3 : third - 3] != labels[-1][:, third + 3 : 2 * third - 3]).any()


def test_data_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no window"):
        measure([], repeat_last)
    with pytest.raises(UserError, match="no pictures of camera 'front'"):
        measure([Batch(tokens={"front": torch.zeros(1, 5, 2, 3)})], repeat_last)
    with pytest.raises(UserError, match="leave no future after 5"):
        measure([batch(2, 0)], repeat_last, context=5)
    with pytest.raises(UserError, match="'past'"):
        measure([batch(2, 0)], repeat_last, real="past")
    with pytest.raises(UserError, match="at least 2 samples"):
        measure([batch(1, 0)], repeat_last, fid_network=network())
    odd = batch(2, 0)
    odd.tokens["front"] = torch.zeros(2, 5, 3, 3, dtype=torch.int64)
    with pytest.raises(UserError, match="draws 24 x 24 pixels and the data holds 16 x 24"):
        measure([odd], repeat_last)
