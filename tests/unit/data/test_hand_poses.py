"""States and actions from poses of hands, against scipy's rotations and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy.spatial.transform import Rotation
from support.umi_files import LENGTHS, SIZE, poses, who, write_umi

from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.windows.augment import RandomShift
from foreact.data.windows.choosing import anchors_between, share_of_episodes
from foreact.data.windows.hand_poses import HandPoses, umi_hands
from foreact.data.windows.hand_windows import HandWindows
from foreact.data.windows.loader import batches, ordered_batches
from foreact.data.windows.mixing import Subset
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.tasks.umi import umi_spec

CAMERA = "camera0_rgb"
POSITION, ROTATION, WIDTH = (
    "robot0_eef_pos",
    "robot0_eef_rot_axis_angle",
    "robot0_gripper_width",
)
SINCE_START = "robot0_eef_rot_axis_angle_wrt_start"
LOW = (-2, -1, 0)
WINDOW = Window(
    video={CAMERA: (-2, 0, 2)},
    state=dict.fromkeys((POSITION, ROTATION, WIDTH, SINCE_START), LOW),
    actions=(1, 2, 3),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    path = write_umi(tmp_path_factory.mktemp("umi") / "two.zarr", robots=2)
    return open_store(path, umi_spec(2, SIZE))


def windows(store: ZarrStore, hands: HandPoses | None = None, **options: object) -> HandWindows:
    hands = hands or umi_hands()
    return HandWindows(store, hands, WINDOW, [0, 1], **options)  # pyright: ignore


def rotation_rows(rotation: Rotation) -> np.ndarray:
    return rotation.as_matrix()[:2].reshape(6)


def expected(episode: int, now: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position and rotation at a step as seen from "now", and the opening there."""
    hand = poses(episode, LENGTHS[episode])
    now, step = (int(np.clip(s, 0, LENGTHS[episode] - 1)) for s in (now, step))
    turns = Rotation.from_rotvec(hand["eef_rot_axis_angle"])
    place = turns[now].inv().apply(hand["eef_pos"][step] - hand["eef_pos"][now])
    return place, rotation_rows(turns[now].inv() * turns[step]), hand["gripper_width"][step]


@pytest.mark.parametrize(("episode", "now"), [(0, 12), (1, 10), (0, 0), (0, 29), (1, 20)], ids=str)
def test_steps_are_three_rows_apart_and_stay_in_their_episode(
    store: ZarrStore, episode: int, now: int
) -> None:
    chosen = np.array([now + LENGTHS[0] * episode])
    batch = windows(store).batch(chosen)
    assert batch.index is not None
    assert batch.index.tolist() == [[episode, now]]
    last = LENGTHS[episode] - 1
    frames = [int(np.clip(now + o, 0, last)) for o in (-6, 0, 6)]
    assert [who(i.numpy()) for i in batch.video[CAMERA][0].permute(0, 2, 3, 1)] == [
        (episode, frame, 0) for frame in frames
    ]
    assert batch.valid[CAMERA].tolist() == [[now >= 6, True, now + 6 <= last]]
    assert set(batch.valid) == {CAMERA}  # to stay is what actions beyond the end should say
    for column, offset in enumerate((-6, -3, 0)):
        position, rotation, width = expected(episode, now, now + offset)
        np.testing.assert_allclose(batch.state[POSITION][0, column], position, atol=1e-6)
        np.testing.assert_allclose(batch.state[ROTATION][0, column], rotation, atol=1e-6)
        np.testing.assert_allclose(batch.state[WIDTH][0, column], width, atol=1e-6)
    assert batch.actions is not None
    assert batch.actions.dtype == torch.float32
    for column, offset in enumerate((3, 6, 9)):
        action = np.concatenate(expected(episode, now, now + offset))
        np.testing.assert_allclose(batch.actions[0, column], action, atol=1e-6)


def test_rotation_since_the_start_of_the_demonstration(store: ZarrStore) -> None:
    batch = windows(store).batch(np.array([LENGTHS[0] + 9]))
    hand = poses(1, LENGTHS[1])
    start = Rotation.from_rotvec(hand["demo_start_pose"][9, 3:])
    for column, step in enumerate((3, 6, 9)):
        turn = Rotation.from_rotvec(hand["eef_rot_axis_angle"][step])
        since = rotation_rows(start.inv() * turn)
        np.testing.assert_allclose(batch.state[SINCE_START][0, column], since, atol=1e-6)


