"""The transformer block and its small companions."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from foreact.nn.layers import Attention, Block, init_linear, sinusoid, spread


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    attention, x = Attention(8, 2), torch.randn(3, 5, 8)
    q, k, v = attention.qkv(x).split(8, dim=-1)

    def head(i: int) -> Tensor:
        cut = slice(4 * i, 4 * i + 4)
        weights = torch.softmax(q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(4), dim=-1)
        return weights @ v[..., cut]

    expected = attention.out(torch.cat([head(0), head(1)], dim=-1))
    torch.testing.assert_close(attention(x), expected)


def test_a_block_sees_all_tokens_in_any_order() -> None:
    torch.manual_seed(0)
    block, x, order = Block(8, 2).eval(), torch.randn(2, 6, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))
    changed = x.clone()
    changed[:, -1, 0] += 1.0
    assert not torch.allclose(block(x)[:, 0], block(changed)[:, 0])


def test_dropout_is_active_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2, dropout=0.5, attention_dropout=0.5), torch.randn(2, 6, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_sinusoid_begins_with_cosines() -> None:
    values = sinusoid(torch.tensor([0.0, 2.0]), 4)
    expected = [[1.0, 1.0, 0.0, 0.0], [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]]
    torch.testing.assert_close(values, torch.tensor(expected))


@given(st.integers(1, 12), st.integers(0, 40))
def test_spread_shares_tokens_in_order_and_evenly(items: int, extra: int) -> None:
    count = items + extra
    which = spread(torch.arange(items, dtype=torch.float32)[None, :, None], count)[0, :, 0]
    assert which.tolist() == [j * items // count for j in range(count)]
    shares = which.long().bincount(minlength=items)
    assert shares.max() - shares.min() <= 1
    assert shares.min() >= 1


def test_init_linear_reaches_every_linear_and_norm() -> None:
    linear, norm = nn.Linear(4, 6), nn.LayerNorm(6)
    net = nn.Sequential(linear, nn.Sequential(norm, nn.Linear(6, 2)))
    for p in net.parameters():
        nn.init.constant_(p, 7.0)
    init_linear(net)
    limit = math.sqrt(6 / (4 + 6))
    assert linear.weight.abs().max() <= limit
    assert linear.weight.std() > 0.3 * limit
    assert linear.bias.eq(0).all()
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()
