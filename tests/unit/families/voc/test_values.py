from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from support.line_world import CAMERA, LineStore, PerfectModel
from support.page import Page

from foreact.errors import UserError
from foreact.evals.correlation import correlation_estimate, mean_ranks
from foreact.evals.report import write_report
from foreact.families.voc.evals.delays import geometric_law, nearest_delays
from foreact.families.voc.evals.value_estimates import density_value, legacy_density, sampled_value
from foreact.families.voc.evals.value_figures import (
    BARS,
    delay_bars,
    delays_figure,
    values_figure,
    values_section,
)
from foreact.families.voc.evals.values import (
    Values,
    accuracy,
    contexts,
    mean_value,
    measure_values,
    reach,
)

# --- estimators -----------------------------------------------------------------------------------


def test_sampled_value_is_the_mean_reward_times_the_mean_delay() -> None:
    value, error = sampled_value(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), 0.75)
    assert value.tolist() == [8.0, 8.0]
    assert error.tolist() == pytest.approx([math.sqrt(2) / math.sqrt(2) * 4, 0.0])


def test_densities_weigh_candidates_by_their_probability() -> None:
    log_probs = torch.tensor([0.1, 0.3, 0.05]).log()
    rewards = torch.tensor([1.0, 2.0, -1.0])
    value, effective = density_value(log_probs, rewards, 0.5)
    assert value.item() == pytest.approx((0.1 + 0.6 - 0.05) / 0.45 / 0.5)
    assert effective.item() == pytest.approx(0.45**2 / (0.01 + 0.09 + 0.0025))


@given(
    scores=arrays.arrays(np.float64, (2, 5), elements=st.floats(-300, 0)),
    shift=st.floats(-200, 200),
)
def test_densities_need_no_normalisation(scores: np.ndarray, shift: float) -> None:
    rewards = torch.linspace(-1, 1, 5).expand(2, 5)
    value, effective = density_value(torch.from_numpy(scores), rewards, 0.9)
    shifted, _ = density_value(torch.from_numpy(scores) + shift, rewards, 0.9)
    assert torch.allclose(value, shifted, atol=1e-6)
    assert ((effective >= 1 - 1e-9) & (effective <= 5 + 1e-9)).all()
    assert (value.abs() <= 10 + 1e-6).all()


def test_the_reference_s_densities_depend_on_the_level_of_the_logits() -> None:
    logits = torch.tensor([[[2.0, -1.0], [0.5, 0.25]]])  # one candidate of two tokens
    tokens, rewards = torch.tensor([[1, 0]]), torch.tensor([3.0])
    found = legacy_density(logits, tokens, rewards)
    log_prob = (-1 - math.log(math.exp(2) + math.exp(-1))) + (
        0.5 - math.log(math.exp(0.5) + math.exp(0.25))
    )
    assert found.lengths.tolist() == [3]
    assert found.log_probs.item() == pytest.approx(log_prob)
    assert found.value.item() == pytest.approx(3 * math.exp(log_prob / 3))
    higher = legacy_density(logits + 2, tokens, rewards)
    assert higher.lengths.tolist() == [2]
    assert higher.log_probs.item() == pytest.approx(log_prob, abs=1e-6)


# --- delays ---------------------------------------------------------------------------------------


def test_a_sample_lies_where_the_future_is_nearest_and_ties_are_shared() -> None:
    future = torch.tensor([[0, 0], [1, 1], [1, 2], [1, 1]])[:, None, None]
    samples = torch.tensor([[0, 0], [1, 1], [5, 2], [7, 7]])[:, None, None]
    shares, distance = nearest_delays(samples, future)
    each = np.array([[1, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 1, 0], [0.25] * 4])
    assert shares.tolist() == pytest.approx(each.mean(0).tolist())
    assert distance.tolist() == [0.0, 0.0, 0.5, 1.0]


@given(gamma=st.floats(0.01, 0.99), steps=st.integers(1, 300))
def test_the_law_falls_by_gamma(gamma: float, steps: int) -> None:
    law = geometric_law(gamma, steps)
    assert law.sum() == pytest.approx(1.0)
    assert np.allclose(law[1:], gamma * law[:-1])


# --- correlations ---------------------------------------------------------------------------------

NUMBERS = st.integers(-20, 20).map(lambda i: i / 4)


