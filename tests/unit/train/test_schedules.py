"""Learning rates by step, the optimiser's groups, and the checks of the training settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foreact.errors import UserError
from foreact.train import TrainConfig
from foreact.train.optim import build_optimizer, clip_gradients, set_lr
from foreact.train.rng import rng_state, seeded, set_rng_state
from foreact.train.schedules import lr_factor


def test_factors_by_hand() -> None:
    assert [lr_factor("linear", s, warmup=2, steps=6) for s in range(8)] == [
        0,
        0.5,
        1,
        0.75,
        0.5,
        0.25,
        0,
        0,
    ]
    assert [lr_factor("constant_with_warmup", s, warmup=2, steps=4) for s in range(5)] == [
        0,
        0.5,
        1,
        1,
        1,
    ]
    cosine = [lr_factor("cosine", s, warmup=0, steps=4) for s in range(5)]
    assert cosine == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
    wsd = [lr_factor("wsd", s, warmup=2, steps=8, drop=4, floor=0.2) for s in range(11)]
    assert wsd == pytest.approx([0, 0.5, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert [lr_factor("wsd", s, warmup=0, steps=2) for s in range(5)] == [1] * 5


@given(
    st.sampled_from(["cosine", "linear", "constant_with_warmup", "wsd"]),
    st.integers(0, 50),
    st.integers(1, 200),
    st.data(),
)
def test_factors_rise_in_the_warmup_and_never_after(
    schedule: Any, warmup: int, more: int, data: st.DataObject
) -> None:
    steps = warmup + more
    step = data.draw(st.integers(0, steps - 1))
    drop = data.draw(st.integers(0, more))
    here, after = (
        lr_factor(schedule, s, warmup=warmup, steps=steps, drop=drop) for s in (step, step + 1)
    )
    assert 0.0 <= here <= 1.0
    assert (after > here) if step < warmup else (after <= here)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown schedule 'step'"):
        lr_factor("step", 0, warmup=0, steps=1)  # pyright: ignore[reportArgumentType]


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": list(self.a.parameters()), "lr": lr, "weight_decay": weight_decay},
            {"params": list(self.b.parameters()), "lr": lr / 4, "weight_decay": 0.0},
        ]


def test_groups_keep_their_ratio_and_frozen_parameters_stay_out() -> None:
    model = Grouped()
    model.a.bias.requires_grad_(False)
    optimizer = build_optimizer(model, lr=0.4, weight_decay=0.1, betas=(0.9, 0.99))
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 2]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert set_lr(optimizer, 0.5) == 0.2
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.05]
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(UserError, match=r"no trainable parameter"):
        build_optimizer(model, lr=0.4, weight_decay=0.1, betas=(0.9, 0.99))


def test_state_made_ahead_equals_state_made_by_the_optimiser() -> None:
    torch.manual_seed(0)
    ours, theirs = Grouped(), Grouped()
    theirs.load_state_dict(ours.state_dict())
    ahead = build_optimizer(ours, lr=0.1, weight_decay=0.1, betas=(0.9, 0.99))
    lazy = torch.optim.AdamW(theirs.param_groups(0.1, 0.1), betas=(0.9, 0.99), fused=True)
    for step in range(4):
        for model, optimizer in ((ours, ahead), (theirs, lazy)):
            optimizer.zero_grad()
            hidden = model.a(torch.ones(1, 2))
            (hidden if step < 2 else model.b(hidden)).square().sum().backward()
            optimizer.step()
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert set(ahead.state[p]) == set(lazy.state[q])
        assert all(torch.equal(ahead.state[p][k], lazy.state[q][k]) for k in ahead.state[p])
        assert all(ahead.state[p][k].dtype == lazy.state[q][k].dtype for k in ahead.state[p])


def test_clipping_keeps_direction_and_reports_the_norm_before() -> None:
    p = nn.Parameter(torch.zeros(2))
    unused = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([p, unused], None) == 5.0
    assert p.grad.tolist() == [3.0, 4.0]
    assert clip_gradients([p, unused], 1.0) == 5.0
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))
    assert unused.grad is None
    assert clip_gradients([unused], 1.0) == 0.0


def test_draws_depend_on_seed_and_micro_batch_alone() -> None:
    def draws(seed: int, micro: int) -> list[float]:
        rng = seeded(torch.Generator(), seed, micro)
        return [torch.rand((), generator=rng).item(), torch.rand(()).item()]

    with torch.random.fork_rng(devices=[]):
        first = draws(1, 2)
        assert first[0] != first[1]
        others = [draws(1, 3), draws(2, 2), draws(2, 1)]
        assert draws(1, 2) == first
        assert len({tuple(d) for d in [first, *others]}) == 4


def test_global_generators_are_restored() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(()).item(),
        ]

    draw()
    state = rng_state()
    first = draw()
    assert draw() != first
    set_rng_state(state)
    assert draw() == first


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"steps": 0}, "steps should be at least 1, found 0"),
        ({"keep": 0}, "keep should be at least 1"),
        ({"workers": -1}, "workers should be 0 or more"),
        ({"lr": float("nan")}, "lr should be a positive number, found nan"),
        ({"clip_grad": 0.0}, "--train.clip-grad should be a positive number"),
        ({"max_minutes": -1.0}, "--train.max-minutes should be a positive number"),
        ({"betas": (0.9, 1.0)}, "betas should be two numbers"),
        (
            {"schedule": "cosin"},
            "schedule should be one of cosine, linear, constant_with_warmup, wsd, found 'cosin'",
        ),
        ({"precision": "fp16"}, "precision should be one of auto, bf16, fp32, found 'fp16'"),
        (
            {"steps": 10, "warmup": 11},
            "--train.warmup \\(11\\) should not exceed --train.steps \\(10\\)",
        ),
        ({"drop": 5}, "--train.drop belongs to --train.schedule wsd"),
        (
            {"schedule": "wsd", "drop": 5, "steps": 10, "warmup": 6},
            "--train.warmup \\(6\\) and --train.drop \\(5\\) should not exceed",
        ),
        ({"floor": 1.5}, "floor should be in \\[0, 1\\], found 1.5"),
        ({"parallel": "zero"}, "parallel should be one of ddp, fsdp, found 'zero'"),
        ({"keep_at": (0,)}, "--train.keep-at should hold steps from 1 on"),
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainConfig(**bad)


def test_settings_survive_json_and_decide_about_resuming() -> None:
    config = TrainConfig(steps=5, warmup=1, accumulate=4)
    saved = json.loads(json.dumps(config.to_json()))
    config.require_resumable(saved, world=2, saved_world=2)
    TrainConfig(steps=9, warmup=1, accumulate=2, workers=0).require_resumable(
        saved, world=4, saved_world=2
    )
    with pytest.raises(UserError, match=r"has --train.seed 42, now it is 1"):
        TrainConfig(steps=5, warmup=1, accumulate=4, seed=1).require_resumable(
            saved, world=2, saved_world=2
        )
    with pytest.raises(UserError, match=r"8 micro-batches per step .* now it would be 4"):
        config.require_resumable(saved, world=1, saved_world=2)
    changed = {**saved, "ema": {**saved["ema"], "max": 0.5}}
    with pytest.raises(UserError, match=r"has --train.ema.max 0\.5"):
        config.require_resumable(changed, world=2, saved_world=2)


def test_settings_younger_than_the_run_count_as_their_defaults() -> None:
    saved = {
        k: v
        for k, v in TrainConfig().to_json().items()
        if k not in ("drop", "floor", "start_from", "parallel")
    }
    TrainConfig().require_resumable(saved, world=1, saved_world=1)
    with pytest.raises(UserError, match=r"has --train.floor 0\.1, now it is 0\.2"):
        TrainConfig(floor=0.2).require_resumable(saved, world=1, saved_world=1)


def test_the_last_step_before_the_drop_is_kept_for_good() -> None:
    config = TrainConfig(steps=10, warmup=2, schedule="wsd", drop=3, keep_at=(4,))
    assert config.kept_steps == {4, 7}
    factors = [lr_factor("wsd", s, warmup=2, steps=10, drop=3) for s in (7, 8)]
    assert factors[0] == 1.0 > factors[1]
    assert TrainConfig(steps=3, warmup=0, schedule="wsd", drop=3).kept_steps == frozenset()
