from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.toy_world import SPEC, ToyWorld
from torch import Tensor, nn

from foreact.checkpoints.format import save_checkpoint
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop
from foreact.families.uva.config import UVAConfig
from foreact.families.uva.model import UVA, Question, Sampling
from foreact.families.uva.opening import open_policy
from foreact.families.uva.policy import UVAOptions, UVAPolicy
from foreact.policies.baselines import DoNothing, RandomPolicy
from foreact.policies.memory import generator_for
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.types import Observation, Seen, StreamSpec

STATS = Normalizer.fit({"action": np.array([[-1.0], [3.0]], dtype=np.float32)})
"""Maps -1..3 to -1..1, so that normalised and plain actions
differ, and the spec's bounds (-2..2) cut.
"""


class FlatTokenizer(nn.Module):
    """One latent per frame: its mean brightness in [-1, 1]. Counts what it encodes."""

    vocab = None
    grid: tuple[int, int] = (1, 1)

    def __init__(self, size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=size, posterior="mean", latent_channels=1)
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        assert tuple(video.shape[3:]) == self.config.image_size
        self.sizes.append(tuple(video.shape[:2]))
        return video.mean(dim=(2, 3, 4))[:, :, None, None, None]

    def decode(self, z: Tensor) -> Tensor:
        return z.expand(-1, -1, 3, *self.config.image_size).clamp(-1, 1)


