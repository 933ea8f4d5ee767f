"""DeepMind Control from pixels: any dm_control suite task; see also `mppi`, `collect_dmc`."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np

from foreact.envs.rendering import load_suite
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut

CAMERA = "pixels"
SIZE = 84
ACTION_REPEAT = 2
CONTROL_STEPS = 1000  # of an episode of nearly every task


def dmc_spec(
    actuators: tuple[str, ...],
    control_hz: float,
    *,
    size: int = SIZE,
    action_repeat: int = ACTION_REPEAT,
    low: tuple[float, ...] | None = None,
    high: tuple[float, ...] | None = None,
) -> StreamSpec:
    """Spec of a task: one camera, the reward, one action per actuator (by default in -1..1).

    Args:
        actuators: names of the model's actuators, (A,).
        control_hz: control steps per second of the task, before actions are repeated.
        size: side of the picture in pixels.
        action_repeat: control steps that an action lasts.
        low, high: bounds per actuator.
    """
    rate = control_hz / action_repeat
    return StreamSpec(
        cameras={CAMERA: (size, size)},
        fps=rate,
        action=ActionSpec(
            names=actuators,
            units=("unitless",) * len(actuators),
            frame="joint",
            mode="absolute",
            rate_hz=rate,
            low=low or (-1.0,) * len(actuators),
            high=high or (1.0,) * len(actuators),
        ),
        has_reward=True,
    )


CHEETAH_RUN_SPEC = dmc_spec(
    ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"), control_hz=100.0
)
WALKER_WALK_SPEC = dmc_spec(
    ("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    control_hz=40.0,
)


class DMCEnv:
    """One task of the suite; meets `foreact.worlds.Env`.

    The picture is what dm_control draws, so that it equals V-D4RL's (84 px, camera 0, with
    shadows). An action lasts `action_repeat` control steps and its reward is their sum; an episode
    lasts 1000 control steps in nearly every task.

    Args:
        domain, task: names in the suite, such as "cheetah" and "run".
        size: side of the picture in pixels.
        action_repeat: control steps per action.
        shadows: whether to draw shadows and smooth edges. Without them drawing is some five times
            as fast, and the picture a little different.
        image: whether observations hold the picture "pixels".
        camera: number of the model's camera.

    Raises:
        UserError: no such task, dm_control is missing, or nothing can be drawn.
    """

    def __init__(
        self,
        domain: str,
        task: str,
        *,
        size: int = SIZE,
        action_repeat: int = ACTION_REPEAT,
        shadows: bool = True,
        image: bool = True,
        camera: int = 0,
    ) -> None:
        if size < 1 or action_repeat < 1:
            raise UserError(
                f"Expected a size and an action repeat of at least 1, found {size} "
                f"and {action_repeat}."
            )
        suite = load_suite()
        if (domain, task) not in suite.ALL_TASKS:
            raise UserError(_unknown(f"{domain}_{task}", suite))
        self.name = f"{domain}_{task}"
        self.action_repeat = action_repeat
        self._size, self._image, self._camera = size, image, camera
        self._env = suite.load(domain, task, task_kwargs={"random": 0})
        self._over = True
        model, limits = self.physics.model, self._env.action_spec()
        self.bounds = (limits.minimum, limits.maximum)  # of the action, each (A,)
        if not 0 <= camera < max(model.ncam, 1):
            raise UserError(
                f"The task {self.name} has {model.ncam} cameras, found camera "
                f"{camera}; count from 0."
            )
        if not shadows:  # before the first picture, since the drawing context keeps them
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
        limit = self._env._step_limit  # control steps, off by rounding errors; infinite for lqr
        self.max_steps = math.ceil(
            round(limit if math.isfinite(limit) else CONTROL_STEPS, 6) / action_repeat
        )
        self.spec = dmc_spec(
            tuple(model.id2name(i, "actuator") or f"actuator_{i}" for i in range(model.nu)),
            1.0 / self._env.control_timestep(),
            size=size,
            action_repeat=action_repeat,
            low=tuple(limits.minimum.tolist()),
            high=tuple(limits.maximum.tolist()),
        )

    @property
    def physics(self) -> Any:
        """dm_control's physics of the running episode, for planners; not to be stepped."""
        return self._env.physics

    @property
    def substeps(self) -> int:
        """Physics steps of a control step."""
        return round(self._env.control_timestep() / self.physics.timestep())

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._env.task.random.seed(seed)
        self._env.reset()
        self._over = False
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        """Act for `action_repeat` control steps.

        Args:
            action: (A,) within the bounds of the spec; beyond them it is clipped.

        Raises:
            UserError: the shape is wrong, a value is not finite, or the episode is over.
        """
        action = np.asarray(action, np.float64)
        if action.shape != self.bounds[0].shape:
            raise UserError(
                f"{self.name} expects an action of shape {self.bounds[0].shape}, "
                f"found {action.shape}."
            )
        if not np.isfinite(action).all():
            raise UserError(
                f"{self.name} expects a finite action, found {action.tolist()}; check "
                "the policy for NaN."
            )
        if self._over:
            raise UserError(
                f"The episode of {self.name} is over or was not begun; call reset before step."
            )
        action = action.clip(*self.bounds)
        reward = 0.0
        for _ in range(self.action_repeat):
            out = self._env.step(action)
            reward += float(out.reward or 0.0)
            if out.last():
                self._over = True
                break
        return StepOut(self._observe(), reward, self._over)

    def render(self) -> np.ndarray:
        """uint8 (240, 240, 3)."""
        return self.physics.render(240, 240, camera_id=self._camera)

    def close(self) -> None:
        """Free the drawing context."""
        self._env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        return (
            {CAMERA: self.physics.render(self._size, self._size, camera_id=self._camera)}
            if self._image
            else {}
        )


def split_name(name: str) -> tuple[str, str]:
    """("cheetah", "run") for "cheetah_run" or "dmc/cheetah_run"; "cup" is short for "ball_in_cup".

    Raises:
        UserError: no such task, or no simulator.
    """
    suite = load_suite()
    task_name = name.removeprefix("dmc/")
    if task_name.startswith("cup_"):
        task_name = f"ball_in_{task_name}"
    for domain, task in suite.ALL_TASKS:
        if task_name == f"{domain}_{task}":
            return domain, task
    raise UserError(_unknown(task_name, suite))


def _unknown(name: str, suite: Any) -> str:
    task_names = sorted(f"{domain}_{task}" for domain, task in suite.ALL_TASKS)
    close = difflib.get_close_matches(name, task_names, n=3) or ["cheetah_run", "walker_walk"]
    return f"dm_control's suite has no task '{name}'; try {' or '.join(close)}."


def make_cheetah_run() -> DMCEnv:
    """Cheetah run as V-D4RL draws it."""
    return DMCEnv("cheetah", "run")


def make_walker_walk() -> DMCEnv:
    """Walker walk as V-D4RL draws it."""
    return DMCEnv("walker", "walk")


def make_cheetah_run_plain() -> DMCEnv:
    """Cheetah run without shadows."""
    return DMCEnv("cheetah", "run", shadows=False)


def make_walker_walk_plain() -> DMCEnv:
    """Walker walk without shadows."""
    return DMCEnv("walker", "walk", shadows=False)
