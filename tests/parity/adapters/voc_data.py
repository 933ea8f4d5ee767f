"""Cases about VOC's offline data: shards read by us, laid out
and sampled as its ring buffer does.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from parity.registry import Case, adapter

from foreact.data.formats.d4rl import D4RLStore, open_d4rl


@adapter("voc", "replay_buffer")
def replay_buffer(case: Case) -> None:
    config = case.config
    ring = Ring(config["buffer_size"], config["frame_stack"])
    grid = (1, config["codes_per_frame"])
    for name in sorted(config["files"]):
        if ring.rows >= config["buffer_size"]:
            break
        store = open_d4rl(case.folder / name, fps=1.0, grid=grid)
        with h5py.File(case.folder / name) as file:
            discount: Any = file["discount"]
            ring.add(
                store, np.asarray(discount[:]), config["nstep"], config["future_sampling_steps"]
            )
    for name in ("valid", "k_step", "rew", "act", "dis", "codes"):
        case.check(f"out.{name}", ring.slots[name])
    case.check("out.index_after_load", np.array([ring.at]))

    index, spr_index = case.io["in.indices"].numpy(), case.io["in.spr_indices"].numpy()
    for flavour, frames, draws in (("lat", "codes", "draw.k"), ("pix", "pixels", "draw.k_pix")):
        found = ring.batch(
            frames, index, case.io[draws].numpy(), config["nstep"], config["discount"]
        )
        found |= ring.multi_step_batch(
            frames, spr_index, config["jumps"], config["nstep"], config["discount"]
        )
        expected = [name for name in case.io if name.startswith(f"out.{flavour}.")]
        assert expected
        for name in expected:
            case.check(name, found[name.removeprefix(f"out.{flavour}.")])


class Ring:
    """The reference's ring buffer, quirks included: what it yields, not how it computes it.

    Slot i holds the frame of a row and the action and reward that led to it. An episode's first
    frame takes `frame_stack` slots without either.
    """

    def __init__(self, size: int, stack: int) -> None:
        self.size, self.stack, self.at, self.rows = size, stack, 0, 0
        self.slots: dict[str, np.ndarray] = {
            "valid": np.zeros(size, bool),
            "k_step": np.zeros(size, np.float32),
            "rew": np.zeros(size, np.float32),
            "dis": np.zeros(size, np.float32),
        }

    def add(self, store: D4RLStore, discount: np.ndarray, nstep: int, future: int) -> None:
        """All rows of a shard. It takes the second episode's length for all of them."""
        streams = ("tokens_pixels", "pixels", "action", "reward")
        length = int(store.lengths[1])
        for episode, start in enumerate(store.starts):
            rows = store.read(episode, 0, int(store.lengths[episode]), streams)
            codes = rows["tokens_pixels"].reshape(len(rows["pixels"]), -1).astype(np.int32)
            pixels = np.moveaxis(rows["pixels"], -1, 1)
            self._make_room(codes[0], pixels[0], rows["action"][0])
            for step in range(len(codes)):
                if step == 0:
                    self._put(codes=codes[0], pixels=pixels[0], repeats=self.stack)
                    self._invalidate(self.at - self.stack, 2 * self.stack + 1)
                    continue
                slot = self._put(
                    codes=codes[step],
                    pixels=pixels[step],
                    act=rows["action"][step - 1],  # ours is what was done after the frame
                    rew=rows["reward"][step, 0],
                    dis=discount[start + step],
                    k_step=min(length - 1, step - 1 + future) - (step - 1),
                )
                self._invalidate(slot + self.stack, 1)
                if step >= nstep:
                    self.slots["valid"][(slot - nstep + 1) % self.size] = True
            self.rows += len(codes)

    def batch(
        self, frames: str, index: np.ndarray, k: np.ndarray, nstep: int, gamma: float
    ) -> dict[str, np.ndarray]:
        rewards, discount = self._n_step(index, nstep, gamma)
        return {
            "obs": self._stack(frames, index),
            "action": self._take("act", index),
            "reward": rewards[:, None],
            "discount": discount[:, None].astype(np.float32),
            "next_obs": self._stack(frames, index + nstep),
            "action_k": self._take("act", index + k),
            "k": k,
            "obs_k": self._stack(frames, index + k),
        }

    def multi_step_batch(
        self, frames: str, index: np.ndarray, jumps: int, nstep: int, gamma: float
    ) -> dict[str, np.ndarray]:
        """`values` leaves out all rewards after the first `jumps`."""
        one = self.batch(frames, index, np.ones_like(index), nstep, gamma)
        ahead = [index + j for j in range(jumps + 1)]
        values = sum(
            gamma**j * self._take("rew", ahead[j]).astype(np.float64) for j in range(jumps)
        )
        found = {
            f"spr.{name}": one[name] for name in ("obs", "action", "reward", "discount", "obs_k")
        }
        return {
            **found,
            "spr.all_codes": np.stack([self._stack("codes", i) for i in ahead]),
            "spr.all_frames": np.stack([self._stack("pixels", i) for i in ahead]),
            "spr.all_actions": np.stack([self._take("act", i) for i in ahead]),
            "spr.values": np.asarray(values)[:, None],
        }

    def _n_step(self, index: np.ndarray, nstep: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum of n discounted rewards, divided by n; and
        the discount that bootstrapping needs.
        """
        steps = [index + j for j in range(nstep)]
        total = sum(gamma**j * self._take("rew", i).astype(np.float64) for j, i in enumerate(steps))
        return np.asarray(total) / nstep, gamma**nstep * self._take("dis", steps[-1])

    def _stack(self, frames: str, index: np.ndarray) -> np.ndarray:
        """The frames of the slots before `index`, oldest first, joined along codes or channels."""
        return np.concatenate(
            [self._take(frames, index - j) for j in range(self.stack, 0, -1)], axis=1
        )

    def _take(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.slots[name][index % self.size]

    def _put(self, repeats: int = 1, **values: Any) -> int:
        slot = self.at
        for name, value in values.items():
            self.slots[name][(slot + np.arange(repeats)) % self.size] = value
        self.at = (slot + repeats) % self.size
        return slot

    def _invalidate(self, start: int, count: int) -> None:
        self.slots["valid"][(start + np.arange(count)) % self.size] = False

    def _make_room(self, codes: np.ndarray, pixels: np.ndarray, action: np.ndarray) -> None:
        for name, like in (("codes", codes), ("pixels", pixels), ("act", action)):
            self.slots.setdefault(name, np.zeros((self.size, *like.shape), like.dtype))
