"""VaViM and VaVAM checkpoints (Lightning, fused, DeepSpeed directory) -> our names and configs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import assemble
from foreact.errors import UserError
from foreact.families.driving.data.windows import plan_spec
from foreact.families.driving.released.config import (
    Reading,
    read_video,
    read_video_action,
)
from foreact.families.driving.released.names import HEAD
from foreact.families.driving.vavam import VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig
from foreact.released import wrappers
from foreact.released.content import read_content
from foreact.released.layouts import Converted, Layout, Request, option, write_converted
from foreact.types import StreamSpec

VIDEO = "transformer.wie.weight"
EXPERT = "action_expert.action_encoder.linear_1.weight"
ANCHORS: dict[Literal["vavam", "vavim"], tuple[str, ...]] = {
    "vavam": (f"gpt.{VIDEO}",),
    "vavim": (VIDEO,),
}
"""Tensors that each model has, by the names of the reference's modules."""
OWNERS = {*wrappers.OWNERS, "vam", "joint_model"}
"""What stands before them; a VaVAM is stored twice, as itself and as its joint model."""
PIXELS_PER_TOKEN = 16
RATE_HZ = 2.0


@dataclass(frozen=True, kw_only=True)
class VaVAMReference:
    """A read VaViM or VaVAM checkpoint.

    Attributes:
        config: of the model.
        state: its tensors in our names, standing on a private memory map of the file.
        facts: how far it was trained, as the file says; JSON values.
        report: where every entry of the file went, in lines.
    """

    config: VaViMConfig | VaVAMConfig
    state: dict[str, Tensor]
    facts: dict[str, Any]
    report: str

    @property
    def family(self) -> Literal["vavim", "vavam"]:
        return "vavam" if isinstance(self.config, VaVAMConfig) else "vavim"

    @property
    def video(self) -> VaViMConfig:
        return self.config.vavim if isinstance(self.config, VaVAMConfig) else self.config

    def build(self, device: torch.device | str = "cpu") -> nn.Module:
        """The module in evaluation mode, which shares `state` where device and type allow."""
        return assemble(self.family, self.config, self.state).to(device).eval()

    def spec(self) -> StreamSpec:
        """What the published models see and plan: the front camera at 2 Hz, waypoints in metres."""
        rows, columns = self.video.grid
        return StreamSpec(
            cameras={self.video.camera: (PIXELS_PER_TOKEN * rows, PIXELS_PER_TOKEN * columns)},
            fps=RATE_HZ,
            action=plan_spec(RATE_HZ) if self.family == "vavam" else None,
        )


def vavam_family(payload: Any) -> Literal["vavim", "vavam"] | None:
    """Which of the two models a checkpoint's content holds, if any."""
    for family, anchors in ANCHORS.items():
        if _entry_of(payload, anchors) is not None:
            return family
    return None


def _entry_of(payload: Any, anchors: Sequence[str]) -> str | None:
    """The entry of a file's content that holds such tensors."""
    found = wrappers.find_entry(payload, anchors, owners=OWNERS)
    return None if found is None else found[0]


def read_vavam_checkpoint(
    path: Path, *, grid: tuple[int, int] | None = None, camera: str = "front", payload: Any = None
) -> VaVAMReference:
    """Read a VaViM or VaVAM checkpoint in one of the reference's own formats.

    Args:
        path: a Lightning .ckpt, a fused .pt or a DeepSpeed directory.
        grid: rows and columns of tokens in a frame, for a model of another frame than the published
            18 x 32.
        camera: what to call the camera.
        payload: the content, where it has been read already.

    Raises:
        UserError: the file is missing, unsafe or damaged; a tensor belongs to nothing we know, or
            one is missing; its parts contradict each other; the grid is not known.
    """
    path = Path(path)
    payload = read_content(path) if payload is None else payload
    family = vavam_family(payload)
    if family is None:
        raise UserError(
            f"{path} is no VaViM or VaVAM checkpoint: its state_dict has no tensors of either."
        )
    reading = Reading(path, payload)
    entry = _entry_of(payload, ANCHORS[family]) or ""
    tensors = _collect(payload[entry], family, reading)
    facts: dict[str, Any] = {
        k: payload[k] for k in ("epoch", "global_step") if isinstance(payload.get(k), int)
    }
    try:
        if family == "vavim":
            conf = reading.conf("network")
            config, state = read_video(reading, conf, tensors, ("mup_base_shapes",), grid, camera)
        else:
            config, state = read_video_action(reading, tensors, grid, camera)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} is no {family} checkpoint: its entries have an odd form ({error})."
        ) from None
    used = {entry, "hyper_parameters", "epoch", "global_step", *reading.used}
    report = [f"{path}: {family}, {len(state)} tensors", *(f"  {note}" for note in reading.notes)]
    report += [f"  not read: {k}" for k in payload if k not in used]
    return VaVAMReference(config=config, state=state, facts=facts, report="\n".join(report))


