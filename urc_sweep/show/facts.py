"""Facts of a sweep, as DataFrames: facts first, drawing second, so that every number is tested without a browser.

Invariant: which points form a front is decided on the ``val_*`` columns; every number that is reported is that
point's test value (science: choices on validation, tables and figures on test). What universality costs: ``gaps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from urc_sweep.maths.frontier import hypervolume, nondominated
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
        "fresh_critic_gap": "gap of a fresh critic",
        "critic_gap": "gap of the training critic (not comparable between models)",
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
# A front is of one rate, stage, seed and settings, and of one frozen encoder where there is one.
FRONT = [*RATE, "stage", "seed", "parent_id", "variant"]
# The point that no bits reach: MSE of the best constant image, H(S); of the test split.
REFERENCE = ["reference_mse", "reference_cross_entropy"]


def load(store: Store, sweep: str) -> pd.DataFrame:
    """Return the ``trials`` table of one sweep, one row per trial, units as in the store's schema."""
    return query.frame(query.trials(store, sweep))


def load_curves(store: Store, sweep: str) -> pd.DataFrame:
    """Return the ``curves`` table of one sweep: one row per (trial, epoch, split, metric)."""
    return query.frame(query.curves(store, sweep))


def compressors(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that have a rate, lowest rate first, then by stage, weight and seed.

    What is known of the trial whose encoder they use is beside them: ``parent_stage`` and ``parent_variant`` ("" where
    there is none), ``parent_lambda_d`` and ``parent_mse_centroid``.
    """
    points = trials[trials["dim"].notna()].astype({"dim": "int64", "levels": "int64"})
    points["variant"] = points["variant"].fillna("") if "variant" in points else ""  # the first release had none
    for name, missing in (("stage", ""), ("variant", ""), ("lambda_d", np.nan), ("mse_centroid", np.nan)):
        known = dict(zip(points["trial_id"], points[name], strict=True))
        points[f"parent_{name}"] = [known.get(parent, missing) for parent in points["parent_id"]]
    order = ["rate_bits", "dim", "stage", "parent_lambda_c", "lambda_c", "seed"]
    return points.sort_values(order, kind="stable", ignore_index=True)


def anchor(points: pd.DataFrame, name: str) -> pd.Series[float]:
    """Return the anchor ``metrics[name]`` of each point's data set (end-to-end trials carry them).

    ``mse_rate0`` and ``mse_kmeans``: MSE per pixel; ``label_entropy``: H(S) in nats; ``val_*`` of the validation split.
    That of k-means is the rate's own, and missing at rates without end-to-end trials (refined, reduced).
    """
    own = [metrics.get(name) if isinstance(metrics, dict) else None for metrics in points["metrics"]]
    values = pd.Series(own, index=points.index, dtype="float64")
    keys = [points[key] for key in ("dataset", *(RATE if name == "mse_kmeans" else ()))]
    return values.groupby(keys).transform("first")


def oriented(points: pd.DataFrame, axes: Sequence[str], prefix: str = "") -> NDArray[np.float64]:
    """Return the columns ``prefix + axis`` as (n, axes) with larger-is-better ones negated: all to be minimised."""
    columns = [points[prefix + axis].to_numpy(float) * (-1 if axis in LARGER_IS_BETTER else 1) for axis in axes]
    return np.column_stack(columns)


def fronts(trials: pd.DataFrame, x: str = "mse", y: str = "cross_entropy") -> pd.DataFrame:
    """Return the done compressor trials with the columns ``on_front``, ``worse_than_rate0`` and the ``REFERENCE``.

    Membership in the front over (x, y) is decided on validation, per rate, stage, seed, frozen encoder and variant. A
    run whose validation MSE is above that of the best constant image is flagged and on no front.
    """
    points = compressors(trials).query("status == 'done'").reset_index(drop=True)
    points["worse_than_rate0"] = points["val_mse"] > anchor(points, "val_mse_rate0")
    points["reference_mse"] = anchor(points, "mse_rate0")
    points["reference_cross_entropy"] = anchor(points, "label_entropy")
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
    keys = [*RATE, "stage", "parent_lambda_c", "seed", "parent_id", "parent_stage", "parent_variant", "variant"]
    rows = []
    # A joint trial is an encoder without a reconstruction: its decoders have the front.
    needed = [*keys, *REFERENCE, "mse", "cross_entropy", "on_front"]  # cutting all columns apart would take seconds
    for key, group in points.loc[points["mse"].notna(), needed].groupby(keys, dropna=False):
        reference = group[REFERENCE].iloc[0].to_numpy(float)
        front = oriented(group[group["on_front"]], ["mse", "cross_entropy"])
        volume = hypervolume(front, reference) if np.isfinite(reference).all() else float("nan")
        rows.append([*key, len(front), volume, *reference])
    return pd.DataFrame(rows, columns=[*keys, "points", "hypervolume", *REFERENCE])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def encoders(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what each trained encoder kept, test split: facts that no decoder can change. No frozen ones.

    ``mse`` against ``mse_centroid`` (per pixel) splits a distortion into what the encoder lost and what the decoder
    failed to learn; ``latent_label_entropy`` H(S|Z,U) in nats; ``index_entropy_bits`` H(Z|U).
    """
    facts = ["mse", "mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"]
    points = fronts(trials)
    columns = ["trial_id", *RATE, "seed", *WEIGHTS, *facts, "worse_than_rate0", "stage", "variant"]
    return points.loc[points["stage"].isin(["end_to_end", "control", "joint"]), columns].reset_index(drop=True)


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
