"""A batch has the features of the instruction that each window's anchor follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.arrays import ArrayStore
from support.text_encoders import LengthEncoder

from foreact.data.stores.text_features import TextFeatures, encode_texts
from foreact.data.windows.loader import WindowDataset, batches, ordered_batches
from foreact.data.windows.mixing import Concat
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import StreamSpec

SPEC = StreamSpec(cameras={"cam": (2, 2)}, fps=10.0, has_text=True)
INSTRUCTIONS = ["wait", "open it", "close"]


class ToldStore(ArrayStore):
    """Episodes of black frames, with one number of an instruction per step."""

    def __init__(self, lengths: Sequence[int], numbers: Sequence[int]) -> None:
        super().__init__(SPEC, lengths, {"cam": np.zeros((sum(lengths), 2, 2, 3), np.uint8)})
        self.numbers = np.array(numbers)

    @property
    def instructions(self) -> list[str]:
        return INSTRUCTIONS

    def instruction_of(self, rows: np.ndarray) -> np.ndarray:
        return self.numbers[rows]


# The second episode changes its instruction at its third step; the last begins as that one ends.
STORE = ToldStore((2, 5, 3), [1, 1, *(0, 0, 2, 2, 2), *(2, 2, 1)])


def features(texts: Sequence[str] = ("close", "wait", "open it")) -> TextFeatures:
    """In another order than the store's."""
    return encode_texts(LengthEncoder(), texts)


def told(dataset: WindowDataset) -> dict[tuple[int, int], int]:
    """(episode, anchor) -> length of the instruction."""
    (batch,) = ordered_batches(dataset, batch_size=100)
    assert batch.text is not None
    assert batch.index is not None
    assert batch.text.dtype == torch.float32
    assert batch.text.shape == (len(dataset), 3)
    return {(int(e), int(a)): int(t[0]) for (e, a), t in zip(batch.index, batch.text, strict=True)}


def test_the_anchor_decides() -> None:
    window = Window(video={"cam": (-1, 0, 1)}, text=True)
    found = told(WindowDataset(STORE, window, [0, 1, 2], text=features()))
    assert found == {(1, 1): 4, (1, 2): 5, (1, 3): 5, (2, 1): 5}


def test_an_anchor_in_the_padding_follows_the_nearest_step() -> None:
    window = Window(video={"cam": (1,)}, span=(1, 1), pad_before=1, text=True)
    found = told(WindowDataset(STORE, window, [0, 2], text=features()))
    assert found == {(0, -1): 7, (0, 0): 7, (2, -1): 5, (2, 0): 5, (2, 1): 5}


def test_batches_of_workers_and_of_several_sets_have_text() -> None:
    window = Window(video={"cam": (0,)}, text=True)
    dataset = WindowDataset(STORE, window, [0, 1, 2], text=features())
    lengths = np.array([4, 7, 5])[STORE.numbers]
    for workers in (0, 1):
        batch = next(batches(dataset, batch_size=10, seed=3, workers=workers))
        assert batch.text is not None
        assert batch.index is not None
        rows = STORE.starts[batch.index[:, 0]] + batch.index[:, 1].numpy()
        np.testing.assert_array_equal(batch.text[:, 0], lengths[rows])
    both = Concat([dataset, dataset]).batch(np.array([12, 0, 4]))
    assert both.text is not None
    assert both.text[:, 0].tolist() == [4, 7, 5]


def test_a_window_without_text_needs_no_features() -> None:
    dataset = WindowDataset(STORE, Window(video={"cam": (0,)}), [0])
    assert next(ordered_batches(dataset, batch_size=2)).text is None


def test_missing_features_are_one_sentence() -> None:
    window = Window(video={"cam": (0,)}, text=True)
    with pytest.raises(UserError, match="no features for them; name a text encoder"):
        WindowDataset(STORE, window, [0])
    with pytest.raises(UserError, match="has the instruction 'wait', for which there are no"):
        WindowDataset(STORE, window, [0], text=features(("close", "open it")))
