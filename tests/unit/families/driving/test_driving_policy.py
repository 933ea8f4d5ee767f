from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_driver import SIZE, BrightnessTokenizer
from support.tiny_vavam import ACTION, VIDEO, tiny_vavam
from torch.nn.functional import interpolate

from foreact.errors import UserError
from foreact.families.driving.policy import (
    CAMERA_SIZE,
    DrivingOptions,
    DrivingPolicy,
    acting_spec,
    fit_frames,
    medoid,
)
from foreact.types import ActionChunk, Observation, StreamSpec, to_model_range

FRAMES, HORIZON = VIDEO.frames, ACTION.expert.horizon


def policy(**options: Any) -> DrivingPolicy:
    """`options` are those of `DrivingOptions`, where they are
    among them, and else of the policy.
    """
    tokenizer = options.pop("tokenizer", None) or BrightnessTokenizer()
    chosen = {f.name: options.pop(f.name) for f in fields(DrivingOptions) if f.name in options}
    return DrivingPolicy(
        tiny_vavam(), tokenizer, acting_spec(SIZE), DrivingOptions(**chosen), **options
    )


def look(*pictures: np.ndarray, command: int = 2) -> Observation:
    return Observation(
        {"front": np.stack(pictures)}, {"command": np.full((len(pictures), 1), command, np.float32)}
    )


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of plain brightness, so that each has tokens of its own."""
    levels = np.random.default_rng(seed).permutation(256)[:n]
    return [np.full((*SIZE, 3), level, np.uint8) for level in levels]


def drive(
    driver: DrivingPolicy, frames: list[np.ndarray], seed: int = 1, command: int = 2
) -> list[np.ndarray]:
    driver.reset([seed])
    plans = []
    for frame in frames:
        driver.observe(look(frame, command=command))
        plans.append(driver.act().actions[0])
    return plans


# --- what a plan depends on -----------------------------------------------------------------------


def test_a_plan_is_what_the_model_makes_of_the_newest_frames_and_the_newest_command() -> None:
    tokenizer, frames = BrightnessTokenizer(), pictures(FRAMES + 2)
    noise = torch.randn(1, HORIZON, 2, generator=torch.Generator().manual_seed(7))
    driver = policy(tokenizer=tokenizer, noise=lambda seed, step: noise)
    driver.reset([0])
    for i, frame in enumerate(frames):
        driver.observe(look(frame, command=(i + 2) % 3))
    video = to_model_range(torch.from_numpy(np.stack(frames[-FRAMES:]))).permute(0, 3, 1, 2)
    expected = tiny_vavam().act(
        BrightnessTokenizer().encode(video[None]),
        torch.tensor([(len(frames) + 1) % 3]),
        noise=noise[None],
    )
    chunk = driver.act()
    np.testing.assert_allclose(chunk.actions, expected[:, 0].numpy(), rtol=1e-5, atol=1e-4)
    assert (chunk.t0, chunk.execute, chunk.actions.dtype) == (len(frames) - 1, 1, np.float32)


def test_a_model_that_says_how_to_act_is_asked_that_way() -> None:
    frames = pictures(FRAMES)
    noise = torch.randn(1, HORIZON, 2, generator=torch.Generator().manual_seed(7))
    model = tiny_vavam(replace(ACTION, context=2, steps=3, clip=1.5))
    driver = DrivingPolicy(
        model, BrightnessTokenizer(), acting_spec(SIZE), noise=lambda seed, step: noise
    )
    plan = drive(driver, frames)[-1]
    video = to_model_range(torch.from_numpy(np.stack(frames[-2:]))).permute(0, 3, 1, 2)
    tokens, straight = BrightnessTokenizer().encode(video[None]), torch.tensor([2])
    expected = tiny_vavam().act(tokens, straight, noise=noise[None], steps=3, clip=1.5)
    np.testing.assert_allclose(plan, expected[0, 0].numpy(), rtol=1e-5, atol=1e-4)
    assert driver.describe()["context"] == 2


def test_every_frame_is_tokenized_once() -> None:
    tokenizer = BrightnessTokenizer()
    drive(policy(tokenizer=tokenizer), pictures(7))
    assert tokenizer.frames == 7


def test_frames_that_left_the_window_are_forgotten() -> None:
    same = pictures(FRAMES, seed=1)
    long, short = pictures(4, seed=2) + same, pictures(4, seed=3) + same
    a, b = drive(policy(), long), drive(policy(), short)
    np.testing.assert_array_equal(a[-1], b[-1])
    assert not np.array_equal(a[-2], b[-2])


def test_a_reset_forgets() -> None:
    driver, frames = policy(), pictures(4)
    first = drive(driver, frames)
    np.testing.assert_array_equal(drive(driver, frames), first)


def test_a_fresh_policy_shares_the_network_and_no_memory() -> None:
    driver, frames = policy(samples=2), pictures(3)
    driver.reset([1])
    driver.observe(look(frames[0]))
    before = driver.act().actions
    other = driver.fresh()
    assert other.model is driver.model
    with pytest.raises(ValueError, match=r"call reset\(seeds\) first"):
        other.act()
    drive(other, frames, seed=9)
    np.testing.assert_array_equal(driver.act().actions, before)


def test_the_command_steers() -> None:
    frames = pictures(1)
    assert not np.array_equal(
        drive(policy(), frames, command=0), drive(policy(), frames, command=1)
    )


# --- randomness -----------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_step_and_not_on_who_drives_beside() -> None:
    frames = pictures(3)
    alone = {seed: drive(policy(), frames, seed=seed) for seed in (5, 6)}
    assert not np.array_equal(alone[5][0], alone[6][0])
    together = policy()
    together.reset([6, 5])
    for step, frame in enumerate(frames):
        together.observe(look(frame, frame))
        both = together.act().actions
        np.testing.assert_allclose(both[0], alone[6][step], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(both[1], alone[5][step], rtol=1e-4, atol=1e-3)


def test_each_step_draws_anew() -> None:
    frame = pictures(1)[0]
    plans = drive(policy(), [frame] * (FRAMES + 1))  # the window looks alike at the last two steps
    assert not np.array_equal(plans[-1], plans[-2])


def test_episodes_may_end_one_by_one() -> None:
    driver, (a, b) = policy(), pictures(2)
    driver.reset([1, 2])
    driver.observe(look(a, b))
    both = driver.act()
    driver.observe(look(b), ids=[1])
    assert driver.act(ids=[1]).t0 == 1
    np.testing.assert_allclose(driver.act(ids=[0]).actions, both.actions[:1], rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"one and the same step; these are at \[0, 1\]"):
        driver.act()


# --- several plans --------------------------------------------------------------------------------


def test_first_and_medoid_choose_among_the_same_plans() -> None:
    frame = pictures(1)[0]
    found: dict[str, ActionChunk] = {}
    for choose in ("first", "medoid"):
        driver = policy(samples=9, choose=choose)
        driver.reset([3])
        driver.observe(look(frame))
        found[choose] = driver.act()
        plans = driver.plans()
        assert plans.shape == (1, 9, HORIZON, 2)
        assert (plans[0] == torch.from_numpy(found[choose].actions)).all(dim=(1, 2)).any()
        index = 0 if choose == "first" else int(medoid(plans)[0])
        np.testing.assert_array_equal(found[choose].actions[0], plans[0, index].numpy())
    assert not np.array_equal(found["first"].actions, found["medoid"].actions)


def test_the_medoid_is_the_plan_amid_the_others() -> None:
    straight = torch.stack([torch.arange(1.0, 7.0), torch.zeros(6)], dim=1)
    sideways = torch.tensor([-9.0, -1.0, 0.1, 1.0, 2.0])
    plans = straight + torch.stack([torch.zeros(5), sideways], dim=1)[:, None]
    assert medoid(plans[None]).tolist() == [2]


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**31))
def test_the_medoid_agrees_with_its_definition(rows: int, k: int, seed: int) -> None:
    plans = torch.randn(rows, k, 3, 2, generator=torch.Generator().manual_seed(seed))
    for row, found in zip(plans.numpy(), medoid(plans).tolist(), strict=True):
        total = [sum(np.linalg.norm(a - b, axis=-1).mean() for b in row) for a in row]
        assert total[found] == pytest.approx(min(total), abs=1e-5)


def test_clip_and_bfloat16_do_what_they_say() -> None:
    frame = pictures(1)
    exact = np.array(drive(policy(), frame))
    limit = float(np.abs(exact).max()) / 2
    np.testing.assert_allclose(
        drive(policy(clip=limit), frame), exact.clip(-limit, limit), rtol=1e-6
    )
    rough = np.array(drive(policy(precision="bf16"), frame))
    assert 0 < np.abs(rough - exact).max() < 0.2 * np.abs(exact).max()


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_take_the_cameras_size_before_the_models() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 9, 16, 3), np.uint8)
    x = torch.from_numpy(raw).permute(0, 3, 1, 2).float()
    for size in (CAMERA_SIZE, SIZE):
        x = interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True).round()
    found = fit_frames(raw, SIZE)
    assert found.dtype == torch.uint8
    assert (found.float() - x).abs().max() <= 1  # uint8 weights are rounded too
    direct = interpolate(
        torch.from_numpy(raw).permute(0, 3, 1, 2), size=SIZE, mode="bilinear", antialias=True
    )
    assert not torch.equal(found, direct)


def test_pictures_of_the_models_size_stay_as_they_are_even_mirrored_or_read_only() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    np.testing.assert_array_equal(fit_frames(raw, SIZE).permute(0, 2, 3, 1).numpy(), raw)
    np.testing.assert_array_equal(
        fit_frames(raw[..., ::-1], SIZE).permute(0, 2, 3, 1).numpy(), raw[..., ::-1]
    )
    raw.flags.writeable = False
    np.testing.assert_array_equal(fit_frames(raw, SIZE).permute(0, 2, 3, 1).numpy(), raw)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        (
            Observation({"rear": np.zeros((1, 4, 4, 3), np.uint8)}),
            r"watches camera 'front'; the observation has",
        ),
        (look(np.zeros((4, 4, 3), np.float32)), r"should be uint8 \(1, H, W, 3\), found float32"),
        (
            look(np.zeros((4, 4), np.uint8)),
            r"should be uint8 \(1, H, W, 3\), found uint8 \(1, 4, 4\)",
        ),
        (look(np.zeros((0, 4, 3), np.uint8)), r"should be uint8 \(1, H, W, 3\)"),
        (look(*[np.zeros((4, 4, 3), np.uint8)] * 2), r"one RGB picture per running episode"),
        (
            look(pictures(1)[0], command=3),
            r"whole numbers in 0\.\.2, found shape \(1, 1\) with \[3\.0\]",
        ),
        (
            Observation({"front": np.zeros((1, *SIZE, 3), np.uint8)}),
            r"state 'command' of shape \(1, 1\)",
        ),
    ],
)
def test_a_refused_observation_leaves_no_trace(observation: Observation, sentence: str) -> None:
    frames = pictures(2)
    expected = drive(policy(), frames)
    driver = policy()
    driver.reset([1])
    driver.observe(look(frames[0]))
    with pytest.raises(UserError, match=sentence):
        driver.observe(observation)
    driver.observe(look(frames[1]))
    np.testing.assert_array_equal(driver.act().actions[0], expected[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, r"samples \(0\) and steps \(10\) must be at least 1"),
        ({"steps": 0}, r"samples \(1\) and steps \(0\) must be at least 1"),
        ({"execute": 4}, r"execute is 4; the model plans 3 waypoints"),
        (
            {"tokenizer": BrightnessTokenizer(vocab=51)},
            r"reads 50 token ids, the tokenizer has 51 ids",
        ),
        ({"tokenizer": BrightnessTokenizer(vocab=None)}, r"the tokenizer has continuous latents"),
    ],
)
def test_impossible_settings(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        policy(**options)


def test_a_spec_of_something_else_is_refused() -> None:
    for spec, sentence in (
        (
            replace(acting_spec(SIZE), cameras={"rear": SIZE}),
            r"watches camera 'front'; the spec knows \['rear'\]",
        ),
        (StreamSpec(cameras={"front": SIZE}, fps=2.0), r"the spec has no actions"),
    ):
        with pytest.raises(UserError, match=sentence):
            DrivingPolicy(tiny_vavam(), BrightnessTokenizer(), spec)


def test_a_tokenizer_of_another_grid_is_refused() -> None:
    driver = policy(tokenizer=BrightnessTokenizer(grid=(3, 3)))
    driver.reset([0])
    with pytest.raises(UserError, match=r"reads 2 x 3 tokens per frame, the tokenizer gives 3 x 3"):
        driver.observe(look(pictures(1)[0]))


def test_acting_needs_an_episode_and_a_frame() -> None:
    driver = policy()
    with pytest.raises(ValueError, match=r"call reset\(seeds\) first"):
        driver.act()
    driver.reset([0])
    with pytest.raises(ValueError, match=r"these are at \[-1\]"):
        driver.act()


def test_describe_names_what_belongs_beside_a_score() -> None:
    facts = policy(samples=5, choose="medoid", weights="sha256:1").describe()
    assert (
        facts.items()
        >= {
            "context": FRAMES,
            "horizon": HORIZON,
            "samples": 5,
            "choose": "medoid",
            "weights": "sha256:1",
        }.items()
    )
