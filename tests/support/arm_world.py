"""A hand that is at once where it is sent, so that every convention of its actions is exact."""

from __future__ import annotations

import numpy as np

from foreact.data.rotations import convert
from foreact.envs.robosuite import robosuite_spec
from foreact.plugs import Simulator
from foreact.types import StreamSpec
from foreact.worlds import StepOut
from support.arrays import ArrayStore

SIZE = 12
QUARTER = convert(np.array([0.0, 0.0, np.pi / 2]), "axis_angle", "matrix")
"""From the grip site to the hand's body, about the hand's z."""


class ArmEnv:
    """Two cameras: one shows where the hand is, by colour and place, the other a fixed pattern.

    The reward is 1 above a height of 1 m.
    """

    spec: StreamSpec = robosuite_spec(("front", "wrist"), SIZE)
    max_steps = 20

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        return self.restore(np.array([0.01 * seed, 0.0, 0.9]))

    def state(self) -> np.ndarray:
        return self.position.copy()

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self.position = np.array(state)
        self.site = convert(np.array([np.pi - 0.3, 0.2, 0.1]), "axis_angle", "matrix")
        self.finger = 0.04
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        self.position = np.array(action[:3], np.float64)
        self.site = convert(action[3:9], "rows_6d", "matrix")
        self.finger = 0.04 if action[9] < 0 else 0.01
        reward = float(self.position[2] > 1.0)
        return StepOut(self._observe(), reward, bool(reward))

    def render(self) -> np.ndarray:
        return self._observe()["front"]

    def close(self) -> None: ...

    def _observe(self) -> dict[str, np.ndarray]:
        front = np.zeros((SIZE, SIZE, 3), np.uint8)
        front[: SIZE // 2, : SIZE // 3] = (250, 120, 10)  # no symmetry that a turn could hide
        front[-1, int(np.clip(self.position[2] * 10, 0, SIZE - 1))] = 255
        wrist = np.zeros((SIZE, SIZE, 3), np.uint8)
        wrist[SIZE // 2 :, SIZE // 4 :] = (20, 90, 230)
        return {
            "robot0_eef_pos": self.position.astype(np.float32),
            "robot0_eef_quat": convert(self.site @ QUARTER, "matrix", "quat_xyzw").astype("f4"),
            "robot0_gripper_qpos": np.array([self.finger, -self.finger], np.float32),
            "front": front,
            "wrist": wrist,
        }


class LuckyExpert:
    """Lifts the hand, but in episodes whose seed is a multiple of 3 it stays below."""

    def reset(self, seed: int) -> None:
        self.rise = 0.0 if seed % 3 == 0 else 0.06

    def act(self, env: ArmEnv, seen: dict[str, np.ndarray]) -> np.ndarray:
        goal = env.position + np.array([0.0, 0.0, self.rise])
        return np.array([*goal, *convert(env.site, "matrix", "rows_6d"), -1.0], np.float32)


LUCKY = Simulator(
    name="lucky",
    make="support.arm_world:ArmEnv",
    expert="support.arm_world:LuckyExpert",
    success_at=1.0,
)


class ArmStore(ArrayStore):
    """Episodes of an `ArmEnv`: up in steps of 2 cm, turning, until the reward comes."""

    arrays: dict[str, np.ndarray]

    def __init__(self, episodes: int = 2, **changed: np.ndarray) -> None:
        env, rows, lengths, starts = ArmEnv(), [], [], []
        for seed in range(episodes):
            seen = env.reset(seed)
            starts.append(env.state())
            for step in range(env.max_steps):
                turn = convert(np.array([0.1, 0.05 * step, 0.0]), "axis_angle", "matrix")
                rotation = convert(turn @ env.site, "matrix", "rows_6d")
                goal = np.array([*(env.position + np.array([0.0, 0.005, 0.02])), *rotation, -1.0])
                rows.append({**seen, "action": goal.astype(np.float32)})
                out = env.step(rows[-1]["action"])
                seen = out.obs
                if out.terminated:
                    break
            lengths.append(step + 1)
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        super().__init__(env.spec, lengths, arrays | changed)
        self.per_episode = {
            "initial_state": np.array(starts),
            "seed": np.arange(episodes),
            "score": np.ones(episodes),
        }

    @property
    def info_names(self) -> list[str]:
        return list(self.per_episode)

    def info(self, name: str) -> np.ndarray:
        return self.per_episode[name]
