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

from urc_sweep.maths.frontier import attainment, hypervolume, nondominated
from urc_sweep.maths.penalty import FEWEST_PAIRS
from urc_sweep.plan import registry
from urc_sweep.show.grid import FAILURES
from urc_sweep.store import query
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import LAMBDAS

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
        "rate_bits": "rate [bits per image]",
        "bits_per_pixel": "rate [bits per pixel]",
    }
)
# In the map of further metrics: anchors and errors, which are no axes.
_NO_AXES = ("_se", "_floor", "mse_rate0", "mse_kmeans", "label_entropy")
RATE_AXES = frozenset({"rate_bits", "bits_per_pixel"})
# Words of a metric's name. Those of plugins too: a table is read without the code that made it.
LARGER_IS_BETTER = frozenset({"accuracy", "auc", "auroc", "f1", "iou", "psnr", "ssim"})

STATUSES = ("done", "running", "pending", "stopped", *FAILURES)
RATE = ["dim", "levels", "rate_bits"]
WEIGHTS = ["lambda_c", "lambda_d", "lambda_p"]
OBJECTIVE = [*WEIGHTS, "terms"]  # trials that differ in these are no seeds of each other
ENCODER = [f"parent_{name}" for name in OBJECTIVE]
# What sets an encoder that others use apart from those that differ by their seed alone.
PARENT = [*ENCODER, "parent_stage", "parent_variant", "reduced_from"]
# A front is of one sweep, rate, stage, seed and settings, and of one frozen encoder where there is one.
FRONT = ["sweep", *RATE, "stage", "seed", "parent_id", "variant"]
# Over an axis that is a rate it is of all rates; encoders of two rates are alike if they were trained alike.
FRONT_OF_RATES = ["sweep", "stage", "seed", *PARENT, "variant"]
SHARES = (0.25, 0.5, 0.75)  # of the seeds: what a band is between, and its middle
# The zero-rate point: MSE of the best constant image, H(S); of the test split.
REFERENCE = ["reference_mse", "reference_cross_entropy"]
_ANCHORS = dict(zip(REFERENCE, ["mse", "cross_entropy"], strict=True))
# Whose weights a trial's decoder began with.
_BEGUN = r'"init\.decoder": "([0-9a-f]{64})"'
_REAL = {f"{name}_floor": name for name in ("sliced_w2", "fresh_critic_gap")}
# What an encoder kept, and the metric of any decoder on it that this bounds.
_BOUNDS = {"mse_centroid": "mse", "latent_label_entropy": "cross_entropy", "latent_accuracy": "accuracy"}


def load(store: Store, sweeps: str | Sequence[str]) -> pd.DataFrame:
    """Return the ``trials`` table of one sweep, or of several stacked (column ``sweep``), units as in the schema."""
    return query.frame(query.trials(store, sweeps))


