from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toy_world import SPEC, ToyWorld

from foreact.data.formats.video import read_video
from foreact.errors import UserError
from foreact.evals.closed_loop import ClosedLoopResult, closed_loop, read_closed_loop
from foreact.policies.baselines import DoNothing, RandomPolicy
from foreact.types import ActionChunk, Observation, StreamSpec

TOY = "support.toy_world:make_toy"


def outcomes(result: ClosedLoopResult) -> dict[int, tuple[float, int]]:
    return {e.seed: (e.score, e.steps) for e in result.episodes}


def play_by_hand(seed: int, actions: np.ndarray, execute: int, max_steps: int) -> tuple[float, int]:
    """The protocol in plain words, for a policy that always plays `actions` (execute, 1)."""
    env = ToyWorld()
    env.reset(seed)
    best = -np.inf
    for step in range(max_steps):
        out = env.step(actions[step % execute])
        best = max(best, out.reward)
        if out.terminated:
            return best, step + 1
    return best, max_steps


class Recorder:
    """Plays fixed actions and keeps what it was shown."""

    spec: StreamSpec = SPEC

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions
        self.seen: list[list[float]] = []
        self.asked: list[tuple[int, ...]] = []
        self.seeds: list[int] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.seen = [[] for _ in seeds]

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        assert ids is not None
        for row, i in enumerate(ids):
            self.seen[i].append(float(obs.state["state"][row, 1]))
            assert obs.cameras["img"].shape == (len(ids), 16, 16, 3)

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        assert ids is not None
        self.asked.append(tuple(ids))
        chunk = np.repeat(self.actions[None], len(ids), axis=0)
        # More actions than are executed: the rest must not be played.
        return ActionChunk(
            np.concatenate([chunk, chunk * 0 + 2], axis=1),
            len(self.actions),
            len(self.seen[ids[0]]) - 1,
            5.0,
        )

    def describe(self) -> dict[str, Any]:
        return {"policy": "recorder", "execute": len(self.actions)}


def test_score_is_the_largest_reward_until_done_or_out_of_steps() -> None:
    actions = np.array([[0.5], [-1.0], [2.0]], dtype=np.float32)
    result = closed_loop(
        TOY, Recorder(actions), range(12), workers=0, success_at=0.88, progress=False
    )
    for episode in result.episodes:
        score, steps = play_by_hand(episode.seed, actions, 3, ToyWorld.max_steps)
        assert (episode.score, episode.steps) == (score, steps)
        assert episode.success == (score >= 0.88)
    lengths = {e.steps for e in result.episodes}
    assert len(lengths) > 2
    assert result.score.mean == pytest.approx(np.mean([e.score for e in result.episodes]))
    assert result.success is not None
    assert result.success.mean == np.mean([bool(e.success) for e in result.episodes])
    assert result.score.low < result.score.mean < result.score.high <= 1.0


def test_a_running_episode_is_shown_every_step_once() -> None:
    policy = Recorder(np.zeros((4, 1), dtype=np.float32))
    result = closed_loop(TOY, policy, [3, 4, 5], workers=0, max_steps=11, progress=False)
    longest = max(e.steps for e in result.episodes)
    for seen, episode in zip(policy.seen, result.episodes, strict=True):
        assert seen == list(range(len(seen)))
        if episode.steps < longest:
            assert len(seen) <= episode.steps + 4
    assert all(e.steps <= 11 for e in result.episodes)
    # The last plan is for those still running only.
    assert policy.asked[0] == (0, 1, 2)
    assert [len(a) for a in policy.asked] == sorted((len(a) for a in policy.asked), reverse=True)


def test_outcomes_do_not_depend_on_company_or_workers() -> None:
    seeds = [11, 12, 13, 14, 15]
    run = {"workers": 0, "progress": False}
    together = outcomes(closed_loop(TOY, RandomPolicy(SPEC, execute=3), seeds, **run))
    in_waves = outcomes(
        closed_loop(TOY, RandomPolicy(SPEC, execute=3), seeds[::-1], at_once=2, **run)
    )
    processes = outcomes(
        closed_loop(TOY, RandomPolicy(SPEC, execute=3), seeds, workers=2, at_once=3, progress=False)
    )
    alone = {}
    for seed in seeds:
        alone |= outcomes(closed_loop(TOY, RandomPolicy(SPEC, execute=3), [seed], **run))
    assert together == in_waves == processes == alone
    assert len(set(together.values())) > 1


