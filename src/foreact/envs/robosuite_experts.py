"""Scripted experts of Lift, Can and Square: absolute targets in small steps.

They know where the objects are. A plan is a generator of actions, one for each step; it looks at
the world whenever it goes on, so that it can aim at where an object has got to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from foreact.data.rotations import convert
from foreact.envs.robosuite import CLOSE, OPEN, RobosuiteEnv, as_action

STEP = 0.02
"""Largest change of a target in one control step, m."""
ARRIVED = 0.005
"""Distance of the hand from its target, m, at which it has arrived."""
TURN = 0.12
"""Largest turn of a target in one control step, rad."""
REACH = 2.0
"""Turn of the hand from where it began, in rad, beyond which the wrist may reach its limit."""

Actions = Iterator[np.ndarray]


@dataclass
class Target:
    """Where the hand is sent: moves it, one small step after another."""

    env: RobosuiteEnv
    position: np.ndarray = field(init=False)
    rotation: np.ndarray = field(init=False)
    gripper: float = OPEN

    def __post_init__(self) -> None:
        hand = self.env.arm.hand
        self.position, self.rotation = hand.position, hand.rotation

    def stay(self, steps: int) -> Actions:
        for _ in range(steps):
            yield as_action(self.position, self.rotation, self.gripper)

    def grip(self, gripper: float, steps: int) -> Actions:
        """Open or close the gripper, and wait for it."""
        self.gripper = gripper
        yield from self.stay(steps)

    def go(
        self,
        position: np.ndarray,
        rotation: np.ndarray | None = None,
        *,
        step: float = STEP,
        settle: int = 3,
    ) -> Actions:
        """Move on a straight line, turning meanwhile, then wait for the hand to arrive."""
        rotation = self.rotation if rotation is None else rotation
        while True:
            way = position - self.position
            turn = convert(rotation @ self.rotation.T, "matrix", "axis_angle")
            length, angle = float(np.linalg.norm(way)), float(np.linalg.norm(turn))
            if length < 1e-9 and angle < 1e-6:
                break
            self.position = self.position + way * min(1.0, step / max(length, 1e-9))
            part = convert(turn * min(1.0, TURN / max(angle, 1e-9)), "axis_angle", "matrix")
            self.rotation = part @ self.rotation
            yield as_action(self.position, self.rotation, self.gripper)
        yield from self.stay(settle)

    def arrive(self, patience: int) -> Actions:
        """Wait until the hand has stayed at its target for three steps, or for so many steps.

        Near the robot's base the arm swings for one or two seconds before it comes to rest.
        """
        near = 0
        for _ in range(patience):
            yield from self.stay(1)
            off = np.linalg.norm(self.env.arm.hand.position - self.position)
            near = near + 1 if off < ARRIVED else 0
            if near == 3:
                break


def lift(env: RobosuiteEnv) -> Actions:
    """Grasp the cube across two of its faces and raise it."""
    target = Target(env)
    cube, rotation = _body(env, "cube_main")
    grasp = across(target.rotation, rotation[:2, 0])
    yield from target.go(cube + _up(0.08), grasp)
    yield from target.go(cube, grasp)
    yield from target.grip(CLOSE, 8)
    yield from target.go(cube + _up(0.12), grasp)


def can(env: RobosuiteEnv) -> Actions:
    """Grasp the can from above, carry it over its bin and let it go there."""
    target = Target(env)
    place, _ = _body(env, "Can_main")
    yield from target.go(place + _up(0.12))
    yield from target.go(place + _up(0.01))
    yield from target.grip(CLOSE, 10)
    yield from target.go(place + _up(0.25))
    simulator = env.simulator
    bin_ = np.array(simulator.target_bin_placements[simulator.object_to_id["can"]])
    over = np.array([bin_[0], bin_[1], place[2] + 0.25])
    yield from target.go(over, step=0.025)
    yield from target.go(over - _up(0.2))
    yield from target.grip(OPEN, 6)
    yield from target.go(over)


def square(env: RobosuiteEnv) -> Actions:
    """Grasp the nut by its handle, turn it as the peg stands, centre it and lower it."""
    target = Target(env)
    start = target.rotation
    handle = _site(env, "SquareNut_handle_site")
    centre, _ = _body(env, NUT)
    along = (handle - centre)[:2]
    grasp = across(start, np.array([-along[1], along[0]]))
    yield from target.go(handle + _up(0.10), grasp, settle=0)
    yield from target.arrive(60)
    yield from target.go(handle - _up(0.006), grasp, step=0.01, settle=0)
    yield from target.arrive(15)
    yield from target.grip(CLOSE, 14)
    yield from target.go(handle + _up(0.18), grasp)

    peg, _ = _body(env, "peg1")
    turn = _turn_within_reach(env, target, start, peg)
    yield from target.go(np.array([0.05, peg[1], target.position[2]]))
    grasped = target.rotation
    parts = max(1, int(np.ceil(abs(turn) / 0.5)))  # so that it turns the way that was chosen
    for part in range(1, parts + 1):
        yield from target.go(target.position, _about_z(turn * part / parts) @ grasped)

    for _ in range(3):
        yield from target.go(
            target.position + _aside(env, peg),
            _about_z(_to_square(env)) @ target.rotation,
            settle=0,
        )
        yield from target.arrive(25)
        if np.linalg.norm(_aside(env, peg)) < 0.003 and abs(_to_square(env)) < 0.03:
            break
    height = peg[2] + 0.03 - _body(env, NUT)[0][2]
    yield from target.go(target.position + _up(height), step=0.012, settle=2)
    yield from target.go(target.position + _aside(env, peg) - _up(0.03), step=0.01, settle=4)
    yield from target.grip(OPEN, 6)
    yield from target.go(target.position + _up(0.15))


NUT = "SquareNut_main"


class PlannedExpert:
    """Plays a plan, made when its episode begins; meets `foreact.worlds.Expert`."""

    def __init__(self, plan: Callable[[RobosuiteEnv], Actions]) -> None:
        self._plan = plan
        self._actions: Actions | None = None
        self._last: np.ndarray | None = None

    def reset(self, seed: int) -> None:
        """Forget the plan; there is no chance in it."""
        self._actions = self._last = None

    def act(self, env: RobosuiteEnv, seen: dict[str, np.ndarray]) -> np.ndarray:
        """The plan's next action, float32 (10,); after its end the last one again."""
        if self._actions is None:
            self._actions = self._plan(env)
        action = next(self._actions, self._last)
        self._last = action if action is not None else env.hold(OPEN)
        return self._last.astype(np.float32)


