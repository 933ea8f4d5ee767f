"""VQ-KD, BEiT v2's tokenizer (arXiv 2208.06366, 2.2): codes that predict a teacher's features.

    picture ─► ViT ─► to_code ─► codebook on the sphere ─► from_code: small ViT ─► the teacher's
    patch features
                                       └─► codes

No pixel is ever predicted, so there is no way back to pixels. With DINO (arXiv 2104.14294) as the
teacher these are the codes that Video Occupancy Models (arXiv 2407.09533) call DINO's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from foreact.errors import UserError
from foreact.tokenizers.cosine_codebook import CosineCodebook
from foreact.tokenizers.images import Preprocessing, prepare, require_video, to_legacy_range
from foreact.tokenizers.quantize import Quantized, codebook_use
from foreact.tokenizers.vit import ViT
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class VQKDConfig:
    """Sizes and training constants; defaults are the published ViT-B/16 with 8192 codes.

    Attributes:
        patch: pixels along the side of a patch, which gets one code.
        width: channels of a token, in encoder and decoder.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        heads: attention heads.
        mlp_ratio: hidden channels of a block's MLP over `width`.
        codes: size of the codebook, V.
        code_dim: length of a code.
        features: length of the teacher's feature of a patch.
        position_grid: (rows, columns) of the learned position tables; pictures of another grid
            interpolate them.
        image_size: (height, width) in pixels to which frames are brought for training and
            tokenizing.
        preprocessing: how the network is shown frames, see
            `foreact.tokenizers.images.Preprocessing`.
        commitment_weight: weight in the loss of the term that moves latents towards their codes.
        codebook_decay: of the codebook's moving average, per optimiser step.

    Raises:
        UserError: a value is impossible.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    decoder_depth: int = 1
    heads: int = 12
    mlp_ratio: int = 4
    codes: int = 8192
    code_dim: int = 32
    features: int = 768
    position_grid: tuple[int, int] = (14, 14)
    image_size: tuple[int, int] = (224, 224)
    preprocessing: Preprocessing = "symmetric"
    commitment_weight: float = 1.0
    codebook_decay: float = 0.99

    def __post_init__(self) -> None:
        for name in (
            "patch",
            "width",
            "depth",
            "decoder_depth",
            "heads",
            "mlp_ratio",
            "codes",
            "code_dim",
            "features",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.width % self.heads:
            raise UserError(
                f"VQ-KD's heads should divide its width {self.width}, found {self.heads} heads."
            )
        if min(self.position_grid) < 1:
            raise UserError(
                f"--model.position-grid should be at least 1 x 1, found {self.position_grid}."
            )
        if min(self.image_size) < self.patch or any(s % self.patch for s in self.image_size):
            raise UserError(
                f"--model.image-size should be multiples of its patch of {self.patch} pixels, "
                f"found {self.image_size}."
            )
        if self.preprocessing not in ("symmetric", "legacy"):
            raise UserError(
                "VQ-KD's preprocessing should be 'symmetric' or 'legacy', found "
                f"'{self.preprocessing}'."
            )
        if not (math.isfinite(self.commitment_weight) and self.commitment_weight >= 0):
            raise UserError(
                "--model.commitment-weight should be a number >= 0, found "
                f"{self.commitment_weight}."
            )
        if not 0.0 <= self.codebook_decay < 1.0:
            raise UserError(
                f"--model.codebook-decay should be in [0, 1), found {self.codebook_decay}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes of a picture of `image_size`."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch


class Teacher(Protocol):
    """A frozen network that says what is in each patch."""

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [-1, 1] -> float (N, h w, D), row by row on VQ-KD's grid."""
        ...


class VQKD(nn.Module):
    """Encoder, codebook and feature decoder; a `foreact.types.Codes` and `Trainable`.

    Args:
        config: sizes and training constants.
        teacher: whose features are learned; only training needs one. It is not part of the module:
            neither saved nor moved.
    """

    vocab: int | None
    used_parameters: ClassVar[str] = "all"

    def __init__(self, config: VQKDConfig, *, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.config = config
        self.vocab = config.codes
        shape: dict[str, Any] = {
            "grid": config.position_grid,
            "width": config.width,
            "heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
        }
        self.encoder = ViT(channels=3, patch=config.patch, depth=config.depth, **shape)
        self.to_code = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.Tanh(),
            nn.Linear(config.width, config.code_dim),
        )
        self.quantizer = CosineCodebook(config.codes, config.code_dim, decay=config.codebook_decay)
        self.decoder = ViT(channels=config.code_dim, patch=1, depth=config.decoder_depth, **shape)
        self.to_features = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.Tanh(),
            nn.Linear(config.width, config.features),
        )
        # An assignment would register a teacher that happens to be a module among the parameters.
        self.__dict__["teacher"] = teacher

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes of a picture of the config's image_size."""
        return self.config.grid

    @property
    def codebook(self) -> Tensor:
        """float32 (V, c), rows of length 1."""
        return self.quantizer.rows

    @property
    def step_sums(self) -> tuple[Tensor, ...]:
        """Tensors to sum over processes before `after_step`; see `CosineCodebook`."""
        return self.quantizer.step_sums

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, c, h, w), before the search."""
        grid = self.patches_of(images)
        if self.config.preprocessing == "legacy":
            images = to_legacy_range(images)
        return self.to_code(self.encoder(images)).transpose(1, 2).unflatten(2, grid)

    def patches_of(self, images: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of pictures (N, 3, H, W)."""
        return images.shape[2] // self.config.patch, images.shape[3] // self.config.patch

    def predict(self, values: Tensor) -> Tensor:
        """Codebook rows (N, c, h, w) -> predicted teacher features (N, h w, D)."""
        return self.to_features(self.decoder(values))

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Codes of pictures of any size that is a multiple of the patch.

        Args:
            video: float (B, T, 3, H, W) in [-1, 1].
            rng: unused: nothing is drawn.

        Returns:
            int64 (B, T, H / patch, W / patch) in 0..vocab-1.

        Raises:
            ValueError: `video` has another shape or dtype.
        """
        require_video(video, multiple_of=self.config.patch)
        return self.quantizer.encode(self.latents(video.flatten(0, 1))).unflatten(
            0, video.shape[:2]
        )

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Cosine distance to the teacher + commitment_weight * commitment, on valid frames.

        Args:
            batch: `video` uint8 (B, T, 3, H, W) per camera; `valid` per camera, where given.
            rng: unused: nothing is drawn.

        Returns:
            Loss and logs: "distance" (1 - cosine) and "commitment"; "codebook_usage", the share of
            the codebook that these frames use, and "perplexity" of their codes.

        Raises:
            UserError: there is no teacher, its features do not fit, or the batch has no valid
                frame.
        """
        distance, quantized = self.compare(batch)
        loss = distance + self.config.commitment_weight * quantized.commitment
        logs = {"distance": distance.detach(), "commitment": quantized.commitment.detach()}
        logs["codebook_usage"], logs["perplexity"] = codebook_use(
            quantized.codes, self.config.codes
        )
        return LossOut(loss, logs)

    def compare(self, batch: Batch) -> tuple[Tensor, Quantized]:
        """() mean of 1 - cosine to the teacher on valid frames, and the quantised latents."""
        images = self.frames(batch)
        target = self.teach(images)
        quantized = self.quantizer(self.latents(images))
        predicted = self.predict(quantized.values).float()
        return 1.0 - cosine_similarity(predicted, target, dim=-1).mean(), quantized

    def after_step(self) -> None:
        """Move the codebook; see `CosineCodebook.after_step`."""
        self.quantizer.after_step()

    def frames(self, batch: Batch) -> Tensor:
        """Valid frames of all cameras, float32 (N, 3, H, W) in [-1, 1] and of the config's size.

        Raises:
            UserError: there are none.
        """
        frames = [
            prepare(
                video.flatten(0, 1) if (mask := batch.valid.get(camera)) is None else video[mask],
                self.config.image_size,
                self.config.preprocessing,
            )
            for camera, video in batch.video.items()
        ]
        if not sum(map(len, frames)):
            raise UserError(
                "VQ-KD trains on video, and the batch has no valid frame; add a "
                "camera to the window."
            )
        return torch.cat(frames)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's features of pictures (N, 3, H, W) in [-1, 1], float32 (N, h w, D).

        Raises:
            UserError: there is no teacher, or its features do not fit this config.
        """
        teacher: Teacher | None = self.__dict__["teacher"]
        if teacher is None:
            raise UserError(
                "VQ-KD learns from a teacher, and none was given; pass a network that gives patch "
                "features."
            )
        features = teacher(images)
        expected = (len(images), math.prod(self.patches_of(images)), self.config.features)
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if shape != expected:
            raise UserError(
                f"The teacher should give (pictures, patches, features) = {expected} for pictures "
                f"of {images.shape[2]} x {images.shape[3]} pixels, found {shape}; choose patch, "
                "image_size and features that fit it."
            )
        return features.float()

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices and kernels decay; biases, normalisations, class tokens and positions do not."""
        tables = {
            id(p) for vit in (self.encoder, self.decoder) for p in (vit.class_token, vit.positions)
        }
        decayed = [p for p in self.parameters() if p.ndim > 1 and id(p) not in tables]
        undecayed = [p for p in self.parameters() if p.ndim == 1 or id(p) in tables]
        return [
            {"params": decayed, "lr": lr, "weight_decay": weight_decay},
            {"params": undecayed, "lr": lr, "weight_decay": 0.0},
        ]
