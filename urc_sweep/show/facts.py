"""Facts of a sweep, as DataFrames: facts first, drawing second, so that every number is tested without a browser.

Invariant: which points form a front, and which point a penalty picks, is decided on the ``val_*`` columns; every
number that is reported is that point's test value (science: choices on validation, tables and figures on test).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from urc_sweep.maths.frontier import hypervolume, nondominated
from urc_sweep.maths.penalty import paired_interval, pick
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.store import query
from urc_sweep.store.commits import Store

# What a frontier can be drawn over, with its unit; the order is the order of the report's menus.
AXES: Mapping[str, str] = MappingProxyType(
    {
        "mse": "MSE per pixel",
        "psnr_db": "PSNR [dB]",
        "ssim": "SSIM",
        "cross_entropy": "cross-entropy of c(x̂) [nats]",
        "accuracy": "accuracy of c(x̂)",
        "heldout_cross_entropy": "cross-entropy, held-out classifier [nats]",
        "heldout_accuracy": "accuracy, held-out classifier",
        "sliced_w2": "sliced W2 distance [pixel scale]",
        "index_entropy_bits": "index entropy H(Z|U) [bits]",
        "mse_centroid": "MSE of the best decoder on this encoder",
        "latent_label_entropy": "label entropy given the latent H(S|Z,U) [nats]",
        "latent_accuracy": "accuracy from the latent",
    }
)
LARGER_IS_BETTER = frozenset({"accuracy", "ssim", "psnr_db", "heldout_accuracy", "latent_accuracy"})

STATUSES = ("done", "running", "pending", "stopped", "failed", "diverged", "oom", "skipped")
FAILURES = ("failed", "diverged", "oom", "skipped")
RATE = ["dim", "levels", "rate_bits"]
WEIGHTS = ["lambda_c", "lambda_d", "lambda_p"]
ENCODER = ["parent_lambda_c", "parent_lambda_d", "parent_lambda_p"]
# A front is of one rate, stage and seed, and of one frozen encoder where there is one.
FRONT = [*RATE, "stage", "seed", "parent_id"]


def load(store: Store, sweep: str) -> pd.DataFrame:
    """Return the ``trials`` table of one sweep, one row per trial, units as in the store's schema."""
    return query.frame(query.trials(store, sweep))


def load_curves(store: Store, sweep: str) -> pd.DataFrame:
    """Return the ``curves`` table of one sweep: one row per (trial, epoch, split, metric)."""
    return query.frame(query.curves(store, sweep))


