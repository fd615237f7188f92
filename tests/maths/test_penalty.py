"""What universality costs: which point is picked, and how wide an interval its mean deserves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from urc_sweep.maths.penalty import paired_interval, pick

COST = np.array([0.05, 0.03, 0.02, 0.04])
LIMIT = np.array([0.2, 0.5, 0.9, 0.5])


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (2.0, 2),  # looser than every point: flat
        (0.9, 2),
        (0.89, 1),
        (0.5, 1),
        (0.2, 0),
        (0.19, None),  # tighter than the best: infeasible, never extrapolated
    ],
)
def test_pick_is_the_cheapest_feasible_point(constraint, expected):
    assert pick(constraint, COST, LIMIT) == expected


def test_pick_passes_over_what_has_no_number():
    nan = float("nan")
    assert pick(1.0, np.array([nan, 0.4, 0.1]), np.array([0.1, 0.2, nan])) == 1
    assert pick(1.0, np.array([nan]), np.array([0.1])) is None
    assert pick(1.0, np.array([]), np.array([])) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_looser_constraint_never_costs_more(points, one, other):
    cost, limit = np.array(points).reshape(-1, 2).T
    tight, loose = (pick(c, cost, limit) for c in sorted((one, other)))
    assert tight is None or cost[loose] <= cost[tight]
    assert tight is None or limit[tight] <= min(one, other)


def test_t_interval_by_hand():
    # mean 2, standard deviation 1, n = 3: half width t(0.975, 2) / sqrt(3) = 4.302653 / 1.7320508
    found = paired_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.4841377118, abs=1e-9)
    assert found.high == pytest.approx(2 + 2.4841377118, abs=1e-9)


def test_t_interval_is_that_of_a_paired_t_test():
    a, b = np.array([0.31, 0.28, 0.35, 0.30, 0.33]), np.array([0.30, 0.29, 0.31, 0.27, 0.30])
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a - b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [[0.5], [0.5, 1.5]])
def test_under_three_seeds_there_is_a_mean_and_no_interval(values):
    found = paired_interval(np.array(values), np.random.default_rng(0))
    assert (found.mean, found.low, found.high, found.n) == (np.mean(values), None, None, len(values))


def test_missing_pairs_do_not_count():
    found = paired_interval(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (found.mean, found.low, found.n) == (2.0, None, 2)
    nothing = paired_interval(np.array([np.nan]))
    assert np.isnan(nothing.mean)
    assert (nothing.low, nothing.high, nothing.n) == (None, None, 0)


def test_bootstrap_begins_at_ten_pairs():
    values = np.array([0.0] * 9 + [10.0])
    student = paired_interval(values)
    assert student.low == pytest.approx(1 - stats.t.ppf(0.975, 9) * values.std(ddof=1) / np.sqrt(10))
    bootstrap = paired_interval(values, np.random.default_rng(1))
    # Means of resamples are k/10 * 10 with k binomial(10, 1/10): its quantiles are 0 and 3.
    assert (bootstrap.mean, bootstrap.low, bootstrap.high) == (1.0, 0.0, 3.0)
    assert paired_interval(values[1:], np.random.default_rng(1)) == paired_interval(values[1:])
