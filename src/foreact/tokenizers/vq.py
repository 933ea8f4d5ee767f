"""Vector-quantised picture autoencoder in two published forms with different quantisers.

- LlamaGen's tokenizer (arXiv 2406.06525, section 2.1), which VaViM reads: the default config, equal
  to the released `vq_ds16_c2i` in its function. Deviation in training: the pictures' error is their
  absolute difference (LlamaGen: squared).
- taming's VQGAN (arXiv 2012.09841), which Video Occupancy Models read: `TAMING`, equal to the
  published f16 network.

Frames that are padding take no part in any term of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.tokenizers.autoencoder import Decoder, Encoder, check_shape
from foreact.tokenizers.images import (
    Preprocessing,
    from_legacy_range,
    prepare,
    require_video,
    to_legacy_range,
)
from foreact.tokenizers.perceptual import PerceptualDistance
from foreact.tokenizers.quantize import Quantizer, codebook_use
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Sizes and loss weights; defaults are the published 71.88 M-parameter stride-16 model.

    Attributes:
        channels: base width.
        multipliers: width of each level over `channels`; n levels give stride 2^(n-1).
        attention: levels with self-attention in the encoder and in the decoder, counted from the
            last one, which is 0.
        blocks: residual blocks per level of the encoder (the decoder has one more).
        features: channels between the convolutions and the quantiser.
        codes: size of the codebook, V.
        code_dim: length of a code.
        normalized: search codes by angle, both sides brought to length 1 (LlamaGen), or by distance
            (taming).
        norm_groups: groups of every normalisation; divides every width.
        image_size: (height, width) in pixels to which frames are brought for training and
            tokenizing.
        preprocessing: how frames are resized, and the range of values that the network itself sees;
            callers see [-1, 1] with either. "legacy" is for weights that were made with it, never
            for new ones.
        codebook_weight: weight in the loss of the term that moves codes towards latents.
        commitment_weight: weight of the term that moves latents towards their codes.
        entropy_weight: weight of the term that spreads latents over all codes; see
            `Quantizer.entropy`.
        perceptual_weight: weight of the perceptual term; above 0 training needs a perceptual
            distance.

    Raises:
        UserError: a value is impossible.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    attention: tuple[int, ...] = field(default=(0,), metadata={"later": True})
    blocks: int = 2
    features: int = 256
    codes: int = 16384
    code_dim: int = 8
    normalized: bool = True
    norm_groups: int = 32
    image_size: tuple[int, int] = (256, 256)
    preprocessing: Preprocessing = field(default="symmetric", metadata={"later": True})
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "blocks", "features", "codes", "code_dim", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"The tokenizer's {name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        check_shape(
            "The tokenizer's ",
            channels=self.channels,
            multipliers=self.multipliers,
            norm_groups=self.norm_groups,
            image_size=self.image_size,
        )
        levels = range(len(self.multipliers))
        if list(self.attention) != sorted(set(self.attention) & set(levels)):
            raise UserError(
                f"The tokenizer's attention should be levels in 0..{levels[-1]}, ascending, found "
                f"{self.attention}."
            )
        if self.preprocessing not in get_args(Preprocessing):
            raise UserError(
                "The tokenizer's preprocessing should be 'symmetric' or 'legacy', found "
                f"'{self.preprocessing}'."
            )
        for name in ("codebook_weight", "commitment_weight", "entropy_weight", "perceptual_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(
                    f"The tokenizer's {name.replace('_', '-')} should be a number >= 0, found "
                    f"{getattr(self, name)}."
                )

    @property
    def stride(self) -> int:
        """Pixels per token along either axis."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a picture of `image_size`."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


TAMING = VQConfig(
    codes=1024, code_dim=256, normalized=False, codebook_weight=0.25, commitment_weight=1.0
)
"""taming's published f16 network of 1024 codes, whose loss weighs the codebook's term."""


@dataclass(frozen=True)
class Reconstruction:
    """One training pass, for whoever adds terms to its loss.

    Attributes:
        images: float32 (N, 3, H, W) in [-1, 1], what should have come out.
        decoded: float32 (N, 3, H, W), what came out, not clamped.
        loss: () float32.
        logs: name -> () detached.
    """

    images: Tensor
    decoded: Tensor
    loss: Tensor
    logs: dict[str, Tensor]