class EchoModel(nn.Module):
    """Plans the brightness of its context frames, imagines what it was told; keeps the calls."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.config = UVAConfig(frames=4, horizon=4, action_dim=1, latent_channels=1, grid=(1, 1))
        self.noise = noise
        self.calls: list[Question] = []
        self.modes: list[bool] = []

    def sample(
        self, question: Question, sampling: Sampling, *, rng: Sequence[torch.Generator]
    ) -> SimpleNamespace:
        assert len(rng) == len(question.context)
        self.calls.append(question)
        self.modes.append(self.training)
        draws = torch.stack([torch.randn(4, generator=g) for g in rng])
        frames = question.context[:, :, 0, 0, 0]
        if question.future is not None:
            frames = question.future[:, :, 0, 0, 0]
        if question.actions is not None:
            frames = question.actions[:, :, 0]
        frames = frames + self.noise * draws
        return SimpleNamespace(
            latents={"img": frames[:, :, None, None, None]}, actions=frames[:, :, None]
        )


def policy_of(model: EchoModel, tokenizer: FlatTokenizer, *rest: Any, **settings: Any) -> UVAPolicy:
    return UVAPolicy(cast(UVA, model), cast(KLVAE, tokenizer), STATS, *rest, **settings)


def echo(**options: Any) -> tuple[UVAPolicy, EchoModel, FlatTokenizer]:
    model, tokenizer = (
        EchoModel(options.pop("noise", 0.0)),
        FlatTokenizer(options.pop("size", (16, 16))),
    )
    execute = options.pop("execute", 3)
    settings = UVAOptions(**{"batch_size": 4, **options})
    policy = policy_of(model, tokenizer, SPEC, settings, execute=execute)
    return policy, model, tokenizer


def frames_of(*levels: int) -> np.ndarray:
    """(B, 16, 16, 3) flat pictures."""
    return np.stack([np.full((16, 16, 3), level, dtype=np.uint8) for level in levels])


def see(policy: UVAPolicy, *levels: int, ids: Sequence[int] | None = None) -> None:
    policy.observe(Observation(cameras={"img": frames_of(*levels)}), ids)


def brightness(level: float) -> float:
    return level / 127.5 - 1.0


# --- history --------------------------------------------------------------------------------------


def test_context_is_a_stride_apart_and_starts_with_the_oldest_frame() -> None:
    policy, model, _ = echo(context_stride=2)
    policy.reset([1])
    expected = {0: [0, 0, 0, 0], 1: [0, 0, 0, 1], 5: [0, 1, 3, 5], 6: [0, 2, 4, 6], 9: [3, 5, 7, 9]}
    for step in range(10):
        see(policy, 10 * step)
        if step in expected:
            chunk = policy.act()
            assert chunk.t0 == step
            found = model.calls[-1].context[0, :, 0, 0, 0]
            np.testing.assert_allclose(
                found, [brightness(10 * s) for s in expected[step]], atol=1e-5
            )


def test_frames_are_encoded_once_and_only_when_needed() -> None:
    policy, _, tokenizer = echo(context_stride=4, execute=4, batch_size=2)
    policy.reset([1, 2])
    calls = []
    for step in range(25):
        see(policy, step, 2 * step)
        if step % 4 == 0:
            policy.act()
            calls.append(len(tokenizer.sizes))
    # One new frame per plan and episode, both in one call: what the plans before used is still
    #     known.
    assert np.diff(calls).tolist() == [1] * 6
    assert calls[0] == 1
    assert set(tokenizer.sizes) == {(2, 1)}


def test_memory_stays_bounded() -> None:
    policy, _, _ = echo(context_stride=2)
    policy.reset([1])
    for step in range(50):
        see(policy, step)
        policy.act()
    (episode,) = policy._memory.episodes(None)
    assert len(episode.frames) == len(episode.latents) == 7


def test_inputs_are_copied_not_kept_or_changed() -> None:
    policy, model, _ = echo()
    policy.reset([1])
    frames = frames_of(100)
    before = frames.copy()
    policy.observe(Observation(cameras={"img": frames}))
    frames[:] = 0
    policy.act()
    assert model.calls[-1].context[0, -1, 0, 0, 0] == pytest.approx(brightness(100), abs=1e-5)
    assert (before == 100).all()


def test_finished_episodes_drop_out_by_their_numbers() -> None:
    policy, _, _ = echo()
    policy.reset([1, 2, 3])
    see(policy, 10, 20, 30)
    policy.act()
    for step in range(3):
        see(policy, 40 + step, 60 + step, ids=[0, 2])
    chunk = policy.act([2, 0])
    assert chunk.t0 == 3
    assert chunk.actions.shape == (2, 4, 1)
    # The last planned value echoes the newest frame: of episode 2 first.
    np.testing.assert_allclose(
        chunk.actions[:, -1, 0], [1 + 2 * brightness(62), 1 + 2 * brightness(42)], atol=1e-5
    )
    with pytest.raises(ValueError, match="one and the same step"):
        policy.act()


# --- plans ----------------------------------------------------------------------------------------


def test_plans_are_in_the_units_and_bounds_of_the_environment() -> None:
    policy, _, _ = echo()
    policy.reset([1, 2])
    see(policy, 128, 255)
    chunk = policy.act()
    assert chunk.execute == 3
    assert chunk.actions.dtype == np.float32
    # 1 + 2 * x undoes the normaliser; 255 would mean 3, outside of the bounds.
    np.testing.assert_allclose(chunk.actions[:, 0, 0], [1 + 2 * brightness(128), 2.0], atol=1e-5)


def test_draws_depend_on_seed_and_step_alone() -> None:
    def plans(seeds: list[int]) -> dict[int, np.ndarray]:
        policy, _, _ = echo(noise=0.5)
        policy.reset(seeds)
        found = []
        for step in range(3):
            see(policy, *[100 + step] * len(seeds))
            found.append(policy.act().actions)
        return {seed: np.stack([f[row] for f in found]) for row, seed in enumerate(seeds)}

    together, turned, alone = plans([5, 6, 7, 8, 9]), plans([9, 8, 7, 6, 5]), plans([7])
    for seed, values in together.items():
        np.testing.assert_array_equal(values, turned[seed])
    np.testing.assert_array_equal(together[7], alone[7])
    assert not np.allclose(together[5], together[6])
    assert not np.allclose(together[5][0], together[5][1])


def test_every_network_call_has_the_same_number_of_rows() -> None:
    policy, model, tokenizer = echo(batch_size=4)
    policy.reset(range(6))
    see(policy, *range(6))
    policy.act()
    policy.act([1])
    assert [len(c.context) for c in model.calls] == [4, 4, 4]
    assert {size[0] for size in tokenizer.sizes} == {4}


def test_a_model_in_training_is_used_in_evaluation_and_given_back() -> None:
    policy, model, tokenizer = echo()
    model.train()
    tokenizer.eval()
    policy.reset([1])
    see(policy, 3)
    policy.act()
    assert model.modes == [False]
    assert model.training
    assert not tokenizer.training


def test_generators_differ_by_every_part_of_their_key() -> None:
    keys = [(1, 2), (2, 1), (1, 2, 0, 1), (3,), (-1, 0), (2**64 - 2, 0)]
    draws = [torch.rand((), generator=generator_for(*k)).item() for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == torch.rand((), generator=generator_for(1, 2)).item()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"execute": 5}, "plans 4 actions"),
        ({"execute": 0}, "plans 4"),
        ({"batch_size": 0}, "at least 1"),
        ({"context_stride": 0}, "at least 1"),
        ({"steps": 0}, "step"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        echo(**settings)


def test_unfit_parts_are_refused() -> None:
    model, tokenizer = EchoModel(), FlatTokenizer()
    blind = StreamSpec(cameras={"front": (16, 16)}, fps=10.0, action=SPEC.action)
    idle = StreamSpec(cameras=SPEC.cameras, fps=10.0)
    for spec, match in ((blind, "camera 'img'"), (idle, "no actions")):
        with pytest.raises(UserError, match=match):
            policy_of(model, tokenizer, spec)
    for changed, match in (
        ({"grid": (2, 2)}, "tokenizer it was trained with"),
        ({"action_dim": 2}, "2 action dims"),
        ({"text_dim": 512}, "give the features of its instructions"),
        ({"wrist_camera": "wrist"}, r"watches camera 'wrist'; the spec knows \['img'\]"),
    ):
        model.config = dataclasses.replace(EchoModel().config, **changed)
        with pytest.raises(UserError, match=match):
            policy_of(model, tokenizer, SPEC, execute=3)


def test_the_stride_follows_from_the_horizon() -> None:
    model = EchoModel()
    model.config = dataclasses.replace(model.config, horizon=12, grid=(2, 2))
    tokenizer = FlatTokenizer()
    tokenizer.grid = (2, 2)
    policy = policy_of(model, tokenizer, SPEC)
    assert policy.context_stride == 3
    assert policy.offsets == [-9, -6, -3, 0]
    assert echo(context_stride=5)[0].offsets == [-15, -10, -5, 0]


def test_unlike_observations_are_refused() -> None:
    policy, _, _ = echo()
    with pytest.raises(ValueError, match="reset"):
        see(policy, 3)
    policy.reset([1, 2])
    with pytest.raises(UserError, match=r"\(2, 16, 16, 3\)"):
        see(policy, 3)
    with pytest.raises(UserError, match="uint8"):
        policy.observe(Observation(cameras={"img": frames_of(1, 2).astype(np.float32)}))
    with pytest.raises(UserError, match="camera 'img'"):
        policy.observe(Observation(cameras={"front": frames_of(1, 2)}))
    with pytest.raises(ValueError, match="one and the same step"):
        policy.act()


# --- world model ----------------------------------------------------------------------------------


def window(*levels: int) -> np.ndarray:
    """(B, 4, 24, 20, 3): rows of four flat frames, larger than the tokenizer's pictures."""
    rows = [
        [np.full((24, 20, 3), level + step, dtype=np.uint8) for step in range(4)]
        for level in levels
    ]
    return np.array(rows)