def test_result_is_written_and_read_back_with_films(tmp_path: Path) -> None:
    result = closed_loop(
        TOY,
        DoNothing(SPEC),
        [7, 8, 9],
        name="still",
        out_dir=tmp_path,
        workers=0,
        videos=2,
        max_steps=5,
        progress=False,
    )
    assert read_closed_loop(tmp_path) == result
    raw = json.loads((tmp_path / "closed_loop.json").read_text())
    assert raw["seeds"] == [7, 8, 9]
    assert raw["score"]["n"] == 3
    assert raw["protocol"]["policy"] == "do-nothing"
    assert raw["protocol"]["max_steps"] == 5
    assert raw["versions"]["foreact"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "closed_loop.json",
        "seed-7.mp4",
        "seed-8.mp4",
    ]
    frames, fps = read_video(tmp_path / "videos" / "seed-7.mp4")
    assert (len(frames), fps) == (1 + result.episodes[0].steps, 10.0)


def test_latency_counts_calls_and_chunks() -> None:
    result = closed_loop(
        TOY, Recorder(np.zeros((5, 1))), [1, 2], workers=0, max_steps=5, progress=False
    )
    assert result.latency["calls"] == 1
    assert result.latency["mean_ms_per_call"] == 5.0
    assert result.latency["mean_ms_per_chunk"] == 2.5


def test_a_dead_worker_is_named() -> None:
    with pytest.raises(UserError, match=r"died with exit code 7"):
        closed_loop(
            "support.toy_world:make_dying", DoNothing(SPEC), [1, 2], workers=1, progress=False
        )


def test_a_bug_in_a_worker_shows_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError: a bug in the toy world"):
        closed_loop(
            "support.toy_world:make_faulty", DoNothing(SPEC), [1], workers=1, progress=False
        )


def test_a_user_error_crosses_the_process_border() -> None:
    with pytest.raises(UserError, match="cannot be found"):
        closed_loop(
            "support.toy_world:make_nothing", DoNothing(SPEC), [1], workers=1, progress=False
        )


@pytest.mark.parametrize(
    "path", ["no_such_module_at_all:f", "toy_world", "support.toy_world:missing", ""]
)
def test_a_wrong_import_path_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="import path"):
        closed_loop(path, DoNothing(SPEC), [1], workers=0, progress=False)


@pytest.mark.parametrize("seeds", [[], [1, 2, 1]])
def test_unusable_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(UserError, match="distinct seed"):
        closed_loop(TOY, DoNothing(SPEC), seeds, workers=0, progress=False)


@pytest.mark.parametrize("setting", [{"at_once": 0}, {"workers": -1}, {"videos": -1}])
def test_impossible_settings_are_refused(setting: dict[str, int]) -> None:
    options: dict[str, Any] = {"workers": 0, **setting}
    with pytest.raises(UserError, match="at least"):
        closed_loop(TOY, DoNothing(SPEC), [1], **options, progress=False)


def test_another_spec_is_refused() -> None:
    other = DoNothing(
        StreamSpec(cameras={"img": (16, 16)}, fps=20.0, action=SPEC.action, state=SPEC.state)
    )
    with pytest.raises(UserError, match="disagree on 'fps'"):
        closed_loop(TOY, other, [1], workers=0, progress=False)


def test_nan_plans_are_refused_and_write_nothing(tmp_path: Path) -> None:
    broken = Recorder(np.full((2, 1), np.nan))
    with pytest.raises(UserError, match="NaN"):
        closed_loop(TOY, broken, [1], out_dir=tmp_path, workers=0, progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_reading_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `foreact eval closed-loop`"):
        read_closed_loop(tmp_path)
    (tmp_path / "closed_loop.json").write_text("{}")
    with pytest.raises(UserError, match="format 1"):
        read_closed_loop(tmp_path)
    (tmp_path / "closed_loop.json").write_text('{"format": 1, "seeds": []}')
    with pytest.raises(UserError, match="lacks entries"):
        read_closed_loop(tmp_path)
