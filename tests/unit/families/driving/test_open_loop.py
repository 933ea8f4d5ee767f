from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.evals.estimate import estimate
from foreact.families.driving.evals.open_loop import (
    Plan,
    baseline_plans,
    min_ade,
    next_token,
    open_loop,
)
from foreact.families.driving.evals.plan_pictures import GroundCamera, plan_picture
from foreact.types import Batch

# --- intervals ------------------------------------------------------------------------------------


def test_one_value_per_group_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    ours, theirs = clustered_estimate(values, np.arange(12)), estimate(values)
    for name in ("mean", "low", "high", "n"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name))


def test_copies_of_a_window_do_not_narrow_the_interval() -> None:
    values, groups = np.array([1.0, 2.0, 4.0]), np.array([7, 8, 9])
    once = clustered_estimate(values, groups)
    often = clustered_estimate(values.repeat(50), groups.repeat(50))
    assert (often.mean, often.n) == (pytest.approx(once.mean), 3)
    assert often.high - often.low == pytest.approx(once.high - once.low)


def test_weights_count_like_repetitions() -> None:
    weighted = clustered_estimate([1.0, 5.0, 2.0], [0, 0, 1], weights=[3, 1, 2])
    repeated = clustered_estimate([1.0, 1.0, 1.0, 5.0, 2.0, 2.0], [0, 0, 0, 0, 1, 1])
    assert weighted == repeated


def test_intervals_cover_the_truth_where_windows_of_a_drive_agree() -> None:
    draw = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        drives = draw.normal(size=8)
        values = (drives[:, None] + 0.1 * draw.normal(size=(8, 20))).ravel()
        found = clustered_estimate(values, np.arange(8).repeat(20))
        hits += found.low <= 0.0 <= found.high
    assert 0.91 < hits / 300 < 0.99


def test_bad_values_are_refused() -> None:
    for values, groups in (([], []), ([np.nan], [0]), ([1.0, 2.0], [0])):
        with pytest.raises(UserError):
            clustered_estimate(values, groups)


# --- next token -----------------------------------------------------------------------------------


def tokens_batch(tokens: Tensor, drives: list[int], valid: Tensor | None = None) -> Batch:
    index = torch.tensor([[d, i] for i, d in enumerate(drives)])
    return Batch(
        tokens={"front": tokens}, index=index, valid={} if valid is None else {"front": valid}
    )


def id_as_loss(tokens: Tensor) -> Tensor:
    return tokens.flatten(1)[:, 1:].float()