def compressors(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that have a rate (end-to-end, universal), lowest rate first, then by stage, weight and seed."""
    points = trials[trials["dim"].notna()].astype({"dim": "int64", "levels": "int64"})
    order = ["rate_bits", "dim", "stage", "parent_lambda_c", "lambda_c", "seed"]
    return points.sort_values(order, kind="stable", ignore_index=True)


def anchor(points: pd.DataFrame, name: str) -> pd.Series[float]:
    """Return the anchor ``metrics[name]`` of each point's data set and rate (end-to-end trials carry them).

    ``mse_rate0`` and ``mse_kmeans``: MSE per pixel; ``label_entropy``: H(S) in nats; ``val_*`` of the validation split.
    """
    own = [metrics.get(name) if isinstance(metrics, dict) else None for metrics in points["metrics"]]
    values = pd.Series(own, index=points.index, dtype="float64")
    return values.groupby([points[key] for key in ("dataset", "dim", "levels")]).transform("first")


def oriented(points: pd.DataFrame, axes: Sequence[str], prefix: str = "") -> NDArray[np.float64]:
    """Return the columns ``prefix + axis`` as (n, axes) with larger-is-better ones negated: all to be minimised."""
    columns = [points[prefix + axis].to_numpy(float) * (-1 if axis in LARGER_IS_BETTER else 1) for axis in axes]
    return np.column_stack(columns)


def fronts(trials: pd.DataFrame, x: str = "mse", y: str = "cross_entropy") -> pd.DataFrame:
    """Return the done compressor trials with the columns ``on_front`` and ``worse_than_rate0``.

    Membership in the front over (x, y) is decided on validation, per rate, stage, seed and frozen encoder. A run
    whose validation MSE is above that of the best constant image is flagged and on no front.
    """
    points = compressors(trials[trials["status"] == "done"])
    points["worse_than_rate0"] = points["val_mse"] > anchor(points, "val_mse_rate0")
    points["on_front"] = False
    eligible = points.loc[~points["worse_than_rate0"], [*FRONT, *{f"val_{x}", f"val_{y}"}]]
    for _, group in eligible.groupby(FRONT, dropna=False):
        points.loc[group.index, "on_front"] = nondominated(oriented(group, [x, y], "val_"))
    return points


def hypervolumes(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the hypervolume of every front in (mse, cross_entropy), unit MSE x nats, of its points' test values.

    The reference point is what no bits reach: (MSE of the best constant image, H(S)), of the test split; it is the
    same for all fronts of a data set, so hypervolumes of one sweep may be compared. Missing reference: NaN.
    """
    points = fronts(trials)
    points["reference_mse"] = anchor(points, "mse_rate0")
    points["reference_cross_entropy"] = anchor(points, "label_entropy")
    keys = [*RATE, "stage", "parent_lambda_c", "seed", "parent_id"]
    ends = ["reference_mse", "reference_cross_entropy"]
    rows = []
    for key, group in points[[*keys, *ends, "on_front", "mse", "cross_entropy"]].groupby(keys, dropna=False):
        reference = group[ends].iloc[0].to_numpy(float)
        front = oriented(group[group["on_front"]], ["mse", "cross_entropy"])
        volume = hypervolume(front, reference) if np.isfinite(reference).all() else float("nan")
        rows.append([*key, len(front), volume, *reference])
    return pd.DataFrame(rows, columns=[*keys, "points", "hypervolume", *ends])


def penalties(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the distortion penalty of universality at matched cross-entropy, one row per constraint.

    Per rate, base encoder and end-to-end weight, and per seed: C is that end-to-end trial's validation cross-entropy,
    D(C) = min{mse : cross-entropy <= C} is read off the end-to-end and the universal front, penalty = D_uni - D_e2e
    (MSE per pixel, test). Averaged over the seeds at which the universal front reaches C (``seeds`` of ``of_seeds``)
    with a paired 95 % interval; ``infeasible`` where none does. Trials without a classification term are left out.
    """
    pairs = pd.DataFrame(_pairs(fronts(trials), trials), columns=_PAIR)
    rows = []
    for key, every in pairs.groupby([*RATE, *ENCODER, *WEIGHTS], dropna=False):
        feasible = every[every["mse_universal"].notna()]
        # Every number of a row is over the same seeds, so that its columns subtract.
        used = feasible if len(feasible) else every
        interval = paired_interval(
            (feasible["mse_universal"] - feasible["mse_end_to_end"]).to_numpy(float), stream(FIXED_SEED, "bootstrap")
        )
        base = used["mse_end_to_end"].mean()
        row = dict(zip([*RATE, *ENCODER, *WEIGHTS], key, strict=True))
        row |= {"constraint": used["constraint"].mean(), "mse_end_to_end": base}
        row |= {"mse_universal": used["mse_universal"].mean(), "penalty": interval.mean}
        row |= {"penalty_percent": 100 * interval.mean / base, "low": interval.low, "high": interval.high}
        row |= {"seeds": interval.n, "of_seeds": len(every), "infeasible": interval.n == 0}
        rows.append(row)
    return pd.DataFrame(rows, columns=PENALTY).astype({"low": "float64", "high": "float64", "infeasible": "bool"})


_PAIR = [*RATE, *ENCODER, *WEIGHTS, "seed", "constraint", "mse_end_to_end", "mse_universal"]
PENALTY = [
    *(*RATE, "parent_lambda_c", "lambda_c", "constraint", "mse_end_to_end", "mse_universal"),
    *("penalty", "penalty_percent", "low", "high", "seeds", "of_seeds", "infeasible"),
    *("lambda_d", "lambda_p", "parent_lambda_d", "parent_lambda_p"),
]


def _pairs(points: pd.DataFrame, trials: pd.DataFrame) -> Iterator[list[Any]]:
    """Yield one row per (end-to-end trial, frozen encoder of its rate and seed): the two test MSE at its C."""
    used = [*RATE, *WEIGHTS, "seed", "stage", "parent_id", *ENCODER[::2], "mse", "val_mse", "val_cross_entropy"]
    points = points.loc[points["lambda_c"].notna() & ~points["worse_than_rate0"], used]
    weight_of = trials.set_index("trial_id")["lambda_d"].to_dict()
    points = points.assign(parent_lambda_d=points["parent_id"].map(weight_of).astype("float64"))
    for _, cell in points.groupby([*RATE, "seed"]):
        end_to_end = cell[cell["stage"] == "end_to_end"]
        for _, universal in cell[cell["stage"] == "universal"].groupby("parent_id"):
            encoder = universal[ENCODER].iloc[0].tolist()
            for target in records(end_to_end):
                constraint = target["val_cross_entropy"]
                base = _test_mse_at(constraint, end_to_end)
                if np.isfinite(constraint) and base is not None:
                    reached = _test_mse_at(constraint, universal)
                    own = [target[name] for name in (*RATE, *WEIGHTS, "seed")]
                    yield [*own[:3], *encoder, *own[3:], constraint, base, reached]


def _test_mse_at(constraint: float, front: pd.DataFrame) -> float | None:
    """Return the test MSE of the point that validation picks at a constraint, ``None`` if none meets it there."""
    index = pick(constraint, front["val_mse"].to_numpy(float), front["val_cross_entropy"].to_numpy(float))
    return None if index is None else float(front["mse"].to_numpy(float)[index])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def encoders(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what each end-to-end trial's encoder kept, test split: facts that no decoder can change.

    ``mse`` against ``mse_centroid`` (per pixel) splits a distortion into what the encoder lost and what the decoder
    failed to learn; ``latent_label_entropy`` H(S|Z,U) in nats; ``index_entropy_bits`` H(Z|U).
    """
    facts = ["mse", "mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"]
    points = fronts(trials)
    columns = ["trial_id", *RATE, "seed", *WEIGHTS, *facts, "worse_than_rate0"]
    return points.loc[points["stage"] == "end_to_end", columns].reset_index(drop=True)


def near_floors(trials: pd.DataFrame) -> pd.DataFrame:
    """Return ``mse_kmeans`` per rate: MSE of k-means with 2^R codewords, a near-floor of the test MSE, not a bound."""
    points = compressors(trials)
    points["mse_kmeans"] = anchor(points, "mse_kmeans")
    return points.loc[points["mse_kmeans"].notna(), [*RATE, "mse_kmeans"]].drop_duplicates(ignore_index=True)


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that ended without a result, and why."""
    columns = ["trial_id", "stage", *RATE, "seed", *WEIGHTS, "parent_lambda_c", "status", "attempt"]
    columns += ["error_type", "error_message", "host"]
    return trials.loc[trials["status"].isin(FAILURES), columns].reset_index(drop=True)


def progress(trials: pd.DataFrame) -> pd.DataFrame:
    """Return how many trials of each stage (rows, in plan order) have each status (columns)."""
    counts = trials.groupby(["stage", "status"], sort=False).size().unstack(fill_value=0)
    known = [status for status in STATUSES if status in counts.columns]
    return counts[known + [status for status in counts.columns if status not in known]]