def test_noise_is_the_samples_own_and_training_only(store: ZarrStore) -> None:
    noisy, quiet = windows(store), windows(store, umi_hands(noise=0.0))
    assert noisy.augments
    assert not quiet.augments
    plain = quiet.batch(np.array([5])).state[SINCE_START][0]
    (first,) = list(ordered_batches(noisy, batch_size=99, chosen=np.array([5])))
    assert torch.equal(first.state[SINCE_START][0], plain)  # none in evaluation
    rngs = [np.random.default_rng(seed) for seed in (1, 2, 1)]
    got = noisy.batch(np.array([5, 5, 5]), rngs).state
    assert torch.equal(got[SINCE_START][0], got[SINCE_START][2])
    assert not torch.allclose(got[SINCE_START][0], got[SINCE_START][1])
    assert torch.equal(got[ROTATION][0], got[ROTATION][1])
    # The six numbers of the start pose get noise of 0.05; the same for all steps of the sample.
    pose = poses(0, LENGTHS[0])["demo_start_pose"][5] + np.random.default_rng(2).normal(0, 0.05, 6)
    turn = Rotation.from_rotvec(poses(0, LENGTHS[0])["eef_rot_axis_angle"][5])
    since = rotation_rows(Rotation.from_rotvec(pose[3:]).inv() * turn)
    np.testing.assert_allclose(got[SINCE_START][1, 2], since, atol=1e-6)


def test_batches_do_not_depend_on_workers(store: ZarrStore) -> None:
    data = windows(store, augment=RandomShift(pad=2))
    one, two = (
        [batch for batch, _ in zip(batches(data, batch_size=4, seed=3, workers=w), range(3))]  # noqa: B905
        for w in (0, 2)
    )
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.state[SINCE_START], b.state[SINCE_START])
        assert torch.equal(a.video[CAMERA], b.video[CAMERA])


def test_the_spec_says_what_the_numbers_are(store: ZarrStore) -> None:
    spec = windows(store).spec
    assert spec.fps == pytest.approx(19.98)
    assert spec.action is not None
    assert (spec.action.mode, spec.action.frame, spec.action.dim) == ("relative", "tool", 10)
    assert spec.action.rate_hz == spec.fps
    assert spec.action.names[:5] == (
        "robot0.x",
        "robot0.y",
        "robot0.z",
        "robot0.r11",
        "robot0.r12",
    )
    assert spec.action.units == ("m",) * 3 + ("unitless",) * 6 + ("m",)
    assert {name: len(names) for name, names in spec.state.items()} == {
        POSITION: 3,
        ROTATION: 6,
        WIDTH: 1,
        SINCE_START: 6,
    }


def test_statistics_scale_states_and_actions(store: ZarrStore) -> None:
    raw = windows(store)
    normalizer = Normalizer.fit(raw.numbers(np.arange(len(raw))), "range")
    scaled = windows(store, normalizer=normalizer).batch(np.arange(len(raw)))
    assert scaled.actions is not None
    assert scaled.actions[..., :3].amax() == pytest.approx(1.0, abs=1e-5)
    back = normalizer.decode(scaled.state[POSITION], POSITION)
    plain = raw.batch(np.arange(len(raw))).state[POSITION]
    torch.testing.assert_close(back, plain, atol=1e-5, rtol=0)


def test_two_hands_act_with_20_numbers_and_know_of_each_other(store: ZarrStore) -> None:
    hands = umi_hands(2)
    window = Window(state=dict.fromkeys(hands.state, LOW), actions=(1, 2))
    batch = HandWindows(store, hands, window, [1]).batch(np.array([9]))
    assert batch.actions is not None
    assert batch.actions.shape == (1, 2, 20)
    second = poses(1, LENGTHS[1], robot=1)
    turns = Rotation.from_rotvec(second["eef_rot_axis_angle"])
    place = turns[9].inv().apply(second["eef_pos"][15] - second["eef_pos"][9])
    np.testing.assert_allclose(batch.actions[0, 1, 10:13], place, atol=1e-6)
    first = poses(1, LENGTHS[1])
    seen = turns[9].inv().apply(first["eef_pos"][3] - second["eef_pos"][9])
    np.testing.assert_allclose(batch.state[f"{POSITION}_wrt_robot1"][0, 0], seen, atol=1e-6)


