"""UVA's sizes and options with their checks, the published sizes, and the five questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foreact.errors import UserError
from foreact.families.uva.heads import READOUTS, ReadoutKind
from foreact.families.uva.timing import context_offsets, frame_stride
from foreact.nn.diffusion import spaced_steps
from foreact.nn.flow import Solver, TimeDistribution, solver_steps


@dataclass(frozen=True)
class Mode:
    """One question to the model (arXiv 2503.00200).

    Attributes:
        context: the past frames are shown.
        future: future frames are hidden in part ("masked"), entirely ("hidden"), or shown
            ("visible").
        actions: the true actions are shown.
        video, action: what is predicted.
    """

    context: bool
    future: Literal["masked", "hidden", "visible"]
    actions: bool
    video: bool
    action: bool


MODES: dict[str, Mode] = {
    "video": Mode(context=True, future="masked", actions=False, video=True, action=False),
    "dynamics": Mode(context=True, future="masked", actions=True, video=True, action=False),
    "policy": Mode(context=True, future="hidden", actions=False, video=False, action=True),
    "inverse": Mode(context=False, future="visible", actions=False, video=False, action=True),
    "joint": Mode(context=True, future="masked", actions=False, video=True, action=True),
}


def all_modes() -> dict[str, float]:
    """Every mode, with equal weights."""
    return dict.fromkeys(MODES, 1.0)


@dataclass(frozen=True, kw_only=True)
class UVAConfig:
    """UVA's sizes and options; the defaults are the published base model.

    Attributes:
        camera: stream whose latents are watched and foreseen.
        wrist_camera: a second such stream, or None.
        wrist_context, wrist_prediction: whether the second stream's past is shown, and its future
            foreseen.
        latent_channels, grid: c and (h, w) of the tokenizer's latents.
        patch: side of the square of latents that becomes one token.
        frames: F, frames of context and as many foreseen.
        uneven_context: training shows each sample's past frames, and states, at random times of
            the past K steps, so that a robot may show them at any rate.
        horizon: K, actions.
        first_now: the first action is the one due at the last frame shown, else the one after it,
            as where an action is the pose that is reached next (UMI).
        action_dim: A.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        mlp_ratio: hidden over outer channels in each block.
        dropout, attention_dropout: on block outputs, on attention weights.
        mask_ratio_min: smallest share of a frame's tokens that training hides.
        predict_video, predict_action: which heads exist.
        modes: question -> weight with which training draws it, one per batch.
        head: what the heads learn.
        video_head_depth, video_head_width, action_head_depth, action_head_width: of the denoisers.
        readout: how features of tokens become features of actions.
        video_diffusion_steps, action_diffusion_steps: length of a diffusion head's noise schedule,
            one number for training and sampling (the reference's action head may differ).
        flow_time, flow_solver: see `FlowMatching`.
        video_sampling_steps, action_sampling_steps: "N", or "ddimN" for a diffusion head (see
            `spaced_steps`).
        text_dim: channels of the instruction's features, or None for no instructions.
        text_tokens: tokens that each repeat the instruction.
        text_drop: probability that training hides an instruction.
        past_actions: show the K actions taken before; those before the episode's start are hidden.
        past_action_keep: probability that training shows a past action (the reference's
            `action_mask_ratio`, whose name says the opposite).
        proprioception: state stream -> how many of its first dimensions are shown.
        proprioception_steps: steps of the past at which they are shown.
        proprioception_prediction: state stream -> how many of its first dimensions are foreseen,
            over the K future steps and in every mode.
        modalities: state stream, such as force or sound -> how many of its first dimensions are
            foreseen over the K future steps, by a head of its own that is kept and may be asked;
            trained in every mode. What of it the model sees is `proprioception`'s to say.
        decay_embeddings: weight decay on learned vectors and position embeddings too, as the
            reference does.
        checkpointing: recompute blocks in the backward pass, for less memory and more time.
    """

    camera: str = "img"
    wrist_camera: str | None = None
    wrist_context: bool = True
    wrist_prediction: bool = True
    latent_channels: int = 16
    grid: tuple[int, int] = (16, 16)
    patch: int = 1
    frames: int = 4
    uneven_context: bool = field(default=False, metadata={"later": True})
    horizon: int = 16
    first_now: bool = field(default=True, metadata={"later": True})
    action_dim: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mask_ratio_min: float = 0.7
    predict_video: bool = True
    predict_action: bool = True
    modes: Mapping[str, float] = field(default_factory=all_modes)
    head: Literal["diffusion", "flow"] = "diffusion"
    video_head_depth: int = 6
    video_head_width: int = 1024
    action_head_depth: int = 6
    action_head_width: int = 1024
    readout: ReadoutKind = "conv_fc"
    video_diffusion_steps: int = 1000
    action_diffusion_steps: int = 1000
    flow_time: TimeDistribution = "uniform"
    flow_solver: Solver = "euler"
    video_sampling_steps: str = "100"
    action_sampling_steps: str = "100"
    text_dim: int | None = None
    text_tokens: int = 64
    text_drop: float = 0.1
    past_actions: bool = False
    past_action_keep: float = 0.5
    proprioception: Mapping[str, int] = field(default_factory=dict)
    proprioception_steps: int = 16
    proprioception_prediction: Mapping[str, int] = field(default_factory=dict)
    modalities: Mapping[str, int] = field(default_factory=dict, metadata={"later": True})
    decay_embeddings: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_modes()
        self._check_conditions()
        self._check_sampling()

    # --- derived ----------------------------------------------------------------------------------

    @property
    def token_grid(self) -> tuple[int, int]:
        """(h, w) tokens of a frame."""
        return self.grid[0] // self.patch, self.grid[1] // self.patch

    @property
    def frame_tokens(self) -> int:
        return self.token_grid[0] * self.token_grid[1]

    @property
    def tokens(self) -> int:
        """N, tokens of all frames."""
        return self.frames * self.frame_tokens

    @property
    def token_channels(self) -> int:
        return self.latent_channels * self.patch**2

    @property
    def views(self) -> dict[str, str]:
        """Video head -> its camera; a wrist camera is here even if it is shown only."""
        return {"video": self.camera} | (
            {} if self.wrist_camera is None else {"wrist": self.wrist_camera}
        )

    @property
    def modality_heads(self) -> dict[str, str]:
        """Head -> the stream of `modalities` that it foresees; no module's name has a dot."""
        return {f"modality_{s.replace('.', '_')}": s for s in self.modalities}

    @property
    def foreseen_states(self) -> tuple[str, ...]:
        """State streams whose future training reads, each once."""
        return tuple(dict.fromkeys([*self.proprioception_prediction, *self.modalities]))

    @property
    def shows_wrist(self) -> bool:
        return self.wrist_camera is not None and self.wrist_context

    @property
    def predicts_wrist(self) -> bool:
        return self.wrist_camera is not None and self.wrist_prediction

    @property
    def streams(self) -> tuple[str, ...]:
        """What is joined into each token, in the order of the joining layer's input channels."""
        present = {
            "video": True,
            "wrist": self.predicts_wrist,
            "context": True,
            "past_action": self.past_actions,
            "action": True,
            "wrist_context": self.shows_wrist,
            "proprioception": bool(self.proprioception),
        }
        return tuple(name for name, is_present in present.items() if is_present)

    # --- checks -----------------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        if len(self.grid) != 2:
            raise UserError(
                f"--model.grid should be (height, width) of the latents, found {self.grid}."
            )
        names = ["latent_channels", "patch", "frames", "horizon", "action_dim"]
        names += ["width", "depth", "heads"]
        sizes = {name: getattr(self, name) for name in names}
        sizes |= {f"grid[{i}]": n for i, n in enumerate(self.grid)}
        names = ["decoder_width", "decoder_depth", "decoder_heads"]
        names += ["video_head_depth", "video_head_width", "action_head_depth", "action_head_width"]
        sizes |= {name: getattr(self, name) for name in names}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found {size}."
                )
        for axis, length in zip(("height", "width"), self.grid, strict=True):
            if length % self.patch:
                raise UserError(
                    f"The {axis} of --model.grid ({length}) should be a multiple of --model.patch "
                    f"({self.patch})."
                )
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"--model.{width.replace('_', '-')} ({getattr(self, width)}) should be a "
                    f"multiple of --model.{heads.replace('_', '-')} "
                    f"({getattr(self, heads)})."
                )
        if self.mlp_ratio * min(self.width, self.decoder_width) < 1:
            raise UserError(
                f"--model.mlp-ratio ({self.mlp_ratio}) leaves no hidden channel; 4 is usual."
            )
        if self.horizon > self.tokens:
            raise UserError(
                f"UVA pairs each of {self.horizon} actions with tokens of its own, but there are "
                f"only {self.tokens} ({self.frames} frames of {self.token_grid[0]} x "
                f"{self.token_grid[1]}); choose a shorter horizon, more frames or a smaller patch."
            )
        for name in ("dropout", "attention_dropout", "text_drop", "past_action_keep"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(
                    f"--model.{name.replace('_', '-')} is a probability and should lie in [0, 1], "
                    "found "
                    f"{getattr(self, name)}."
                )
        if not 0.0 < self.mask_ratio_min < 1.0:
            raise UserError(
                f"--model.mask-ratio-min should lie between 0 and 1, found {self.mask_ratio_min}."
            )

    def _check_modes(self) -> None:
        if unknown := sorted(set(self.modes) - set(MODES)):
            raise UserError(f"UVA has no mode {unknown[0]!r}; the modes are {', '.join(MODES)}.")
        if any(w < 0 for w in self.modes.values()) or not any(w > 0 for w in self.modes.values()):
            raise UserError(
                f"--model.modes should be at least 0 and not all 0, found {dict(self.modes)}."
            )
        for name, weight in self.modes.items():
            no_video = MODES[name].video and not self.predict_video
            no_action = MODES[name].action and not self.predict_action
            if weight > 0 and (no_video or no_action):
                lacking = "--model.predict-video" if no_video else "--model.predict-action"
                raise UserError(
                    f"UVA's mode '{name}' needs {lacking}; turn it on or leave the "
                    "mode out of --model.modes."
                )
        if self.readout not in READOUTS:
            raise UserError(
                f"--model.readout should be one of {', '.join(READOUTS)}, found {self.readout!r}."
            )
        if self.readout == "conv_ori":
            frame_stride(self.horizon, self.frames)

    def _check_conditions(self) -> None:
        if self.wrist_camera is not None:
            if self.wrist_camera == self.camera:
                raise UserError(
                    f"--model.camera and --model.wrist-camera are both '{self.camera}'; name two "
                    "streams."
                )
            if not (self.wrist_context or self.wrist_prediction):
                raise UserError(
                    "--model.wrist-camera is neither shown nor foreseen; turn one on or "
                    "leave it out."
                )
            if self.wrist_prediction and not self.predict_video:
                raise UserError(
                    "--model.wrist-prediction needs --model.predict-video; turn one on or the "
                    "other off."
                )
        if self.text_dim is not None and (self.text_dim < 1 or self.text_tokens < 1):
            raise UserError(
                f"--model.text-dim ({self.text_dim}) and --model.text-tokens ({self.text_tokens}) "
                "should be at least 1; leave --model.text-dim out for a model without instructions."
            )
        for name, streams in (
            ("proprioception", self.proprioception),
            ("proprioception_prediction", self.proprioception_prediction),
            ("modalities", self.modalities),
        ):
            for stream, dim in streams.items():
                if dim < 1:
                    raise UserError(
                        f"--model.{name.replace('_', '-')} of '{stream}' should have at least 1 "
                        f"dimension, found {dim}."
                    )
        if self.uneven_context and self.proprioception and self.proprioception_steps != self.frames:
            raise UserError(
                "With --model.uneven-context, states are shown at the times of the frames: set "
                f"--model.proprioception-steps to --model.frames ({self.frames}), found "
                f"{self.proprioception_steps}."
            )
        if self.proprioception and not 1 <= self.proprioception_steps <= self.tokens:
            raise UserError(
                f"--model.proprioception-steps should lie in 1..{self.tokens} (the number of "
                f"tokens), found {self.proprioception_steps}."
            )

    def _check_sampling(self) -> None:
        if self.head not in ("diffusion", "flow"):
            raise UserError(f"--model.head should be diffusion or flow, found {self.head!r}.")
        for name in ("video_diffusion_steps", "action_diffusion_steps"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.predict_video:
            self.check_sampling_steps("video", self.video_sampling_steps)
        if self.predict_action:
            self.check_sampling_steps("action", self.action_sampling_steps)

    def check_sampling_steps(self, head: Literal["video", "action"], steps: str) -> None:
        """Raise a `UserError` unless the head can be sampled in `steps`."""
        if self.head == "flow":
            solver_steps(steps)
        else:
            video = head == "video"
            spaced_steps(
                self.video_diffusion_steps if video else self.action_diffusion_steps, steps
            )


# Widths, depths and heads of the published sizes (video heads of large and huge: arXiv 2406.11838).
# The reference keeps the base video head for every size, so that a pretrained image model's head is
# left out silently with large and huge; here the pairs match, and the base head is two overrides
# away.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 768, "depth": 3, "heads": 6},
    "small": {"width": 768, "depth": 6, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {
        "width": 1024,
        "depth": 16,
        "heads": 16,
        "video_head_depth": 8,
        "video_head_width": 1280,
    },
    "huge": {
        "width": 1280,
        "depth": 20,
        "heads": 16,
        "video_head_depth": 12,
        "video_head_width": 1536,
    },
}


def uva_config(size: str = "base", **overrides: Any) -> UVAConfig:
    """A published size, with the decoder as large as the encoder.

    Args:
        size: tiny, small, base, large or huge.
        overrides: any field of `UVAConfig`.

    Raises:
        UserError: no such size, or an impossible value.
    """
    if size not in SIZES:
        raise UserError(f"UVA has no size '{size}'; the sizes are {', '.join(SIZES)}.")
    values = dict(SIZES[size])
    values |= {f"decoder_{name}": values[name] for name in ("width", "depth", "heads")}
    return UVAConfig(**(values | overrides))


def state_offsets(config: UVAConfig) -> list[int]:
    """Offsets at which `proprioception` is shown: evenly over the context's K steps, up to now.

    P = K shows every step and P = F the steps of the context's frames, the reference's two choices.
    """
    stride, rest = divmod(config.horizon, config.proprioception_steps)
    if rest:
        raise UserError(
            f"--model.proprioception-steps ({config.proprioception_steps}) should divide "
            f"--model.horizon ({config.horizon})."
        )
    return context_offsets(config.proprioception_steps, stride)
