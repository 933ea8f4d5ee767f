"""Scaling of actions and states: hand-computed fits, round trips, strict reading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foreact.data.windows.normalize import Mode, Normalizer, fit_stream
from foreact.errors import UserError

DATA = np.array([[0.0, 5.0], [10.0, 5.0], [4.0, 5.0], [6.0, 5.0]], np.float32)


@pytest.mark.parametrize(
    ("mode", "scale", "offset"),
    [
        ("limits", (0.2, 1.0), (-1.0, -5.0)),
        ("range", (0.2, 1.0), (-1.0, -5.0)),
        ("symmetric", (0.1, 0.2), (0.0, 0.0)),
        (
            "gaussian",
            (1 / np.std(DATA[:, 0], ddof=1), 1.0),
            (-5 / np.std(DATA[:, 0], ddof=1), -5.0),
        ),
        ("identity", (1.0, 1.0), (0.0, 0.0)),
    ],
)
def test_fits_by_hand(mode: Mode, scale: tuple, offset: tuple) -> None:
    stats = fit_stream(DATA, mode)
    np.testing.assert_allclose(stats.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(stats.offset, offset, rtol=1e-6, atol=1e-7)
    assert stats.min == (0.0, 5.0)
    assert stats.max == (10.0, 5.0)


def test_thresholds_of_constant_dimensions() -> None:
    hardly = np.array([[0.0], [5e-5]])
    assert fit_stream(hardly, "limits").scale == (1.0,)
    assert fit_stream(hardly, "range").scale[0] == pytest.approx(4e4, rel=1e-4)


def test_positions_leaves_rotation_and_gripper_alone() -> None:
    values = np.random.default_rng(0).normal(size=(20, 20)) * 3
    stats = fit_stream(values, "positions")
    position = np.arange(20) % 10 < 3
    assert (np.asarray(stats.scale)[~position] == 1).all()
    assert (np.asarray(stats.offset)[~position] == 0).all()
    encoded = Normalizer({"action": stats}).encode(values, "action")
    np.testing.assert_allclose(encoded[:, position].min(0), -1, atol=1e-5)
    np.testing.assert_allclose(encoded[:, position].max(0), 1, atol=1e-5)
    with pytest.raises(UserError, match="needs 10 an arm"):
        fit_stream(values[:, :7], "positions")


@settings(max_examples=60)
@given(
    arrays(np.float32, (12, 3), elements=st.floats(-1000, 1000, width=32)),
    st.sampled_from(["limits", "range", "symmetric", "gaussian", "identity"]),
)
def test_decode_inverts_encode(values: np.ndarray, mode: Mode) -> None:
    normalizer = Normalizer.fit({"state": values}, mode)
    scale = np.abs(np.asarray(normalizer.streams["state"].scale))
    slack = 1e-3 + 1e-5 * np.abs(values).max() + 1e-5 / scale.min()
    back = normalizer.decode(normalizer.encode(values, "state"), "state")
    np.testing.assert_allclose(back, values, atol=slack)
    if mode == "limits":
        assert np.abs(normalizer.encode(values.astype(np.float64), "state")).max() <= 1 + 1e-2


def test_torch_and_numpy_agree_and_keep_their_dtype() -> None:
    normalizer = Normalizer.fit({"action": DATA})
    for dtype, torch_dtype in ((np.float32, torch.float32), (np.float64, torch.float64)):
        x = DATA.astype(dtype)
        for f in (normalizer.encode, normalizer.decode):
            a, b = f(x, "action"), f(torch.from_numpy(x), "action")
            assert a.dtype == dtype
            assert b.dtype == torch_dtype
            np.testing.assert_array_equal(a, b.numpy())


def test_json_round_trip_is_exact_and_strict() -> None:
    normalizer = Normalizer.fit(
        {"action": DATA, "state": DATA * np.pi}, {"action": "limits", "state": "gaussian"}
    )
    raw = json.loads(json.dumps(normalizer.to_json()))
    assert Normalizer.from_json(raw) == normalizer
    with pytest.raises(UserError, match="format"):
        Normalizer.from_json(raw | {"format": 99})
    with pytest.raises(UserError, match="format"):
        Normalizer.from_json(raw | {"extra": 1})
    broken = json.loads(json.dumps(raw))
    del broken["streams"]["action"]["std"]
    with pytest.raises(UserError, match="Statistics of 'action' should have"):
        Normalizer.from_json(broken)
    broken = json.loads(json.dumps(raw))
    broken["streams"]["action"]["scale"] = [1.0]
    with pytest.raises(UserError, match="one per dimension"):
        Normalizer.from_json(broken)
    broken["streams"]["action"]["scale"] = [1.0, 0.0]
    with pytest.raises(UserError, match="no zero scale"):
        Normalizer.from_json(broken)


def test_unknown_streams_and_wrong_widths_are_errors() -> None:
    normalizer = Normalizer.fit({"action": DATA})
    with pytest.raises(UserError, match=r"no statistics for stream 'state', only for \['action'\]"):
        normalizer.encode(DATA, "state")
    with pytest.raises(UserError, match="have 2 dimensions, the data 3"):
        normalizer.decode(torch.zeros(4, 3), "action")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.array([[1.0], [np.nan]]), "found NaN"),
        (np.ones((1, 2)), "at least 2 rows"),
        (np.ones((0, 2)), "0 rows"),
    ],
)
def test_unfit_data_is_refused(values: np.ndarray, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Normalizer.fit({"action": values})


def test_each_stream_needs_a_known_mode() -> None:
    with pytest.raises(UserError, match=r"\['state'\] have no normalisation"):
        Normalizer.fit({"action": DATA, "state": DATA}, {"action": "limits"})
    with pytest.raises(UserError, match="cannot be normalised by 'minmax'"):
        Normalizer.fit({"action": DATA}, "minmax")  # pyright: ignore[reportArgumentType]


def test_out_of_range_is_the_share_beyond_the_fitted_data() -> None:
    normalizer = Normalizer.fit({"action": DATA})
    values = np.array([[0.0, 5.0], [10.0, 5.0], [11.0, 5.0], [-1.0, 4.0]], np.float32)
    np.testing.assert_array_equal(normalizer.out_of_range(values, "action"), [0.5, 0.25])
    assert not normalizer.out_of_range(DATA, "action").any()


def test_reference_keys_are_read_strictly() -> None:
    stats = {
        "scale": 2.0,
        "offset": -1.0,
        "input_stats.min": 0.0,
        "input_stats.max": 1.0,
        "input_stats.mean": 0.5,
    }
    state = {
        f"normalizer.params_dict.agent.pos.{k}": torch.tensor([v, v]) for k, v in stats.items()
    }
    with pytest.raises(UserError, match=r"'agent.pos' lacks \['std'\]"):
        Normalizer.from_reference(state)
    state["normalizer.params_dict.agent.pos.input_stats.std"] = torch.tensor([0.3, 0.3])
    assert Normalizer.from_reference(state).streams["agent.pos"].scale == (2.0, 2.0)
    with pytest.raises(UserError, match=r"'model.weight' is no normaliser entry"):
        Normalizer.from_reference({**state, "model.weight": torch.zeros(2)})
