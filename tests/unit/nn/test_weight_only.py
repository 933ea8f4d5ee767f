"""Smaller weights give nearly the same model; the product with one row is the product."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_vavam import VIDEO, some_tokens, tiny_vavim
from torch import Tensor

from foreact.families.driving.vavim import VaViM
from foreact.nn.mup import HiddenLinear
from foreact.nn.weight_only import Int8Linear, WeightPrecision, reduce_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return ((found.float() - wanted).norm() / wanted.norm()).item()


def reduced(precision: WeightPrecision) -> VaViM:
    return reduce_weights(copy.deepcopy(tiny_vavim()), precision)


# --- fewer bits -----------------------------------------------------------------------------------


@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 40) | st.sampled_from([16, 32, 48]),
    rows=st.integers(1, 5),
    size=st.sampled_from([1e-4, 1.0, 50.0]),
)
def test_int8_rows_are_within_half_a_step_of_the_weights(
    outputs: int, inputs: int, rows: int, size: float
) -> None:
    weight = normal(outputs, inputs) * size
    layer = Int8Linear(weight)
    stored = layer.weight.float() * layer.scale.float()[:, None]
    assert ((stored - weight).abs() <= 0.51 * layer.scale.float()[:, None]).all()
    x = normal(rows, inputs, seed=1).to(torch.bfloat16)
    torch.testing.assert_close(
        layer(x).float(), x.float() @ stored.T, rtol=2e-2, atol=2e-2 * size * inputs**0.5
    )
    assert layer(x).dtype == torch.bfloat16


def test_a_row_of_zeros_stays_zero() -> None:
    weight = normal(3, 8)
    weight[1] = 0
    out = Int8Linear(weight)(normal(2, 8).to(torch.bfloat16))
    assert torch.equal(out[:, 1], torch.zeros(2, dtype=torch.bfloat16))
    assert torch.isfinite(out).all()


def test_leading_axes_are_kept() -> None:
    layer, x = Int8Linear(normal(5, 8)), normal(2, 3, 8).to(torch.bfloat16)
    assert layer(x).shape == (2, 3, 5)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2][None])[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.02), ("int8", 0.04)])
def test_the_models_logits_move_little(precision: WeightPrecision, bound: float) -> None:
    tokens = some_tokens(2, VIDEO.frames)
    with torch.no_grad():
        wanted = tiny_vavim().logits(tokens)
        found = reduced(precision).logits(tokens)
    assert found.dtype == torch.bfloat16
    assert 0 < error(found, wanted) < bound


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_reduced_model_imagines(precision: WeightPrecision) -> None:
    model = reduced(precision)
    made = model.generate(some_tokens(2, 2), frames=4)  # the window slides
    assert made.shape == (2, 4, *VIDEO.grid)
    assert made.min() >= 0
    assert made.max() < VIDEO.vocab
    assert torch.equal(made, model.generate(some_tokens(2, 2), frames=4))
    alone = model.generate(some_tokens(2, 2)[:1], frames=1)
    assert (alone == made[:1, :1]).float().mean() > 0.5, (
        "one row takes another way to almost the same numbers"
    )


def test_what_is_reduced_and_what_is_not() -> None:
    whole = tiny_vavim()
    assert reduce_weights(whole, "fp32") is whole
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert {p.dtype for p in reduced("bf16").parameters()} == {torch.bfloat16}
    int8 = reduced("int8")
    assert not any(isinstance(m, HiddenLinear) for m in int8.modules())
    assert sum(isinstance(m, Int8Linear) for m in int8.modules()) == 4 * VIDEO.layers
    assert int8.token_embedding.weight.dtype == torch.bfloat16
    hidden = sum(m.weight.numel() for m in whole.modules() if isinstance(m, HiddenLinear))
    assert sum(m.weight.nbytes for m in int8.modules() if isinstance(m, Int8Linear)) == hidden