class VQTokenizer(nn.Module):
    """Autoencoder with a codebook; meets `foreact.types.Tokenizer`, `Codes` and `Trainable`.

    Args:
        config: sizes and loss weights.
        perceptual: distance for the perceptual term of the loss. It is not part of the module:
            neither saved nor moved.
    """

    vocab: int | None
    used_parameters: ClassVar[str] = "all"
    perceptual: PerceptualDistance | None

    def __init__(self, config: VQConfig, *, perceptual: PerceptualDistance | None = None) -> None:
        super().__init__()
        self.config = config
        self.vocab = config.codes
        shape: dict[str, Any] = {
            "channels": config.channels,
            "multipliers": config.multipliers,
            "blocks": config.blocks,
            "norm_groups": config.norm_groups,
            # Counted in tokens of the last level, whatever the size of the pictures.
            "nominal_resolution": config.stride,
            "attention_resolutions": tuple(2**level for level in config.attention),
        }
        self.encoder = Encoder(**shape, out_channels=config.features)
        self.decoder = Decoder(**shape, in_channels=config.features)
        self.quantizer = Quantizer(config.codes, config.code_dim, normalized=config.normalized)
        self.to_code = nn.Conv2d(config.features, config.code_dim, 1)
        self.from_code = nn.Conv2d(config.code_dim, config.features, 1)
        # An assignment would register a distance that happens to be a module among the parameters.
        self.__dict__["perceptual"] = perceptual

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a picture of the config's image_size."""
        return self.config.grid

    @property
    def codebook(self) -> Tensor:
        """float32 (V, c), as the decoder takes its rows."""
        return self.quantizer.rows

    @property
    def last_layer(self) -> Tensor:
        """The weight that every gradient from the pictures passes first."""
        return self.decoder.conv_out.weight

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, c, h, w), before the search."""
        if self.config.preprocessing == "legacy":
            images = to_legacy_range(images)
        return self.to_code(self.encoder(images))

    def draw(self, values: Tensor) -> Tensor:
        """Codebook rows (N, c, h, w) -> unclamped float32 (N, 3, H, W), nominally [-1, 1]."""
        images = self.decoder(self.from_code(values)).float()
        return from_legacy_range(images) if self.config.preprocessing == "legacy" else images

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Tokens of pictures of any size that is a multiple of the stride.

        Args:
            video: float (B, T, 3, H, W) in [-1, 1].
            rng: unused: nothing is drawn.

        Returns:
            int64 (B, T, H / stride, W / stride) in 0..vocab-1.

        Raises:
            ValueError: `video` has another shape or dtype.
        """
        require_video(video, multiple_of=self.config.stride)
        return self.quantizer.encode(self.latents(video.flatten(0, 1))).unflatten(
            0, video.shape[:2]
        )

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of tokens.

        Args:
            z: integer (B, T, h, w) in 0..vocab-1; any grid.

        Returns:
            float32 (B, T, 3, H, W), clamped to [-1, 1].

        Raises:
            ValueError: `z` has another shape or dtype.
            UserError: a token is not in the codebook.
        """
        if z.ndim != 4 or z.is_floating_point() or z.dtype == torch.bool:
            raise ValueError(
                f"decode expects integer tokens (B, T, h, w), found {z.dtype} {tuple(z.shape)}"
            )
        require_tokens(z, self.config.codes)
        images = self.draw(self.quantizer.lookup(z.flatten(0, 1).long()))
        return images.clamp(-1.0, 1.0).unflatten(0, z.shape[:2])

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Loss of the valid frames of all cameras; see `reconstruct`.

        Args:
            batch: see `reconstruct`.
            rng: unused: nothing is drawn.
        """
        result = self.reconstruct(batch)
        return LossOut(result.loss, result.logs)

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Encode, quantise and decode the valid frames of all cameras.

        The loss is L1 + codebook_weight * codebook + commitment_weight * commitment +
        entropy_weight * entropy + perceptual_weight * perceptual distance, each term a mean over
        the valid frames.

        Args:
            batch: `video` uint8 (B, T, 3, H, W) per camera, resized here where the size differs
                from the config's; `valid` per camera, where given.

        Returns:
            Pictures, loss and logs: the unweighted terms ("l1" per pixel value in the units of
            [-1, 1]; "entropy" and "perceptual" where they count), "codebook_usage", the share of
            the codebook that these frames use, and "perplexity" of their codes.

        Raises:
            UserError: the batch has no valid frame, or a perceptual term is asked for without a
                distance.
        """
        config = self.config
        images = self._frames(batch)
        z = self.latents(images)
        quantized = self.quantizer(z)
        decoded = self.draw(quantized.values)
        terms = {
            "l1": (decoded - images).abs().mean(),
            "codebook": quantized.codebook,
            "commitment": quantized.commitment,
        }
        loss = (
            terms["l1"]
            + config.codebook_weight * terms["codebook"]
            + config.commitment_weight * terms["commitment"]
        )
        if config.entropy_weight > 0:
            terms["entropy"] = self.quantizer.entropy(z)
            loss = loss + config.entropy_weight * terms["entropy"]
        if config.perceptual_weight > 0:
            if self.perceptual is None:
                raise UserError(
                    f"The tokenizer's perceptual_weight is {config.perceptual_weight} but no "
                    "perceptual distance was given; pass one, or set perceptual_weight to 0."
                )
            terms["perceptual"] = self.perceptual(decoded, images).mean()
            loss = loss + config.perceptual_weight * terms["perceptual"]
        logs = {name: term.detach() for name, term in terms.items()}
        logs["codebook_usage"], logs["perplexity"] = codebook_use(quantized.codes, config.codes)
        return Reconstruction(images, decoded, loss, logs)

    def _frames(self, batch: Batch) -> Tensor:
        """Valid frames of all cameras, float32 (N, 3, H, W) in [-1, 1]."""
        if not batch.video:
            raise UserError(
                "The tokenizer trains on video, but the batch has none; add a camera to the window."
            )
        frames = []
        for camera, video in batch.video.items():
            mask = batch.valid.get(camera)
            chosen = video.flatten(0, 1) if mask is None else video[mask]
            frames.append(prepare(chosen, self.config.image_size, self.config.preprocessing))
        images = torch.cat(frames)
        if len(images) == 0:
            raise UserError(
                "Every frame of the batch is padding; choose windows that touch their episodes."
            )
        return images

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Convolution kernels decay; biases, normalisations and the codebook do not."""
        return kernels_decay(self, lr, weight_decay)


def kernels_decay(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which only convolution kernels decay."""
    kernels = [p for p in module.parameters() if p.ndim == 4]
    others = [p for p in module.parameters() if p.ndim != 4]
    return [
        {"params": kernels, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]


def require_tokens(tokens: Tensor, vocab: int) -> None:
    """Raise a `UserError` unless every token is in 0..vocab-1."""
    if tokens.numel() == 0:
        return
    low, high = (int(v) for v in tokens.aminmax())
    if low < 0 or high >= vocab:
        raise UserError(
            f"Tokens should be in 0..{vocab - 1}, found {low if low < 0 else high}; "
            "use tokens and a tokenizer that belong together."
        )
