"""robosuite's worlds, by what their numbers mean; run with `make test-robosuite`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from foreact.data.rotations import angle_between, convert
from foreact.envs.mujoco_pictures import Pictures
from foreact.envs.robosuite import (
    CLOSE,
    LIFT,
    OPEN,
    SCENES,
    SQUARE,
    TOOL_HANG,
    RobosuiteEnv,
    Scene,
    as_action,
)
from foreact.envs.robosuite_env_args import make_from_env_args
from foreact.envs.robosuite_experts import PlannedExpert, can, lift, square
from foreact.envs.robosuite_world import ARM, OSC_POSE, Arm, absolute_controller, load_robosuite
from foreact.errors import UserError

pytestmark = [
    pytest.mark.robosuite,
    pytest.mark.timeout(120),
    # Not by importing it: how to draw is chosen first.
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="no robosuite"),
]

OLD_CONFIG = {  # as robomimic's files of robosuite 1.4 have it
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3,
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    """Lift without pictures."""
    env = RobosuiteEnv(LIFT, image=False)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing() -> Iterator[RobosuiteEnv]:
    """Lift with pictures."""
    env = RobosuiteEnv(LIFT)
    yield env
    env.close()


# --- controller -----------------------------------------------------------------------------------


class DeltaLog:
    """Episodes under robosuite's own delta control: states, goals and where the hand got to."""

    def __init__(self, name: str, steps: int = 60) -> None:
        config = absolute_controller(OSC_POSE, "Panda")
        config["body_parts"][ARM]["input_type"] = "delta"
        self.simulator = load_robosuite().make(
            name, robots="Panda", controller_configs=config, has_renderer=False,
            has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True, seed=3,
        )  # fmt: skip
        self.simulator.reset()
        arm, self.start = Arm(self.simulator), self.simulator.sim.get_state().flatten()
        controller = self.simulator.robots[0].part_controllers[ARM]
        time = np.arange(steps)[:, None] / 20
        phase = np.arange(7)
        waves = np.sin(2 * np.pi * 0.3 * time + phase) * ([0.5] * 3 + [0.25] * 3 + [1.0])
        self.goals, self.hands = [], []
        for delta in waves:
            self.simulator.step(delta)
            goal = as_action(controller.goal_pos, controller.goal_ori, np.sign(delta[6]))
            self.goals.append(goal.astype(np.float32))
            self.hands.append(arm.hand)


@pytest.mark.parametrize("scene", [LIFT, TOOL_HANG], ids=lambda scene: scene.name)
def test_goals_of_delta_control_lead_absolute_control_along_the_same_path(scene: Scene) -> None:
    log, env = DeltaLog(scene.name), RobosuiteEnv(scene, image=False)

    def errors() -> tuple[np.ndarray, np.ndarray]:
        hands = []
        for goal in log.goals:
            env.step(goal)
            hands.append(env.arm.hand)
        pairs = list(zip(hands, log.hands, strict=True))
        metres = [np.linalg.norm(a.position - b.position) for a, b in pairs]
        turns = [angle_between(a.rotation, b.rotation) for a, b in pairs]
        return 100 * np.array(metres), np.degrees(turns)

    env.restore(log.start)
    cm, degrees = errors()
    assert cm.max() < 0.01
    assert degrees.max() < 0.01

    # Free joints that tend elsewhere: no longer exact, and no worse than half a centimetre.
    env.restore(log.start)
    env.arm.memory = env.arm.memory + np.r_[np.full(7, 0.02), 0.0, 0.0]
    cm, _ = errors()
    assert 0.01 < cm.mean() < 0.5

    # The rotation of the hand's body, given as if it were that of the grip site.
    quarter = convert(np.array([0.0, 0.0, np.pi / 2]), "axis_angle", "matrix")
    env.restore(log.start)
    wrong = log.goals[0].astype(float)
    wrong[3:9] = convert(convert(wrong[3:9], "rows_6d", "matrix") @ quarter, "matrix", "rows_6d")
    for _ in range(20):
        env.step(wrong)
    turned = angle_between(env.arm.hand.rotation, log.hands[0].rotation)
    assert np.degrees(turned) > 45
    env.close()
    log.simulator.close()


def test_hand_body_and_grip_site_are_a_quarter_turn_apart(env: RobosuiteEnv) -> None:
    seen = env.reset(5)
    body = convert(seen["robot0_eef_quat"], "quat_xyzw", "matrix")
    quarter = convert(np.array([0.0, 0.0, -np.pi / 2]), "axis_angle", "matrix")
    np.testing.assert_allclose(body @ quarter, env.arm.hand.rotation, atol=1e-6)
    np.testing.assert_allclose(seen["robot0_eef_pos"], env.arm.hand.position, atol=1e-6)