@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=20))
def test_correlations_are_pearson_s_and_spearman_s(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(v) for v in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        with pytest.raises(UserError, match="alike"):
            correlation_estimate(x, y, np.zeros(len(x)))
        return
    found = [correlation_estimate(x, y, np.zeros(len(x)), ranks=ranks) for ranks in (False, True)]
    assert found[0].mean == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    assert found[1].mean == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
    # One group tells nothing of how others would differ.
    assert all((f.low, f.high, f.n) == (-1.0, 1.0, 1) for f in found)


@given(values=st.lists(NUMBERS, min_size=1, max_size=12), data=st.data())
def test_weighted_ranks_are_those_of_repeated_values(
    values: list[float], data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values)))
    x = np.array(values)
    assert np.allclose(mean_ranks(x, np.ones(len(x))), stats.rankdata(x))
    assert np.allclose(
        mean_ranks(x, np.array(counts)).repeat(counts), stats.rankdata(x.repeat(counts))
    )


def test_copies_of_a_state_do_not_narrow_a_correlation_s_interval() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=12)
    y = x + draw.normal(size=12)
    once = correlation_estimate(x, y, np.arange(12), ranks=True)
    often = correlation_estimate(x.repeat(20), y.repeat(20), np.arange(12).repeat(20), ranks=True)
    assert often.n == 12
    assert (often.low, often.mean, often.high) == pytest.approx(
        (once.low, once.mean, once.high), abs=1e-9
    )


def test_intervals_of_correlations_cover_the_truth() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        shared = draw.normal(size=(40, 2))
        x, y = shared[:, 0], 0.6 * shared[:, 0] + 0.8 * shared[:, 1]
        found = correlation_estimate(x, y, np.arange(40), seed=trial)
        hits += found.low <= 0.6 <= found.high
    assert hits >= 50


# --- measuring ------------------------------------------------------------------------------------

GAMMA = 0.8


def measure(store: LineStore, frames: int = 2, **changes: Any) -> Values:
    model = PerfectModel(store, frames)
    windows = contexts(store, np.arange(2, len(store)), CAMERA, frames)
    options: dict[str, Any] = {
        "gamma": GAMMA,
        "train_mean": mean_value(store, [0, 1], GAMMA),
        "states": 40,
        "samples": 400,
        "candidates": 50,
        "grades": store.info("grade"),
        **changes,
    }
    return measure_values(model, windows, CAMERA, **options)


@pytest.fixture(scope="module")
def measured() -> Values:
    return measure(LineStore(episodes=8, length=60))


def test_a_perfect_model_knows_the_values(measured: Values) -> None:
    assert len(measured.states) == 40
    assert measured.states[:, 1].max() <= 60 - 1 - reach(GAMMA)
    off = (measured.sampled - measured.truth) / measured.error
    assert np.abs(off).max() < 4.5
    assert 0.6 < off.std() < 1.4
    assert np.abs(measured.density - measured.truth).max() < 0.05 * np.abs(measured.truth).max()
    sampled = measured.table["sampled futures"]
    assert sampled.rank is not None
    assert sampled.rank.low > 0.9
    assert sampled.mse.mean < 0.1 * measured.table["mean of the training data"].mse.mean


def test_densities_are_decided_by_about_as_many_states_as_the_delay_is_long(
    measured: Values,
) -> None:
    # For weights gamma^k, 1 / sum w^2 is (1 + gamma) / (1 - gamma).
    assert np.allclose(measured.effective, (1 + GAMMA) / (1 - GAMMA), rtol=0.02)


def test_nats_of_a_perfect_model_are_the_entropy_of_the_delay(measured: Values) -> None:
    entropy = -(GAMMA * math.log(GAMMA) + (1 - GAMMA) * math.log(1 - GAMMA)) / (1 - GAMMA)
    # Over two tokens, the first of which is certain; the candidates end where 1 % of the law is
    # left.
    assert np.allclose(measured.nats, entropy / 2, rtol=0.05)


def test_samples_of_a_perfect_model_follow_the_law(measured: Values) -> None:
    delays = measured.delays
    assert delays.shares.sum() == pytest.approx(1.0)
    assert delays.mean == pytest.approx(delays.mean_law, rel=0.05)
    assert np.abs(np.cumsum(delays.shares) - np.cumsum(delays.law)).max() < 0.02
    assert delays.distance < 0.02  # of the one in a hundred that lies beyond the search
    first = (measured.states[:, 1] == 0).mean()  # there the frame before the first is its copy
    assert delays.step == pytest.approx(1.0 - first / 2)


