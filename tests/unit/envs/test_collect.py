"""Collection: trace files that resume, noise that is not recorded,
stores that show what the environment showed.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gym_pusht")

from foreact.data.stores.store import open_store
from foreact.envs import collect as collecting
from foreact.envs.collect import (
    FIRST_TEST_SEED,
    collect,
    demonstrations_to_store,
    disturbances,
    render_traces,
)
from foreact.envs.pusht import PUSHT_SPEC, PushTEnv, random_goal
from foreact.envs.traces import Traces, demonstrations, load_traces, save_traces
from foreact.errors import UserError

QUIET = {"workers": 1, "progress": False}


def assert_same(a: Traces, b: Traces) -> None:
    assert a.env == b.env
    for name in ("seeds", "noise", "score", "goal", "episode_ends", "state", "action"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trace file of three PushT-M episodes, the second one disturbed."""
    path = tmp_path_factory.mktemp("traces") / "three.npz"
    collect("pusht-m", 3, path, first_seed=20, noise=(0.0, 10.0), **QUIET)
    return path


def test_traces_hold_what_was_asked_for(three: Path) -> None:
    traces = load_traces(three)
    np.testing.assert_array_equal(traces.seeds, [20, 21, 22])
    np.testing.assert_array_equal(traces.noise, [0, 10, 0])
    np.testing.assert_array_equal(
        traces.goal, np.array([random_goal(s) for s in (20, 21, 22)], np.float32)
    )
    assert (traces.score > 0.95).all()
    assert len(traces.state) == len(traces.action) == traces.episode_ends[-1]


def test_clean_episode_replays_to_its_own_states(three: Path) -> None:
    traces, env = load_traces(three), PushTEnv(goal="random", image=False)
    for episode, disturbed in enumerate((False, True, False)):
        rows = traces.rows(episode)
        states = [env.reset(int(traces.seeds[episode]))["state"]]
        states += [env.step(a).obs["state"] for a in traces.action[rows]]
        same = np.array_equal(traces.state[rows], states[:-1])
        assert same != disturbed, (
            "the noise belongs into the executed actions, not into the recorded ones"
        )


def test_disturbances_are_held_half_of_them_zero_and_given_by_the_seed() -> None:
    draws = np.array(list(itertools.islice(disturbances(3, 15.0), 5000))).reshape(1000, 5, 2)
    np.testing.assert_array_equal(draws, draws[:, :1].repeat(5, axis=1))
    quiet = (draws[:, 0] == 0).all(1)
    assert 0.45 < quiet.mean() < 0.55
    assert draws[~quiet, 0].std() == pytest.approx(15.0, rel=0.1)
    again = np.array(list(itertools.islice(disturbances(3, 15.0), 5000)))
    np.testing.assert_array_equal(again, draws.reshape(-1, 2))
    assert not np.array_equal(next(iter(disturbances(4, 15.0))), draws[0, 0])


def test_processes_change_nothing(three: Path, tmp_path: Path) -> None:
    parallel = collect(
        "pusht-m",
        3,
        tmp_path / "p.npz",
        first_seed=20,
        noise=(0.0, 10.0),
        workers=2,
        progress=False,
    )
    assert_same(parallel, load_traces(three))