def lift_expert() -> PlannedExpert:
    """The expert of Lift."""
    return PlannedExpert(lift)


def can_expert() -> PlannedExpert:
    """The expert of Can."""
    return PlannedExpert(can)


def square_expert() -> PlannedExpert:
    """The expert of Square."""
    return PlannedExpert(square)


def across(rotation: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The hand's rotation (3, 3), turned about the world's z by at most a quarter turn.

    Afterwards the fingers, which move along the grip site's y, close along `axis` (2,).
    """
    fingers = rotation[:2, 1]
    turn = np.arctan2(axis[1], axis[0]) - np.arctan2(fingers[1], fingers[0])
    return _about_z(_nearest(turn, np.pi)) @ rotation


def _turn_within_reach(
    env: RobosuiteEnv, target: Target, start: np.ndarray, peg: np.ndarray
) -> float:
    """Angle to turn the hand by, so that the nut fits the peg and hand and wrist stay in reach."""
    centre, _ = _body(env, NUT)
    square_on = _to_square(env)

    def cost(turn: float) -> float:
        rotation = _about_z(turn)
        from_start = abs(convert(rotation @ target.rotation @ start.T, "matrix", "axis_angle")[2])
        hand = peg + rotation @ (target.position - centre)
        wrist = 100.0 if from_start > REACH else from_start
        return float(wrist + 10.0 * max(0.0, hand[0] - 0.2))

    return min((square_on + quarters * np.pi / 2 for quarters in range(-2, 3)), key=cost)


def _to_square(env: RobosuiteEnv) -> float:
    """Smallest turn about z after which the nut's sides are parallel to the peg's."""
    _, rotation = _body(env, NUT)
    return -_nearest(np.arctan2(rotation[1, 0], rotation[0, 0]), np.pi / 2)


def _aside(env: RobosuiteEnv, peg: np.ndarray) -> np.ndarray:
    """How far (3,) the nut is from above the peg, horizontally."""
    way = peg - _body(env, NUT)[0]
    return np.array([way[0], way[1], 0.0])


def _nearest(angle: float, period: float) -> float:
    """The angle, less whole periods, in -period/2..period/2."""
    return float((angle + period / 2) % period - period / 2)


def _about_z(angle: float) -> np.ndarray:
    return convert(np.array([0.0, 0.0, angle]), "axis_angle", "matrix")


def _up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


def _body(env: RobosuiteEnv, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and rotation matrix (3, 3) of a body."""
    sim = env.simulator.sim
    number = sim.model.body_name2id(name)
    return sim.data.body_xpos[number].copy(), sim.data.body_xmat[number].reshape(3, 3).copy()


def _site(env: RobosuiteEnv, name: str) -> np.ndarray:
    """Position (3,) of a site."""
    sim = env.simulator.sim
    return sim.data.site_xpos[sim.model.site_name2id(name)].copy()