def test_returns_of_a_few_steps_miss_what_the_horizon_cuts_off() -> None:
    store = LineStore(episodes=8, length=60)
    store.arrays["reward"][:] = 1.0
    found = measure(store)
    assert found.horizon == 5
    table = found.table[f"true rewards of {found.horizon} steps"]
    assert table.bias.mean == pytest.approx(-(GAMMA**5) / (1 - GAMMA), rel=0.02)
    assert found.table["sampled futures"].rank is None  # every state is worth nearly the same


def test_values_that_differ_by_rounding_have_no_correlation() -> None:
    truth, episodes = np.linspace(1.0, 2.0, 6), np.arange(6)
    alike = 5.0 + 1e-15 * np.arange(6)
    assert np.ptp(alike) > 0
    assert accuracy(alike, truth, episodes).rank is None
    assert accuracy(truth, alike, episodes).linear is None
    assert accuracy(truth, truth, episodes).rank is not None


def test_grades_are_measured_by_themselves(measured: Values) -> None:
    assert set(measured.per_grade) == {"poor", "good"}
    assert sum(row.states for row in measured.per_grade.values()) == 40


def test_draws_depend_on_the_seed_alone() -> None:
    store = LineStore(episodes=4, length=40)
    a, b, c = (measure(store, states=6, samples=10, seed=seed, batch_size=6) for seed in (1, 1, 2))
    assert np.array_equal(a.sampled, b.sampled)
    assert not np.array_equal(a.sampled, c.sampled)


def test_the_truth_is_the_mean_of_training_where_it_is_known() -> None:
    store = LineStore(episodes=2, length=60)
    store.arrays["reward"][:60], store.arrays["reward"][60:] = 1.0, 2.0
    assert mean_value(store, [0], GAMMA) == pytest.approx(5.0, rel=0.01)
    assert mean_value(store, [1], GAMMA) == pytest.approx(10.0, rel=0.01)
    short = LineStore(episodes=1, length=3)
    short.arrays["reward"][:] = 1.0
    assert mean_value(short, [0], GAMMA) == pytest.approx((1.8 + 1.0 + 0.0) / 3)


def test_bad_input_is_one_sentence() -> None:
    store = LineStore(episodes=4, length=40)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"gamma": 1.0}, r"gamma in \(0, 1\), found 1.0"),
        ({"gamma": 0.0}, r"gamma in \(0, 1\), found 0.0"),
        ({"gamma": 0.99}, "459 steps before its episode's end"),
        ({"samples": 1}, "--samples should be at least 2, .* found 1, "),
    )
    for changes, words in refused:
        with pytest.raises(UserError, match=words):
            measure(store, **changes)
    with pytest.raises(UserError, match="no rewards"):
        mean_value(LineStore(episodes=4, length=40, rewards=False), [0], GAMMA)
    with pytest.raises(UserError, match="finite"):
        accuracy(np.array([np.nan, 1.0]), np.array([0.0, 1.0]), np.array([0, 1]))


# --- showing --------------------------------------------------------------------------------------


def test_bars_hold_every_delay(measured: Values) -> None:
    edges, shares, law = delay_bars(measured.delays)
    assert len(edges) == len(shares) + 1 <= BARS + 1
    assert shares.sum() == pytest.approx(1.0)
    assert law[0] == pytest.approx(measured.delays.law[: edges[1] - 1].sum())


def test_figures_are_pictures_for_both_kinds_of_pages(measured: Values) -> None:
    for figure in (values_figure([measured]), delays_figure([measured])):
        assert figure is not None
        assert figure.light != figure.dark
        assert figure.light.startswith(b"\x89PNG")
    assert values_figure([]) is None


def test_the_report_shows_values_and_json_holds_every_state(
    measured: Values, tmp_path: Path
) -> None:
    page = Page(
        write_report(
            tmp_path / "report.html", title="Values", sections=[values_section([measured])]
        ).read_text()
    )
    assert page.headings == ["Values of states", "How this was made"]
    for words in (
        "mean of the training data",
        "good episodes alone",
        "6 independent episodes",
        "at gamma 0.8",
    ):
        assert words in page.text, words
    raw = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert len(raw["states"]["truth"]) == 40
    assert raw["accuracy"]["sampled futures"]["rank"]["n"] == 6