def test_an_action_is_where_the_hand_goes(env: RobosuiteEnv) -> None:
    env.reset(1)
    hand = env.arm.hand
    turn = convert(np.array([0.0, 0.0, 0.4]), "axis_angle", "matrix")
    position, rotation = hand.position + np.array([0.05, -0.04, -0.03]), turn @ hand.rotation
    for _ in range(40):
        seen = env.step(as_action(position, rotation, OPEN)).obs
    assert np.linalg.norm(seen["robot0_eef_pos"] - position) < 0.002
    assert np.degrees(angle_between(env.arm.hand.rotation, rotation)) < 0.5


def test_minus_one_opens_and_one_closes_the_gripper(env: RobosuiteEnv) -> None:
    env.reset(1)
    for gripper, width in ((OPEN, 0.079), (CLOSE, 0.002)):
        for _ in range(15):
            seen = env.step(env.hold(gripper)).obs
        left, right = seen["robot0_gripper_qpos"]
        assert left > 0 > right
        assert left - right == pytest.approx(width, abs=0.004)


# --- episodes -------------------------------------------------------------------------------------


def played(env: RobosuiteEnv, first: dict[str, np.ndarray], steps: int = 12) -> np.ndarray:
    hand, states = env.arm.hand, [env.state()]
    for step in range(steps):
        position = hand.position + step * np.array([0.0, 0.004, -0.004])
        env.step(as_action(position, hand.rotation, OPEN if step < 6 else CLOSE))
        states.append(env.state())
    return np.array(states)


def test_a_seed_means_the_same_episode_whatever_was_before() -> None:
    env = RobosuiteEnv(SQUARE, image=False)
    first = played(env, env.reset(7))
    other = played(env, env.reset(8))
    np.testing.assert_array_equal(played(env, env.reset(7)), first)
    assert np.abs(first[0] - other[0]).max() > 0.01

    fresh = RobosuiteEnv(SQUARE, image=False)
    np.testing.assert_array_equal(played(fresh, fresh.restore(first[0])), first)
    env.close()
    fresh.close()


def test_objects_lie_still_when_an_episode_begins() -> None:
    env = RobosuiteEnv(SQUARE, image=False)
    env.reset(0)
    nut = env.simulator.sim.model.body_name2id("SquareNut_main")
    before = env.simulator.sim.data.body_xpos[nut].copy()
    for _ in range(5):
        env.step(env.hold(OPEN))
    assert np.abs(env.simulator.sim.data.body_xpos[nut] - before).max() < 0.001
    env.close()


@pytest.mark.parametrize(
    ("plan", "name"),
    [(lift, "lift"), (can, "can"), (square, "square")],
    ids=["lift", "can", "square"],
)
def test_experts_succeed(plan: Any, name: str) -> None:
    env, expert = RobosuiteEnv(SCENES[name], image=False), PlannedExpert(plan)
    solved = 0
    for seed in (0, 1, 3):
        seen = env.reset(seed)
        expert.reset(seed)
        for _ in range(env.max_steps):
            out = env.step(expert.act(env, seen))
            seen = out.obs
            if out.terminated:
                assert out.reward == 1.0
                solved += 1
                break
    assert solved == 3
    env.close()


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_upright_and_of_their_own_camera(seeing: RobosuiteEnv) -> None:
    seen = seeing.reset(0)
    front, wrist = (seen[name].astype(int) for name in LIFT.cameras)
    red = [(p[..., 0] - p[..., 1:].max(axis=-1)) > 60 for p in (front, wrist)]
    rows, columns = np.nonzero(red[0])
    assert 30 < rows.mean() < 60  # the cube, in the middle of the table
    assert 30 < columns.mean() < 54
    # From the front the arm hangs in from above, over a white table.
    assert front[60:].mean() > front[:20].mean() + 30
    # A move along +y in the world goes to the right, as seen from the front, facing the robot.
    hand = seeing.arm.hand
    aside = as_action(hand.position + np.array([0.0, 0.12, 0.0]), hand.rotation, OPEN)
    for _ in range(15):
        moved = seeing.step(aside).obs
    changed = np.abs(moved["agentview"].astype(int) - front).max(axis=-1) > 60
    assert np.nonzero(changed)[1].mean() > 42
    # Only the camera at the wrist moves, so the table's cube moves in its picture.
    after = moved["robot0_eye_in_hand"].astype(int)
    assert np.abs(after - wrist).mean() > np.abs(moved["agentview"].astype(int) - front).mean()


