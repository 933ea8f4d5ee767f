"""Windows whose states and actions are computed from poses of hands.

recorded     .  .  .  .  .  .  .  .  .  .  .  .  .           stride 3
policy      -2       -1        0        1        2           offsets of the window
                             "now"

Where the window leaves the episode, its first or last step is repeated. Pictures there are marked
in `Batch.valid`. Poses are not: UMI's people rest before they begin and when they are done, so that
staying is what the last actions should say; the reference learns it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.text_features import TextFeatures
from foreact.data.windows.augment import Augment
from foreact.data.windows.hand_poses import HandPoses
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Offsets, Window, place
from foreact.errors import UserError
from foreact.types import Batch


class HandWindows(WindowDataset):
    """All windows of some episodes; every recorded step may be "now".

    Args:
        store: the recordings.
        hands: which streams are whose pose, and the stride.
        window: what one sample is, in steps of the policy, of which each is `hands.stride` recorded
            steps; `state` names streams of `hands.state`. Its span is only (0, 0).
        episodes: episode numbers; see `choosing`.
        normalizer: scales states and actions; None: they stay as they are, as in UVA.
        augment: changes the pixels of training samples; None for validation.
        text: see `WindowDataset`.

    Attributes:
        spec: what the batches hold.

    Raises:
        UserError: a stream is missing, or the window asks for what is not computed.
    """

    def __init__(
        self,
        store: EpisodeStore,
        hands: HandPoses,
        window: Window,
        episodes: np.ndarray | Sequence[int],
        normalizer: Normalizer | None = None,
        augment: Augment | None = None,
        *,
        text: TextFeatures | None = None,
    ) -> None:
        self.hands = hands
        self.state, self.actions = dict(window.state), window.actions
        spec = hands.spec(store.spec)
        if unknown := sorted(set(self.state) - set(spec.state)):
            raise UserError(
                f"The window names the states {unknown}; of the poses of hands are computed "
                f"{sorted(spec.state)}."
            )
        if window.past_actions or window.rewards or window.computed:
            raise UserError("Windows of hands have pictures, states and actions, and nothing else.")
        scaled = {
            kind: {name: self._recorded(offsets) for name, offsets in getattr(window, kind).items()}
            for kind in ("video", "latents", "tokens")
        }
        pictures = dataclasses.replace(
            window, **scaled, state={}, actions=(), span=(0, 0), pad_before=0, pad_after=0
        )
        super().__init__(
            store, pictures, episodes, augment=augment, gaps="keep", spec=spec, text=text
        )
        self._numbers_normalizer = normalizer
        if normalizer is not None:
            for name, values in self.numbers(np.zeros(1, np.int64)).items():
                normalizer.encode(values, name)

    @property
    def augments(self) -> bool:
        return super().augments or self._adds_noise

    def load(self) -> None:
        super().load()
        for stream in self.hands.recorded:
            self.store.reader(stream)

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Collate windows; see `WindowDataset.batch`.

        Args:
            chosen: int (B,) their numbers.
            rngs: one generator per window, for the start poses' noise and then for augmentation;
                None for neither.
        """
        numbers = self.numbers(chosen, rngs)
        batch = super().batch(chosen, rngs)
        for name, values in numbers.items():
            if self._numbers_normalizer is not None:
                values = self._numbers_normalizer.encode(values, name)
            if name == "action":
                batch.actions = torch.from_numpy(values)
            else:
                batch.state[name] = torch.from_numpy(values)
        return batch.check(self.spec)

    def numbers(
        self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None
    ) -> dict[str, np.ndarray]:
        """States and "action" of windows (B,), not normalised: float32 (B, T or K, D)."""
        result: dict[str, np.ndarray] = {}
        starts = self._starts(chosen, rngs) if self._needs_starts else None
        for offsets in dict.fromkeys(self.state.values()):
            # "Now" is read with every window, whether the policy is shown it or not.
            states = self.hands.states(self._poses(chosen, (*offsets, 0)), starts=starts)
            for name in self.state:
                if self.state[name] == offsets:
                    result[name] = states[name][:, :-1]
        if self.actions:
            poses = self._poses(chosen, (*self.actions, 0))
            ahead = {name: values[:, :-1] for name, values in poses.items()}
            now = {name: values[:, -1] for name, values in poses.items()}
            result["action"] = self.hands.actions(ahead, now)
        for name, values in result.items():
            if not np.isfinite(values).all():
                bad = int(np.argwhere(~np.isfinite(values))[0][0])
                episode, step = self.anchors.at(chosen[bad : bad + 1])[0].tolist()
                raise UserError(
                    f"The poses near step {step} of episode {episode} of {self.store.label} hold "
                    f"NaN or infinite values, found in '{name}'; run `foreact data check` to find "
                    "them."
                )
        return {name: values.astype(np.float32) for name, values in result.items()}

    def _recorded(self, offsets: Offsets) -> Offsets:
        return tuple(self.hands.stride * offset for offset in offsets)

    @property
    def _adds_noise(self) -> bool:
        return self.hands.noise > 0.0 and self._needs_starts

    @property
    def _needs_starts(self) -> bool:
        return any(hand.rotation_since_start in self.state for hand in self.hands.hands)

    def _poses(self, chosen: np.ndarray, offsets: Offsets) -> dict[str, np.ndarray]:
        """Recorded poses and openings at offsets in steps of the policy: float64 (B, T, D)."""
        at = self.anchors.at(chosen)
        lengths, starts = self.store.lengths[at[:, 0]], self.store.starts[at[:, 0]]
        rows = starts[:, None] + place(self._recorded(offsets), at[:, 1], lengths)[0]
        hands = self.hands.hands
        streams = [name for hand in hands for name in (hand.position, hand.rotation, hand.gripper)]
        return {name: self.store.gather(name, rows).astype(np.float64) for name in streams}

    def _starts(
        self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None
    ) -> dict[str, np.ndarray]:
        episodes, steps = self.anchors.at(chosen).T
        rows = self.store.starts[episodes] + steps
        starts = {
            hand.start: self.store.gather(hand.start, rows).astype(np.float64)
            for hand in self.hands.hands
            if hand.start is not None
        }
        return starts if rngs is None or not self._adds_noise else self.hands.noisy(starts, rngs)
