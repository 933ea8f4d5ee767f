"""Copying a foreign replay buffer into a store of ours."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from foreact.data.store import open_store
from foreact.data.writer import StoreWriter
from foreact.types import StreamSpec, UserError


def import_store(
    src: str | Path,
    dst: str | Path,
    spec: StreamSpec | None = None,
    *,
    fill_missing: bool = False,
    progress: bool = True,
) -> int:
    """Copy any zarr in the replay-buffer layout, v2 or v3, folder or zip, into a native store, episode by episode.

    Streams that the spec does not name stay behind; what `meta` says of each episode comes along. A copy that was cut
    short goes on after its last whole episode.

    Args:
        src: the foreign store.
        dst: the native one, new or begun before from the same source.
        spec: what the streams mean; needed unless `src` carries its own.
        fill_missing: as in `open_store`.
        progress: show a bar.

    Returns:
        Number of episodes in `dst`.

    Raises:
        UserError: `src` cannot be read under the spec, `dst` holds something else, or the disk refuses.
    """
    store = open_store(src, spec, fill_missing=fill_missing)
    infos = {name: store.info(name) for name in store.info_names}
    facts = {"source": Path(src).name, "source_episodes": len(store), "source_steps": int(store.lengths.sum())}
    with StoreWriter(dst, store.spec, attrs=facts) as writer:
        notes = writer.attrs
        if any(notes.get(key) != value for key, value in facts.items()):
            raise UserError(
                f"{dst} was begun from another source ({notes.get('source')}, {notes.get('source_episodes')} "
                f"episodes), not from {src} with {len(store)} episodes; choose another path."
            )
        bar = tqdm(total=len(store), initial=writer.episodes, unit="episode", desc="import", disable=not progress)
        with bar:
            for episode in range(writer.episodes, len(store)):
                info = {name: values[episode] for name, values in infos.items() if len(values) == len(store)}
                writer.append(store.read(episode, 0, int(store.lengths[episode]), store.streams), **info)
                bar.update()
        return writer.episodes
