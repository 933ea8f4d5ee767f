"""Data are known by their content, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.arrays import ArrayStore

from foreact.data.stores.fingerprint import Fingerprint, fingerprint
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

ACTION = ActionSpec(names=("x",), units=("m",), frame="world", mode="absolute", rate_hz=10.0)
SPEC = StreamSpec(cameras={}, fps=10.0, action=ACTION)


def numbers(lengths: list[int], *, seed: int = 0, path: str = "a") -> ArrayStore:
    values = np.random.default_rng(seed).normal(size=(100, 1)).astype(np.float32)
    store = ArrayStore(SPEC, lengths, {"action": values[: sum(lengths)]})
    store.path = Path(path)
    return store


def test_the_same_content_has_one_fingerprint_wherever_it_lies() -> None:
    one = fingerprint(numbers([10, 20]))
    assert one == fingerprint(numbers([10, 20], path="elsewhere"))
    assert one.difference(one) is None
    assert Fingerprint.from_json(one.to_json(), "here") == one


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (numbers([10, 20, 5]), "3 episodes instead of 2"),
        (numbers([10, 21]), "31 steps instead of 30"),
        (numbers([11, 19]), "the lengths of the episodes differ"),
        (numbers([10, 20], seed=1), "rows of 'action' differ"),
    ],
)
def test_other_content_is_told(other: ArrayStore, sentence: str) -> None:
    assert fingerprint(numbers([10, 20])).difference(fingerprint(other)) == sentence


def test_a_grown_store_is_known_by_its_beginning() -> None:
    assert fingerprint(numbers([10, 20, 5]), episodes=2) == fingerprint(numbers([10, 20]))


@pytest.mark.parametrize("raw", [None, {}, {"episodes": 1, "steps": "x", "digests": {}}, []])
def test_what_is_no_fingerprint_is_refused(raw: object) -> None:
    with pytest.raises(UserError, match="here should hold"):
        Fingerprint.from_json(raw, "here")
