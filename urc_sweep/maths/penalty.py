"""What universality costs, in distortion and in rate, from trained points alone; paired by seed.

D(C) = min{mse : cross-entropy <= C} is read off each front (Nguyen, arXiv 2504.13191, eq. 7 restricted to the
trained points). A looser C is flat, a tighter one than the front's best is infeasible; nothing is extrapolated.
Which point is picked is decided on the validation split, the number reported is that point's test value.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from urc_sweep.maths.frontier import hypervolume
from urc_sweep.maths.streams import stream

Floats = NDArray[np.float64]

# Below three pairs an interval would be theatre (science: under 3 seeds none, under 10 a paired t-interval).
FEWEST_PAIRS = 3
BOOTSTRAP_FROM = 10
# One point is no tradeoff: whatever beats it says nothing about a front.
FEWEST_POINTS = 2

FOUND, LOWER, HIGHER, INFEASIBLE = "found", "needs lower rates", "needs higher rates", "infeasible"


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` paired differences with its 95 % interval, ``None`` where n does not carry one."""

    mean: float
    low: float | None
    high: float | None
    n: int


def pick(constraints: Floats, val_cost: Floats, val_constrained: Floats) -> NDArray[np.int64]:
    """Return per constraint the index of the cheapest point that meets it on validation, -1 where none does."""
    met = np.asarray(val_constrained, float) <= np.asarray(constraints, float)[:, None]
    # Never picked, and first where there is nothing else: no point at all.
    cost = np.column_stack([np.where(met & np.isfinite(val_cost), val_cost, np.inf), np.full(len(met), np.inf)])
    index = cost.argmin(axis=1)
    return np.where(np.isfinite(cost[np.arange(len(met)), index]), index, -1)


def paired_interval(differences: Floats, bootstrap: int | None = None) -> Interval:
    """Return mean and 95 % interval of paired differences: t below ten pairs, percentile bootstrap from ten on.

    ``bootstrap`` is the seed of its draws, the same for all differences of one length; without it: t throughout.
    """
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
    low, high = np.quantile(_resamples(n, bootstrap) @ values, [0.025, 0.975])
    return Interval(mean, float(low), float(high), n)


@functools.lru_cache(maxsize=8)
def _resamples(n: int, seed: int) -> Floats:
    """Return (10,000, n): how much of the mean of each resample every one of ``n`` pairs is."""
    drawn = stream(seed, "bootstrap").integers(n, size=(10_000, n))
    return np.stack([(drawn == pair).sum(axis=1) for pair in range(n)], axis=1) / n


def split_gap(universal: Floats, own: Floats, base_centroid: Floats, own_centroid: Floats) -> tuple[Floats, Floats]:
    """Return the encoder's and the decoder's term of the gap ``universal - own``; they sum to it exactly.

    ``universal`` and ``own`` are the MSE of a decoder on the base encoder and of an end-to-end trial; the centroids
    are E|X - E[X|Z,U]|^2 of the two encoders, the least MSE that any decoder reaches on them. Encoder term =
    base_centroid - own_centroid: what the base encoder lost. Decoder term: the rest. All MSE per pixel.
    """
    encoder = base_centroid - own_centroid
    return encoder, (universal - own) - encoder


def rate_penalty(rate: float, points: Floats, encoders: Sequence[tuple[float, Floats]]) -> tuple[float, str]:
    """Return A(Omega(R)) in bits, and a word on it: what representing a whole end-to-end front with one encoder costs.

    A = min{R' : the decoders of one rate-R' encoder dominate every end-to-end point of rate R} - R (after Nguyen,
    arXiv 2504.13191, eq. 8, with Theta the end-to-end points; with Theta an encoder's own points it is trivially 0).
    ``points`` (n, objectives) are those of rate R, ``encoders`` pairs of R' and its decoders' points, all to be
    minimised. ``needs higher rates``: no trained R' dominates, A is NaN. ``needs lower rates``: already the lowest
    one does and it is not R itself, so A is only an upper bound. ``ValueError`` if the points are no front.
    """
    if len(points) < FEWEST_POINTS:
        raise ValueError(f"a front needs at least two points; at {rate:.4g} bits: {len(points)}; train more weights")
    enough = [other for other, decoders in encoders if _dominate(decoders, points)]
    if not enough:
        return float("nan"), HIGHER
    least = min(enough)
    return least - rate, LOWER if least != rate and least == min(other for other, _ in encoders) else FOUND


def _dominate(decoders: Floats, points: Floats) -> bool:
    """Return whether every one of ``points`` is as bad as one of ``decoders``, or worse, in every objective."""
    return bool(np.all(np.any(np.all(decoders <= points[:, None], axis=2), axis=1)))


def rate_needed(distortion: float, rates: Floats, reached: Floats) -> tuple[float, str]:
    """Return R_e2e(D, C) in bits, and a word on it: the least rate at which end-to-end training has MSE D at C.

    ``reached[k]`` is D_r(C) = min{mse : CE <= C} of the end-to-end front at ``rates[k]`` (NaN: no point meets C
    there, so that rate says nothing). Between neighbouring trained rates D_r(C) is taken as linear in r; outside of
    them the answer is NaN and the word says which rates are missing.
    """
    order = np.argsort(rates, kind="stable")
    rates, reached = np.asarray(rates, float)[order], np.asarray(reached, float)[order]
    rates, reached = rates[np.isfinite(reached)], reached[np.isfinite(reached)]
    met = np.flatnonzero(reached <= distortion)
    if not len(reached) or not len(met):
        return float("nan"), HIGHER if len(reached) else INFEASIBLE
    first = met[0]
    if first == 0:
        return (float(rates[0]), FOUND) if reached[0] == distortion else (float("nan"), LOWER)
    share = (reached[first - 1] - distortion) / (reached[first - 1] - reached[first])
    return float(rates[first - 1] + share * (rates[first] - rates[first - 1])), FOUND


def hypervolume_ratio(universal: Floats, end_to_end: Floats, reference: Floats) -> float:
    """Return the share of the end-to-end hypervolume that universal points (n, objectives) reach, one reference."""
    whole = hypervolume(end_to_end, reference) if np.isfinite(reference).all() else 0.0
    return hypervolume(universal, reference) / whole if whole else float("nan")