def seen(frames: np.ndarray) -> Seen:
    return Seen(frames={"img": frames})


def test_imagined_frames_come_back_in_the_size_they_went_in() -> None:
    policy, model, _ = echo()
    frames = window(50, 100, 150, 200, 210)
    before = frames.copy()
    found = policy.predict_video(seen(frames), rng=torch.Generator().manual_seed(0))["img"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, frames)
    np.testing.assert_array_equal(frames, before)
    assert {c.mode for c in model.calls} == {"video"}


def test_dynamics_is_given_normalised_actions() -> None:
    policy, model, _ = echo()
    actions = np.array([[[-1.0], [0.0], [1.0], [3.0]]], dtype=np.float64)
    rng = torch.Generator().manual_seed(0)
    found = policy.predict_dynamics(seen(window(90)), actions, rng=rng)["img"]
    assert model.calls[-1].actions is not None
    np.testing.assert_allclose(model.calls[-1].actions[0, :, 0], [-1.0, -0.5, 0.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(found[0, :, 0, 0, 0], [0, 64, 128, 255])


def test_inverse_reads_the_future_and_answers_in_units() -> None:
    policy, model, _ = echo()
    found = policy.predict_inverse(
        seen(window(90, 20)), {"img": window(100, 30)}, rng=torch.Generator().manual_seed(0)
    )
    assert model.calls[-1].mode == "inverse"
    expected = [[1 + 2 * brightness(level + step) for step in range(4)] for level in (100, 30)]
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-4)


def test_a_row_of_a_prediction_does_not_depend_on_later_rows() -> None:
    policy, _, _ = echo(noise=0.3)
    frames = window(50, 100, 150, 200, 120)
    five, two, other = (
        policy.predict_video(seen(part), rng=torch.Generator().manual_seed(seed))["img"]
        for part, seed in ((frames, 3), (frames[:2], 3), (frames[:2], 4))
    )
    np.testing.assert_array_equal(five[:2], two)
    assert (two != other).any()


def test_unlike_windows_are_refused() -> None:
    policy, _, _ = echo()
    rng = torch.Generator()
    for frames in (
        window(1)[:, :3],
        window(1)[0],
        window(1).astype(np.float32),
        window(1)[..., :1],
    ):
        with pytest.raises(UserError, match="uint8"):
            policy.predict_video(seen(frames), rng=rng)
    with pytest.raises(UserError, match=r"should have the cameras \['img'\], found \['other'\]"):
        policy.predict_video(Seen(frames={"other": window(1)}), rng=rng)
    with pytest.raises(UserError, match="no row"):
        policy.predict_video(seen(window(1)[:0]), rng=rng)
    with pytest.raises(UserError, match=r"\(1, 4, 1\)"):
        policy.predict_dynamics(seen(window(1)), np.zeros((1, 3, 1)), rng=rng)
    with pytest.raises(UserError, match="finite"):
        policy.predict_dynamics(seen(window(1)), np.full((1, 4, 1), np.nan), rng=rng)
    with pytest.raises(UserError, match="one future per context"):
        policy.predict_inverse(seen(window(1)), {"img": window(1, 2)}, rng=rng)


# --- baselines ------------------------------------------------------------------------------------


def test_doing_nothing_holds_the_present_position() -> None:
    policy = DoNothing(SPEC, execute=2)
    policy.reset([1, 2])
    state = np.array([[0.3, 0.0], [0.6, 0.0]], dtype=np.float32)
    policy.observe(Observation(cameras={}, state={"state": state}))
    state[:] = 9
    chunk = policy.act()
    assert (chunk.execute, chunk.t0) == (2, 0)
    np.testing.assert_allclose(
        chunk.actions, np.array([0.3, 0.6])[:, None, None].repeat(2, axis=1), atol=1e-6
    )


def test_doing_nothing_is_zero_for_deltas_and_needs_a_position_otherwise() -> None:
    assert SPEC.action is not None
    fields = {
        k: getattr(SPEC.action, k) for k in ("names", "units", "frame", "rate_hz", "low", "high")
    }
    delta = StreamSpec(cameras={}, fps=10.0, action=type(SPEC.action)(mode="delta", **fields))
    policy = DoNothing(delta, execute=3)
    policy.reset([1])
    policy.observe(Observation(cameras={}))
    np.testing.assert_array_equal(policy.act().actions, np.zeros((1, 3, 1)))
    with pytest.raises(UserError, match="agent_x"):
        DoNothing(StreamSpec(cameras={}, fps=10.0, action=SPEC.action))


def test_random_draws_fill_the_bounds_and_hold_still() -> None:
    policy = RandomPolicy(SPEC, execute=4)
    policy.reset(range(400))
    policy.observe(Observation(cameras={}))
    actions = policy.act().actions
    assert (actions == actions[:, :1]).all()
    assert actions.min() >= -2
    assert actions.max() <= 2
    assert abs(actions[:, 0].mean()) < 0.2
    assert actions[:, 0].std() == pytest.approx(4 / np.sqrt(12), rel=0.1)
    policy.observe(Observation(cameras={}))
    assert (policy.act().actions[:, 0] != actions[:, 0]).all()


def test_random_needs_bounds() -> None:
    assert SPEC.action is not None
    fields = {k: getattr(SPEC.action, k) for k in ("names", "units", "frame", "mode", "rate_hz")}
    with pytest.raises(UserError, match="add low and high"):
        RandomPolicy(StreamSpec(cameras={}, fps=10.0, action=type(SPEC.action)(**fields)))


# --- with the real networks -----------------------------------------------------------------------

VAE = KLVAEConfig(
    channels=8,
    multipliers=(1, 1, 2),
    blocks=1,
    latent_channels=4,
    norm_groups=4,
    image_size=(16, 16),
    attention_resolutions=(),
)


def real_policy(batch_size: int = 4, vae: KLVAEConfig = VAE) -> UVAPolicy:
    torch.manual_seed(0)
    model, tokenizer = UVA(tiny_uva()), KLVAE(vae)
    # Untrained heads start at zero and would plan noise alone.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    options = UVAOptions(context_stride=2, steps=3, batch_size=batch_size)
    return UVAPolicy(model, tokenizer, STATS, SPEC, options, execute=3)


def tiny_uva() -> UVAConfig:
    return UVAConfig(
        camera="img",
        latent_channels=4,
        grid=(4, 4),
        frames=4,
        horizon=8,
        action_dim=1,
        width=32,
        decoder_width=32,
        depth=1,
        decoder_depth=1,
        heads=2,
        decoder_heads=2,
        video_head_depth=1,
        video_head_width=32,
        action_head_depth=1,
        action_head_width=32,
    )


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_scores_of_the_real_model_do_not_depend_on_company(posterior: Any) -> None:
    vae = KLVAEConfig(**{**vars(VAE), "posterior": posterior})
    seeds = [3, 4, 5, 6, 7, 8]

    def scores(seeds: list[int]) -> dict[int, tuple[float, int]]:
        found = closed_loop(
            "support.toy_world:make_toy", real_policy(vae=vae), seeds, workers=0, progress=False
        )
        return {e.seed: (e.score, e.steps) for e in found.episodes}

    together = scores(seeds)
    assert together == scores(seeds[::-1])
    for seed in seeds[:3]:
        assert scores([seed]) == {seed: together[seed]}
    assert len(set(together.values())) > 1


def test_the_toy_world_tells_the_smallest_difference() -> None:
    """Otherwise the test above would pass whatever the numbers."""
    ends = []
    for nudge in (0.5, 0.5 + 1e-6):
        world = ToyWorld()
        world.reset(3)
        ends.append([world.step(np.array([nudge])).reward for _ in range(40)])
    assert abs(ends[0][-1] - ends[1][-1]) > 1e-3


def test_real_predictions_have_the_right_shapes() -> None:
    policy = real_policy()
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    rng = torch.Generator().manual_seed(0)
    known, actions = seen(frames), np.zeros((2, 8, 1))
    assert policy.predict_video(known, rng=rng, iterations=2)["img"].shape == frames.shape
    assert policy.predict_dynamics(known, actions, rng=rng)["img"].shape == frames.shape
    actions = policy.predict_inverse(known, {"img": frames}, rng=rng)
    assert actions.shape == (2, 8, 1)
    assert np.isfinite(actions).all()


def test_a_policy_loads_from_its_checkpoint(tmp_path: Path) -> None:
    policy = real_policy()
    save_checkpoint(
        tmp_path / "vae", family="kl_vae", config=VAE, state=policy._ask.tokenizer.state_dict()
    )
    save_checkpoint(
        tmp_path / "uva",
        family="uva",
        config=tiny_uva(),
        state=policy.model.state_dict(),
        spec=SPEC,
        stats=STATS,
        tokenizer=tmp_path / "vae",
    )
    loaded = open_policy(
        tmp_path / "uva", UVAOptions(context_stride=2, steps=3, batch_size=4), execute=3
    )
    for p in (policy, loaded):
        p.reset([5])
        see(p, 77)
    np.testing.assert_array_equal(policy.act().actions, loaded.act().actions)
    assert loaded.describe()["weights"].startswith("sha256:")
    assert {
        k: loaded.describe()[k] for k in ("context", "context_stride", "horizon", "execute")
    } == {
        "context": 4,
        "context_stride": 2,
        "horizon": 8,
        "execute": 3,
    }
    with pytest.raises(UserError, match="takes those of uva"):
        open_policy(tmp_path / "vae")


def test_a_checkpoint_without_statistics_cannot_act(tmp_path: Path) -> None:
    policy = real_policy()
    save_checkpoint(
        tmp_path / "vae", family="kl_vae", config=VAE, state=policy._ask.tokenizer.state_dict()
    )
    save_checkpoint(
        tmp_path / "uva",
        family="uva",
        config=tiny_uva(),
        state=policy.model.state_dict(),
        spec=SPEC,
        tokenizer=tmp_path / "vae",
    )
    with pytest.raises(UserError, match="statistics of the actions"):
        open_policy(tmp_path / "uva")
