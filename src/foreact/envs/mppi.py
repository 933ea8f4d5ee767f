"""Experts for DeepMind Control: model predictive path integral control on the true simulator.

Williams, Aldrich and Theodorou, "Model Predictive Path Integral Control", 2017: draw action
sequences around the plan, try them all in the simulator, and move the plan to their mean, weighted
by exp(return / temperature).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from foreact.envs.dmc import DMCEnv
from foreact.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MPPIConfig:
    """How hard to plan.

    Attributes:
        samples: action sequences tried per decision.
        horizon: decisions that a sequence lasts.
        sigma: standard deviation of the sequences about the plan, in units of the action.
        smoothness: correlation of a sequence's noise from one decision to the next.
        temperature: of the weights, in standard deviations of the tried returns.
    """

    samples: int = 128
    horizon: int = 30
    sigma: float = 0.8
    smoothness: float = 0.8
    temperature: float = 0.1


# --- rewards of tried sequences -------------------------------------------------------------------


def _ramp(x: np.ndarray, goal: float, margin: float, value_at_margin: float) -> np.ndarray:
    """1 from `goal` on; below it linear, through `value_at_margin` at distance `margin`, to 0."""
    return np.clip(1.0 - (goal - x) / margin * (1.0 - value_at_margin), 0.0, 1.0)


def cheetah_run_reward(model: Any, qpos: np.ndarray, sensors: np.ndarray) -> np.ndarray:
    """The forward speed, 1 from 10 m/s on.

    Args:
        model: the MuJoCo model.
        qpos: (..., nq).
        sensors: (..., nsensordata), of the same instants.
    """
    return _ramp(sensors[..., model.sensor("torso_subtreelinvel").adr[0]], 10.0, 10.0, 0.0)


def walker_walk_reward(model: Any, qpos: np.ndarray, sensors: np.ndarray) -> np.ndarray:
    """Standing upright, times walking forwards at 1 m/s. Arguments as in `cheetah_run_reward`."""
    height = model.body("torso").pos[2] + qpos[..., model.joint("rootz").qposadr[0]]
    upright = (1.0 + np.cos(qpos[..., model.joint("rooty").qposadr[0]])) / 2.0
    # A Gaussian that has fallen to 0.1 at 0.6 m below the height of standing.
    standing = 0.1 ** (np.clip(1.2 - height, 0.0, None) / 0.6) ** 2
    speed = sensors[..., model.sensor("torso_subtreelinvel").adr[0]]
    return (3.0 * standing + upright) / 4.0 * (5.0 * _ramp(speed, 1.0, 0.5, 0.5) + 1.0) / 6.0


REWARDS: dict[str, Callable[[Any, np.ndarray, np.ndarray], np.ndarray]] = {
    "cheetah_run": cheetah_run_reward,
    "walker_walk": walker_walk_reward,
}


# --- planning -------------------------------------------------------------------------------------


class MPPI:
    """Plans for one episode of an environment, which it never disturbs.

    Decisions are a function of the config, the generator and the states met; the number of threads
    changes nothing.

    Args:
        env: the environment that its actions are for.
        config: how hard to plan.
        rng: what its draws come from.
        threads: of the simulation of tried sequences.

    Raises:
        UserError: the task's reward cannot be told from a simulated trajectory here, or a number is
            impossible.
    """

    def __init__(
        self, env: DMCEnv, config: MPPIConfig, rng: np.random.Generator, *, threads: int = 1
    ) -> None:
        if env.name not in REWARDS:
            raise UserError(
                f"There is a planner for {sorted(REWARDS)}, none for '{env.name}'; "
                "use the random policy."
            )
        if config.samples < 2 or config.horizon < 1 or threads < 1:
            raise UserError(
                "Expected at least 2 samples, a horizon of 1 and 1 thread, found "
                f"{config}, {threads}."
            )
        if not (
            config.sigma > 0.0 and 0.0 <= config.smoothness <= 1.0 and config.temperature > 0.0
        ):
            raise UserError(
                f"Expected sigma > 0, 0 <= smoothness <= 1 and temperature > 0, found {config}."
            )
        import mujoco
        from mujoco.rollout import Rollout

        self._env, self._config, self._reward = env, config, REWARDS[env.name]
        self._mujoco: Any = mujoco  # most of it is compiled, and no types tell of that part
        self._model = env.physics.model.ptr
        self._pool = Rollout(nthread=threads if threads > 1 else 0)
        self._data = [self._mujoco.MjData(self._model) for _ in range(threads)]
        self._rng, self._plan = rng, np.zeros((config.horizon, self._model.nu))

    def act(self) -> np.ndarray:
        """(A,) float32 action for the state that the environment is in."""
        tried = self._sequences()
        returns = self.returns(tried)
        spread = max(float(returns.std()), 1e-6)
        weights = np.exp((returns - returns.max()) / (spread * self._config.temperature))
        self._plan = np.einsum("s,sha->ha", weights / weights.sum(), tried)
        action = self._plan[0].astype(np.float32)
        self._plan = np.concatenate([self._plan[1:], self._plan[-1:]])
        return action

    def returns(self, actions: np.ndarray) -> np.ndarray:
        """Summed rewards (S,) of action sequences (S, H, A) from the environment's state."""
        mujoco, env, data = self._mujoco, self._env, self._env.physics.data.ptr
        state = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
        mujoco.mj_getState(self._model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        controls = np.repeat(actions, env.action_repeat * env.substeps, axis=1)
        # Sensors lag one physics step behind the state, so one more step reads the last state.
        controls = np.concatenate([controls, controls[:, -1:]], axis=1)
        rolled = self._pool.rollout(
            self._model,
            self._data,
            state[None],
            controls,
            initial_warmstart=data.qacc_warmstart[None],
        )
        # It returns the arrays that it made, under the type of the arguments that one may give it
        # instead.
        states, sensors = cast("tuple[np.ndarray, np.ndarray]", rolled)
        after = slice(env.substeps - 1, -1, env.substeps)
        qpos = states[:, after, 1 : 1 + self._model.nq]  # a state begins with the time
        return self._reward(self._model, qpos, sensors[:, env.substeps :: env.substeps]).sum(axis=1)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _sequences(self) -> np.ndarray:
        """(S, H, A) action sequences about the plan, the plan itself first."""
        config = self._config
        noise = self._rng.normal(0.0, config.sigma, (config.samples, *self._plan.shape))
        keep = config.smoothness
        for step in range(1, config.horizon):
            noise[:, step] = keep * noise[:, step - 1] + np.sqrt(1.0 - keep**2) * noise[:, step]
        noise[0] = 0.0
        low, high = self._model.actuator_ctrlrange.T
        return np.clip(self._plan + noise, low, high)
