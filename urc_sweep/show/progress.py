"""How far a sweep is, from its public trials table alone: what waits for what, how fast it goes, how long it will take.

Invariant: nothing is told that the table does not show. A time comes from trials that ended, never from a guess at
hardware; where no trial of a kind has ended yet, there is none. Running trials show neither epoch nor start there.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from urc_sweep.errors import SpecError
from urc_sweep.plan.registry import find
from urc_sweep.show.grid import LEFT

NEEDS = ("parent_id", "classifier_id", "heldout_classifier_id")
RECENT = 50  # what ended last tells how fast it goes now


class Pace(NamedTuple):
    """How fast trials ended lately: packs at once, trials a minute, optimiser steps a second of the whole machine."""

    packs: float
    trials_per_minute: float
    steps_per_s: float


def states(trials: pd.DataFrame) -> pd.Series[str]:
    """Return each trial's status; a pending one is ``blocked`` by what it needs and is not done, or ``ready``."""
    undone = set(trials.loc[trials["status"] != "done", "trial_id"])
    waits = pd.concat([trials[need].isin(undone) for need in NEEDS], axis=1).any(axis=1)
    split = pd.Series(np.where(waits, "blocked", "ready"), index=trials.index)
    return trials["status"].where(trials["status"] != "pending", split)


def counts(trials: pd.DataFrame, state: pd.Series[str]) -> dict[str, dict[str, int]]:
    """Return how many trials of each stage, in plan order, are in each state; what is not there is left out."""
    return {str(name): dict(Counter(own)) for name, own in state.groupby(trials["stage"], sort=False)}


def eta_s(trials: pd.DataFrame, now: datetime) -> float | None:
    """Return in about how many seconds all trials will have ended; 0 if they have, ``None`` while nothing can be said.

    The larger of two: what unfinished trials need, by as many packs as were at work lately; and the longest chain of
    trials that wait for each other. Nothing can be said before a trial of each kind has ended, nor of a sweep that
    was stopped. A trial that fails ends the wait for its dependents sooner.
    """
    state, left = states(trials), _left_s(trials, now)
    if left.empty:
        return 0.0
    speed = pace(trials)
    if speed is None or left.isna().any() or (state.eq("stopped").any() and not state.eq("running").any()):
        return None
    chain: dict[str, float] = {}
    # Needed trials come first in a plan.
    for seconds, (trial, *needs) in zip(left, trials.loc[left.index, ["trial_id", *NEEDS]].to_numpy(), strict=True):
        chain[trial] = seconds + max(chain.get(need, 0.0) for need in needs)
    return max(float(left.sum()) / speed.packs, *chain.values())


def pace(trials: pd.DataFrame) -> Pace | None:
    """Return how fast this sweep's own trials ended lately, pauses between launches left out; ``None`` before any did.

    ``steps_per_s`` is NaN for data sets whose size the registry does not tell.
    """
    own = _ended(trials[trials["cached_from"].isna()]).nlargest(RECENT, "finished_at").sort_values("started_at")
    if own.empty:
        return None
    began, ended = ((own[key] - own["started_at"].min()).dt.total_seconds() for key in ("started_at", "finished_at"))
    idle = began.to_numpy()[1:] - np.maximum.accumulate(ended.to_numpy())[:-1]
    longest = (ended - began).max()  # what is shorter was spent between two trials, what is longer between two launches
    busy = max(ended.max() - idle[idle > longest].sum(), 1e-3)
    steps = sum(map(_steps, own.to_dict("records")))
    return Pace(float(own["share_s"].sum() / busy), float(60 * len(own) / busy), float(steps / busy))


