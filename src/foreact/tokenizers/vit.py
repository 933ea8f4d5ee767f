"""Vision transformer (arXiv 2010.11929) with a class token, as in BEiT v2 (2208.06366)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention; keys have no bias, as it would shift all scores of a query.

    Args:
        width: channels, a multiple of `heads`.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> (N, L, width)."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        )


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> (N, L, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Pictures, or grids of any channels, to one vector per patch.

    Args:
        channels: of the input.
        patch: pixels along the side of a patch.
        grid: (rows, columns) of patches that the table of positions has; other grids interpolate
            it.
        width: channels of a token.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP over `width`.
    """

    def __init__(
        self,
        *,
        channels: int,
        patch: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W), multiples of the patch -> (N, patches, width), row by row.

        There are H/patch * W/patch patches.
        """
        x = self.patches(images)
        positions = self.positions_of((x.shape[2], x.shape[3]))
        class_token = self.class_token.expand(len(x), -1, -1)
        patches = x.flatten(2).transpose(1, 2)  # (N, width, rows, columns) -> (N, patches, width)
        tokens = torch.cat([class_token, patches], dim=1) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 1:])  # without the class token

    def positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Positions of the class token and of a grid's patches, (1, 1 + rows * columns, width).

        Where the grid is not the table's own, the table is interpolated with scale (n + 0.1) /
        n_table, as DINO and BEiT do: the tenth, once a guard against a row that rounding lost,
        moves every sample point a little.
        """
        if grid == self.grid:
            return self.positions
        # (1, patches, width) -> an image (1, width, rows, columns) to interpolate.
        table = self.positions[:, 1:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        scale = [(n + 0.1) / own for n, own in zip(grid, self.grid, strict=True)]
        table = functional.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat([self.positions[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def _initialise(self) -> None:
        """Normal with deviation 0.02, and the residual layers of block i divided by sqrt(2 i)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.class_token, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        with torch.no_grad():
            for i, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block)
                for layer in (block.attention.out, block.down):
                    layer.weight /= math.sqrt(2 * i)
