"""MUSIK (arXiv 2211.00164) with a codebook: codes learned by multi-step inverse kinematics.

The encoder and codebook of `vq` without a way back to pixels. What trains them is a question that
only needs what the actions move: given a state and one a few steps later, which action came first?
It is asked by contrast (InfoNCE, arXiv 1807.03748; energies of actions as in arXiv 2109.00137): the
true action against actions drawn uniformly from [-1, 1].

A state is a stack of T frames. Equal in its function to MUSIK as Video Occupancy Models use it; the
order of the candidates, which that code shuffles, changes neither loss nor gradient and is left
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.tokenizers.autoencoder import Encoder, check_shape
from foreact.tokenizers.images import prepare
from foreact.tokenizers.quantize import Quantizer, codebook_use
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class MusikConfig:
    """Sizes and loss weights; except for the actions, Video Occupancy Models' defaults.

    Attributes:
        actions: numbers per action, A.
        frames: frames per state, T.
        channels: base width of the encoder.
        multipliers: width of each level over `channels`; n levels give stride 2^(n-1).
        attention: levels with self-attention, counted from the last one, which is 0.
        blocks: residual blocks per level.
        features: channels before the codes, and after them again.
        codes: size of the codebook, V.
        code_dim: length of a code.
        normalized: search codes by angle, both sides brought to length 1, or by distance
            (published).
        summary: numbers that sum up a frame for the inverse model.
        hidden: hidden units of the inverse model.
        negatives: drawn actions that the true one is told from.
        norm_groups: groups of every normalisation; divides every width.
        image_size: (height, width) in pixels to which frames are brought.
        codebook_weight: weight in the loss of the term that moves codes towards latents.
        commitment_weight: weight of the term that moves latents towards their codes.
        entropy_weight: weight of the term that spreads latents over all codes; see
            `Quantizer.entropy`.

    Raises:
        UserError: a value is impossible.
    """

    actions: int
    frames: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    attention: tuple[int, ...] = (0,)
    blocks: int = 2
    features: int = 256
    codes: int = 1024
    code_dim: int = 256
    normalized: bool = False
    summary: int = 256
    hidden: int = 256
    negatives: int = 256
    norm_groups: int = 32
    image_size: tuple[int, int] = (80, 80)
    codebook_weight: float = 0.25
    commitment_weight: float = 1.0
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "actions",
            "frames",
            "channels",
            "blocks",
            "features",
            "codes",
            "code_dim",
            "summary",
            "hidden",
            "negatives",
            "norm_groups",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"MUSIK's {name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        check_shape(
            "MUSIK's ",
            channels=self.channels,
            multipliers=self.multipliers,
            norm_groups=self.norm_groups,
            image_size=self.image_size,
        )
        levels = range(len(self.multipliers))
        if list(self.attention) != sorted(set(self.attention) & set(levels)):
            raise UserError(
                f"MUSIK's attention should be levels in 0..{levels[-1]}, ascending, found "
                f"{self.attention}."
            )
        for name in ("codebook_weight", "commitment_weight", "entropy_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(
                    f"MUSIK's {name.replace('_', '-')} should be a number >= 0, found "
                    f"{getattr(self, name)}."
                )

    @property
    def stride(self) -> int:
        """Pixels per token along either axis."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a frame."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


