"""KL autoencoder of latent diffusion (arXiv 2112.10752), UVA's tokenizer (arXiv 2503.00200).

Equal to the reference's `kl16` with the default config. Deviations: the latents of `encode` are the
posterior's mean unless the config says "sample", so that the same picture always gives the same
input to a policy; the KL term is counted per pixel value, so that its weight does not change with
the size of the pictures.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.tokenizers.autoencoder import Decoder, Encoder, check_shape
from foreact.tokenizers.images import prepare
from foreact.tokenizers.perceptual import PerceptualDistance
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class KLVAEConfig:
    """Sizes and loss weights; defaults are the published 66.46 M-parameter stride-16 model.

    Attributes:
        channels: base width.
        multipliers: width of each level over `channels`; n levels give stride 2^(n-1).
        blocks: residual blocks per level of the encoder (the decoder has one more).
        latent_channels: channels of the latent, c.
        nominal_resolution, attention_resolutions: encoder levels whose nominal resolution,
            `nominal_resolution / 2^i`, is listed have self-attention, whatever the size of the
            pictures.
        norm_groups: groups of every normalisation; divides every width.
        image_size: (height, width) of the pictures in pixels.
        scale: factor from the posterior's values to the latents that models see, 1 / their standard
            deviation.
        posterior: whether latents are the posterior's mean or a draw from it (as in the reference).
        kl_weight: weight of the KL term in the loss.
        perceptual_weight: weight of the perceptual term; above 0 training needs a perceptual
            distance.

    Raises:
        UserError: a value is impossible.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    latent_channels: int = 16
    nominal_resolution: int = 256
    attention_resolutions: tuple[int, ...] = (16,)
    norm_groups: int = 32
    image_size: tuple[int, int] = (256, 256)
    scale: float = 0.2325
    posterior: Literal["mean", "sample"] = "mean"
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "latent_channels", "nominal_resolution", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        # Only a residual block can change the width.
        fewest = 0 if set(self.multipliers) == {1} else 1
        if self.blocks < fewest:
            raise UserError(
                f"The autoencoder's blocks should be at least {fewest}, found {self.blocks}."
            )
        check_shape(
            "--model.",
            channels=self.channels,
            multipliers=self.multipliers,
            norm_groups=self.norm_groups,
            image_size=self.image_size,
        )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UserError(
                f"The autoencoder's scale should be a number above 0, found {self.scale}."
            )
        if self.posterior not in ("mean", "sample"):
            raise UserError(
                "The autoencoder's posterior should be 'mean' or 'sample', found "
                f"'{self.posterior}'."
            )
        for name in ("kl_weight", "perceptual_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be a number >= 0, found "
                    f"{getattr(self, name)}."
                )

    @property
    def stride(self) -> int:
        """Pixels per latent position along either axis."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


@dataclass(frozen=True)
class Posterior:
    """Independent normal distributions, one per latent value.

    Attributes:
        mean: float32 (N, c, h, w).
        logvar: float32 (N, c, h, w), in [-30, 20].
    """

    mean: Tensor
    logvar: Tensor

    @staticmethod
    def from_moments(moments: Tensor) -> Posterior:
        """Split (N, 2c, h, w): means, then log-variances; always in float32."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise; `noise` is standard normal (N, c, h, w)."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """(N,) KL divergence from the standard normal in nats, summed over each latent."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


class KLVAE(nn.Module):
    """Autoencoder with a normal posterior; a `foreact.types.Tokenizer` and `Trainable`.

    Args:
        config: sizes and loss weights.
        perceptual: distance for the perceptual term of the loss. It is not part of the module:
            neither saved nor moved.
    """

    vocab: int | None = None
    perceptual: PerceptualDistance | None

    def __init__(
        self, config: KLVAEConfig, *, perceptual: PerceptualDistance | None = None
    ) -> None:
        super().__init__()
        self.config = config
        shape: dict[str, Any] = {
            "channels": config.channels,
            "multipliers": config.multipliers,
            "blocks": config.blocks,
            "nominal_resolution": config.nominal_resolution,
            "norm_groups": config.norm_groups,
        }
        c = config.latent_channels
        self.encoder = Encoder(
            **shape, out_channels=2 * c, attention_resolutions=config.attention_resolutions
        )
        self.decoder = Decoder(**shape, in_channels=c, attention_resolutions=())
        self.to_moments = nn.Conv2d(2 * c, 2 * c, 1)
        self.from_latents = nn.Conv2d(c, c, 1)
        # An assignment would register a distance that happens to be a module among the parameters.
        self.__dict__["perceptual"] = perceptual

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.config.grid

    def moments(self, images: Tensor) -> Tensor:
        """Unscaled posterior means and log-variances: (N, 3, H, W) -> (N, 2c, h, w).

        Pixels are in [-1, 1].
        """
        return self.to_moments(self.encoder(images))

    def reconstruct(self, values: Tensor) -> Tensor:
        """Unscaled latents (N, c, h, w) -> float32 (N, 3, H, W), not clamped."""
        return self.decoder(self.from_latents(values)).float()

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Latents in scaled units.

        Args:
            video: float (B, T, 3, H, W) in [-1, 1], of the config's image_size.
            rng: source of the draws where the config's posterior is "sample"; unused where it is
                "mean".

        Returns:
            float32 (B, T, c, h, w).

        Raises:
            ValueError: `video` has another shape or dtype, or a draw is asked for without `rng`.
        """
        if (
            not video.is_floating_point()
            or video.ndim != 5
            or tuple(video.shape[2:]) != (3, *self.config.image_size)
        ):
            raise ValueError(
                f"encode expects floats in [-1, 1] of shape (B, T, 3, {self.config.image_size[0]}, "
                f"{self.config.image_size[1]}), found {video.dtype} {tuple(video.shape)}; use "
                "foreact.tokenizers.images.prepare first"
            )
        if self.config.posterior == "sample" and rng is None:
            raise ValueError(
                "this autoencoder samples its posterior; pass rng, or set posterior to 'mean'"
            )
        posterior = Posterior.from_moments(self.moments(video.flatten(0, 1)))
        if self.config.posterior == "sample":
            assert rng is not None
            values = posterior.sample(_normal_like(posterior.mean, rng))
        else:
            values = posterior.mean
        return values.unflatten(0, video.shape[:2]) * self.config.scale

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents.

        Args:
            z: float (B, T, c, h, w) in scaled units; any grid.

        Returns:
            float32 (B, T, 3, H, W), clamped to [-1, 1].

        Raises:
            ValueError: `z` has another shape.
        """
        if z.ndim != 5 or z.shape[2] != self.config.latent_channels:
            raise ValueError(
                f"decode expects latents (B, T, {self.config.latent_channels}, h, w), found "
                f"{tuple(z.shape)}"
            )
        images = self.reconstruct(z.flatten(0, 1) / self.config.scale)
        return images.clamp(-1.0, 1.0).unflatten(0, z.shape[:2])

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Loss on all cameras: L1 + kl_weight * KL + perceptual_weight * perceptual distance.

        Every term is a mean over the valid frames. The posterior is sampled, whatever `encode`
        does.

        Args:
            batch: `video` uint8 (B, T, 3, H, W) per camera, resized here where the size differs
                from the config's; `valid` per camera, where given.
            rng: source of the posterior's draws.

        Returns:
            Loss and its unweighted terms: "l1" per pixel value in the units of [-1, 1], "kl" in
            nats per pixel value, "perceptual" where it counts; and "latent_std", of the posterior's
            unscaled means.

        Raises:
            UserError: the batch has no video, or a perceptual term is asked for without a distance.
        """
        images, weight = self._frames(batch)
        posterior = Posterior.from_moments(self.moments(images))
        decoded = self.reconstruct(posterior.sample(_normal_like(posterior.mean, rng)))
        terms = {
            "l1": ((decoded - images).abs().flatten(1).mean(dim=1) * weight).sum(),
            "kl": (posterior.kl() * weight).sum() / images[0].numel(),
        }
        loss = terms["l1"] + self.config.kl_weight * terms["kl"]
        if self.config.perceptual_weight > 0:
            if self.perceptual is None:
                raise UserError(
                    f"The autoencoder's perceptual_weight is {self.config.perceptual_weight} but "
                    "no perceptual distance was given; pass one, or set perceptual_weight to 0."
                )
            terms["perceptual"] = (self.perceptual(decoded, images) * weight).sum()
            loss = loss + self.config.perceptual_weight * terms["perceptual"]
        logs = {name: term.detach() for name, term in terms.items()}
        logs["latent_std"] = posterior.mean.detach().std()
        return LossOut(loss, logs)

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Frames of all cameras, float32 (N, 3, H, W) in [-1, 1]; weights (N,) that sum to 1."""
        if not batch.video:
            raise UserError(
                "The autoencoder trains on video, but the batch has none; add a "
                "camera to the window."
            )
        frames, valid = [], []
        for camera, video in batch.video.items():
            frames.append(prepare(video.flatten(0, 1), self.config.image_size))
            mask = batch.valid.get(camera)
            valid.append(
                video.new_ones(len(video) * video.shape[1]) if mask is None else mask.flatten()
            )
        weight = torch.cat([v.float() for v in valid])
        return torch.cat(frames), weight / weight.sum().clamp_min(1.0)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Convolution kernels decay; biases and normalisations do not."""
        kernels = [p for p in self.parameters() if p.ndim > 1]
        undecayed = [p for p in self.parameters() if p.ndim <= 1]
        return [
            {"params": kernels, "lr": lr, "weight_decay": weight_decay},
            {"params": undecayed, "lr": lr, "weight_decay": 0.0},
        ]


def measure_scale(values: Tensor) -> float:
    """The config's `scale` for unscaled latents of any shape: 1 / their standard deviation.

    The deviation is taken about their mean.

    Latents that `encode` returned are unscaled by dividing them by the scale it used.

    Raises:
        ValueError: the latents do not vary, or hold NaN.
    """
    std = values.double().std(correction=0).item()
    if not (math.isfinite(std) and std > 0):
        raise ValueError(
            f"the standard deviation of the latents is {std}; a scale needs latents that vary"
        )
    return 1.0 / std


def with_scale(config: KLVAEConfig, values: Tensor) -> KLVAEConfig:
    """`config` with the scale that `measure_scale` finds for unscaled latents."""
    return dataclasses.replace(config, scale=measure_scale(values))


def _normal_like(reference: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal draws like `reference`; the generator may live on the CPU."""
    return torch.randn(reference.shape, generator=rng, device=rng.device).to(reference.device)