def test_killed_collection_goes_on(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, made = tmp_path / "t.npz", collecting._demonstrate, []

    def dies_at_22(job: tuple[str, int, float]) -> object:
        if job[1] == 22 and len(made) < 3:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(job[1])
        return real(job)

    monkeypatch.setattr(collecting, "_demonstrate", dies_at_22)
    arguments = {"first_seed": 20, "noise": (0.0, 10.0), **QUIET}
    with pytest.raises(KeyboardInterrupt):
        collect("pusht-m", 3, path, **arguments)
    assert len(load_traces(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    finished = collect("pusht-m", 3, path, **arguments)
    assert made == [20, 21, "killed", 22]
    assert_same(finished, load_traces(three))
    assert (
        len(collect("pusht-m", 2, path, **arguments)) == 3
    )  # asking for fewer throws nothing away
    assert made == [20, 21, "killed", 22]


def test_store_shows_what_the_environment_showed(three: Path, tmp_path: Path) -> None:
    traces = load_traces(three)
    store = open_store(render_traces(three, tmp_path / "s.zarr", **QUIET), PUSHT_SPEC)
    np.testing.assert_array_equal(store.lengths, np.diff(traces.episode_ends, prepend=0))
    np.testing.assert_array_equal(store.info("seed"), traces.seeds)
    np.testing.assert_array_equal(store.info("goal"), traces.goal)
    np.testing.assert_array_equal(store.info("noise"), traces.noise)
    env = PushTEnv(goal="random")
    for episode in (0, 2):
        stored = store.read(episode, 0, 30, ["img", "state", "action"])
        observation = env.reset(int(traces.seeds[episode]))
        for step in range(30):
            np.testing.assert_array_equal(stored["state"][step], observation["state"])
            # Goals are kept as float32, hence a pixel on an edge may round to the other side.
            assert (stored["img"][step] != observation["img"]).mean() < 1e-3
            observation = env.step(stored["action"][step]).obs


def test_rendering_goes_on_and_grows_with_its_traces(three: Path, tmp_path: Path) -> None:
    traces = load_traces(three)
    save_traces(tmp_path / "two.npz", traces.env, traces.episodes()[:2])
    grown = render_traces(tmp_path / "two.npz", tmp_path / "s.zarr", **QUIET)
    assert len(open_store(grown)) == 2
    render_traces(three, grown, **QUIET)
    at_once = open_store(render_traces(three, tmp_path / "once.zarr", **QUIET))
    for episode in range(3):
        a, b = (
            s.read(episode, 0, int(s.lengths[episode]), s.streams)
            for s in (open_store(grown), at_once)
        )
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_store_of_other_episodes_is_left_alone(three: Path, tmp_path: Path) -> None:
    traces = load_traces(three)
    store = render_traces(three, tmp_path / "s.zarr", **QUIET)
    save_traces(tmp_path / "other.npz", traces.env, traces.episodes()[1:])
    with pytest.raises(UserError, match="holds other episodes than"):
        render_traces(tmp_path / "other.npz", store, **QUIET)
    assert len(open_store(store)) == 3


def test_shipped_demonstrations() -> None:
    path = demonstrations("pusht")
    traces = load_traces(path)
    assert path.stat().st_size < 2e6
    assert traces.env == "pusht"
    assert len(traces) >= 200
    assert (traces.noise == 0).sum() == len(traces) // 2
    assert traces.score.mean() > 0.99
    assert traces.seeds.max() < FIRST_TEST_SEED
    lengths = np.diff(traces.episode_ends, prepend=0)
    assert lengths.max() <= PushTEnv.max_steps
    assert PUSHT_SPEC.action is not None
    low, high = np.array(PUSHT_SPEC.action.low), np.array(PUSHT_SPEC.action.high)
    assert ((traces.action >= low) & (traces.action <= high)).all()


def test_default_store_has_its_name_only_when_whole(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def render(traces: Path, store: Path, episodes: int | None) -> Path:
        seen.append(store)
        assert traces == demonstrations("pusht")
        return render_traces(three, store, episodes=episodes, **QUIET)

    monkeypatch.setattr(collecting, "render_traces", render)
    demonstrations_to_store(tmp_path / "pusht.zarr", episodes=2)
    assert seen != [tmp_path / "pusht.zarr"]
    assert [p.name for p in tmp_path.iterdir()] == ["pusht.zarr"]
    assert len(open_store(tmp_path / "pusht.zarr")) == 2  # the first ones
    demonstrations_to_store(tmp_path / "all.zarr")
    assert len(open_store(tmp_path / "all.zarr")) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"env": "cartpole"}, r"expert for \['pusht', 'pusht-m'\], none for 'cartpole'"),
        ({"first_seed": FIRST_TEST_SEED - 1, "episodes": 2}, "test seeds"),
        ({"first_seed": FIRST_TEST_SEED + 7}, "test seeds"),
        ({"first_seed": -1}, "first_seed >= 0"),
        ({"episodes": 0}, "episodes >= 1"),
        ({"noise": -1.0}, "pixels >= 0, found -1.0"),
        ({"noise": (0.0, float("nan"))}, "pixels >= 0"),
        ({"noise": ()}, "one or more numbers"),
        ({"path": "traces.zarr"}, "ends in .npz"),
        ({"workers": 0}, "at least one worker"),
    ],
)
def test_impossible_collection_is_refused_before_any_work(
    change: dict[str, object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"env": "pusht", "episodes": 1, "path": "t.npz", **QUIET, **change}
    with pytest.raises(UserError, match=sentence):
        collect(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"first_seed": 21}, {"noise": 10.0}, {"env": "pusht"}])
def test_file_of_another_collection_is_left_alone(three: Path, change: dict[str, object]) -> None:
    before = three.read_bytes()
    arguments = {
        "env": "pusht-m",
        "episodes": 4,
        "path": three,
        "first_seed": 20,
        "noise": (0.0, 10.0),
        **QUIET,
    }
    with pytest.raises(UserError, match="holds another collection"):
        collect(**{**arguments, **change})
    assert three.read_bytes() == before


def test_broken_trace_files_say_so(three: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trace file at"):
        load_traces(tmp_path / "none.npz")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(three.read_bytes()[:-400])
    with pytest.raises(UserError, match="cannot be read"):
        load_traces(cut)
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.zeros(3))
    with pytest.raises(UserError, match=r"found \['x'\]; it is no trace file"):
        load_traces(foreign)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, env=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        load_traces(pickled)
    episodes = load_traces(three).episodes()
    episodes[1].action[3, 0] = np.nan
    save_traces(tmp_path / "nan.npz", "pusht-m", episodes)
    with pytest.raises(UserError, match="holds NaN"):
        load_traces(tmp_path / "nan.npz")


def test_full_disk_leaves_the_older_file(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, path = load_traces(three), tmp_path / "t.npz"
    save_traces(path, traces.env, traces.episodes()[:1])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_traces(path, traces.env, traces.episodes())
    assert len(load_traces(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_demonstrations_that_do_not_ship() -> None:
    with pytest.raises(
        UserError, match=r"No demonstrations ship for 'cartpole', only for \['pusht'\]"
    ):
        demonstrations("cartpole")
