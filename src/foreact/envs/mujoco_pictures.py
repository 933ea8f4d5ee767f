"""Pictures of a MuJoCo world by its own renderer: as it is meant, or fast and without shadows."""

from __future__ import annotations

import atexit
import importlib
from typing import Any

import numpy as np

from foreact.errors import UserError

COLLISION_GROUP = 0
"""Group of the shapes that only collide, in robosuite's models."""


def draw_fast(model: Any) -> None:
    """Make a compiled model cheap to draw; the physics stays as it is, bit for bit.

    No shadow map, no smoothing of edges, coarse round shapes and floors. Call it before the first
    renderer of the model is made.

    Args:
        model: a `mujoco.MjModel`.
    """
    mujoco: Any = importlib.import_module("mujoco")  # its types are incomplete

    quality = model.vis.quality
    quality.shadowsize = quality.offsamples = 0
    quality.numquads, quality.numslices, quality.numstacks = 1, 12, 6
    # The third size of a plane is the spacing of the grid it is drawn as.
    model.geom_size[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, 2] = 10.0


class Pictures:
    """Draws a world from its cameras, upright.

    Args:
        model: a `mujoco.MjModel`.
        size: side of the square pictures in pixels.
        shadows: whether shadows and reflections are drawn.

    Raises:
        UserError: the process has no way to draw.
    """

    def __init__(self, model: Any, size: int, *, shadows: bool) -> None:
        mujoco: Any = importlib.import_module("mujoco")  # its types are incomplete

        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = max(size, buffer.offwidth), max(size, buffer.offheight)
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (RuntimeError, mujoco.FatalError) as error:
            raise UserError(
                f"MuJoCo cannot draw ({error}); set MUJOCO_GL to egl or osmesa before anything "
                "imports mujoco or robosuite."
            ) from error
        self._shown = mujoco.MjvOption()
        self._shown.geomgroup[COLLISION_GROUP] = 0
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = shadows
        # A drawing context that outlives its library prints tracebacks at exit.
        atexit.register(self.close)

    def draw(self, data: Any, camera: str) -> np.ndarray:
        """What `camera` sees: uint8 (size, size, 3)."""
        self._renderer.update_scene(data, camera, self._shown)
        return self._renderer.render().copy()

    def close(self) -> None:
        """Free the drawing context."""
        atexit.unregister(self.close)
        self._renderer.close()
