"""A policy whose model reads the robot's own state: which steps, which dimensions, which units."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.toy_world import SPEC

from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.uva.model import UVA, Question, UVAConfig
from foreact.families.uva.policy import UVAOptions, UVAPolicy
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.types import Observation, Seen

STATED = dataclasses.replace(SPEC, state={"body": ("x", "y", "secret")})
STATS = Normalizer.fit(
    {
        "action": np.array([[-1.0], [3.0]], np.float32),
        "body": np.array([[0.0, 0, 0], [10, 10, 10]], np.float32),
    }
)


def reading_policy(monkeypatch: pytest.MonkeyPatch) -> tuple[UVAPolicy, list[torch.Tensor]]:
    torch.manual_seed(0)
    size = STATED.cameras["img"]
    vae = KLVAE(
        KLVAEConfig(
            channels=8,
            multipliers=(1, 1),
            blocks=1,
            latent_channels=2,
            norm_groups=4,
            image_size=size,
        )
    )
    config = UVAConfig(
        latent_channels=2,
        grid=vae.grid,
        patch=vae.grid[0] // 2,
        frames=2,
        horizon=8,
        action_dim=1,
        width=16,
        depth=1,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        head="flow",
        action_sampling_steps="2",
        video_sampling_steps="2",
        video_head_width=8,
        video_head_depth=1,
        action_head_width=8,
        action_head_depth=1,
        proprioception={"body": 2},
        proprioception_steps=2,
    )
    model = UVA(config)
    seen: list[torch.Tensor] = []
    sample = model.sample

    def spy(question: Question, *how: Any, rng: Any) -> Any:
        seen.append(question.proprioception["body"])
        return sample(question, *how, rng=rng)

    monkeypatch.setattr(model, "sample", spy)
    return UVAPolicy(model, vae, STATS, STATED, UVAOptions(batch_size=2)), seen


def observation(level: float) -> Observation:
    frame = np.zeros((1, *STATED.cameras["img"], 3), np.uint8)
    return Observation(
        cameras={"img": frame}, state={"body": np.array([[level, level, 9.0]], np.float32)}
    )


def test_the_model_reads_past_and_present_state_normalised_and_no_more_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, seen = reading_policy(monkeypatch)
    assert policy.state_offsets == [-4, 0]
    policy.reset([5])
    for step in range(7):
        policy.observe(observation(float(step)))
    policy.act()
    assert seen[-1].shape == (2, 2, 2)  # a full batch, two steps, two of three dimensions
    np.testing.assert_allclose(seen[-1][0], [[2 / 5 - 1] * 2, [6 / 5 - 1] * 2], atol=1e-6)


def test_before_the_episode_its_first_state_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = reading_policy(monkeypatch)
    policy.reset([5])
    policy.observe(observation(3.0))
    policy.act()
    np.testing.assert_allclose(seen[-1][0, 0], seen[-1][0, 1])


def imagine(
    policy: UVAPolicy, frames: np.ndarray, state: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    seen = Seen(frames={"img": frames}, state=state)
    return policy.predict_video(seen, rng=torch.Generator().manual_seed(0))


def test_missing_state_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = reading_policy(monkeypatch)
    policy.reset([5])
    with pytest.raises(UserError, match="'body'"):
        policy.observe(
            Observation(cameras={"img": np.zeros((1, *STATED.cameras["img"], 3), np.uint8)})
        )
    frames = np.zeros((1, 2, *STATED.cameras["img"], 3), np.uint8)
    with pytest.raises(UserError, match="'body'"):
        imagine(policy, frames, {"soul": np.zeros((1, 2, 3), np.float32)})
    given = imagine(policy, frames, {"body": np.zeros((1, 2, 3), np.float32)})
    assert given["img"].shape == imagine(policy, frames, {})["img"].shape == frames.shape
