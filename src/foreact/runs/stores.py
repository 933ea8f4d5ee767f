"""Where a task's data comes from: its default store, and latents made from its frames."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch

from foreact.checkpoints.tokenizers import LoadedTokenizer
from foreact.data.stores.companion import AccompaniedStore, accompanied
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import ZarrStore
from foreact.data.windows.hand_poses import HandPoses
from foreact.data.windows.normalize import Mode
from foreact.errors import UserError
from foreact.plugs import load_object
from foreact.runs.encoding import StreamEncoder, encode_stream
from foreact.runs.run import process_count
from foreact.tasks import TASKS, find_task
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import Codes, StreamSpec
from foreact.worlds import Task

# Pictures up to this many bytes are held in memory: reading one frame decodes a whole chunk.
MEMORY_LIMIT = 4 * 2**30
DEFAULT_TASK = "pusht"
NOT_SEEN = ("next.", "action.")
"""How LeRobot's names begin of what is only known after a step's action: no policy sees it."""


def open_pictures(
    task: str | None, data: Path | None, camera: str | None
) -> tuple[EpisodeStore, list[str]]:
    """The episodes and the cameras that a tokenizer learns from.

    Args:
        task: name or import path of a task; None: PushT, or none where there is `data`.
        data: a store or HDF5 shards; None: the task's own.
        camera: the camera; None: those of the task, or every one where there is no task.
    """
    if task is not None or data is None:
        definition = find_task(task or DEFAULT_TASK)
        store = open_task_store(definition, data)
        cameras = [c for c in (definition.camera, definition.wrist_camera) if c is not None]
    else:
        store = open_episodes(data, memory_limit=MEMORY_LIMIT)
        cameras = sorted(store.spec.cameras)
    if camera is not None:
        cameras = [camera]
    if not cameras or not set(cameras) <= set(store.spec.cameras):
        requested = f"'{camera}'" if camera is not None else "any"
        raise UserError(
            f"{store.path} has the cameras {sorted(store.spec.cameras)}, which do not "
            f"include {requested}."
        )
    return store, cameras


def task_of(name: str | None, data: Path | None) -> Task:
    """The task of a run.

    Args:
        name: of a task, or its import path; None: what the data are of, or PushT without any.
        data: a store that says itself what it holds: that of a known task, or else a task is made
            of it, without a simulator, whose policies see its first camera and all of its states
            but those that are only known after a step.
    """
    if name is not None or data is None:
        return find_task(name or DEFAULT_TASK)
    if data.suffix == ".json":
        raise UserError(f"The mixture {data} does not say what it is of; name it with --task.")
    spec = open_episodes(data).spec
    for known in TASKS.built_in:
        if (task := find_task(known)).spec == spec:
            return task
    if not spec.cameras:
        raise UserError(f"{data} has no camera to learn from; name data with pictures.")
    return Task(
        name=data.stem,
        spec=spec,
        camera=next(iter(spec.cameras)),
        proprioception={
            stream: len(dims)
            for stream, dims in spec.state.items()
            if not stream.startswith(NOT_SEEN)
        },
    )


def task_of_weights(name: str | None, spec: StreamSpec | None) -> Task:
    """The task that weights are asked about.

    Args:
        name: of a task, or its import path; None: what the weights are for.
        spec: of the weights; that of a known task, or else a task is made of it.
    """
    if name is not None or spec is None:
        return find_task(name or DEFAULT_TASK)
    for known in TASKS.built_in:
        task = find_task(known)
        try:
            policy_spec(task).require_equal(spec, "the task", "the weights")
        except UserError:
            continue
        return task
    return Task(name="own data", spec=spec, camera=next(iter(spec.cameras), ""))


def hands_of(task: Task) -> HandPoses | None:
    """The poses of hands that the task's states and actions are computed from, if they are."""
    if task.hands is None:
        return None
    hands = load_object(task.hands, f"What task '{task.name}' names as hands,")
    if not isinstance(hands, HandPoses):
        raise UserError(f"'{task.hands}' of task '{task.name}' should be a HandPoses.")
    return hands


def policy_spec(task: Task) -> StreamSpec:
    """What a policy of the task sees and answers; where poses are computed, not what is stored."""
    hands = hands_of(task)
    return task.spec if hands is None else hands.spec(task.spec)


def statistics_of(task: Task, store: EpisodeStore) -> dict[str, Mode]:
    """How each stream of numbers of a store is scaled."""
    streams = [*store.spec.state, *(["action"] if store.spec.action is not None else [])]
    modes = {stream: task.statistics.get(stream, "limits") for stream in streams}
    if unknown := sorted(set(modes.values()) - set(get_args(Mode))):
        raise UserError(
            f"Task '{task.name}' scales a stream by '{unknown[0]}'; expected one of "
            f"{', '.join(get_args(Mode))}."
        )
    return cast(dict[str, Mode], modes)


