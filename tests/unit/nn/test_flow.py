"""Flow matching: straight lines, their velocity, and solvers that follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foreact.errors import UserError
from foreact.nn.flow import FlowMatching


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**31), st.sampled_from(["uniform", "beta", "logit_normal"]))
def test_loss_is_zero_at_the_true_velocity_only(seed: int, time) -> None:
    flow, x, noise = FlowMatching(time), drawn(seed, 6, 3), drawn(seed + 1, 6, 3)
    t = flow.draw_time((6,), torch.Generator().manual_seed(seed))
    assert flow.loss(lambda x_t, t: x - noise, x, t, noise).abs().max() < 1e-10
    off = flow.loss(lambda x_t, t: x - noise + 0.5, x, t, noise)
    torch.testing.assert_close(off, torch.full((6,), 0.25))


def test_the_line_runs_from_noise_to_data() -> None:
    flow, x, noise = FlowMatching(), drawn(0, 3, 2), drawn(1, 3, 2)
    torch.testing.assert_close(flow.interpolate(x, torch.zeros(3), noise), noise)
    torch.testing.assert_close(flow.interpolate(x, torch.ones(3), noise), x)
    torch.testing.assert_close(
        flow.interpolate(x, torch.full((3,), 0.25), noise), 0.75 * noise + 0.25 * x
    )


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("steps", ["1", "3", None])
def test_the_straight_line_optimum_recovers_the_data(solver, steps) -> None:
    """The best velocity towards one known point is (x - x_t) / (1
    - t); every solver follows it exactly.
    """
    x = drawn(0, 4, 3)
    to_x = lambda x_t, t: (x - x_t) / (1 - t / 1000.0)  # noqa: E731
    got = FlowMatching(solver=solver).sample(to_x, lambda: drawn(1, 4, 3), steps=steps)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_solvers_on_a_field_that_changes_in_time() -> None:
    """dx/dt = 2 t: x(1) = x(0) + 1. Midpoint is exact, Euler with n steps falls short by 1/n."""
    field = lambda x, t: torch.full_like(x, 2 * float(t) / 1000.0)  # noqa: E731
    start = drawn(0, 2, 2)
    midpoint = FlowMatching(solver="midpoint").sample(field, lambda: start, steps="4")
    torch.testing.assert_close(midpoint, start + 1)
    torch.testing.assert_close(FlowMatching().sample(field, lambda: start, steps="4"), start + 0.75)


def test_sampling_is_determined_by_the_noise_and_scaled_by_temperature() -> None:
    field, flow = (lambda x, t: torch.sin(x + t)), FlowMatching()
    a, b = (flow.sample(field, lambda: drawn(3, 5, 2), steps="6") for _ in range(2))
    assert torch.equal(a, b)
    still = lambda x, t: torch.zeros_like(x)  # noqa: E731
    torch.testing.assert_close(
        flow.sample(still, lambda: drawn(3, 5, 2), temperature=0.5), 0.5 * drawn(3, 5, 2)
    )
    assert flow.sample(lambda x, t: 9 * x, lambda: drawn(3, 5, 2), clip=True).abs().max() <= 1


def test_time_distributions() -> None:
    rng = torch.Generator().manual_seed(0)
    uniform, beta, middle = (
        FlowMatching(t).draw_time((20000,), rng) for t in ("uniform", "beta", "logit_normal")
    )
    for t in (uniform, beta, middle):
        assert t.min() >= 0
        assert t.max() <= 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.003)
    assert beta.mean().item() == pytest.approx(
        1 - 1.5 / 2.5, abs=0.01
    )  # mean of Beta(1.5, 1) is 0.6
    assert middle.mean().item() == pytest.approx(0.5, abs=0.01)
    assert middle.var() < uniform.var()


def test_impossible_options_are_refused() -> None:
    refused: tuple[dict[str, Any], ...] = ({"time": "gamma"}, {"solver": "rk45"})
    for wrong in refused:
        with pytest.raises(UserError, match="found"):
            FlowMatching(**wrong)
    for steps in ("0", "ddim4", "-1"):
        with pytest.raises(UserError, match="at least 1"):
            FlowMatching().sample(lambda x, t: x, lambda: drawn(0, 1, 1), steps=steps)
