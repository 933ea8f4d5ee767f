"""Windows and splits against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrays import bare_store

from foreact.data.windows.anchors import find_anchors
from foreact.data.windows.split import downsample_episodes, split_episodes
from foreact.data.windows.window import Window, place
from foreact.errors import UserError

offset_lists = st.lists(st.integers(-9, 9), min_size=1, max_size=6, unique=True).map(
    lambda x: tuple(sorted(x))
)


@given(offset_lists, st.integers(0, 12), st.integers(0, 12), st.integers(1, 15))
def test_anchors_are_those_whose_span_stays_near_the_episode(
    offsets: tuple[int, ...], before: int, after: int, length: int
) -> None:
    window = Window(actions=offsets, pad_before=before, pad_after=after)
    first, last = offsets[0], offsets[-1]
    expected = [
        t
        for t in range(-40, 60)
        if t + first >= -before
        and t + last <= length - 1 + after
        and t + last >= 0  # the span touches the episode
        and t + first <= length - 1
    ]
    assert list(window.anchors(length)) == expected


@given(offset_lists, st.integers(-5, 20), st.integers(1, 15))
def test_steps_are_clamped_and_masked(offsets: tuple[int, ...], anchor: int, length: int) -> None:
    steps, inside = place(offsets, anchor, length)
    for i, offset in enumerate(offsets):
        t = anchor + offset
        assert inside[i] == (0 <= t < length)
        assert steps[i] == (t if inside[i] else (0 if t < 0 else length - 1))


@given(
    offset_lists,
    st.lists(st.tuples(st.integers(-5, 20), st.integers(1, 15)), min_size=1, max_size=5),
)
def test_many_anchors_at_once_equal_one_by_one(
    offsets: tuple[int, ...], pairs: list[tuple[int, int]]
) -> None:
    anchors, lengths = np.array(pairs).T
    steps, inside = place(offsets, anchors, lengths)
    for i, (anchor, length) in enumerate(pairs):
        one_steps, one_inside = place(offsets, anchor, length)
        np.testing.assert_array_equal(steps[i], one_steps)
        np.testing.assert_array_equal(inside[i], one_inside)


@settings(max_examples=50)
@given(
    offset_lists,
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_all_anchors_lists_every_window_of_the_chosen_episodes(
    offsets: tuple[int, ...], lengths: list[int], before: int, after: int
) -> None:
    window = Window(actions=offsets, pad_before=before, pad_after=after)
    chosen, store = np.arange(0, len(lengths), 2), bare_store(lengths)
    expected = [(e, t) for e in chosen for t in window.anchors(lengths[e])]
    if expected:
        anchors = find_anchors(store, window, chosen)
        assert anchors.at(np.arange(len(anchors))).tolist() == [list(pair) for pair in expected]
    else:
        with pytest.raises(UserError, match="none fits"):
            find_anchors(store, window, chosen)


def test_uva_window_matches_the_papers_timing() -> None:
    """16 + 16 steps, one step of padding before and seven after:
    one window per step from 14 to length - 10.
    """
    window = Window(
        latents={"img": (-12, -8, -4, 0, 4, 8, 12, 16)},
        actions=tuple(range(16)),
        span=(-15, 16),
        pad_before=1,
        pad_after=7,
    )
    assert window.anchors(40) == range(14, 31)
    assert len(window.anchors(24)) == 1
    assert len(window.anchors(23)) == 0


@given(st.integers(1, 30), st.integers(1, 5))
def test_padding_one_window_per_step(length: int, horizon: int) -> None:
    """With padding of horizon - 1 after, every step of an episode
    is an anchor, for a horizon of 1 and of K.
    """
    window = Window(actions=tuple(range(horizon)), pad_after=horizon - 1)
    assert window.anchors(length) == range(length)


def test_entries_name_streams_and_masks() -> None:
    window = Window(
        video={"cam": (0,)},
        latents={"cam": (0,)},
        tokens={"side": (-1, 0)},
        state={"pose": (0,)},
        actions=(0, 1),
        past_actions=(-2, -1),
    )
    assert [(e.kind, e.name, e.stream) for e in window.entries] == [
        ("video", "cam", "cam"),
        ("latents", "cam", "latents_cam"),
        ("tokens", "side", "tokens_side"),
        ("state", "pose", "pose"),
        ("actions", "action", "action"),
        ("past_actions", "past_action", "action"),
    ]
    assert window.bounds == (-2, 1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Window(), "at least one offset"),
        (lambda: Window(actions=(0,), pad_before=-1), "padding should be >= 0"),
        (lambda: Window(actions=(0,), span=(3, 1)), "first <= last"),
        (lambda: Window(video={"cam": ()}, actions=(0,)), "without any offset"),
        (lambda: Window(video={"cam": (0,)}, latents={"cam": (0, 1)}), "one mask serves both"),
    ],
)
def test_impossible_windows_are_refused(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_a_split_without_windows_names_lengths() -> None:
    window = Window(actions=tuple(range(20)))
    with pytest.raises(
        UserError, match=r"spans 20 steps .* none fits into 2 episodes of 5 to 9 steps"
    ):
        find_anchors(bare_store([5, 30, 9]), window, np.array([0, 2]))
    with pytest.raises(UserError, match="no episode at all"):
        find_anchors(bare_store([5, 30, 9]), window, np.array([], int))


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 5))
def test_splits_share_nothing_and_lose_nothing(n: int, ratio: float, seed: int) -> None:
    train, val = split_episodes(n, ratio, seed)
    assert sorted([*train, *val]) == list(range(n))
    assert list(train) == sorted(train)
    assert len(train) >= 1
    if ratio > 0 and n > 1:
        assert len(val) == min(max(1, round(n * ratio)), n - 1)
    else:
        assert len(val) == 0


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_downsampling_keeps_a_subset(n: int, at_most: int, seed: int) -> None:
    episodes = np.arange(n) * 3
    kept = downsample_episodes(episodes, at_most, seed)
    assert len(kept) == min(n, at_most)
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(episodes)
    np.testing.assert_array_equal(kept, downsample_episodes(episodes, at_most, seed))


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(UserError, match="val_ratio"):
        split_episodes(5, 1.5, 0)
    with pytest.raises(UserError, match="at least 1"):
        downsample_episodes(np.arange(5), 0, 0)