def test_fast_pictures_show_the_same_and_leave_the_physics_alone(seeing: RobosuiteEnv) -> None:
    shadowy = RobosuiteEnv(LIFT, shadows=True)
    fast, slow = seeing.reset(2), shadowy.reset(2)
    for name in LIFT.cameras:
        difference = np.abs(fast[name].astype(int) - slow[name]).mean()
        assert 0.5 < difference < 25
    np.testing.assert_array_equal(played(seeing, fast), played(shadowy, slow))
    shadowy.close()


def test_pictures_as_shipped_equal_robosuites_own_upside_down() -> None:
    env = RobosuiteEnv(LIFT, shadows=True)
    seen = env.reset(2)
    own = load_robosuite().make(
        "Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=True,
        use_camera_obs=False, hard_reset=False, ignore_done=True, seed=0,
    )  # fmt: skip
    own.reset()
    own.sim.set_state_from_flattened(env.simulator.sim.get_state().flatten())
    own.sim.forward()
    for name in LIFT.cameras:
        drawn = own.sim.render(width=84, height=84, camera_name=name)
        assert np.abs(drawn[::-1].astype(int) - seen[name]).mean() < 1.0
        assert np.abs(drawn.astype(int) - seen[name]).mean() > 10.0
    own.close()
    env.close()


def test_people_see_a_larger_picture_of_the_same(seeing: RobosuiteEnv) -> None:
    seen = seeing.reset(0)["agentview"].astype(float)
    large = seeing.render().astype(float)
    assert large.shape == (256, 256, 3)
    small = large[1:253].reshape(84, 3, 256, 3).mean(axis=1)[:, 1:253].reshape(84, 84, 3, 3)
    assert np.abs(small.mean(axis=2) - seen).mean() < 12


def test_pictures_are_closed_once() -> None:
    env = RobosuiteEnv(LIFT)
    pictures = Pictures(env.simulator.sim.model._model, 16, shadows=False)
    pictures.close()
    env.close()


# --- env_args of data sets ------------------------------------------------------------------------


def env_args(name: str = "Lift", **kwargs: Any) -> str:
    described = {"robots": ["Panda"], "controller_configs": OLD_CONFIG, "control_freq": 20}
    return json.dumps({"env_name": name, "type": 1, "env_kwargs": {**described, **kwargs}})


def test_old_env_args_make_the_same_world(env: RobosuiteEnv) -> None:
    old = make_from_env_args(env_args(lite_physics=True), image=False)
    start = env.reset(4)
    np.testing.assert_allclose(played(old, old.reset(4)), played(env, start), atol=1e-9)
    assert old.spec == env.spec
    old.close()


def test_env_args_decide_cameras_and_sizes() -> None:
    described = env_args(
        "ToolHang", camera_names=["sideview"], camera_heights=48, camera_widths=[48]
    )
    env = make_from_env_args(described)
    assert env.reset(0)["sideview"].shape == (48, 48, 3)
    assert env.max_steps == 700
    assert env.spec.cameras == {"sideview": (48, 48)}
    env.close()


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ("{", "env_args should be JSON, as robomimic writes it"),
        ('{"a": 1}', "should name an environment as `env_name`"),
        ('{"env_name": "Lift", "type": 2}', "found type 2; this data set is of another simulator"),
        (env_args("Lft"), "no environment 'Lft'; did you mean 'Lift'"),
        (env_args(robots=["Panda", "Panda"]), "two arms are not supported"),
        (env_args(controller_configs={"type": "JOINT_POSITION"}), "found JOINT_POSITION; actions"),
        (env_args(camera_heights=84, camera_widths=96), r"found sides of \[84, 96\] pixels"),
        (env_args(camera_heights=[84, 96]), r"of one size are expected, found \[84, 96\]"),
    ],
)
def test_env_args_of_no_use_are_refused_in_a_sentence(described: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_from_env_args(described)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (np.zeros(7), r"expects an action of shape \(10,\), found \(7,\)"),
        (np.full(10, np.nan), "expects a finite action"),
        (np.zeros(10), "which are parallel or 0"),
    ],
)
def test_actions_of_no_use_are_refused(
    env: RobosuiteEnv, action: np.ndarray, sentence: str
) -> None:
    env.reset(0)
    with pytest.raises(UserError, match=sentence):
        env.step(action)


def test_states_of_no_use_are_refused(env: RobosuiteEnv) -> None:
    env.reset(0)
    state = env.state()
    with pytest.raises(UserError, match=r"32 numbers, or 41 .* found shape \(45,\)"):
        env.restore(np.zeros(45))
    with pytest.raises(UserError, match="should be finite"):
        env.restore(state * np.nan)


def test_an_episode_must_be_begun() -> None:
    env = RobosuiteEnv(LIFT, image=False)
    with pytest.raises(UserError, match="over or was not begun; call reset first"):
        env.step(env.hold(OPEN))
    env.close()
