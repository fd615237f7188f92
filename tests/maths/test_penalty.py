"""What universality costs: which point is picked, and how wide an interval its mean deserves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from urc_sweep.maths.penalty import (
    FOUND,
    HIGHER,
    INFEASIBLE,
    LOWER,
    hypervolume_ratio,
    paired_interval,
    pick,
    rate_needed,
    rate_penalty,
    split_gap,
)

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
        (0.19, -1),  # tighter than the best: infeasible, never extrapolated
    ],
)
def test_pick_is_the_cheapest_feasible_point(constraint, expected):
    assert pick(np.array([constraint]), COST, LIMIT).tolist() == [expected]


def test_pick_passes_over_what_has_no_number():
    nan = float("nan")
    one = np.array([1.0])
    assert pick(one, np.array([nan, 0.4, 0.1]), np.array([0.1, 0.2, nan])) == [1]
    assert pick(one, np.array([nan]), np.array([0.1])) == [-1]
    assert pick(one, np.array([]), np.array([])) == [-1]
    assert pick(np.array([nan, 0.5]), COST, LIMIT).tolist() == [-1, 1]
    assert pick(np.array([]), COST, LIMIT).tolist() == []


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_looser_constraint_never_costs_more(points, one, other):
    cost, limit = np.array(points).reshape(-1, 2).T
    tight, loose = pick(np.array(sorted((one, other))), cost, limit)
    assert tight < 0 or cost[loose] <= cost[tight]
    assert tight < 0 or limit[tight] <= min(one, other)
    feasible = [index for index in range(len(cost)) if limit[index] <= max(one, other)]
    assert loose == min(feasible, key=lambda index: cost[index], default=-1)


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
    found = paired_interval(np.array(values), 0)
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
    bootstrap = paired_interval(values, 1)
    # Means of resamples are k/10 * 10 with k binomial(10, 1/10): its quantiles are 0 and 3.
    assert (bootstrap.mean, bootstrap.low, bootstrap.high) == (1.0, 0.0, 3.0)
    assert paired_interval(values[1:], 1) == paired_interval(values[1:])


# -- where a gap comes from --------------------------------------------------------------------------------------------

MSE = st.floats(0, 0.1)


def test_split_by_hand():
    # The base encoder lost .048 - .041 = .007; of the gap .052 - .046 = .006 that leaves a decoder better by .001.
    encoder, decoder = split_gap(*np.array([[0.052], [0.046], [0.048], [0.041]]))
    assert encoder == pytest.approx([0.007])
    assert decoder == pytest.approx([-0.001])


@given(MSE, MSE, MSE, MSE)
def test_the_two_terms_are_the_whole_gap(universal, own, base_centroid, own_centroid):
    encoder, decoder = split_gap(*np.array([[universal], [own], [base_centroid], [own_centroid]]))
    assert encoder + decoder == pytest.approx(universal - own, abs=1e-16)
    # A decoder that is as far above its encoder's floor as the other one leaves nothing to the decoder's term.
    _, none = split_gap(*np.array([[base_centroid + own], [own_centroid + own], [base_centroid], [own_centroid]]))
    assert none == pytest.approx(0, abs=1e-15)


# -- rates -------------------------------------------------------------------------------------------------------------

POINT = st.tuples(st.integers(0, 4), st.integers(0, 4))
FRONT = st.lists(POINT, min_size=2, max_size=4)


def slow_rate_penalty(rate, points, encoders):
    """The definition, word by word."""
    rates = []
    for other, decoders in encoders:
        if all(any(d[0] <= p[0] and d[1] <= p[1] for d in decoders) for p in points):
            rates.append(other)
    return min(rates) - rate if rates else None


@given(FRONT, st.lists(st.tuples(st.sampled_from([2.0, 3.0, 4.0, 5.0]), FRONT), min_size=1, max_size=5))
def test_rate_penalty_is_its_definition(points, encoders):
    expected = slow_rate_penalty(3.0, points, encoders)
    arrays = [(rate, np.array(decoders, float)) for rate, decoders in encoders]
    found, word = rate_penalty(3.0, np.array(points, float), arrays)
    assert (found, word) == rate_penalty(3.0, np.array(points[::-1], float), arrays[::-1]) or np.isnan(found)
    if expected is None:
        assert np.isnan(found)
        assert word == HIGHER
    else:
        lowest = min(rate for rate, _ in encoders)
        assert found == expected
        assert word == (LOWER if 3 + expected == lowest != 3 else FOUND)


@given(FRONT, st.lists(st.integers(1, 5), max_size=3))
def test_an_encoder_that_dominates_its_own_rate_costs_no_rate(points, higher):
    own = np.array(points, float)
    encoders = [(4.0, own - 0.5), *((4.0 + more, own - 1) for more in higher)]
    assert rate_penalty(4.0, own, encoders) == (0.0, FOUND)


def test_one_point_is_no_front():
    with pytest.raises(ValueError, match=r"^a front needs at least two points; at 4\.755 bits: 1; .*weights$"):
        rate_penalty(4.755, np.array([[0.05, 1.0]]), [(4.755, np.array([[0.05, 1.0]]))])


def gaussian(rate, variance=1.0):
    """D = s2 2^(-2R), the distortion-rate function of a Gaussian source (science, section 5.1)."""
    return variance * 2.0 ** (-2 * np.asarray(rate))


@given(st.floats(0.05, 4), st.floats(0, 1))
def test_the_profile_of_a_gaussian_is_its_excess_rate(variance, excess):
    rates = np.linspace(0, 6, 601)
    needed, word = rate_needed(gaussian(5 - excess, variance), rates, gaussian(rates, variance))
    assert word == FOUND
    # A chord lies above a convex curve, so a rate is never understated; on this grid it is off by under 1e-4 bits.
    assert 0 <= needed - (5 - excess) + 1e-9 < 1e-4


@given(st.permutations([3.17, 4.0, 4.755, 6.0]), st.floats(3.17, 6.0))
def test_rates_are_interpolated_between_neighbours_in_any_order(rates, wanted):
    rates = np.array(rates)
    # D(r) = 10 - r is its own chord, so the answer is exact.
    needed, word = rate_needed(10 - wanted, rates, 10 - rates)
    assert (needed, word) == (pytest.approx(wanted), FOUND)


def test_the_least_rate_counts_where_training_was_not_monotone():
    rates, reached = np.array([3.0, 4.0, 5.0, 6.0]), np.array([0.06, 0.04, 0.05, 0.03])
    assert rate_needed(0.045, rates, reached) == (pytest.approx(3.75), FOUND)
    assert rate_needed(0.035, rates, reached) == (pytest.approx(5.75), FOUND)


def test_nothing_is_extrapolated():
    rates, reached = np.array([4.0, 6.0]), np.array([0.05, 0.03])
    assert rate_needed(0.05, rates, reached) == (4.0, FOUND)
    assert rate_needed(0.03, rates, reached) == (6.0, FOUND)
    for distortion, word in ((0.0500001, LOWER), (0.0299999, HIGHER)):
        needed, said = rate_needed(distortion, rates, reached)
        assert np.isnan(needed)
        assert said == word


def test_a_rate_that_misses_the_constraint_says_nothing():
    nan = float("nan")
    rates = np.array([3.0, 4.0, 6.0])
    assert rate_needed(0.04, rates, np.array([nan, 0.05, 0.03])) == (pytest.approx(5.0), FOUND)
    assert rate_needed(0.06, rates, np.array([nan, 0.05, 0.03]))[1] == LOWER
    needed, word = rate_needed(0.04, rates, np.array([nan, nan, nan]))
    assert np.isnan(needed)
    assert word == INFEASIBLE


# -- hypervolumes ------------------------------------------------------------------------------------------------------


def test_hypervolume_ratio_by_hand():
    reference = np.array([0.1, 2.0])
    whole = np.array([[0.04, 1.5], [0.05, 0.2]])  # .05 * 1.8 + .01 * .5
    assert hypervolume_ratio(np.array([[0.05, 0.2]]), whole, reference) == pytest.approx(0.09 / 0.095)
    assert hypervolume_ratio(whole, whole, reference) == 1.0
    assert hypervolume_ratio(np.empty((0, 2)), whole, reference) == 0.0
    for of, below in ((np.array([[0.2, 3.0]]), reference), (whole, np.array([0.1, np.nan]))):
        assert np.isnan(hypervolume_ratio(whole, of, below))