def require_spec(reference: VaVAMReference, spec: StreamSpec, path: Path) -> None:
    """Raise a `UserError` where a spec contradicts the sizes of a checkpoint."""
    rows, columns = reference.video.grid
    camera, (height, width) = next(iter(spec.cameras.items()))
    if height % rows or width % columns or height // rows != width // columns:
        raise UserError(
            f"{path} reads {rows} x {columns} tokens, which the pictures of camera '{camera}' "
            f"({height} x {width}) do not divide into squares; convert it with the spec of its "
            "own task."
        )
    if not isinstance(reference.config, VaVAMConfig):
        return
    action_dim = reference.config.expert.action_dim
    task_dim = None if spec.action is None else spec.action.dim
    if task_dim != action_dim:
        raise UserError(
            f"{path} plans {action_dim} numbers per waypoint, the task has {task_dim or 'no'} "
            "action dims; convert it with the spec of its own task."
        )


def module_names(names: Iterable[str]) -> dict[str, str]:
    """Name in a checkpoint -> name in the reference's own modules, such as "gpt.transformer..."."""
    return wrappers.plain_names(names, (f"gpt.{VIDEO}", VIDEO, EXPERT), owners=OWNERS)


def _collect(
    state: Mapping[Any, Any], family: Literal["vavim", "vavam"], reading: Reading
) -> dict[str, Tensor]:
    """Tensors by their names in the reference's modules; of two equal copies one."""
    names = module_names(map(str, state))
    parts = ("transformer.", HEAD) if family == "vavim" else ("gpt.", "action_expert.")
    kept: list[tuple[str, Tensor]] = []
    unknown: list[str] = []
    for full, tensor in state.items():
        name = names[str(full)]
        if name == "attn_mask" and family == "vavam":
            reading.notes.append(f"left out: {full} (the mask follows from the sizes)")
        elif name.startswith(parts) and isinstance(tensor, Tensor):
            kept.append((name, tensor))
        else:
            unknown.append(str(full))
    if unknown:
        raise reading.error(
            f"holds {len(unknown)} entries of no known part: {', '.join(unknown[:5])}."
        )
    tensors = wrappers.without_twins(kept, reading.path)
    if duplicates := len(kept) - len(tensors):
        reading.notes.append(f"{duplicates} tensors stored under two names, equal")
    return tensors


@dataclass(frozen=True, kw_only=True)
class DrivingFileOptions:
    grid: tuple[int, int] | None = option(
        "rows and columns of tokens in a frame; default 18 x 32, as published"
    )


def _convert(request: Request, options: DrivingFileOptions) -> Converted:
    camera = "front" if request.spec is None else next(iter(request.spec.cameras))
    reference = read_vavam_checkpoint(
        request.src, grid=options.grid, camera=camera, payload=request.payload
    )
    if request.spec is not None:
        require_spec(reference, request.spec, request.src)
    return write_converted(
        request,
        family=reference.family,
        config=reference.config,
        state=reference.state,
        report=reference.report,
        facts=reference.facts,
        spec=request.spec or reference.spec(),
    )


def _start_training(request: Request, options: DrivingFileOptions) -> Path:
    # Imported here, since that module, which builds optimisers, imports this one.
    from foreact.families.driving.released.run import write_released_run

    return write_released_run(request.src, request.dst, grid=options.grid, payload=request.payload)


LAYOUTS = (
    Layout(
        name="vavam",
        title="a VaViM or VaVAM",
        files="Lightning .ckpt, fused .pt, DeepSpeed directory",
        mark="transformer.wie, of a VaVAM below gpt",
        recognise=lambda payload: vavam_family(payload) is not None,
        convert=_convert,
        options=DrivingFileOptions,
        has_spec=True,
        start_training=_start_training,
    ),
)