class ActionEnergy(nn.Module):
    """How badly an action explains the way from one state to another: low for likely actions.

    Linear, batch normalisation, ReLU, linear over [two states, action].

    Args:
        states: numbers of both states together, S.
        actions: numbers of an action, A.
        hidden: units between.
    """

    def __init__(self, states: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(states + actions, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, 1)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """States (B, S) with N candidates each (B, N, A) -> float32 (B, N).

        In training the normalisation is over all B N candidates; each process takes its own.
        """
        n = actions.shape[1]
        # All candidates share their states, so the states' part of the product is computed once.
        of_states, of_actions = self.first.weight.split([states.shape[1], actions.shape[2]], dim=1)
        x = functional.linear(states, of_states)[:, None] + functional.linear(actions, of_actions)
        x = functional.relu(self.norm(x.flatten(0, 1)))
        return self.second(x).float().view(-1, n)


class Musik(nn.Module):
    """Encoder, codebook and inverse model; a `foreact.types.Codes` and `Trainable`.

    Args:
        config: sizes and loss weights.
    """

    vocab: int | None
    used_parameters: ClassVar[str] = "all"

    def __init__(self, config: MusikConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab = config.codes
        self.encoder = Encoder(
            channels=config.channels,
            multipliers=config.multipliers,
            blocks=config.blocks,
            norm_groups=config.norm_groups,
            out_channels=config.features,
            # Counted in tokens of the last level, whatever the size of the pictures.
            nominal_resolution=config.stride,
            attention_resolutions=tuple(2**level for level in config.attention),
        )
        self.quantizer = Quantizer(config.codes, config.code_dim, normalized=config.normalized)
        self.to_code = nn.Conv2d(config.features, config.code_dim, 1)
        self.from_code = nn.Conv2d(config.code_dim, config.features, 1)
        self.summary = nn.Linear(config.features * math.prod(config.grid), config.summary)
        self.energy = ActionEnergy(
            2 * config.frames * config.summary, config.actions, config.hidden
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a frame of the config's image_size."""
        return self.config.grid

    @property
    def codebook(self) -> Tensor:
        """float32 (V, c)."""
        return self.quantizer.rows

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, c, h, w), before the search."""
        return self.to_code(self.encoder(images))

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Tokens of pictures of the config's image_size.

        Args:
            video: float (B, T, 3, H, W) in [-1, 1].
            rng: unused: nothing is drawn.

        Returns:
            int64 (B, T, h, w) in 0..vocab-1.

        Raises:
            ValueError: `video` has another shape or dtype.
        """
        size = self.config.image_size
        if not video.is_floating_point() or video.ndim != 5 or tuple(video.shape[2:]) != (3, *size):
            raise ValueError(
                f"encode expects floats in [-1, 1] of shape (B, T, 3, {size[0]}, {size[1]}), "
                f"found {video.dtype} {tuple(video.shape)}; use foreact.tokenizers.images.prepare "
                "first"
            )
        return self.quantizer.encode(self.latents(video.flatten(0, 1))).unflatten(
            0, video.shape[:2]
        )

    def summarize(self, values: Tensor) -> Tensor:
        """Codebook rows of states, (B T, c, h, w), T frames each -> (B, T * summary)."""
        frames = functional.relu(self.from_code(values).flatten(1))
        return self.summary(frames).view(-1, self.config.frames * self.config.summary)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """InfoNCE of the inverse model, and the codebook's loss of either state.

        Args:
            batch: `video` of one camera, uint8 (B, F, 3, H, W): its first T frames are the state,
                its last T the later one; resized here where the size differs from the config's. The
                first of `actions` (B, >= 1, A), in [-1, 1], is the one that was taken in the state.
                Frames that stand in for those before an episode's begin count like any other.
            rng: draws the negatives.

        Returns:
            The loss, and logs: "infonce" in nats (chance is log(negatives + 1)), "accuracy", the
            share of true actions that score better than all their negatives, the codebook's
            unweighted terms ("entropy" where it counts), and its use.

        Raises:
            UserError: the batch has not one camera, too few frames, or other actions.
        """
        now, later = self._states(batch)
        return self.loss(now, later, self._candidates(batch, rng))

    def loss(self, now: Tensor, later: Tensor, candidates: Tensor) -> LossOut:
        """As `forward`.

        Args:
            now, later: float (B, T, 3, H, W), as the encoder takes them.
            candidates: float (B, 1 + negatives, A), the true action first.
        """
        config = self.config
        latents = [self.latents(frames.flatten(0, 1)) for frames in (now, later)]
        states = [self.quantizer(z) for z in latents]
        energies = self.energy(
            torch.cat([self.summarize(state.values) for state in states], dim=1), candidates
        )
        # The true action is candidate 0, and the lowest energy is the likeliest.
        truth = torch.zeros(len(energies), dtype=torch.int64, device=energies.device)
        terms = {
            "infonce": functional.cross_entropy(-energies, truth),
            "codebook": states[0].codebook + states[1].codebook,
            "commitment": states[0].commitment + states[1].commitment,
        }
        loss = terms["infonce"] + config.codebook_weight * terms["codebook"]
        loss = loss + config.commitment_weight * terms["commitment"]
        if config.entropy_weight > 0:
            terms["entropy"] = self.quantizer.entropy(torch.cat(latents))
            loss = loss + config.entropy_weight * terms["entropy"]
        logs = {name: term.detach() for name, term in terms.items()}
        # A tie is no answer: an inverse model that says the same of every action has told nothing.
        logs["accuracy"] = (energies[:, 0] < energies[:, 1:].amin(dim=1)).double().mean()
        codes = torch.cat([state.codes for state in states])
        logs["codebook_usage"], logs["perplexity"] = codebook_use(codes, config.codes)
        return LossOut(loss, logs)

    def _states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The first and the last T frames, float32 (B, T, 3, H, W) in [-1, 1]."""
        t = self.config.frames
        if len(batch.video) != 1:
            raise UserError(
                "MUSIK learns from one camera, and the batch has "
                f"{sorted(batch.video)}; choose one."
            )
        (video,) = batch.video.values()
        if video.shape[1] < 2 * t:
            raise UserError(
                f"MUSIK needs two states of {t} frames, and the windows have "
                f"{video.shape[1]} frames."
            )
        size = self.config.image_size
        return prepare(video[:, :t], size), prepare(video[:, -t:], size)

    def _candidates(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The true action, then drawn ones: float32 (B, 1 + negatives, A)."""
        config, actions = self.config, batch.actions
        if actions is None or actions.shape[2] != config.actions:
            found = "none" if actions is None else f"actions of {actions.shape[2]} numbers"
            raise UserError(
                f"MUSIK was made for actions of {config.actions} numbers, and the "
                f"batch has {found}."
            )
        drawn = torch.rand(
            len(actions), config.negatives, config.actions, generator=rng, device=rng.device
        )
        return torch.cat([actions[:, :1], (2.0 * drawn - 1.0).to(actions.device)], dim=1)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Kernels and matrices decay; biases, normalisations and the codebook do not."""
        decaying = [p for p in self.parameters() if p.ndim >= 2 and p is not self.quantizer.weight]
        undecayed = [p for p in self.parameters() if p.ndim < 2 or p is self.quantizer.weight]
        return [
            {"params": decaying, "lr": lr, "weight_decay": weight_decay},
            {"params": undecayed, "lr": lr, "weight_decay": 0.0},
        ]
