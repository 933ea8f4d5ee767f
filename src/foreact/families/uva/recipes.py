"""What UVA is trained with by default: the published recipes, and a pocket size of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from foreact.errors import UserError
from foreact.families.uva.config import UVAConfig, uva_config
from foreact.runs.options import Episodes, TrainingRun
from foreact.runs.stores import policy_spec, task_of
from foreact.text.opening import find_text_encoder
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.types import StreamSpec
from foreact.worlds import Task

Stage = Literal["video", "joint"]


@dataclass(frozen=True, kw_only=True)
class UVARun(TrainingRun, Episodes):
    """Train the Unified Video Action model."""

    free_on_resume: ClassVar[tuple[str, ...]] = (*TrainingRun.free_on_resume, "eval_seeds")

    task: str | None = None
    """A built-in task or the import path of a module that exports TASK; None: pusht, or what the
    data say of themselves where --data is given."""
    size: str = "pocket"
    """pocket (two cores) or a published size: tiny, small, base, large, huge. Sets the defaults."""
    stage: Stage = "joint"
    """As in the paper: video alone first, then all questions, from the first stage's weights."""
    tokenizer: str = ""
    """KL autoencoder: a checkpoint folder or a shipped name; empty: the task's own."""
    init: str | None = None
    """Weights to start from, such as the first stage's, or the file of the image model MAR from
    which the paper's first stage starts; tensors that do not fit are listed."""
    out: Path = Path("runs/uva")
    pixels: bool = False
    """Learn from augmented pictures, encoded in every step, instead of stored latents."""
    val_ratio: float = 0.02
    data: Path | None = None
    """Store to learn from, or a mixture of several as .json (with --task); None: the task's own,
    data/<task>.zarr."""
    episode_lists: Path | None = None
    """JSON file of the episodes of each member of a mixture that are used: {name: [number, ...]}"""
    text_encoder: str | None = None
    """What turns instructions into numbers: minilm, clip:FOLDER with the published files, or the
    import path of another; None: the model is told nothing."""
    video_data: tuple[Path, ...] = ()
    """Videos without actions to learn from too: stores, LeRobot sets or folders of video files."""
    video_share: float = 0.5
    """Share of the windows that come from --video-data."""
    eval_seeds: int = 0
    """Closed-loop episodes per evaluation during training; 0: none."""
    model: UVAConfig = field(default_factory=UVAConfig)


@dataclass(frozen=True, kw_only=True)
class Published:
    """How the authors trained on one of their tasks, where it is not as on PushT.

    Attributes:
        model: fields of `UVAConfig`, in both stages.
        joint: further ones in the second stage.
        batch_size: windows per process (of 8).
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    joint: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32


UMI_STATES = {
    "robot0_eef_pos": 3,
    "robot0_eef_rot_axis_angle": 6,
    "robot0_gripper_width": 1,
    "robot0_eef_rot_axis_angle_wrt_start": 6,
}
PUBLISHED: dict[str, Published] = {
    # CLIP ViT-B/32's features of the instruction have 512 channels.
    "libero10": Published(model={"text_dim": 512}),
    "umi": Published(
        model={"text_dim": 512, "uneven_context": True, "first_now": False},
        joint={
            "proprioception": UMI_STATES,
            "proprioception_steps": 4,
            "proprioception_prediction": {"robot0_eef_rot_axis_angle_wrt_start": 6},
            "modes": {"policy": 1.0, "joint": 1.0},
        },
        batch_size=56,
    ),
}
"""By the name of the task; those without an entry, such as pusht and tool-hang, differ in nothing.
"""


def recipe(
    task: str | None = None,
    size: str = "pocket",
    stage: Stage = "joint",
    data: str | None = None,
    text_encoder: str | None = None,
) -> UVARun:
    """The defaults for a task, a size and a stage.

    The published sizes follow the paper (UVA sec. V) and the authors' configs: AdamW at 1e-4 with
    betas 0.9 and 0.95, decay 0.02, 1000 steps of warmup, cosine to zero, EMA. `pocket` is ours: it
    sees two frames of 2 x 2 tokens and the robot's own state, plans eight actions, has
    flow-matching heads, and learns where things are as a side task.

    Args:
        task: as `UVARun.task`.
        size: as `UVARun.size`.
        stage: as `UVARun.stage`.
        data: the store, which says what it holds where there is no task.
        text_encoder: as `UVARun.text_encoder`; its width is the model's.
    """
    loaded_task = task_of(task, None if data is None else Path(data))
    spec = policy_spec(loaded_task)
    if spec.action is None and stage == "joint":
        raise UserError(f"Task '{loaded_task.name}' has no actions; train it with --stage video.")
    chosen: dict[str, Any] = {"task": task, "size": size, "stage": stage}
    chosen["data"] = None if data is None else Path(data)
    chosen["text_encoder"] = text_encoder
    common = _common(loaded_task, spec, stage)
    if text_encoder is not None:
        common["text_dim"] = find_text_encoder(text_encoder).dim
    if size == "pocket":
        model = pocket_model(loaded_task, spec, stage, common)
        return UVARun(**chosen, model=model, train=pocket_training())
    published = PUBLISHED.get(loaded_task.name, Published())
    stage_two = published.joint if stage == "joint" else {"modes": {"video": 1.0}}
    model = uva_config(size, **{**published.model, **stage_two, **common})
    training = TrainConfig(steps=100_000, batch_size=published.batch_size)
    return UVARun(**chosen, model=model, train=training)


def _common(task: Task, spec: StreamSpec, stage: Stage) -> dict[str, Any]:
    return {
        "camera": task.camera,
        "predict_action": stage == "joint",
        "action_dim": 1 if spec.action is None else spec.action.dim,
    }


def pocket_model(
    task: Task, spec: StreamSpec, stage: Stage, common: Mapping[str, Any]
) -> UVAConfig:
    """A model that learns on two cores: both cameras, the robot's state, flow-matching heads."""
    modes = {"policy": 0.6, "joint": 0.15, "video": 0.05, "dynamics": 0.1, "inverse": 0.1}
    states = {name: len(dims) for name, dims in spec.state.items()}
    return UVAConfig(
        **common,
        wrist_camera=task.wrist_camera,
        latent_channels=8,
        grid=(6, 6),
        patch=3,
        frames=2,
        horizon=8,
        width=256,
        depth=3,
        heads=4,
        decoder_width=256,
        decoder_depth=2,
        decoder_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        head="flow",
        video_head_depth=2,
        video_head_width=128,
        action_head_depth=2,
        action_head_width=192,
        video_sampling_steps="20",
        action_sampling_steps="10",
        modes={"video": 1.0} if stage == "video" else modes,
        proprioception=task.proprioception,
        proprioception_steps=2,
        proprioception_prediction=states,
    )


def pocket_training() -> TrainConfig:
    return TrainConfig(
        steps=4000,
        batch_size=128,
        lr=1e-3,
        schedule="wsd",  # so that a longer run goes on from before the drop
        warmup=200,
        drop=800,
        floor=0.0,
        weight_decay=0.02,
        ema=EMAConfig(max=0.999),
        log_every=20,
        save_every=500,
        eval_every=1000,
    )
