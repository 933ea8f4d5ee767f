"""`foreact eval replay`: does the simulator take recorded actions as they were meant?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.fingerprint import fingerprint
from foreact.envs.robomimic import RobomimicEnv
from foreact.envs.robosuite_env_args import make_from_env_args
from foreact.errors import UserError
from foreact.evals import replay_report
from foreact.evals.env_pool import make_env
from foreact.evals.replay import Replayed, measured_streams, play_again
from foreact.evals.replay_findings import findings
from foreact.evals.replay_recordings import notes_of
from foreact.evals.report import write_report
from foreact.files import write_json
from foreact.runs.acting import with_variant
from foreact.runs.command_line import arguments_of
from foreact.runs.results import open_results
from foreact.runs.run import say
from foreact.runs.stores import open_task_store
from foreact.tasks import find_task
from foreact.worlds import Env, Task

RESULT = "replay.json"
ENV_ARGS = "env_args"
"""Note of a store that describes the simulator of each file as robomimic does."""


def replay(
    task: str = "pusht",
    data: Path | None = None,
    episodes: int = 10,
    variant: str | None = None,
    out: Path = Path("runs/replay"),
) -> list[Replayed]:
    """Play recorded actions in the simulator; report how far states drift, and what looks wrong.

    Episodes begin at their recorded state or with their seed. Pictures are compared as well, also
    upside down, mirrored and with exchanged colours. Ends with an error where a convention of the
    data looks wrong.

    Args:
        task: where to play.
        data: the store; by default data/<task>.zarr.
        episodes: how many, the first ones.
        variant: a variant of the task's environment, such as shadows; by default the task's choice.
        out: folder of the results.
    """
    options = arguments_of(replay, locals())
    definition = with_variant(find_task(task), variant)
    if episodes < 1:
        raise UserError(f"--episodes should be at least 1, found {episodes}.")
    store = open_task_store(definition, data)
    chosen = range(min(episodes, len(store)))
    folder = open_results(out, "eval replay", options, data=fingerprint(store).digest)
    facts = {"command": folder.command, "data": f"{store.label}, {len(chosen)} of {len(store)}"}
    say("Replay", task=task, **facts, out=out)
    env = _world(definition, store, variant)
    try:
        replayed = play_again(env, store, chosen, score=definition.score)
    finally:
        env.close()
    streams = measured_streams(store.spec, env.spec)
    found = findings(store, streams, replayed)
    print(replay_report.as_text(replay_report.table(streams, replayed)))
    print("\n".join(map(str, found)))
    write_json(out / RESULT, {"facts": facts, **replay_report.to_json(streams, replayed, found)})
    report = write_report(
        out / "report.html",
        title=f"Replay of {task}",
        sections=[replay_report.section(streams, replayed, found)],
        facts=facts,
    )
    folder.finish()
    print(f"Numbers: {out / RESULT}\nReport: {report}")
    if errors := [f.text for f in found if f.severity == "error"]:
        raise UserError(
            f"The actions of {store.label} do not lead where they led: {errors[-1]} All findings "
            f"are in {report}."
        )
    return replayed


def _world(task: Task, store: EpisodeStore, variant: str | None) -> Env:
    """The simulator that the data were recorded in, where they describe it, else the task's."""
    described = notes_of(store).get(ENV_ARGS)
    # LIBERO's files describe scenes of many classes; its task knows them by their instructions.
    if isinstance(described, Mapping) and len(described) == 1 and not store.spec.has_text:
        (env_args,) = described.values()
        if env_args is not None:
            shadows = variant != "no-shadows"
            return RobomimicEnv(make_from_env_args(env_args, shadows=shadows))
    if task.env is None:
        raise UserError(
            f"Nothing simulates task '{task.name}', so nothing can be replayed in it; name a task "
            "with an env."
        )
    return make_env(task.env)