def open_task_store(task: Task, path: Path | None) -> EpisodeStore:
    """Open `path` or the default `data/<task>.zarr`, made from demonstrations if missing."""
    if path is None:
        path = Path("data") / f"{task.name}.zarr"
        if not path.exists():
            if task.demonstrations is None:
                raise UserError(
                    f"Task '{task.name}' brings no demonstrations and {path} does not exist; make "
                    f"it with `foreact data collect --env {task.name} --episodes 300` or name a "
                    "store with --data."
                )
            _call(task.demonstrations, path)
    return accompanied(_open(task, path))


def open_held_out_store(task: Task, path: Path | None) -> EpisodeStore:
    """Open `path` or `data/<task>-held-out.zarr`, made by the expert on held-out seeds."""
    if path is None:
        path = Path("data") / f"{task.name}-held-out.zarr"
        if not path.exists():
            if task.held_out is None:
                raise UserError(
                    f"Task '{task.name}' cannot make held-out episodes; name a store with --data."
                )
            _call(task.held_out, path)
    return _open(task, path)


def _open(task: Task, path: Path) -> EpisodeStore:
    return open_episodes(path, task.spec, memory_limit=MEMORY_LIMIT, options=task.data_options)


def _call(function: str, path: Path) -> None:
    """Make the store `path` by the function at an import path."""
    make_store = load_object(function, "The maker of the store")
    path.parent.mkdir(parents=True, exist_ok=True)
    make_store(path)


def ensure_latents(
    store: EpisodeStore,
    camera: str,
    vae: KLVAE,
    vae_hash: str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
) -> None:
    """Encode `camera` into the stream `latents_<camera>`, unless this tokenizer already did.

    The stream holds the posterior mean in scaled units, float16 (N, c, h, w), with the tokenizer's
    hash beside it. Work that was cut short goes on after the last whole shard.
    """
    if store.tokenizer_hash(f"latents_{camera}") != vae_hash:
        height, width = vae.config.image_size
        _encode(
            store,
            camera,
            LoadedTokenizer(vae.to(device).eval(), vae_hash, (height, width)),
            batch_size,
            device,
        )


def ensure_codes(
    store: EpisodeStore, camera: str, tokenizer: LoadedTokenizer, *, device: torch.device | str
) -> None:
    """Encode `camera` into the stream `tokens_<camera>`, unless the store has codes.

    Codes that do not say who made them, as in released shards, are taken to be this tokenizer's,
    with a warning.

    Raises:
        UserError: the codes are those of another tokenizer, or of another grid; or there are none
            and the store cannot be written.
    """
    stream = f"tokens_{camera}"
    if not store.has(stream):
        _encode(store, camera, tokenizer, 64, device)
    stored_hash = store.tokenizer_hash(stream)
    if stored_hash is None:
        warnings.warn(
            f"The codes of {store.path} do not say which tokenizer made them.", stacklevel=2
        )
        assert tokenizer.tokenizer.vocab is not None
        codes = store.all_rows(stream)
        if codes.min() < 0 or codes.max() >= tokenizer.tokenizer.vocab:
            raise UserError(
                f"The codes of {store.path} are {codes.min()}..{codes.max()}, the tokenizer's are "
                f"0..{tokenizer.tokenizer.vocab - 1}; use codes and a tokenizer that belong "
                "together."
            )
    elif stored_hash != tokenizer.hash:
        raise UserError(
            f"The codes of {store.path} were made with the tokenizer {stored_hash}, the one "
            f"given is {tokenizer.hash}; give that one, or replace them with `foreact tokenize`."
        )
    assert isinstance(tokenizer.tokenizer, Codes)
    grid = store.gather(stream, np.arange(1)).shape[1:]
    if grid != tuple(tokenizer.tokenizer.grid):
        raise UserError(
            f"The codes of {store.path} have the grid {grid}, those of the tokenizer "
            f"{tokenizer.tokenizer.grid}; use codes and a tokenizer that belong together."
        )


def _encode(
    store: EpisodeStore,
    camera: str,
    tokenizer: LoadedTokenizer,
    batch_size: int,
    device: torch.device | str,
) -> None:
    if process_count() > 1:  # each would encode every frame
        raise UserError(
            f"{store.label} lacks what this tokenizer makes of '{camera}', and only one process "
            "can add it here; start this command once as one process before you start several."
        )
    home = store.path
    if isinstance(store, AccompaniedStore):
        home = store.make_companion()
        print(f"{store.label} stays as it is; what is computed from its frames goes to {home}.")
    encode_stream(
        StreamEncoder(store, camera, tokenizer, home=home, batch_size=batch_size, device=device)
    )
    if isinstance(store, ZarrStore | AccompaniedStore):
        store.refresh()
