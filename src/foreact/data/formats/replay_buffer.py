"""Copying foreign recordings into a store of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from foreact.data.formats.d4rl import TOKENS, open_d4rl
from foreact.data.formats.dreamer import DreamerEpisodes, is_dreamer
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.types import EpisodeStore, StreamSpec


def import_store(
    src: str | Path,
    dst: str | Path,
    spec: StreamSpec | None = None,
    *,
    fill_missing: bool = False,
    progress: bool = True,
) -> int:
    """Copy any zarr in the replay-buffer layout, v2 or v3, folder or zip, into a native store.

    Streams that the spec does not name stay behind; what `meta` says of each episode comes along. A
    copy that was cut short goes on after its last whole episode.

    Args:
        src: the foreign store.
        dst: the native one, new or begun before from the same source.
        spec: what the streams mean; needed unless `src` carries its own.
        fill_missing: as in `open_store`.
        progress: show a bar.

    Returns:
        Number of episodes in `dst`.

    Raises:
        UserError: `src` cannot be read under the spec, `dst` holds something else, or the disk
            refuses.
    """
    store = open_store(src, spec, fill_missing=fill_missing)
    return _copy(store, Path(src), dst, progress)


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
) -> int:
    """Copy V-D4RL recordings, or shards with Video Occupancy Models' codes, into a native store.

    Each episode keeps the name of its file as `source` and, where the path tells, the policy's
    `grade`. Codes become the stream `tokens_pixels`, whose tokenizer nobody knows. A copy that was
    cut short goes on after its last whole episode.

    Args:
        root: folder of HDF5 shards, or of .npz files with one episode each.
        dst: the native store, new or begun before from the same source.
        spec, fps, codes, grid, vocab: as in `open_d4rl`.
        progress: show a bar.

    Returns:
        Number of episodes in `dst`.

    Raises:
        UserError: the source is no such thing or damaged, `dst` holds something else, or the disk
            refuses.
    """
    root = Path(root)
    if is_dreamer(root):
        if (codes, grid, vocab) != (None, None, None):
            raise UserError(
                f"{root} holds .npz episodes, which have no codes; leave out codes, grid and vocab."
            )
        return _copy(DreamerEpisodes(root, spec=spec, fps=fps), root, dst, progress)
    store = open_d4rl(root, spec=spec, fps=fps, codes=codes, grid=grid, vocab=vocab)
    tokens = (
        store.gather(TOKENS, np.arange(int(store.lengths.sum()))) if store.has(TOKENS) else None
    )
    episodes = _copy(store, root, dst, progress)
    if tokens is not None:
        write_stream(dst, TOKENS, tokens, attrs={"tokenizer": None, "codes": store.codes})
    return episodes


class _Source(EpisodeStore, Protocol):
    """Episodes with one value each per name in `info_names`."""

    @property
    def streams(self) -> list[str]: ...

    @property
    def info_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def info(self, name: str) -> np.ndarray: ...


def _copy(store: _Source, src: Path, dst: str | Path, progress: bool) -> int:
    infos = {name: store.info(name) for name in store.info_names}
    facts = {
        "source": src.name,
        "source_episodes": len(store),
        "source_steps": int(store.lengths.sum()),
    }
    with StoreWriter(dst, store.spec, attrs=facts) as writer:
        notes = writer.attrs
        if any(notes.get(key) != value for key, value in facts.items()):
            raise UserError(
                f"{dst} was begun from another source ({notes.get('source')}, "
                f"{notes.get('source_episodes')} episodes), not from {src} with {len(store)} "
                "episodes; choose another path."
            )
        bar = tqdm(
            total=len(store),
            initial=writer.episodes,
            unit="episode",
            desc="import",
            disable=not progress,
        )
        with bar:
            for episode in range(writer.episodes, len(store)):
                info = {
                    name: values[episode]
                    for name, values in infos.items()
                    if len(values) == len(store)
                }
                writer.append(
                    store.read(episode, 0, int(store.lengths[episode]), store.streams), **info
                )
                bar.update()
        return writer.episodes
