"""Data are known by their content, whatever they are called."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.arrays import ArrayStore

from foreact.data.stores.derived import write_stream
from foreact.data.stores.fingerprint import Fingerprint, fingerprint
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
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


def test_another_rate_is_other_data() -> None:
    store = numbers([10, 20])
    slow = dataclasses.replace(SPEC, fps=5.0)
    other = ArrayStore(slow, [10, 20], store.arrays)
    assert fingerprint(store).difference(fingerprint(other)) == "5.0 Hz instead of 10.0"


def test_looking_at_a_store_holds_nothing_in_memory(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", StreamSpec(cameras={"cam": (4, 4)}, fps=10.0)) as writer:
        writer.append({"cam": np.zeros((8, 4, 4, 3), np.uint8)})
    write_stream(tmp_path / "s", "timestamp", np.arange(8), attrs={})
    write_stream(tmp_path / "s", "tokens_cam", np.zeros((8, 1, 1), np.uint16), attrs={"t": "1"})
    store = open_store(tmp_path / "s")
    # What was recorded counts, and what was computed from it does not.
    assert set(fingerprint(store).digests) == {"ends", "cam", "timestamp"}
    assert store._held == 0


def test_a_grown_store_is_known_by_its_beginning() -> None:
    assert fingerprint(numbers([10, 20, 5]), episodes=2) == fingerprint(numbers([10, 20]))


@pytest.mark.parametrize(
    "raw", [None, {}, {"episodes": 1, "steps": "x", "fps": 1, "digests": {}}, []]
)
def test_what_is_no_fingerprint_is_refused(raw: object) -> None:
    with pytest.raises(UserError, match="here should hold"):
        Fingerprint.from_json(raw, "here")
