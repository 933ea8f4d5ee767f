"""Convolutional encoder and decoder of latent diffusion (arXiv 2112.10752).

Shared by the image tokenizers.

Level i works at 1/2^i of the picture's size with `channels * multipliers[i]` feature maps.
Self-attention sits in every middle part, and in the levels whose *nominal* resolution,
`nominal_resolution / 2^i`, is in `attention_resolutions`: the actual size of the pictures plays no
part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from foreact.errors import UserError


def check_shape(
    before: str,
    *,
    channels: int,
    multipliers: Sequence[int],
    norm_groups: int,
    image_size: Sequence[int],
) -> None:
    """Refuse sizes of which no encoder and decoder can be made.

    Args:
        before: what stands before the names of the options in a message, such as "--model.".
        channels, multipliers, norm_groups: as in `Encoder`.
        image_size: height and width of the pictures.

    Raises:
        UserError: with the entry that is wrong.
    """
    if not multipliers or min(multipliers) < 1:
        raise UserError(f"{before}multipliers should be whole numbers >= 1, found {multipliers}.")
    # The first level normalises the base width itself; every other width is a multiple of it.
    if channels % norm_groups:
        raise UserError(
            f"{before}norm-groups should divide the channels, found {norm_groups} groups for "
            f"{channels} channels; choose another number of groups."
        )
    stride = 2 ** (len(multipliers) - 1)
    if len(image_size) != 2 or any(side < stride or side % stride for side in image_size):
        raise UserError(
            f"{before}image-size should be two multiples of the stride {stride}, found "
            f"{image_size}; choose others, or another number of multipliers."
        )


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); 1x1 conv on the shortcut if widths differ."""

    def __init__(self, inputs: int, outputs: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, norm_groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, norm_groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return self.shortcut(x) + y


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        y = self.norm(x)
        q, k, v = (
            f(y).flatten(2).transpose(1, 2)[:, None] for f in (self.query, self.key, self.value)
        )
        y = scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves the size. Padding goes to the right and bottom only, as in the published weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the size: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention where asked for."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, norm_groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs if j == 0 else outputs, outputs, norm_groups)
            for j in range(blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(outputs, norm_groups) for _ in range(blocks if attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[j](x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the smallest size."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, norm_groups)
        self.attention = AttentionBlock(channels, norm_groups)
        self.block2 = ResidualBlock(channels, channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))


class Encoder(nn.Module):
    """Pictures to features at 1/2^(levels-1) of their size.

    Args:
        channels: width that `multipliers` multiply, C0.
        multipliers: one per level, from the full size down.
        blocks: residual blocks per level.
        out_channels: features per position, (twice the latent channels where moments are wanted).
        nominal_resolution, attention_resolutions: see the module's head.
        norm_groups: groups of every normalisation; divides every width.
        image_channels: 3 for RGB.
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        out_channels: int,
        nominal_resolution: int,
        attention_resolutions: Sequence[int],
        norm_groups: int = 32,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
        widths = [channels * m for m in multipliers]
        self.levels = nn.ModuleList(
            Level(
                before,
                width,
                blocks,
                norm_groups,
                nominal_resolution // 2**i in attention_resolutions,
            )
            for i, (before, width) in enumerate(zip([channels, *widths[:-1]], widths, strict=True))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(widths[-1], norm_groups)
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, image_channels, H, W) -> (N, out_channels, h, w); 2^(levels-1) divides H and W."""
        x = self.conv_in(x)
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
        return self.conv_out(silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """The mirror image of `Encoder`, with one residual block more per level.

    Levels are numbered as in the encoder, 0 being the full size, and run from the last to the
    first; `upsamples[i]` leads from level i + 1 to level i.

    Args:
        in_channels: latent channels.
        channels, multipliers, blocks, nominal_resolution, attention_resolutions, norm_groups,
        image_channels: those of
            the encoder (`blocks` too: the extra one is added here).
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        in_channels: int,
        nominal_resolution: int,
        attention_resolutions: Sequence[int],
        norm_groups: int = 32,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], norm_groups)
        self.levels = nn.ModuleList(
            Level(
                before,
                width,
                blocks + 1,
                norm_groups,
                nominal_resolution // 2**i in attention_resolutions,
            )
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[1:])
        self.norm_out = group_norm(widths[0], norm_groups)
        self.conv_out = nn.Conv2d(widths[0], image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, image_channels, H, W), unbounded."""
        x = self.middle(self.conv_in(z))
        for i in reversed(range(len(self.levels))):
            x = self.levels[i](x)
            if i > 0:
                x = self.upsamples[i - 1](x)
        return self.conv_out(silu(self.norm_out(x)))
