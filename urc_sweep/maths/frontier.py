"""Pareto fronts of points that are all to be minimised. Facts in numpy and moocore; drawing happens elsewhere."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Return which rows of ``points`` (n, objectives) no other row dominates.

    A row with a missing value is on no front. Equal rows are all kept.
    """
    points = np.asarray(points, dtype=np.float64)
    member: NDArray[np.bool_] = np.asarray(np.isfinite(points).all(axis=1))
    if member.any():
        member[member] = moocore.is_nondominated(np.ascontiguousarray(points[member]), keep_weakly=True)
    return member


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the volume that ``points`` dominate below ``reference``; 0 for no point better than it."""
    points = np.asarray(points, dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return 0.0
    return float(moocore.hypervolume(np.ascontiguousarray(points), ref=np.asarray(reference, dtype=np.float64)))


def envelope(points: Floats) -> Floats:
    """Return the corners (m, 2) of the step-shaped front of ``points`` (n, 2), from left to right.

    Between two neighbours the attained y stays that of the left one: nothing is interpolated.
    """
    front = np.unique(np.asarray(points, dtype=np.float64)[nondominated(points)], axis=0)
    if len(front) < 2:
        return front
    corners = np.column_stack([front[1:, 0], front[:-1, 1]])
    steps = np.empty((2 * len(front) - 1, 2))
    steps[0::2], steps[1::2] = front, corners
    return steps


def attainment(points: Floats, sets: NDArray[np.generic], share: float) -> Floats:
    """Return the corners (m, 2) of the region that at least ``share`` of the sets attain, left to right, as a front's.

    ``points`` (n, 2) belong to ``sets`` (n,), row by row. A row with a missing value attains nothing; its set counts.
    The surface is exact (Fonseca, Guerreiro, Lopez-Ibanez, Paquete 2011); empty where too few sets attain anything.
    """
    points, sets = np.asarray(points, dtype=np.float64), np.unique(sets, return_inverse=True)[1]
    # Set by set: moocore takes only how many rows each has, and would count rows in any other order to wrong sets.
    whole = np.argsort(sets, kind="stable")
    whole = whole[np.isfinite(points[whole]).all(axis=1)]
    attaining = len(np.unique(sets[whole]))
    needed = max(1, np.ceil(share * len(np.unique(sets)) - 1e-9))  # .1 of 30 sets are 3, whatever a float says
    if needed > attaining:
        return np.empty((0, 2))
    return envelope(moocore.eaf(points[whole], sets[whole], percentiles=[100 * needed / attaining])[:, :2])
