"""Closed loop: a policy acts in simulated episodes, scored by largest (UVA) or summed reward.

Episodes are independent of one another and of how many run together: an episode's world, and every
draw of the policy for it, depend on its own seed alone.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from foreact.errors import UserError, room_or
from foreact.evals.env_pool import EnvPool, Start
from foreact.evals.estimate import estimate, estimate_from_json, share
from foreact.files import write_json
from foreact.machine import cores
from foreact.progress import Progress
from foreact.types import Estimate, Observation, Policy, StreamSpec

RESULT = "closed_loop.json"
FORMAT = 1

Score = Literal["max", "sum"]
SCORES: dict[Score, str] = {
    "max": "largest reward of the episode",
    "sum": "sum of the episode's rewards",
}


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Outcome of one episode.

    `score` is the largest reward of its `steps`, or their sum; `success` is None where no score
    counts as solved; `video` is relative to the result file.
    """

    seed: int
    score: float
    steps: int
    success: bool | None
    video: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClosedLoopResult:
    """All that a score needs beside it to be read and repeated.

    Attributes:
        name: what the policy is called in tables.
        score: mean of the episodes' scores.
        success: share of episodes with a score of at least `protocol["success_at"]`; None where
            that is None.
        episodes: one per seed, in the order of the seeds.
        protocol: environment, step limit and what the policy says of itself.
        latency: `calls`, and the mean, median and largest milliseconds per call and the mean per
            planned chunk.
        wall_s: seconds the whole measurement took.
        versions: of the packages that matter, and the machine.
    """

    name: str
    score: Estimate
    success: Estimate | None
    episodes: tuple[Episode, ...]
    protocol: Mapping[str, Any]
    latency: Mapping[str, float]
    wall_s: float
    versions: Mapping[str, str]
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        raw = dataclasses.asdict(self)
        raw.pop("folder")
        return {"format": FORMAT, **raw, "seeds": [e.seed for e in self.episodes]}


def closed_loop(
    make_env: str,
    policy: Policy,
    seeds: Sequence[int],
    *,
    name: str = "policy",
    out_dir: Path | None = None,
    workers: int | None = None,
    at_once: int = 64,
    videos: int = 4,
    max_steps: int | None = None,
    score: Score = "max",
    score_range: tuple[float, float] | None = (0.0, 1.0),
    success_at: float | None = 1.0,
    progress: bool = True,
) -> ClosedLoopResult:
    """Let `policy` act in one episode per seed.

    Args:
        make_env: import path "module:function" of an environment factory without arguments.
        seeds: distinct; seed i decides the start of episode i and every draw of the policy in it.
        name: what the policy is called in tables.
        out_dir: where `closed_loop.json` and `videos/` go, or None to write nothing.
        workers: processes for the environments; None for one per core, 0 for none but this one.
        at_once: episodes that run together; fewer need less memory and give the same scores.
        videos: how many of the first episodes are filmed, if there is an `out_dir`.
        max_steps: steps of an episode, or None for the environment's own limit.
        score: what the score of an episode is: its largest reward, or the sum of its rewards.
        score_range: where scores lie by their meaning; intervals are cut to it. None: anywhere.
        success_at: score from which an episode counts as solved; None where there is no such thing.
        progress: show a bar.

    Raises:
        UserError: no seeds, or some twice; policy and environment disagree on the spec; the policy
            plans NaN; a worker process died.
    """
    began = time.perf_counter()
    seeds = _checked(seeds, at_once, workers, videos)
    if score not in get_args(Score):
        raise UserError(f"score should be one of {', '.join(get_args(Score))}, found '{score}'.")
    workers = min(cores(), len(seeds)) if workers is None else min(workers, len(seeds))
    films: dict[int, str] = {}
    if out_dir is not None:
        films = {i: f"videos/seed-{seed}.mp4" for i, seed in enumerate(seeds[:videos])}
        _make_folder(out_dir / "videos" if films else out_dir)
    pool = EnvPool(make_env, workers=workers, max_steps=max_steps)
    scores, steps, calls = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=int), []
    bar = Progress(
        total=len(seeds),
        desc=f"closed loop, {name}",
        unit="episode",
        disable=not progress,
    )
    try:
        policy.spec.require_equal(pool.facts.spec, "the policy", "the environment")
        for first in range(0, len(seeds), at_once):
            numbers = range(first, min(first + at_once, len(seeds)))
            starts = {
                i: Start(seeds[i], out_dir / films[i] if out_dir and i in films else None)
                for i in numbers
            }
            for i, total, taken in _wave(pool, policy, starts, calls, score):
                scores[i], steps[i] = total, taken
                bar.update(1)
                bar.set_postfix_str(f"mean score {scores[steps > 0].mean():.3f}")
    finally:
        bar.close()
        pool.close()
    episodes = tuple(
        Episode(
            seed=seed,
            score=float(scores[i]),
            steps=int(steps[i]),
            success=None if success_at is None else bool(scores[i] >= success_at),
            video=films.get(i),
        )
        for i, seed in enumerate(seeds)
    )
    success = None
    if success_at is not None:
        success = share(int((scores >= success_at).sum()), len(episodes))
    result = ClosedLoopResult(
        name=name,
        score=estimate(scores, valid_range=score_range),
        success=success,
        episodes=episodes,
        protocol={
            "env": make_env,
            "max_steps": pool.facts.max_steps,
            "score": SCORES[score],
            "success_at": success_at,
            "at_once": at_once,
            **policy.describe(),
        },
        latency=_latency(calls),
        wall_s=time.perf_counter() - began,
        versions=versions(),
        folder=out_dir,
    )
    if out_dir is not None:
        _write(out_dir / RESULT, result.to_json())
    return result


