"""Fronts against what they mean: brute force over pairs, and a sum of rectangles."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from urc_sweep.maths.frontier import attainment, envelope, hypervolume, nondominated

# Few distinct values, so that ties, duplicates and missing numbers are common.
COARSE = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, float("nan"), float("inf")])
GRID = [-2.0, -1.0, 0.0, 0.25, 0.3, 0.5, 1.0, 2.0, 3.0]
ANY = st.floats(-1e6, 1e6) | COARSE
PLANE = array_shapes(min_dims=1, max_dims=1, min_side=0, max_side=14).map(lambda shape: (*shape, 2))
SPACE = st.tuples(st.integers(0, 14), st.integers(2, 4))


def brute_force(points):
    """Row i is on the front unless it is incomplete or some complete row is <= everywhere and < somewhere."""
    complete = np.isfinite(points).all(axis=1)
    return np.array(
        [
            complete[i] and not any(complete[j] and (q <= p).all() and (q < p).any() for j, q in enumerate(points))
            for i, p in enumerate(points)
        ],
        dtype=bool,
    )


def staircase(points, reference):
    """The area under a reference corner, as vertical slices between neighbouring x: an independent hypervolume."""
    x_max, y_max = reference
    inside = [(x, y) for x, y in points if np.isfinite([x, y]).all() and x < x_max and y < y_max]
    edges = sorted({x for x, _ in inside} | {x_max})
    slices = ((right - left) * (y_max - min(y for x, y in inside if x <= left)) for left, right in pairwise(edges))
    return float(sum(slices))


@given(arrays(np.float64, SPACE, elements=ANY))
def test_nondominated_is_brute_force(points):
    assert nondominated(points).tolist() == brute_force(points).tolist()


def test_duplicates_stay_and_incomplete_rows_go():
    points = np.array([[1, 2], [1, 2], [2, 1], [2, 2], [np.nan, 0], [0, np.inf], [-np.inf, 3]])
    assert nondominated(points).tolist() == [True, True, True, False, False, False, False]
    assert nondominated(np.empty((0, 2))).tolist() == []
    assert nondominated(np.full((3, 2), np.nan)).tolist() == [False] * 3


@given(arrays(np.float64, PLANE, elements=st.integers(-8, 8).map(lambda k: k / 4) | COARSE))
@settings(max_examples=200)
def test_hypervolume_is_the_staircase_sum(points):
    reference = np.array([1.5, 1.0])
    assert hypervolume(points, reference) == pytest.approx(staircase(points, reference), rel=1e-12, abs=1e-12)


def test_hypervolume_by_hand():
    points = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [1.0, 1.0], [2.0, 2.0], [np.nan, 0.0]])
    assert hypervolume(points, np.array([3.0, 3.0])) == pytest.approx(3 * 1 + 2 * 1 + 1 * 1)
    assert hypervolume(points, np.array([0.0, 0.0])) == 0.0
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0.0


@given(arrays(np.float64, PLANE, elements=ANY))
def test_envelope_attains_every_corner_and_never_interpolates(points):
    steps = envelope(points)
    front = points[brute_force(points)]
    for x, y in steps:
        assert any(a <= x and b == y for a, b in front), "attained by a point that is no further right"
        assert any(a == x and b <= y for a, b in front), "a step ends where a better point begins"
    assert {tuple(p) for p in front} <= {tuple(p) for p in steps}
    assert (np.diff(steps[:, 0]) >= 0).all()
    assert (np.diff(steps[:, 1]) <= 0).all()
    moves = np.diff(steps, axis=0) != 0
    assert (moves.sum(axis=1) == 1).all(), "each step goes either right or down"


def test_envelope_by_hand():
    points = np.array([[2.0, 1.0], [1.0, 3.0], [4.0, 0.0], [3.0, 2.0], [1.0, 3.0]])
    assert envelope(points).tolist() == [[1, 3], [2, 3], [2, 1], [4, 1], [4, 0]]
    assert envelope(points[:1]).tolist() == [[2, 1]]
    assert envelope(np.empty((0, 2))).shape == (0, 2)


NAMED = st.lists(st.tuples(st.sampled_from("abcde"), COARSE, COARSE), min_size=1, max_size=14)


@given(NAMED, st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75, 1.0]))
@settings(max_examples=300)
def test_what_a_share_of_the_sets_attains_is_brute_force(rows, share):
    sets, points = np.array([name for name, _, _ in rows]), np.array([point for _, *point in rows])
    corners = attainment(points, sets, share)
    assert corners.tolist() == envelope(corners).tolist(), "the steps of a front"
    whole = {name: [p for own, *p in rows if own == name and np.isfinite(p).all()] for name in sets}
    for goal in np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 2):
        reached = sum(any((np.array(p) <= goal).all() for p in own) for own in whole.values())
        enough = reached > 0 and Fraction(reached, len(whole)) >= Fraction(str(share))
        assert enough == bool((corners <= goal).all(axis=1).any())


def test_attainment_by_hand():
    points = np.array([[0.0, 2.0], [2.0, 0.0], [1.0, 1.0], [3.0, 3.0], [np.nan, 0.0]])
    sets = np.array([7, 7, 8, 9, 10])
    assert attainment(points, sets, 0.25).tolist() == [[0, 2], [1, 2], [1, 1], [2, 1], [2, 0]]
    assert attainment(points, sets, 0.5).tolist() == [[1, 2], [2, 2], [2, 1]]
    assert attainment(points, sets, 0.75).tolist() == [[3, 3]]
    # The fourth set attains nothing: what all four attain is nowhere.
    assert attainment(points, sets, 1.0).shape == (0, 2)
    assert attainment(points[:3], np.array([0, 0, 0]), 1.0).tolist() == [[0, 2], [1, 2], [1, 1], [2, 1], [2, 0]]


@pytest.mark.parametrize("count", [1, 3, 7, 10, 29, 30])
def test_the_share_of_any_number_of_sets_is_exact(count):
    points, sets = np.column_stack([np.arange(count), np.zeros(count)]), np.arange(count)
    for needed in range(1, count + 1):
        assert attainment(points, sets, needed / count).tolist() == [[needed - 1, 0]]
