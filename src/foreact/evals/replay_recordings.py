"""What a replay plays of an episode: its start, all its actions, and which frames they lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from foreact.data.formats.robomimic_store import RobomimicStore
from foreact.data.stores.companion import AccompaniedStore
from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError
from foreact.worlds import Env, Restorable, Told

Start = Literal["state", "seed"]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An episode as it was recorded.

    Attributes:
        start: what it begins from.
        begins_at: the state float64 (D,), or the seed.
        actions: float32 (N, A), all that were done.
        lead: how many actions were done before the episode's first frame was seen.
        score: as recorded, or None.
        instruction: what was to be done, or None.
    """

    start: Start
    begins_at: Any
    actions: np.ndarray
    lead: int = 0
    score: float | None = None
    instruction: str | None = None

    def begin(self, env: Env) -> dict[str, np.ndarray]:
        """Take the simulator to the start; what is seen there."""
        if self.instruction is not None and isinstance(env, Told):
            env.choose(self.instruction)
        if self.start == "state" and isinstance(env, Restorable):
            return env.restore(self.begins_at)
        return env.reset(int(self.begins_at))


def recordings(env: Env, store: EpisodeStore) -> Callable[[int], Recording]:
    """What reads the recording of an episode, by its number.

    Args:
        env: where it will be played.
        store: with actions.

    Raises:
        UserError: nothing says how its episodes began.
    """
    files = store.store if isinstance(store, AccompaniedStore) else store
    if isinstance(files, RobomimicStore):
        return lambda episode: _of_file(files, episode)
    start: Start
    if isinstance(env, Restorable) and "initial_state" in store.info_names:
        start, starts = "state", store.info("initial_state")
    elif "seed" in store.info_names:
        start, starts = "seed", store.info("seed")
    else:
        raise UserError(
            f"{store.label} does not say how its episodes began: a replay needs `initial_state` "
            f"or `seed` for each, found {store.info_names or 'nothing'}."
        )
    scores = store.info("score") if "score" in store.info_names else None
    texts = _texts(store)
    lead = 1 if notes_of(store).get("pairing") == "reference" else 0

    def read(episode: int) -> Recording:
        return Recording(
            start=start,
            begins_at=starts[episode],
            actions=store.read(episode, 0, int(store.lengths[episode]), ["action"])["action"],
            lead=lead,
            score=None if scores is None else float(scores[episode]),
            instruction=None if texts is None else str(texts[episode]),
        )

    return read


def notes_of(store: EpisodeStore) -> Mapping[str, Any]:
    """How files were read: of the store itself, or of those it was imported from."""
    origin = store.attrs.get("origin")
    return origin if isinstance(origin, Mapping) else store.attrs


def _of_file(store: RobomimicStore, episode: int) -> Recording:
    """With the actions that a pairing leaves out, from the state before the first of them."""
    state, actions = store.recording(episode)
    found, texts = store.episodes[episode], _texts(store)
    rewards = found.read("rewards") if "rewards" in found.demo.arrays else None
    is_reference = notes_of(store).get("pairing") == "reference"
    return Recording(
        start="state",
        begins_at=state,
        actions=actions,
        lead=1 if is_reference else store.lag,
        score=None if rewards is None else float(rewards.max()),
        instruction=None if texts is None else str(texts[episode]),
    )


def _texts(store: EpisodeStore) -> np.ndarray | None:
    return store.info("text") if "text" in store.info_names else None