def test_loss_counts_every_token_alike_whatever_the_batches() -> None:
    tokens = torch.randint(0, 9, (5, 2, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = next_token(id_as_loss, [tokens_batch(tokens, [0, 0, 1, 1, 2])], "front", device="cpu")
    parts = [tokens_batch(tokens[:4], [0, 0, 1, 1]), tokens_batch(tokens[4:], [2])]
    split = next_token(id_as_loss, parts, "front", device="cpu")
    mean = tokens.flatten(1)[:, 1:].float().mean().item()
    for found in (whole, split):
        assert found.loss.mean == pytest.approx(mean)
        assert found.perplexity == pytest.approx(math.exp(mean))
        assert (found.tokens, found.windows, found.loss.n) == (5 * 11, 5, 3)
    assert json.loads(json.dumps(whole.to_json()))["loss"]["unit"] == "nats per token"


def test_frames_beyond_the_episode_do_not_count() -> None:
    tokens = torch.ones(2, 2, 1, 2, dtype=torch.int64)
    tokens[1, 1] = 100
    valid = torch.tensor([[True, True], [True, False]])
    found = next_token(id_as_loss, [tokens_batch(tokens, [0, 1], valid)], "front", device="cpu")
    assert found.loss.mean == pytest.approx(1.0)
    assert found.tokens == 3 + 1


def test_uniform_logits_have_the_perplexity_of_the_vocabulary() -> None:
    def losses(tokens: Tensor) -> Tensor:
        n = tokens[0].numel() - 1
        return torch.full((len(tokens), n), math.log(16385))

    found = next_token(
        losses,
        [tokens_batch(torch.zeros(2, 2, 2, 2, dtype=torch.int64), [0, 1])],
        "front",
        device="cpu",
    )
    assert found.perplexity == pytest.approx(16385)


def test_no_window_and_no_tokens_are_one_sentence() -> None:
    with pytest.raises(UserError, match="no window"):
        next_token(id_as_loss, [], "front", device="cpu")
    with pytest.raises(UserError, match="foreact tokenize"):
        next_token(
            id_as_loss, [Batch(tokens={"back": torch.zeros(1, 1, 1, 2)})], "front", device="cpu"
        )


# --- plans ----------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 4), k=st.integers(1, 5), steps=st.integers(1, 6), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_min_ade_is_the_least_mean_distance(batch, k, steps, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    predicted, truth = (
        torch.randn(batch, k, steps, 2, generator=rng),
        torch.randn(batch, steps, 2, generator=rng),
    )
    error, nearest = min_ade(predicted, truth)
    for b in range(batch):
        each = [
            np.mean(
                [math.dist(p, t) for p, t in zip(path.tolist(), truth[b].tolist(), strict=True)]
            )
            for path in predicted[b]
        ]
        assert error[b].item() == pytest.approx(min(each), rel=1e-5)
        assert nearest[b] == int(np.argmin(each))
    assert min_ade(truth[:, None], truth)[0].abs().max() == 0


def test_paths_of_other_lengths_are_refused() -> None:
    with pytest.raises(UserError, match=r"found \(1, 2, 5, 2\) and \(1, 6, 2\)"):
        min_ade(torch.zeros(1, 2, 5, 2), torch.zeros(1, 6, 2))


class Straight:
    """Plans 1 m per step ahead, sample i shifted by i metres to
    the left; remembers what it was asked.
    """

    def __init__(self) -> None:
        self.commands: list[int] = []

    def act(
        self, tokens: Tensor, commands: Tensor, *, samples: int, steps: int, rng: torch.Generator
    ) -> Tensor:
        self.commands += commands.tolist()
        ahead = torch.arange(1.0, 4.0).expand(len(tokens), samples, 3)
        left = torch.arange(float(samples)).view(1, -1, 1).expand_as(ahead)
        return torch.stack([ahead, left], dim=-1)


def drive(left: list[float], commands: list[int], drives: list[int]) -> Batch:
    n, frames = len(left), 2
    plans = torch.zeros(n, frames, 3, 2)
    plans[:, -1, :, 0] = torch.arange(1.0, 4.0)
    plans[:, -1, :, 1] = torch.tensor(left)[:, None]
    given = torch.zeros(n, frames, dtype=torch.int64)
    given[:, -1] = torch.tensor(commands)
    return Batch(
        tokens={"front": torch.zeros(n, frames, 2, 2, dtype=torch.int64)},
        plans=plans,
        commands=given,
        index=torch.tensor([[d, 10 * i] for i, d in enumerate(drives)]),
    )


def test_min_ade_overall_and_per_command() -> None:
    model = Straight()
    batches = [drive([0.25, 3.0], [2, 0], [0, 0]), drive([2.5], [2], [1])]
    found = open_loop(model, batches, "front", samples=2, device="cpu")
    # Samples lie 0 and 1 m to the left.
    assert found.min_ade.mean == pytest.approx((0.25 + 2.0 + 1.5) / 3)
    assert found.per_command["straight"].mean == pytest.approx((0.25 + 1.5) / 2)
    assert found.per_command["right"].mean == pytest.approx(2.0)
    assert set(found.per_command) == {"straight", "right"}
    assert found.windows == {"straight": 2, "right": 1}
    assert found.min_ade.n == 2
    assert model.commands == [2, 0, 2]
    more = open_loop(model, batches, "front", samples=4, device="cpu")
    assert more.min_ade.mean < found.min_ade.mean


def test_plans_without_a_model_stand_still_or_go_straight_on() -> None:
    plans = torch.zeros(2, 2, 3, 2)
    plans[0, 0, 0] = torch.tensor([3.0, 4.0])  # 5 m since the frame before
    plans[1, 0, 0] = torch.tensor([-2.0, 0.0])  # backwards
    found = baseline_plans(plans)
    assert found["standing still"].tolist() == [[[0.0, 0.0]] * 3] * 2
    assert found["straight on"].tolist() == [
        [[5.0, 0.0], [10.0, 0.0], [15.0, 0.0]],
        [[-2.0, 0.0], [-4.0, 0.0], [-6.0, 0.0]],
    ]
    assert set(baseline_plans(plans[:, -1:])) == {"standing still"}


def test_baselines_stand_beside_the_score() -> None:
    batch = drive([0.0, 0.0], [2, 2], [0, 1])
    assert batch.plans is not None
    batch.plans[0, 0, 0, 0] = 1.0
    batch.plans[1, 0, 0, 0] = 4.0
    found = open_loop(Straight(), [batch], "front", samples=1, device="cpu")
    assert found.baselines["standing still"].mean == pytest.approx((1 + 2 + 3) / 3)
    # 1 m per step is right; 4 m per step is 3, 6 and 9 m off.
    assert found.baselines["straight on"].mean == pytest.approx((0 + 6) / 2)
    assert json.loads(json.dumps(found.to_json()))["baselines"]["straight on"]["n"] == 2


def test_results_and_plans_become_json() -> None:
    found = open_loop(Straight(), [drive([0.0], [1], [5])], "front", samples=2, device="cpu")
    raw = json.loads(json.dumps(found.to_json()))
    assert raw["min_ade"]["unit"] == "m"
    assert "plans" not in raw
    plans = json.loads(json.dumps(found.plans_json()))
    assert plans[0]["episode"] == 5
    assert np.shape(plans[0]["predicted"]) == (2, 3, 2)


def test_examples_come_from_all_drives_and_commands() -> None:
    batch = drive([0.0] * 5, [2, 2, 0, 2, 2], [0, 0, 0, 1, 1])
    found = open_loop(Straight(), [batch], "front", device="cpu", examples=8)
    assert list(found.examples) == [0, 2, 3]
    assert list(open_loop(Straight(), [batch], "front", device="cpu", examples=2).examples) == [
        0,
        2,
    ]


def test_data_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(UserError, match="with trajectories"):
        open_loop(Straight(), [tokens_batch(torch.zeros(1, 1, 1, 1), [0])], "front", device="cpu")
    long = drive([0.0], [2], [0])
    long.plans = torch.zeros(1, 2, 6, 2)
    with pytest.raises(UserError, match=r"\(3, 2\).*\(6, 2\)"):
        open_loop(Straight(), [long], "front", device="cpu")
    with pytest.raises(UserError, match=r"0\.\.2, found 7"):
        open_loop(Straight(), [drive([0.0], [7], [0])], "front", device="cpu")


# --- pictures -------------------------------------------------------------------------------------

FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Camera to car of a camera that looks ahead: z is forward, x is right, y is down."""


def camera() -> GroundCamera:
    intrinsic = np.array([[100.0, 0.0, 80.0], [0.0, 100.0, 45.0], [0.0, 0.0, 1.0]])
    return GroundCamera(
        intrinsic=intrinsic, rotation=FORWARD, position=np.array([1.0, 0.0, 1.5]), size=(90, 160)
    )


def test_points_on_the_road_land_where_geometry_says() -> None:
    points = np.array([[11.0, 0.0], [11.0, 2.0], [-3.0, 0.0]])
    pixels = camera().project(points, (90, 160))
    # 10 m ahead of the camera and 1.5 m below it: 100 * 1.5 / 10 below the centre; 2 m left: 100 *
    #     2 / 10 left of it.
    np.testing.assert_allclose(pixels[:2], [[80.0, 60.0], [60.0, 60.0]])
    assert np.isnan(pixels[2]).all()
    np.testing.assert_allclose(camera().project(points[:1], (45, 80)), [[40.0, 30.0]])


def test_a_calibration_is_read_from_json(tmp_path: Path) -> None:
    known = camera()
    raw = {
        "intrinsic": known.intrinsic.tolist(),
        "sensor_to_ego_rot": [0.5, -0.5, 0.5, -0.5],
        "sensor_to_ego_tran": known.position.tolist(),
        "size": [90, 160],
    }
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(raw))
    np.testing.assert_allclose(GroundCamera.read(path).rotation, FORWARD, atol=1e-12)
    path.write_text(json.dumps({**raw, "size": 3}))
    with pytest.raises(UserError, match="should be JSON with intrinsic"):
        GroundCamera.read(path)


def test_paths_are_drawn_from_above_and_on_the_frame() -> None:
    path = np.stack([np.linspace(4, 20, 6), np.zeros(6)], axis=1)
    plan = Plan(path[None] + [0, 0.5], path, 2, 3, 40)
    frame = np.zeros((90, 160, 3), np.uint8)
    on_frame, beside = (
        np.asarray(plan_picture(plan, frame, c)).astype(int) for c in (camera(), None)
    )
    assert on_frame.shape == beside.shape
    left = on_frame.shape[1] // 2
    assert np.abs(on_frame - beside)[:, :left].sum() > 0, (
        "only with a camera do paths show on the frame"
    )
    above = plan_picture(plan)
    assert above.width < on_frame.shape[1]
    assert len(np.unique(np.asarray(above).reshape(-1, 3), axis=0)) > 3
