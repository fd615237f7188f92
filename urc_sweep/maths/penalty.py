"""What universality costs: the distortion penalty at matched classification, paired by seed.

D(C) = min{mse : cross-entropy <= C} is read off each front (Nguyen, arXiv 2504.13191, eq. 7 restricted to the
trained points). A looser C is flat, a tighter one than the front's best is infeasible; nothing is extrapolated.
Which point is picked is decided on the validation split, the number reported is that point's test value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

# Below three pairs an interval would be theatre (science: under 3 seeds none, under 10 a paired t-interval).
FEWEST_PAIRS = 3
BOOTSTRAP_FROM = 10


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` paired differences with its 95 % interval, ``None`` where n does not carry one."""

    mean: float
    low: float | None
    high: float | None
    n: int


def pick(constraint: float, val_cost: Floats, val_constrained: Floats) -> int | None:
    """Return the index of the cheapest point that meets the constraint on validation, ``None`` if none does."""
    val_cost, val_constrained = np.asarray(val_cost, float), np.asarray(val_constrained, float)
    feasible = np.flatnonzero((val_constrained <= constraint) & np.isfinite(val_cost))
    return int(feasible[np.argmin(val_cost[feasible])]) if len(feasible) else None


def paired_interval(differences: Floats, bootstrap: np.random.Generator | None = None) -> Interval:
    """Return mean and 95 % interval of paired differences: t below ten pairs, percentile bootstrap from ten on."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Interval(float("nan"), None, None, 0)
    mean = float(values.mean())
    if n < FEWEST_PAIRS:
        return Interval(mean, None, None, n)
    if n < BOOTSTRAP_FROM or bootstrap is None:
        half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
        return Interval(mean, mean - half, mean + half, n)
    means = values[bootstrap.integers(n, size=(10_000, n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), n)