def read_closed_loop(folder: Path) -> ClosedLoopResult:
    """Read back what `closed_loop` wrote to `folder`.

    Raises:
        UserError: there is no such result, or it is not one of ours.
    """
    path = folder / RESULT
    try:
        raw = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"There is no readable {RESULT} in {folder} ({error}); run `foreact eval closed-loop` "
            "first."
        ) from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise UserError(
            f"{path} is not a closed-loop result of format {FORMAT}; measure again "
            "with this version."
        )
    try:
        raw.pop("seeds")
        raw["score"] = estimate_from_json(raw["score"])
        raw["success"] = None if raw["success"] is None else estimate_from_json(raw["success"])
        raw["episodes"] = tuple(Episode(**e) for e in raw["episodes"])
        return ClosedLoopResult(**raw, folder=folder)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks entries or has unknown ones ({error}); measure again."
        ) from error


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    installed = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in (
        "foreact",
        "torch",
        "numpy",
        "gym-pusht",
        "pymunk",
        "dm-control",
        "mujoco",
        "robosuite",
    ):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _wave(
    pool: EnvPool,
    policy: Policy,
    starts: Mapping[int, Start],
    calls: list[tuple[float, int]],
    score: Score,
) -> Any:
    """Run episodes in lockstep; yield (number, score, steps) as each ends.

    The policy numbers them from 0.
    """
    rows = {i: row for row, i in enumerate(starts)}
    policy.reset([begin.seed for begin in starts.values()])
    alive = list(starts)
    first = pool.start(starts)
    told = pool.instructions(starts) if pool.facts.spec.has_text else None

    def observe(seen: Sequence[Mapping[str, np.ndarray]]) -> None:
        text = None if told is None else [told[i] for i in alive]
        policy.observe(_stacked(seen, policy.spec, text), [rows[i] for i in alive])

    observe([first[i] for i in alive])
    rewards: dict[int, list[float]] = {i: [] for i in alive}
    while alive:
        chunk = policy.act([rows[i] for i in alive])
        if not np.isfinite(chunk.actions).all():
            raise UserError(
                f"The policy planned NaN or infinite actions at step {chunk.t0}; its weights or "
                "statistics are broken."
            )
        if chunk.t0 != (now := len(rewards[alive[0]])):
            raise UserError(
                f"The policy's first action is due at step {chunk.t0}, and the simulator waits for "
                f"that of step {now}; a closed loop needs a policy whose first action is due now."
            )
        calls.append((chunk.infer_ms, len(alive)))
        played = pool.play({i: chunk.actions[row, : chunk.execute] for row, i in enumerate(alive)})
        for i in alive:
            rewards[i] += played[i].rewards
            if played[i].done:
                yield i, max(rewards[i]) if score == "max" else sum(rewards[i]), len(rewards[i])
        alive = [i for i in alive if not played[i].done]
        for step in range(chunk.execute if alive else 0):
            observe([played[i].observations[step] for i in alive])


def _stacked(
    observations: Sequence[Mapping[str, np.ndarray]], spec: StreamSpec, text: list[str] | None
) -> Observation:
    return Observation(
        cameras={name: np.stack([o[name] for o in observations]) for name in spec.cameras},
        state={name: np.stack([o[name] for o in observations]) for name in spec.state},
        text=text,
    )


def _latency(calls: Sequence[tuple[float, int]]) -> dict[str, float]:
    ms, rows = np.array([c[0] for c in calls]), np.array([c[1] for c in calls])
    return {
        "calls": len(calls),
        "mean_ms_per_call": float(ms.mean()),
        "median_ms_per_call": float(np.median(ms)),
        "max_ms_per_call": float(ms.max()),
        "mean_ms_per_chunk": float(ms.sum() / rows.sum()),
    }


def _checked(seeds: Sequence[int], at_once: int, workers: int | None, videos: int) -> list[int]:
    numbers = [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) != len(numbers):
        problem = (
            "none" if not numbers else f"{len(numbers) - len(set(numbers))} that repeat another"
        )
        raise UserError(
            f"A closed loop needs one distinct seed per episode, found {problem}; a repeat is no "
            "new episode."
        )
    if at_once < 1 or videos < 0 or (workers is not None and workers < 0):
        raise UserError(
            f"--workers ({workers}) and --videos ({videos}) must be at least 0, and at_once "
            f"({at_once}) at least 1."
        )
    return numbers


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({error.strerror}); choose another --out."
        ) from error


def _write(path: Path, raw: Mapping[str, Any]) -> None:
    try:
        write_json(path, raw)
    except OSError as error:
        raise UserError(
            f"Writing {path} failed ({error.strerror}); "
            f"{room_or(error, 'choose another --out')}, then measure again."
        ) from error