def load_curves(store: Store, sweeps: str | Sequence[str], trial_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the ``curves`` of sweeps, one row per (trial, epoch, split, metric); of these trials alone if given."""
    return query.frame(query.curves(store, sweeps, trial_ids))


def compressors(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that have a rate, lowest rate first, then by stage, weight and seed; with facts beside them.

    ``terms``: weights of further terms of the objective, in words (``edges 0.1``). Of the trial whose encoder they use:
    ``parent_stage``, ``parent_variant`` and ``parent_terms`` ("" where there is none), ``parent_lambda_d``,
    ``parent_mse_centroid``; of a reduced one, ``reduced_from``: that rate in bits. Of the data:
    ``bits_per_pixel`` (NaN where its images' size is not planned), the ``REFERENCE``, and by it ``worse_than_rate0``: a
    validation MSE above that of the best constant image.
    Of the map ``metrics``: those of plugins and further label sets.
    A table that has them is returned as it is: what all facts need is then computed once.
    """
    if "worse_than_rate0" in trials:
        return trials
    points = trials[trials["dim"].notna()].astype({"dim": "int64", "levels": "int64"}).reset_index(drop=True)
    points["sweep"] = points.get("sweep", "")
    points["variant"] = points["variant"].fillna("") if "variant" in points else ""  # the first release had none
    points["terms"] = [*map(_terms, points["weights"])]
    place = {key: row for row, key in enumerate(zip(points["sweep"], points["trial_id"], strict=True))}
    parents, begun = (
        [place.get(key, -1) for key in zip(points["sweep"], ids, strict=True)]
        for ids in (points["parent_id"], points["config_json"].str.extract(_BEGUN)[0])
    )
    # Two warm starts are two settings, but the table's variant only says that they are warm.
    for row in np.flatnonzero((np.array(begun) >= 0) & (np.array(begun) != parents)):
        source = points[OBJECTIVE].iloc[begun[row]].dropna()
        told = " ".join([f"{name[-1]} {source[name]:g}" for name in WEIGHTS if name in source] + [source["terms"]])
        known = points["variant"].iloc[row]
        known = known if "init given" in known else f"{known}, init given".removeprefix(", ")
        points.loc[row, "variant"] = known.replace("init given", f"init {told}".strip())
    for name in ("stage", "variant", "terms", "lambda_d", "mse_centroid", "config_json", "rate_bits"):
        missing = "" if name in ("stage", "variant", "terms") else np.nan
        points[f"parent_{name}"] = points[name].reindex(parents, fill_value=missing).array
    # Reduced codes of one rate may be parts of codes of two.
    points["reduced_from"] = points.pop("parent_rate_bits").where(points["stage"] == "reduced")
    known = {data.name: data.facts["image"] for data in registry.of_kind("dataset") if "image" in data.facts}
    pixels = points["dataset"].map({name: float(height * width) for name, (_, height, width) in known.items()})
    points["bits_per_pixel"] = points["rate_bits"] / pixels.astype("float64")
    points[["val_rate_bits", "val_bits_per_pixel"]] = points[["rate_bits", "bits_per_pixel"]]  # of every split
    new = [axis for axis in _further(points) if not {axis, f"val_{axis}"} & {*points}]  # a name of ours stays ours
    further = [name for axis in new for name in (axis, f"val_{axis}")]
    values = {name: [metrics.get(name) if metrics else None for metrics in points["metrics"]] for name in further}
    points = pd.concat([points, pd.DataFrame(values, points.index, dtype="float64")], axis=1)
    points["reference_mse"] = anchor(points, "mse_rate0")
    points["reference_cross_entropy"] = anchor(points, "label_entropy")
    points["worse_than_rate0"] = points["val_mse"] > anchor(points, "val_mse_rate0")
    order = ["rate_bits", "dim", "stage", "parent_lambda_c", "lambda_c", "terms", "seed"]
    return points.sort_values(order, kind="stable", ignore_index=True)


def _terms(weights: Any) -> str:
    told = weights.items() if isinstance(weights, dict) else ()
    return " ".join(f"{name} {weight:g}" for name, weight in sorted(told) if name not in LAMBDAS.values())


def _further(points: pd.DataFrame) -> list[str]:
    maps = [metrics for metrics in points["metrics"] if isinstance(metrics, dict)]
    told = {name for metrics in maps for name in metrics if f"val_{name}" in metrics}
    return sorted(name for name in told - AXES.keys() if not name.endswith(_NO_AXES))


def axes(points: pd.DataFrame) -> dict[str, str]:
    """Return what a frontier of these ``compressors`` can be drawn over, and its label: also plugins' metrics."""
    known = {axis: label for axis, label in AXES.items() if points[axis].notna().any()}
    extra = [name for name in _further(points) if {name, f"val_{name}"} <= {*points}]
    return known | {n: f"{n.replace('_', ' ')} ({'more' if larger_is_better(n) else 'less'} is better)" for n in extra}


def larger_is_better(axis: str) -> bool:
    """Return whether more of a metric is better: where a word of its name is of ``LARGER_IS_BETTER``."""
    return not LARGER_IS_BETTER.isdisjoint(axis.lower().split("_"))


def anchor(points: pd.DataFrame, name: str) -> pd.Series[float]:
    """Return the anchor ``metrics[name]`` of each point's data set (end-to-end trials carry them).

    ``mse_rate0``, and ``mse_kmeans`` of k-means with 2^R codewords: MSE per pixel; ``label_entropy``: H(S) in nats;
    ``val_*`` of the validation split. That of k-means is the rate's own, and missing at rates without end-to-end trials
    (refined, reduced).
    """
    own = [metrics.get(name) if isinstance(metrics, dict) else None for metrics in points["metrics"]]
    values = pd.Series(own, index=points.index, dtype="float64")
    keys = [points[key] for key in ("sweep", "dataset", *(RATE if name == "mse_kmeans" else ()))]
    return values.groupby(keys).transform("first")


def oriented(points: pd.DataFrame, axes: Sequence[str], prefix: str = "") -> NDArray[np.float64]:
    """Return the columns ``prefix + axis`` as (n, axes) with larger-is-better ones negated: all to be minimised."""
    columns = [points[prefix + axis].to_numpy(float) * (-1 if larger_is_better(axis) else 1) for axis in axes]
    return np.column_stack(columns)


def cells(table: pd.DataFrame, keys: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the positions of each group's rows, groups in the order of their keys; a missing key is a key.

    Positions are cheap: cutting a table of a hundred columns apart by the hundred takes seconds.
    """
    number = table.groupby(list(keys), dropna=False).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []


def fronts(trials: pd.DataFrame, x: str = "mse", y: str = "cross_entropy") -> pd.DataFrame:
    """Return the done compressor trials with the facts of ``compressors`` and the column ``on_front``.

    Membership in the front over (x, y) is decided on validation, per sweep, rate, stage, seed, frozen encoder and
    variant; with a rate as an axis, over all rates. A run that is ``worse_than_rate0`` is on no front.
    """
    points = compressors(trials)
    if not (done := points["status"] == "done").all():  # of those that are, no copy
        points = points[done].reset_index(drop=True)
    member = np.zeros(len(points), dtype=bool)
    values = np.where(points[["worse_than_rate0"]], np.nan, oriented(points, [x, y], "val_"))
    for cell in cells(points, FRONT_OF_RATES if RATE_AXES & {x, y} else FRONT):
        member[cell] = nondominated(values[cell])
    return points.assign(on_front=member)


def hypervolumes(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the hypervolume of every front in (mse, cross_entropy), unit MSE x nats, of its points' test values.

    The reference is the zero-rate point: (MSE of the best constant image, H(S)), of the test split; it is the
    same for all fronts of a data set, so hypervolumes of one sweep may be compared. Missing reference: NaN.
    """
    points = fronts(trials)
    points = points[points["mse"].notna()]  # a joint trial is an encoder without a reconstruction
    keys = ["sweep", *RATE, "stage", *PARENT, "seed", "parent_id", "variant"]
    values, member = oriented(points, ["mse", "cross_entropy"]), points["on_front"].to_numpy()
    told, rows = points[[*keys, *REFERENCE]], []
    for cell in cells(points, keys):
        front, (*key, mse, entropy) = values[cell[member[cell]]], told.iloc[cell[0]]
        corner = np.array([mse, entropy])
        volume = hypervolume(front, corner) if np.isfinite(corner).all() else np.nan
        rows.append([*key, len(front), volume, *corner])
    return pd.DataFrame(rows, columns=[*keys, "points", "hypervolume", *REFERENCE])


def bands(trials: pd.DataFrame, x: str = "mse", y: str = "cross_entropy") -> pd.DataFrame:
    """Return how far fronts reach over seeds: the corners of attainment surfaces, test values of validation's fronts.

    Per sweep, rate, stage, encoder's weights and variant, one row per corner of the region that at least ``share``
    (``SHARES``) of the ``seeds`` reach, from its best x on (Fonseca, Guerreiro, Lopez-Ibanez, Paquete 2011).
    Under three seeds there is none. With a rate as an axis it is of all rates; ``RATE`` is then missing.
    """
    points = fronts(trials, x, y)
    keys = ["sweep", *([] if RATE_AXES & {x, y} else RATE), "stage", *PARENT, "variant"]
    sign = np.array([-1.0 if larger_is_better(axis) else 1.0 for axis in (x, y)])
    values = np.where(points[["on_front"]], oriented(points, [x, y]), np.nan)
    seed, told, rows = points["seed"].to_numpy(), points[keys], []
    for cell in cells(points, keys):
        seeds = len(np.unique(seed[cell]))
        for share in SHARES if seeds >= FEWEST_PAIRS else ():
            corners, first = sign * attainment(values[cell], seed[cell], share), [*told.iloc[cell[0]], seeds, share]
            rows += [[*first, *corner] for corner in corners.tolist()]
    columns = ["sweep", *RATE, "stage", *PARENT, "variant", "seeds", "share", "x", "y"]
    return pd.DataFrame(rows, columns=[*keys, *columns[-4:]]).reindex(columns=columns)


def overlays(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what theory and anchors say beside the points, test split: one row per ``overlay`` and ``metric``.

    ``kind`` is ``bound`` (what no decoder on an encoder that other decoders use can beat; ``overlay`` is the encoder's
    trial id), ``near-floor`` (k-means at a rate; real against real) or ``achievable`` (the zero-rate point). Rows of
    one sweep and ``overlay`` are one place; ``RATE`` is missing where it is of no rate. Units as in ``AXES``.
    """
    points = compressors(trials)
    points = points.assign(**{name: anchor(points, name) for name in ("mse_kmeans", *_REAL)})
    used = points.loc[points["stage"].isin(["universal", "joint_decoder"]), "parent_id"].unique()
    encoder = points[points["trial_id"].isin(used)]
    each, once = (points.drop_duplicates(["sweep", *keys]) for keys in (RATE, ["dataset"]))
    once = once.assign(dim=np.nan, levels=np.nan, rate_bits=np.nan)
    codewords = "k-means " + each["dim"].astype(str) + " " + each["levels"].astype(str)
    keys, parts = ["sweep", "overlay", "kind", "label", *RATE], []
    for kind, label, overlay, table, names in (
        ("bound", "bound of this encoder, up to sampling of its cells", encoder["trial_id"], encoder, _BOUNDS),
        ("near-floor", "k-means near-floor (not a bound)", codewords, each, {"mse_kmeans": "mse"}),
        ("near-floor", "real against real", "real", once, _REAL),
        ("achievable", "zero rate: best constant image, H(S)", "zero rate", once.assign(rate_bits=0.0), _ANCHORS),
    ):
        told = table.assign(kind=kind, label=label, overlay=overlay)[[*keys, *names]].rename(columns=names)
        parts.append(told.melt(keys, var_name="metric").dropna(subset="value"))
    return pd.concat(parts, ignore_index=True)


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
    columns = ["sweep", "trial_id", *RATE, "seed", *OBJECTIVE, *facts, "worse_than_rate0", "stage", "variant"]
    return points.loc[points["stage"].isin(["end_to_end", "control", "joint"]), columns].reset_index(drop=True)


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that ended without a result, and why."""
    columns = ["sweep", "trial_id", "stage", *RATE, "seed", *WEIGHTS, "parent_lambda_c", "status", "attempt"]
    columns += ["error_type", "error_message", "host"]
    told = trials.assign(sweep=trials.get("sweep", ""))
    return told.loc[told["status"].isin(FAILURES), columns].reset_index(drop=True)