def best(trials: pd.DataFrame) -> pd.DataFrame:
    """Return per rate, stage and metric the done trial with the least of it on validation.

    Metrics are the MSE and what the sweep trades for it (``gaps.matched_at``). Columns ``dim levels rate_bits stage
    metric trial_id``, its ``val`` and its test ``value``. Runs that validation puts above the MSE of the best constant
    image are left out, as on fronts.
    """
    from urc_sweep.show.facts import RATE, compressors
    from urc_sweep.show.gaps import matched_at

    points, keys = compressors(trials[trials["status"] == "done"]), [*RATE, "stage", "metric"]
    points, names = points[~points["worse_than_rate0"]], ("mse", matched_at(trials))
    each = pd.concat([points.assign(metric=name, val=points[f"val_{name}"], value=points[name]) for name in names])
    first = each[each["val"].notna()].sort_values("val", kind="stable").drop_duplicates(keys)
    return first.sort_values(keys, ignore_index=True)[[*keys, "trial_id", "val", "value"]]


def no_front(points: pd.DataFrame) -> str:
    """Return in words why none of these done trials, of ``facts.fronts``, is on a front."""
    if points.empty:
        return "no front yet: no compressor is trained"
    if points["worse_than_rate0"].all():
        return f"no front: all {len(points)} finished trials are worse than the best constant image"
    return "no front: no finished trial has a value on both axes"


def _ended(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that trained to an end, with ``share_s``: how long each had its pack's process to itself."""
    ended = trials[trials["finished_at"].notna() & trials["started_at"].notna()]
    occupied = (ended["finished_at"] - ended["started_at"]).dt.total_seconds().clip(lower=1e-3)
    return ended.assign(share_s=occupied / ended["pack_lanes"].fillna(1))


def _left_s(trials: pd.DataFrame, now: datetime) -> pd.Series[float]:
    """Return by index what each unfinished trial still needs of a pack's time, in seconds; NaN where nothing tells.

    The median, per epoch, of done trials of its stage, those with a critic apart; while a stage of compressors has
    none done, of all compressors. A running trial began, as far as the table shows, when another one ended.
    """
    state = states(trials)
    left = trials[state.isin(LEFT)]
    done = _ended(trials[trials["status"] == "done"])
    # A trial that was interrupted trained longer than its last attempt took.
    epoch_s = np.fmax(done["share_s"], done["wall_s"]) / done["epochs"].clip(lower=1)
    # What another sweep trained stands in until this one has its own; later entries win.
    known: dict[str, float] = {}
    for chosen in (done, done[done["cached_from"].isna()]):
        for kinds in _kinds(chosen):
            known |= epoch_s[chosen.index].groupby(kinds).median().to_dict()
    rough, exact = (kinds.map(known).astype("float64") for kinds in _kinds(left))
    whole = exact.fillna(rough) * left["epochs"].clip(lower=1)
    running = left.index[state[left.index] == "running"]
    lately = _ended(trials[trials["cached_from"].isna()]).nlargest(len(running), "finished_at")
    waited = (pd.Timestamp(now) - lately["finished_at"]).dt.total_seconds() / lately["pack_lanes"].fillna(1)
    spent = pd.Series(0.0, index=left.index)
    spent[running[: len(lately)]] = waited.clip(lower=0).to_numpy(float)
    # Nothing ended for twice as long as a trial takes: it was handed out by a later launch, perhaps just now.
    return (whole - spent.where(spent < 2 * whole, 0.0)).clip(lower=0)


def _kinds(trials: pd.DataFrame) -> tuple[pd.Series[str], pd.Series[str]]:
    """Return what trials take about the same time as each one, roughly and exactly."""
    critic = trials["lambda_p"].notna().map({True: "critic", False: "plain"})
    exact = trials["stage"] + " " + critic
    return critic.where(trials["dim"].notna(), exact), exact


def _steps(trial: Mapping[Any, Any]) -> float:
    """Return how many optimiser steps a trial took."""
    try:
        config = json.loads(trial["config_json"])
        images = find("dataset", config["dataset"]["name"]).facts["train"]
        return float(trial["epochs"] * math.ceil(images / config["train"]["batch_size"]))
    except (ValueError, KeyError, TypeError, SpecError):
        return math.nan
