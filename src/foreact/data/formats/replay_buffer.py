"""Copying foreign recordings into a store of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foreact.data.formats import D4RL, DREAMER
from foreact.data.formats.d4rl import TOKENS, open_d4rl
from foreact.data.formats.d4rl_shard import KEYS as SHARD_KEYS
from foreact.data.formats.dreamer import KEYS, DreamerEpisodes, is_dreamer
from foreact.data.formats.importing import Account, store_to_import
from foreact.data.stores.derived import write_stream
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.opening import Options, open_episodes, recognised
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.files import finite
from foreact.progress import Progress
from foreact.types import StreamSpec


def import_store(
    src: str | Path,
    dst: str | Path,
    spec: StreamSpec | None = None,
    *,
    fill_missing: bool = False,
    options: Options | None = None,
    chosen: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Account:
    """Copy episodes in any format that opens into a native store.

    Streams that the spec does not name stay behind; what is known of each episode comes along, and
    so does, as the store's note `origin`, how the recordings were read. A copy that was cut short
    goes on after its last whole episode; see `store_to_import`.

    Args:
        src: a zarr in the replay-buffer layout, v2 or v3, folder or zip, or what a plugged-in
            format reads.
        dst: the native one, new or begun before from the same source.
        spec: what the streams mean; needed unless `src` carries its own.
        fill_missing: as in `open_store`, of zarr stores.
        options: as in `open_episodes`.
        chosen: options of whatever format `src` has, over those in `options`.
        progress: show a bar.

    Returns:
        What was found and taken.

    Raises:
        UserError: `src` cannot be read under the spec, `dst` holds something else, or the disk
            refuses.
    """
    format_, origin = recognised(src), {}
    if format_ is None:
        if chosen:
            raise UserError(
                f"{src} is no recording of a format with an option '{next(iter(chosen))}'; leave "
                "it out."
            )
        store: EpisodeStore = open_store(src, spec, fill_missing=fill_missing)
    else:
        own = {**(options or {}).get(format_.name, {}), **(chosen or {})}
        if format_.name in (D4RL.name, DREAMER.name) and not own:
            return import_d4rl(src, dst, spec, progress=progress)
        store = open_episodes(src, spec, options={format_.name: own})
        origin = {"origin": json.loads(json.dumps(finite(store.attrs)))}
    account = Account()
    with store_to_import(Path(dst)) as draft:
        _copy(store, Path(src), draft, account, progress, origin)
    extra = [name for name in store.stored_streams if name not in store.streams]
    account.find("streams", len(store.streams) + len(extra))
    account.leave_out("streams", len(extra), "that the spec does not name", *extra)
    if changing := _episodes_of_several_instructions(store):
        account.note(
            f"The instruction changes within {changing} episodes; the first one of each is kept."
        )
    return account


def _episodes_of_several_instructions(store: EpisodeStore) -> int:
    if not store.spec.has_text:
        return 0
    numbers = store.instruction_of(np.arange(int(store.lengths.sum())))
    ends = store.starts + store.lengths
    return sum(len(set(numbers[a:b].tolist())) > 1 for a, b in zip(store.starts, ends, strict=True))


def import_d4rl(
    root: str | Path,
    dst: str | Path,
    spec: StreamSpec | None = None,
    *,
    fps: float | None = None,
    codes: str | None = None,
    grid: tuple[int, int] | None = None,
    vocab: int | None = None,
    progress: bool = True,
) -> Account:
    """Copy V-D4RL recordings, or shards with Video Occupancy Models' codes, into a native store.

    Each episode keeps the name of its file as `source` and, where the path tells, the policy's
    `grade`. Codes become the stream `tokens_pixels`, whose tokenizer nobody knows. A copy that was
    cut short goes on after its last whole episode; see `store_to_import`.

    Args:
        root: folder of HDF5 shards, or of .npz files with one episode each; or one such file.
        dst: the native store, new or begun before from the same source.
        spec, fps, codes, grid, vocab: as in `open_d4rl`.
        progress: show a bar.

    Returns:
        What was found and taken.

    Raises:
        UserError: the source is no such thing or damaged, its codes are of several kinds and
            `codes` names none, `dst` holds something else, or the disk refuses.
    """
    root, account = Path(root), Account()
    if is_dreamer(root):
        if (codes, grid, vocab) != (None, None, None):
            raise UserError(
                f"{root} holds .npz episodes, which have no codes; leave out codes, grid and vocab."
            )
        episodes = DreamerEpisodes(root, spec=spec, fps=fps)
        with store_to_import(Path(dst)) as draft:
            _copy(episodes, root, draft, account, progress)
        _count_arrays(account, len(KEYS), episodes.unused)
        return account
    store = open_d4rl(root, spec=spec, fps=fps, codes=codes, grid=grid, vocab=vocab)
    if codes is None and store.codes is None and store.code_kinds:
        raise UserError(
            f"{root} holds the codes {', '.join(store.code_kinds)}, of which no single kind is in "
            "every shard; say which to take with --codes, or --codes none."
        )
    tokens = store.all_rows(TOKENS) if store.has(TOKENS) else None
    with store_to_import(Path(dst)) as draft:
        _copy(store, root, draft, account, progress)
        if tokens is not None:
            write_stream(draft, TOKENS, tokens, attrs={"tokenizer": None, "codes": store.codes})
    left = [key for key in store.code_kinds if key != store.codes]
    account.find("codes", len(store.code_kinds))
    account.leave_out("codes", len(left), "not asked for", *left)
    _count_arrays(account, len(SHARD_KEYS), store.unused)
    return account


def _count_arrays(account: Account, taken: int, unused: Sequence[str]) -> None:
    account.find("arrays", taken + len(unused))
    account.leave_out("arrays", len(unused), "without a place in a store", *unused)


class _Source(Protocol):
    """Episodes to copy; see `EpisodeStore`, which is one."""

    spec: StreamSpec
    lengths: np.ndarray

    def read(
        self, episode: int, start: int, stop: int, streams: Sequence[str]
    ) -> dict[str, np.ndarray]: ...

    @property
    def streams(self) -> list[str]: ...

    @property
    def info_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def info(self, name: str) -> np.ndarray: ...


def _copy(
    store: _Source,
    src: Path,
    dst: Path,
    account: Account,
    progress: bool,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Copy what is not there yet; `notes` are kept with the store, and JSON-able."""
    infos = {name: store.info(name) for name in store.info_names}
    facts = {
        "source": src.name,
        "source_episodes": len(store),
        "source_steps": int(store.lengths.sum()),
        **(notes or {}),
    }
    with StoreWriter(dst, store.spec, attrs=facts) as writer:
        begun = writer.attrs
        if different := [key for key, value in facts.items() if begun.get(key) != value]:
            if different == ["origin"]:
                raise UserError(
                    f"{dst} was begun from {src} as read in another way ({begun.get('origin')}); "
                    "choose another path, or remove it."
                )
            raise UserError(
                f"{dst} was begun from another source ({begun.get('source')}, "
                f"{begun.get('source_episodes')} episodes), not from {src} with {len(store)} "
                "episodes; choose another path, or remove it."
            )
        partial = [name for name, values in infos.items() if len(values) != len(store)]
        account.find("episodes", len(store))
        account.find("steps", facts["source_steps"])
        account.find("values per episode", len(infos))
        account.leave_out("values per episode", len(partial), "not there for all", *partial)
        bar = Progress(
            total=len(store),
            initial=writer.episodes,
            unit="episode",
            desc="import",
            disable=not progress,
        )
        with bar:
            for episode in range(writer.episodes, len(store)):
                info = {n: values[episode] for n, values in infos.items() if n not in partial}
                writer.append(
                    store.read(episode, 0, int(store.lengths[episode]), store.streams), **info
                )
                bar.update()
