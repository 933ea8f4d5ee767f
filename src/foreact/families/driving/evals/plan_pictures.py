"""Pictures of planned and driven paths: from above, and on the frame of a calibrated camera."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foreact.errors import UserError
from foreact.families.driving.data.ego import COMMANDS
from foreact.families.driving.evals.open_loop import Plan
from foreact.files import parse_json, read_text

PLANNED, DRIVEN = "#f59e0b", "#10b981"


@dataclass(frozen=True, kw_only=True)
class GroundCamera:
    """A pinhole camera above flat ground (z = 0 in the frame of the car: x forward, y left, z up).

    Attributes:
        intrinsic: (3, 3), in pixels of a picture of `size`.
        rotation: camera to car, (3, 3); the camera looks along its z axis, x to the right and y
            down.
        position: of the camera in the frame of the car, metres, (3,).
        size: (height, width) of the calibrated picture.
    """

    intrinsic: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    size: tuple[int, int]

    @staticmethod
    def read(path: Path) -> GroundCamera:
        """A camera from a JSON file.

        Its keys are "intrinsic" (3 x 3), "sensor_to_ego_rot" (w, x, y, z), "sensor_to_ego_tran"
        (x, y, z) and "size" (height, width).
        """
        try:
            raw = parse_json(read_text(path))
            intrinsic = np.asarray(raw["intrinsic"], dtype=np.float64).reshape(3, 3)
            quaternion = np.asarray(raw["sensor_to_ego_rot"], dtype=np.float64).reshape(4)
            position = np.asarray(raw["sensor_to_ego_tran"], dtype=np.float64).reshape(3)
            height, width = (int(v) for v in raw["size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} should be JSON with intrinsic (3 x 3), sensor_to_ego_rot (w, x, y, z), "
                f"sensor_to_ego_tran (x, y, z) and size (height, width), found trouble: {error}."
            ) from error
        return GroundCamera(
            intrinsic=intrinsic,
            rotation=_rotation(quaternion),
            position=position,
            size=(height, width),
        )

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Points on the ground (N, 2), metres -> pixels (N, 2); NaN behind the camera.

        Args:
            points: x forward and y left of the car.
            size: (height, width) of the picture to draw on.
        """
        ground = np.concatenate([points, np.zeros((len(points), 1))], axis=1)
        # On row vectors, @ rotation turns from the car's axes to the camera's.
        rays = (ground - self.position) @ self.rotation @ self.intrinsic.T
        ahead = rays[:, 2] > 0.1  # metres
        pixels = np.full((len(points), 2), np.nan)
        pixels[ahead] = rays[ahead, :2] / rays[ahead, 2:]
        return pixels * (size[1] / self.size[1], size[0] / self.size[0])


def plan_picture(
    plan: Plan,
    frame: np.ndarray | None = None,
    camera: GroundCamera | None = None,
    commands: Sequence[str] = COMMANDS,
) -> Image.Image:
    """The paths from above, beside the frame that they start from.

    Args:
        plan: what was planned and driven.
        frame: the window's last frame, uint8 (H, W, 3), if there are pictures.
        camera: of the frame, to draw the paths on it too; None: not known.
        commands: names of commands 0, 1, ...
    """
    # Imported here, since it takes a second and most commands draw nothing. No pyplot: it keeps
    # global figures.
    from matplotlib.figure import Figure

    size = (3.2, 3.6) if frame is None else (9.6, 3.6)  # inches
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    if frame is None:
        above = figure.subplots()
    else:
        front, above = figure.subplots(1, 2, width_ratios=(2, 1))
        _draw_front(front, frame, plan, camera)
    _draw_above(above, plan)
    title = f"episode {plan.episode}, step {plan.step}, command: {commands[plan.command]}"
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _draw_front(ax: Any, frame: np.ndarray, plan: Plan, camera: GroundCamera | None) -> None:
    height, width = frame.shape[:2]
    ax.imshow(frame)
    if camera is not None:
        for path, colour in [*((p, PLANNED) for p in plan.predicted), (plan.truth, DRIVEN)]:
            pixels = camera.project(path, (height, width))
            ax.plot(pixels[:, 0], pixels[:, 1], "o-", color=colour, ms=3, lw=1.2, alpha=0.8)
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_axis_off()


def _draw_above(ax: Any, plan: Plan) -> None:
    start = np.zeros((1, 2))
    for i, path in enumerate(plan.predicted):
        line = np.concatenate([start, path])
        label = None if i else "planned"
        ax.plot(-line[:, 1], line[:, 0], "-", color=PLANNED, lw=1, alpha=0.7, label=label)
    line = np.concatenate([start, plan.truth])
    ax.plot(-line[:, 1], line[:, 0], "o-", color=DRIVEN, ms=3, lw=1.6, label="driven")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("m to the right")
    ax.set_ylabel("m ahead")
    ax.legend(fontsize=8, frameon=False)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrix of (w, x, y, z), normalised here."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
