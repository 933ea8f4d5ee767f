"""Products by any kernel are torch's; each kernel is forced here, since
a machine takes only those that are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foreact.nn import products
from foreact.nn.products import Linear, linear


@pytest.fixture(autouse=True, params=["every kernel", "torch alone"])
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    """With every kernel, or none but torch's, whichever is faster here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("numpy_is_faster", "transposed_is_faster", "onednn_is_faster"):
            patch.setattr(products, name, lambda: request.param == "every kernel")
        patch.setattr(products, "HEAVY", 1)
        yield request.param == "every kernel"
    torch.set_num_threads(threads)


def large(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Counts the calls of one of the kernels."""
    calls: list[int] = []
    kernel: Callable[..., Tensor] = getattr(products, name)
    monkeypatch.setattr(products, name, lambda *args: (calls.append(1), kernel(*args))[1])
    return calls


@pytest.mark.parametrize(
    ("rows", "kernel"),
    [(1, "_by_numpy"), (2, "_transposed"), (32, "_transposed"), (300, "_by_onednn")],
)
def test_the_number_of_rows_decides_the_kernel(
    rows: int, kernel: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, kernel)
    x, weight = large(rows, 64), large(96, 64, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(
            linear(x, weight), functional.linear(x, weight), atol=1e-4, rtol=1e-5
        )
    assert len(calls) == kernels


# --- one row --------------------------------------------------------------------------------------


@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 50),
    leading=st.sampled_from([(), (1,), (1, 1)]),
    strided=st.booleans(),
)
def test_one_row_gives_what_torch_gives(
    inputs: int, outputs: int, leading: tuple[int, ...], strided: bool
) -> None:
    x, weight = large(*leading, inputs), large(outputs, inputs, seed=1)
    if strided:
        x, weight = large(*leading, 2 * inputs)[..., ::2], large(inputs, outputs, seed=1).T
    with torch.no_grad():
        found = linear(x, weight)
    assert found.shape == (*leading, outputs)
    torch.testing.assert_close(found, functional.linear(x, weight), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), found)


def test_no_rows_and_other_types_are_left_to_torch() -> None:
    weight = large(5, 8, seed=1)
    with torch.no_grad():
        assert torch.equal(linear(large(0, 8), weight), functional.linear(large(0, 8), weight))
        for dtype in (torch.bfloat16, torch.float64):
            x = large(1, 8).to(dtype)
            assert torch.equal(linear(x, weight.to(dtype)), functional.linear(x, weight.to(dtype)))


def test_one_row_has_its_gradient() -> None:
    found: list[list[Tensor]] = []
    for product in (linear, functional.linear):
        x, weight = large(1, 8).requires_grad_(), large(5, 8, seed=1).requires_grad_()
        product(x, weight).square().sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        found.append([x.grad, weight.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_row_obeys_autocast() -> None:
    x, weight = large(1, 8), large(5, 8, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = linear(x, weight), functional.linear(x, weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


def test_the_result_is_a_tensor_of_its_own() -> None:
    x, weight = large(1, 8), large(8, 8, seed=1)
    before = x.clone()
    with torch.no_grad():
        linear(x, weight).zero_()
    assert torch.equal(x, before)


# --- a few rows -----------------------------------------------------------------------------------


@given(
    rows=st.integers(2, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    with_bias=st.booleans(),
)
def test_a_few_rows_give_what_torch_gives(
    rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    x, weight = large(rows, inputs), large(outputs, inputs, seed=1)
    bias = large(outputs, seed=2) if with_bias else None
    with torch.no_grad():
        found = linear(x, weight, bias)
        leading = linear(x[None, :, None], weight, bias)
    torch.testing.assert_close(found, functional.linear(x, weight, bias), rtol=1e-4, atol=1e-5)
    assert found.is_contiguous()
    assert leading.shape == (1, rows, 1, outputs)
    torch.testing.assert_close(leading[0, :, 0], found, rtol=1e-4, atol=1e-5)


def test_a_few_rows_that_learn_have_torchs_gradient() -> None:
    x, weight = large(4, 8).requires_grad_(), large(5, 8, seed=1).requires_grad_()
    assert torch.equal(linear(x, weight), functional.linear(x, weight))
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(5, 8))


def test_a_light_weight_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "HEAVY", 41)
    calls = spy(monkeypatch, "_transposed")
    with torch.no_grad():
        linear(large(4, 8), large(5, 8, seed=1))
    assert not calls


def test_one_dimension_learns_as_with_torch() -> None:
    x, weight = large(1200).requires_grad_(), large(1000, 1200, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().expand(1000, 1200))


# --- many rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 80, 64), (300, 64), (64, 5, 64)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_by_onednn_and_their_gradients_equal_torchs(
    shape: tuple[int, ...], with_bias: bool
) -> None:
    x, weight = large(*shape, seed=0).requires_grad_(), large(96, 64, seed=1).requires_grad_()
    bias = large(96, seed=2).requires_grad_() if with_bias else None
    assert x.numel() * len(weight) >= products.WORTHWHILE, "else both are torch's"
    inputs = [t for t in (x, weight, bias) if t is not None]
    got, expected = linear(x, weight, bias), functional.linear(x, weight, bias)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    dy = large(*expected.shape, seed=3)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


def test_products_of_strided_inputs_and_frozen_parts() -> None:
    weight, bias = large(64, 96, seed=1).t(), large(96, seed=2)
    x = large(64, 300, seed=0).t()
    expected = functional.linear(x, weight, bias)
    torch.testing.assert_close(linear(x, weight, bias), expected, atol=1e-4, rtol=1e-5)
    trained = weight.clone().requires_grad_()
    linear(x, trained, bias).sum().backward()
    torch.testing.assert_close(trained.grad, x.sum(0).expand(96, 64), atol=1e-3, rtol=1e-5)


def test_autocast_still_computes_in_bfloat16() -> None:
    layer = Linear(64, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(large(300, 64, seed=0)).dtype == torch.bfloat16


def test_a_weight_that_numpy_multiplied_can_still_be_freed_as_fsdp_frees_it() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    products._by_numpy(torch.ones(1, 4), weight)
    assert weight.untyped_storage().resizable()
