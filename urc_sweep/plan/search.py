"""Search strategies: which weights to try. Pure functions of the file and earlier validation metrics."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from urc_sweep.maths.streams import stream
from urc_sweep.plan.registry import component
from urc_sweep.plan.spec import Range, Search

Objective = Mapping[str, "Sequence[float] | Range"]
Point = dict[str, float]


@component("search", "grid", version=1)
def grid(objective: Objective, search: Search, stage: str, generation: int, history: Sequence[Any] = ()) -> list[Point]:
    """Every combination of the listed weights, in the order of the file; one generation."""
    if generation > 0:
        return []
    names = list(objective)
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*(objective[name] for name in names))]  # type: ignore[arg-type]


@component("search", "random", version=1)
def random(
    objective: Objective, search: Search, stage: str, generation: int, history: Sequence[Any] = ()
) -> list[Point]:
    """``samples`` independent points: uniform in a list, log-uniform or uniform in a range; one generation.

    The stream depends on the search seed, the stage and the term, so that another term or more samples leave the
    points that were drawn before as they are.
    """
    if generation > 0:
        return []
    drawn = {}
    for name, weights in objective.items():
        u = stream(search.seed, f"search.random.{stage}.{name}", generation).random(search.samples)
        drawn[name] = _between(weights, u) if isinstance(weights, Range) else _among(weights, u)
    return [{name: float(drawn[name][i]) for name in objective} for i in range(search.samples)]


def _among(weights: Sequence[float], u: Any) -> Any:
    return np.asarray(weights)[(u * len(weights)).astype(int)]


def _between(weights: Range, u: Any) -> Any:
    if weights.scale == "linear":
        values = weights.low + u * (weights.high - weights.low)
    else:
        values = np.exp(np.log(weights.low) + u * (np.log(weights.high) - np.log(weights.low)))
    # Six digits: what is printed, hashed and typed back in is one and the same number.
    return np.array([float(f"{value:.6g}") for value in values])