def test_robots_on_bases_of_their_own() -> None:
    """The second robot's base stands 1 m to the left of the first's and looks at it."""
    hands = umi_hands(2)
    half_turn = np.array([0.0, 0.0, np.pi])
    zero = np.zeros((1, 3))
    seen = {}
    for robot, place in (("robot0", (0.2, 0.0, 0.3)), ("robot1", (0.5, 0.0, 0.1))):
        seen |= {
            f"{robot}_eef_pos": np.array([place]),
            f"{robot}_eef_rot_axis_angle": zero,
            f"{robot}_gripper_width": np.zeros((1, 1)),
        }
    # The first base seen from the second: 1 m ahead of it, turned by half a turn.
    between = np.eye(4)
    between[:3, :3] = Rotation.from_rotvec(half_turn).as_matrix()
    between[:3, 3] = (1.0, 0.0, 0.0)
    states = hands.states(seen, between=between)
    # In the second's frame the first hand is at (1 - 0.2, 0, 0.3): from its hand (0.3, 0, 0.2),
    # and the second hand, in the first's, at (0.5, 0, 0.1), turned by half a turn.
    to_second = states["robot0_eef_pos_wrt_robot1"][0]
    to_first = states["robot1_eef_pos_wrt_robot0"][0]
    np.testing.assert_allclose(to_second, (0.3, 0.0, 0.2), atol=1e-12)
    np.testing.assert_allclose(to_first, (0.3, 0.0, -0.2), atol=1e-12)
    assert "robot0_eef_rot_axis_angle_wrt_start" not in states


def test_acting_undoes_what_training_saw(store: ZarrStore) -> None:
    """A policy that answers with the recorded actions moves the robot along the recorded poses."""
    hands = umi_hands()
    hand = poses(1, LENGTHS[1])
    batch = windows(store).batch(np.array([LENGTHS[0] + 6]))
    recorded = {f"robot0_{name}": values for name, values in hand.items()}
    history = {name: recorded[name][[0, 3, 6]] for name in (POSITION, ROTATION, WIDTH)}
    start = {"robot0_demo_start_pose": hand["demo_start_pose"][0]}
    states = hands.states(history, starts=start)
    for name, values in states.items():
        np.testing.assert_allclose(batch.state[name][0], values, atol=1e-6)
    assert batch.actions is not None
    now = {name: values[-1] for name, values in history.items()}
    sent = hands.absolute(batch.actions[0].numpy(), now)
    rows = [9, 12, 15]
    target = np.concatenate([recorded[n][rows] for n in (POSITION, ROTATION, WIDTH)], axis=-1)
    np.testing.assert_allclose(sent, target, atol=1e-5)


def test_the_share_and_the_part_of_episodes(store: ZarrStore) -> None:
    used, rest = share_of_episodes(np.arange(10), 0.7, 13)
    drawn = sorted(np.random.default_rng(13).choice(10, 7, replace=False).tolist())
    assert used.tolist() == drawn
    assert sorted([*used, *rest]) == list(range(10))
    assert [len(side) for side in share_of_episodes([4], 0.95, 1)] == [1, 0]  # UVA: none at all
    data = windows(store)
    late = Subset(data, anchors_between(data, 0.5, 1.0))
    assert len(late) == 15 + 11  # from step 15 of 30, and from step 10 of 21
    assert data.index[late.rows][[0, 15]].tolist() == [[0, 15], [1, 10]]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: windows(s, HandPoses(hands=())), "at least one hand"),
        (lambda s: windows(s, umi_hands(stride=0)), "stride >= 1"),
        (lambda s: windows(s, umi_hands(3)), "'robot2_eef_pos' with 3 numbers.*no such stream"),
        (
            lambda s: windows(s, HandPoses(hands=umi_hands().hands, form="quat_xyzw")),
            "'robot0_eef_rot_axis_angle' with 4 numbers, and the data have 3 numbers",
        ),
        (
            lambda s: HandWindows(s, umi_hands(), Window(state={"wrench": (0,)}), [0]),
            r"names the states \['wrench'\]",
        ),
        (
            lambda s: HandWindows(s, umi_hands(), Window(past_actions=(0,)), [0]),
            "pictures, states and actions, and nothing else",
        ),
        (
            lambda s: umi_hands(2).absolute(np.zeros((16, 10)), {}),
            "2 hands have 20 numbers, found 10",
        ),
        (lambda s: share_of_episodes([1, 2], 0.0, 1), "should lie in 0..1, found 0"),
        (lambda s: anchors_between(windows(s), 0.7, 0.6), "two shares of an episode"),
    ],
)
def test_refusals(store: ZarrStore, call, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        call(store)


def test_nan_in_a_pose_is_named(tmp_path: Path) -> None:
    path = write_umi(tmp_path / "cup.zarr")
    array = zarr.open_group(str(path), mode="r+")[f"data/{POSITION}"]
    assert isinstance(array, zarr.Array)
    array[12] = np.nan
    data = windows(open_store(path, umi_spec(size=SIZE)))
    assert data.batch(np.array([2])).actions is not None
    with pytest.raises(UserError, match=r"near step 9 of episode 0 of .*cup\.zarr hold NaN.*check"):
        data.batch(np.array([1, 9]))
