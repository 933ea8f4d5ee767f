"""Replay of recorded actions: what comes back, and what a wrong convention looks like."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.arm_world import QUARTER, ArmEnv, ArmStore

from foreact.commands.replay import replay
from foreact.data.rotations import convert
from foreact.data.stores.writer import StoreWriter
from foreact.envs.collect import demonstrations_to_store
from foreact.errors import UserError
from foreact.evals.replay import Stream, measured_streams, play_again
from foreact.evals.replay_findings import findings


def found_in(store: ArmStore) -> dict[str, list[str]]:
    """Severity -> sentences."""
    env = ArmEnv()
    streams = measured_streams(store.spec, env.spec)
    replayed = play_again(env, store, range(len(store)), progress=False)
    found = findings(store, streams, replayed)
    return {s: [f.text for f in found if f.severity == s] for s in ("note", "warning", "error")}


def test_right_conventions_come_back_exactly() -> None:
    store, env = ArmStore(), ArmEnv()
    replayed = play_again(env, store, [1, 0], progress=False)
    assert [r.episode for r in replayed] == [1, 0]
    assert [r.start for r in replayed] == ["state", "state"]
    assert [r.steps for r in replayed] == store.lengths[[1, 0]].tolist()
    for r in replayed:
        assert r.score == r.recorded_score == 1.0
        assert set(r.drift) == {"robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"}
        assert max(drift.max() for drift in r.drift.values()) < 1e-4
        assert min(db.min() for db in r.pictures.values()) == 60.0
    found = found_in(store)
    assert not found["error"] + found["warning"]
    assert "All 2 episodes score as recorded." in found["note"]


def test_drift_is_measured_in_centimetres_and_degrees() -> None:
    store = ArmStore()
    store.arrays["robot0_eef_pos"] = store.arrays["robot0_eef_pos"] + np.array(
        [0, 0.03, 0.04], "f4"
    )
    turn = convert(np.array([0.0, np.radians(7.0), 0.0]), "axis_angle", "matrix")
    body = convert(store.arrays["robot0_eef_quat"], "quat_xyzw", "matrix")
    store.arrays["robot0_eef_quat"] = convert(turn @ body, "matrix", "quat_xyzw").astype("f4")
    (r, _) = play_again(ArmEnv(), store, [0, 1], progress=False)
    np.testing.assert_allclose(r.drift["robot0_eef_pos"], 5.0, atol=1e-3)
    np.testing.assert_allclose(r.drift["robot0_eef_quat"], 7.0, atol=1e-2)
    (sentence,) = [s for s in found_in(store)["error"] if "eef_pos" in s]
    assert "drifts by 5 cm" in sentence
    assert "elsewhere before the first action" in sentence


def test_angles_wrap_and_quaternions_have_two_signs() -> None:
    numbers = Stream(name="state", kind="numbers", names=("x", "block_angle"))
    a, b = np.array([[1.0, 0.1]]), np.array([[1.0, 2 * np.pi - 0.1]])
    assert numbers.difference(a, b) == pytest.approx(0.2)
    turn = Stream(name="quat", kind="rotation", names=("x", "y", "z", "w"))
    q = np.array([[0.5, 0.5, -0.5, 0.5]])
    assert turn.difference(q, -q) == pytest.approx(0.0, abs=1e-5)


def test_the_body_for_the_site_is_named() -> None:
    store = ArmStore()
    site = convert(store.arrays["action"][:, 3:9], "rows_6d", "matrix")
    store.arrays["action"][:, 3:9] = convert(site @ QUARTER, "matrix", "rows_6d")
    errors = found_in(store)["error"]
    assert any("eef_quat' drifts by" in s and "from the right start" in s for s in errors)
    assert "their rotation is of the body, the controller takes the site's" in errors[-1]


def test_deltas_and_other_frames_are_named() -> None:
    store = ArmStore()
    store.arrays["action"][:, :3] = [0.0, 0.005, 0.02]
    assert "they look like deltas" in found_in(store)["error"][-1]
    store = ArmStore()
    store.arrays["action"][:, :3] -= np.array([-0.56, 0.0, 0.91], "f4")
    assert "they are of another frame" in found_in(store)["error"][-1]


@pytest.mark.parametrize(
    ("turned", "name"),
    [
        (lambda p: p[:, ::-1], "upside down"),
        (lambda p: p[:, :, ::-1], "mirrored"),
        (lambda p: p[:, ::-1, ::-1], "turned by 180 degrees"),
        (lambda p: p[..., ::-1], "BGR"),
    ],
)
def test_turned_pictures_are_named(turned, name: str) -> None:
    store = ArmStore()
    store.arrays["front"] = turned(store.arrays["front"]).copy()
    (sentence,) = found_in(store)["error"]
    assert f"'front' fit the simulator's 'front' {name} (60.0 dB)" in sentence


def test_exchanged_cameras_are_named() -> None:
    store = ArmStore()
    front, wrist = store.arrays["front"], store.arrays["wrist"]
    store.arrays |= {"front": wrist, "wrist": front}
    errors = found_in(store)["error"]
    assert "'front' fit the simulator's 'wrist' upright" in errors[0]
    assert "'wrist' fit the simulator's 'front' upright" in errors[1]


def test_other_drawing_is_a_warning() -> None:
    store = ArmStore()
    noise = np.random.default_rng(0).integers(0, 60, store.arrays["wrist"].shape)
    store.arrays["wrist"] = np.clip(store.arrays["wrist"] + noise, 0, 255).astype(np.uint8)
    (sentence,) = found_in(store)["warning"]
    assert "'wrist' fit best upright, but not well" in sentence


def test_a_changed_score_is_named() -> None:
    store = ArmStore()
    store.per_episode["score"] = np.array([1.0, 0.25])
    assert "the first is '1': 1 instead of 0.25" in found_in(store)["error"][0]


def test_episodes_with_noise_are_not_judged_beside_others() -> None:
    store = ArmStore()
    store.per_episode["noise"] = np.array([0.0, 15.0])
    store.arrays["action"][store.starts[1] :, :2] += 0.05
    found = found_in(store)
    assert not found["error"]
    assert "1 episodes were recorded with noise" in found["note"][0]


def test_seeds_begin_episodes_that_keep_no_state() -> None:
    store = ArmStore()
    del store.per_episode["initial_state"]
    replayed = play_again(ArmEnv(), store, [1], progress=False)
    assert replayed[0].start == "seed"
    assert replayed[0].drift["robot0_eef_pos"].max() < 1e-4
    del store.per_episode["seed"]
    with pytest.raises(UserError, match=r"a replay needs `initial_state` or `seed`"):
        play_again(ArmEnv(), store, [1], progress=False)


def test_actions_of_another_kind_are_refused() -> None:
    store = ArmStore()
    assert store.spec.action is not None
    delta = dataclasses.replace(store.spec.action, mode="delta")
    store.spec = dataclasses.replace(store.spec, action=delta)
    with pytest.raises(UserError, match="have mode delta, the simulator takes mode absolute"):
        play_again(ArmEnv(), store, [0], progress=False)
    store.spec = dataclasses.replace(store.spec, action=None)
    with pytest.raises(UserError, match="has no actions to replay"):
        play_again(ArmEnv(), store, [0], progress=False)


# --- the command, with PushT ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gym_pusht")
    path = tmp_path_factory.mktemp("replay") / "pusht.zarr"
    demonstrations_to_store(path, episodes=2)
    return path


def test_pusht_comes_back_by_its_seeds(
    pusht: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay("pusht", pusht, out=tmp_path / "r")
    said = capsys.readouterr().out
    assert "'state' drifts by 0 own units on average" in said
    assert "Pictures of 'img' fit upright (60.0 dB)" in said
    result = json.loads((tmp_path / "r" / "replay.json").read_text())
    assert result["units"] == {"state": "own units"}
    assert len(result["episodes"]) == 2
    assert max(result["episodes"][0]["drift"]["state"]) == 0.0
    page = (tmp_path / "r" / "report.html").read_text()
    assert "Replay of recorded actions" in page
    assert "data:image/png;base64" in page


def test_a_wrong_convention_ends_with_an_error_and_a_report(pusht: Path, tmp_path: Path) -> None:
    from foreact.data.stores.store import open_store

    right = open_store(pusht)
    with StoreWriter(tmp_path / "wrong.zarr", right.spec) as writer:
        steps = int(right.lengths[0])
        streams = right.read(0, 0, steps, right.streams)
        streams["action"] = streams["action"][:, ::-1]
        writer.append(streams, seed=int(right.info("seed")[0]))
    with pytest.raises(UserError, match=r"do not lead where they led: 'state' drifts by .*report"):
        replay("pusht", tmp_path / "wrong.zarr", out=tmp_path / "r")
    assert (tmp_path / "r" / "report.html").exists()


def test_no_episodes_are_refused(pusht: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--episodes should be at least 1, found 0"):
        replay("pusht", pusht, episodes=0, out=tmp_path / "r")
