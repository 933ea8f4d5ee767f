"""The averaged weights: decay by formula, what is averaged, swapping, restoring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foreact.errors import UserError
from foreact.train import EMA, EMAConfig


def test_decay_is_the_formula_between_its_bounds() -> None:
    config = EMAConfig(inv_gamma=2.0, power=0.5, min=0.3, max=0.8, update_after=5)
    assert [config.decay(s) for s in range(7)] == [0.0] * 7
    assert config.decay(7) == 0.3  # 1 - 1.5 ** -0.5 = 0.18 is below the least decay
    assert config.decay(16) == pytest.approx(1 - 6**-0.5)
    assert config.decay(10_000) == 0.8


@given(st.integers(0, 10**7), st.integers(0, 1000), st.floats(0.01, 100.0), st.floats(0.1, 2.0))
def test_decay_never_falls_and_stays_in_range(
    step: int, after: int, inv_gamma: float, power: float
) -> None:
    config = EMAConfig(inv_gamma=inv_gamma, power=power, update_after=after)
    assert 0.0 <= config.decay(step) <= config.decay(step + 1) <= config.max


def model_of(value: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    model[0].bias.requires_grad_(False)
    return model


def test_trace_by_hand() -> None:
    model = model_of(0.0)
    ema = EMA(model, EMAConfig())
    expected = 0.0
    for step, value in enumerate([4.0, 1.0, -2.0, 8.0, 3.0]):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(value)
        ema.update(model)
        decay = 0.0 if step < 2 else 1 - step**-0.75
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ema.shadow["0.weight"], torch.full((2, 2), expected))
    assert sorted(ema.shadow) == [
        "0.weight",
        "2.bias",
        "2.weight",
    ]  # neither frozen nor batch normalisation


def test_swapped_holds_the_average_and_restores_after_an_error() -> None:
    model = model_of(1.0)
    ema = EMA(model_of(5.0), EMAConfig())

    def use() -> None:
        with ema.swapped(model):
            assert model.get_parameter("0.weight").mean() == 5.0
            assert model.get_parameter("0.bias").mean() == 1.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert model.get_parameter("0.weight").mean() == 1.0
    assert ema.shadow["0.weight"].mean() == 5.0


def test_restored_average_goes_on_with_its_own_decay() -> None:
    model = model_of(1.0)
    ema = EMA(model, EMAConfig())
    for _ in range(10):
        ema.update(model)
    other = EMA(model_of(7.0), EMAConfig())
    other.load({k: v.clone() for k, v in ema.shadow.items()}, ema.step)
    target = model_of(2.0)
    ema.update(target)
    other.update(target)
    assert all(torch.equal(ema.shadow[k], other.shadow[k]) for k in ema.shadow)
    assert ema.shadow["0.weight"].mean() < 1.3  # decay 0 after a restart would give 2


def test_average_of_another_model_is_refused() -> None:
    ema = EMA(nn.Linear(2, 3), EMAConfig())
    with pytest.raises(UserError, match=r"other parameters than the model: \['extra'\]"):
        ema.load({**ema.shadow, "extra": torch.ones(1)}, 1)
    with pytest.raises(UserError, match=r"'bias' has shape \(4,\), the model expects \(3,\)"):
        ema.load({**ema.shadow, "bias": torch.ones(4)}, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"inv_gamma": 0.0},
        {"power": -1.0},
        {"min": 0.9, "max": 0.5},
        {"max": 1.5},
        {"update_after": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"ema\."):
        EMAConfig(**bad)
