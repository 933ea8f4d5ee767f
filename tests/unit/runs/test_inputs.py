"""A run goes on with what it began with, by content; new episodes join it when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.arrays import ArrayStore

from foreact.errors import UserError
from foreact.runs.inputs import FILE, Inputs, file_digest
from foreact.runs.unseen import unseen_episodes
from foreact.types import ActionSpec, StreamSpec

ACTION = ActionSpec(names=("x",), units=("m",), frame="world", mode="absolute", rate_hz=10.0)
VALUES = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)


def episodes(count: int, *, path: str = "d.zarr", shift: float = 0.0) -> ArrayStore:
    spec = StreamSpec(cameras={}, fps=10.0, action=ACTION)
    store = ArrayStore(spec, [5] * count, {"action": VALUES[: 5 * count] + np.float32(shift)})
    store.path = Path(path)
    return store


def begun(out: Path, count: int = 10, **weights: str) -> Inputs:
    """The inputs of a run in `out` that learns from so many episodes."""
    inputs = Inputs(out, seed=3)
    inputs.split(episodes(count), 0.3)
    for option, digest in weights.items():
        inputs.note(option, digest)
    out.mkdir(exist_ok=True)
    (out / FILE).write_text(json.dumps(inputs.to_json()))
    return inputs


def test_moved_data_keep_their_split_whatever_ratio_and_seed_say(tmp_path: Path) -> None:
    first = begun(tmp_path)
    again = Inputs(tmp_path, seed=99)
    split = again.split(episodes(10, path="moved/d.zarr"), 0.5)
    assert tuple(split.validation.tolist()) == first.sources[0].validation
    np.testing.assert_array_equal(
        np.sort(np.concatenate([split.training, split.validation])), np.arange(10)
    )
    assert again.sources[0].path == "moved/d.zarr"


def test_other_data_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(UserError, match=r"holds other data .*rows of 'action' differ"):
        Inputs(tmp_path, seed=3).split(episodes(10, shift=1.0), 0.3)
    with pytest.raises(UserError, match="9 episodes instead of 10"):
        Inputs(tmp_path, seed=3).split(episodes(9), 0.3)
    with pytest.raises(UserError, match="holds other data"):
        Inputs(tmp_path, seed=3, new_episodes=True).split(episodes(12, shift=1.0), 0.3)


def test_new_episodes_are_learned_from_only_when_asked_for(tmp_path: Path) -> None:
    first = begun(tmp_path)
    with pytest.raises(UserError, match="12 episodes instead of 10; add --new-episodes"):
        Inputs(tmp_path, seed=3).split(episodes(12), 0.3)
    grown = Inputs(tmp_path, seed=3, new_episodes=True)
    split = grown.split(episodes(12), 0.3)
    assert tuple(split.validation.tolist()) == first.sources[0].validation
    assert split.training[-2:].tolist() == [10, 11]
    assert split.fitted.max() < 10  # the statistics stay those of the beginning
    (tmp_path / FILE).write_text(json.dumps(grown.to_json()))
    # From now on these are the run's data, and they may grow again.
    np.testing.assert_array_equal(
        Inputs(tmp_path, seed=3).split(episodes(12), 0.3).fitted, split.fitted
    )
    again = Inputs(tmp_path, seed=3, new_episodes=True).split(episodes(13), 0.3)
    assert 12 in again.training
    assert again.fitted.max() < 10


def test_weights_are_compared_by_hash(tmp_path: Path) -> None:
    begun(tmp_path, tokenizer="sha256:1")
    inputs = Inputs(tmp_path, seed=3)
    inputs.split(episodes(10), 0.3)
    inputs.note("tokenizer", "sha256:1")
    with pytest.raises(UserError, match="began with --tokenizer sha256:1, now it is sha256:2"):
        inputs.note("tokenizer", "sha256:2")
    with pytest.raises(UserError, match="--init left out, now it is sha256:3"):
        inputs.note("init", "sha256:3")


def test_one_data_set_more_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    inputs = Inputs(tmp_path, seed=3)
    inputs.split(episodes(10), 0.3)
    with pytest.raises(UserError, match="began with 1 data sets"):
        inputs.split(episodes(4), 0.3)


def test_a_side_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 1 episode, of which --val-ratio 0.5 leaves 1 to"):
        Inputs(None, seed=0).split(episodes(1), 0.5)
    assert len(Inputs(None, seed=0).split(episodes(1), 0.5, both_sides=False).validation) == 0


def test_unseen_are_those_kept_for_validation_and_those_that_came_later(tmp_path: Path) -> None:
    card = begun(tmp_path).to_json()
    kept = card["data"][0]["validation"]
    for store, expected in ((episodes(10, path="x"), kept), (episodes(12), [*kept, 10, 11])):
        np.testing.assert_array_equal(unseen_episodes(card, store), expected)
    assert unseen_episodes(card, episodes(10, shift=1.0)) is None
    assert unseen_episodes({"data": "d.zarr"}, episodes(10)) is None


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="should hold 'data' and 'weights'"):
        Inputs(tmp_path, seed=0)
    (tmp_path / FILE).write_text('{"data": [{"path": 1}], "weights": {}}')
    with pytest.raises(UserError, match="should describe data sets"):
        Inputs(tmp_path, seed=0).split(episodes(10), 0.3)


def test_files_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    (tmp_path / "c").write_text("y")
    one, same, other = (file_digest(tmp_path / name) for name in "abc")
    assert one == same != other
    assert file_digest(tmp_path) not in (None, one)
    assert file_digest("package:function") == "package:function"
    assert file_digest(None) is None


def test_episodes_that_an_earlier_stage_learned_from_are_not_unseen(tmp_path: Path) -> None:
    first, second = Inputs(None, seed=0), Inputs(None, seed=5)
    kept = [set(i.split(episodes(10), 0.4).validation.tolist()) for i in (first, second)]
    assert kept[0] != kept[1]
    second.descend_from(first.to_json())
    unseen = unseen_episodes(second.to_json(), episodes(10))
    assert unseen is not None
    assert set(unseen.tolist()) == kept[0] & kept[1]


def test_what_is_no_longer_named_is_missed(tmp_path: Path) -> None:
    begun(tmp_path, init="sha256:1")
    inputs = Inputs(tmp_path, seed=3)
    with pytest.raises(UserError, match=r"began with 1 data sets, and d.zarr is not among those"):
        inputs.require_all()
    inputs.split(episodes(10), 0.3)
    with pytest.raises(UserError, match="--init sha256:1, now it is left out"):
        inputs.require_all()
    inputs.note("init", "sha256:1")
    inputs.require_all()


def test_a_start_that_was_overtaken_by_another_one_is_refused(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, seed=3)
    inputs.split(episodes(10), 0.3)
    inputs.require_unchanged()
    begun(tmp_path, count=4)
    with pytest.raises(UserError, match="Another start has begun or changed the run"):
        inputs.require_unchanged()


def test_data_to_validate_with_are_not_learned_from_later(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, seed=3)
    inputs.held_out(episodes(10))
    (tmp_path / FILE).write_text(json.dumps(inputs.to_json()))
    with pytest.raises(UserError, match=r"as data to validate with, now .* as data to learn from"):
        Inputs(tmp_path, seed=3).split(episodes(10), 0.3)


@pytest.mark.parametrize("validation", [[99], [-1], [10**30], ["1"], [1, 1]])
def test_impossible_episode_numbers_are_refused(tmp_path: Path, validation: list) -> None:
    raw = begun(tmp_path).to_json()
    raw["data"][0]["validation"] = validation
    (tmp_path / FILE).write_text(json.dumps(raw))
    with pytest.raises(UserError, match="should describe data sets"):
        Inputs(tmp_path, seed=3).split(episodes(10), 0.3)
