"""What universality costs, and why: penalties, their split, rate penalties, the decisive study, two sweeps compared.

Invariant: a universal front is judged only by end-to-end trials of its rate, its seed and its encoder's settings. Its
members, and the points that are picked at a constraint, are decided on the ``val_*`` columns; every number that is
reported is a test value, a mean over paired seeds with how many they were and their 95 % interval.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd

from urc_sweep.errors import SpecError, StoreError, choices
from urc_sweep.maths import penalty
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.show.facts import ENCODER, RATE, REFERENCE, WEIGHTS, compressors, fronts, oriented, records
from urc_sweep.store.tables import LAMBDAS

Names = Sequence[str]

# What may be matched, and the weight of the term that it constrains: trials without that term are another study's.
LABELLED = ("cross_entropy", "accuracy", "heldout_cross_entropy", "heldout_accuracy")
CONSTRAINTS = dict.fromkeys(LABELLED, "lambda_c") | dict.fromkeys(("sliced_w2", "fresh_critic_gap"), "lambda_p")
UNIVERSAL = ("universal", "joint_decoder")
# What makes one base encoder, and one family of its decoders; the same in every seed.
ENCODED = ["stage", "parent_stage", "parent_variant", *ENCODER]
BASE = [*RATE, *ENCODED, "variant"]
FRONT_AXES = ["mse", "cross_entropy"]
# What is read of a point: fronts are cut out by the hundred, at a price for each column that the table has.
_READ = [*BASE, *WEIGHTS, *REFERENCE, *FRONT_AXES, "val_mse", "val_cross_entropy", "mse_centroid"]
_READ += ["parent_mse_centroid", "trial_id", "parent_id", "seed", "on_front"]
COMPARED = ["mse", "cross_entropy", "accuracy", "sliced_w2"]
ASKED = "lambda scale", "batch norm", "encoder optimisation: gradient", "encoder optimisation: epochs", "universality"
SCALE, BATCH_NORM, GRADIENT, EPOCHS, UNIVERSALITY = ASKED


def weights(row: Mapping[str, Any], prefix: str = "") -> str:
    """Return an objective in words: ``c 0.015 p 0.001``; the weight of distortion where it is not 1."""
    told = [(name, row.get(f"{prefix}lambda_{name}")) for name in "dcp"]
    return " ".join(f"{name} {value:g}" for name, value in told if pd.notna(value) and (name, value) != ("d", 1))


def encoder(row: Mapping[str, Any]) -> str:
    """Return in words whose encoder a universal front is on, and its settings where they are not the plain ones."""
    stage = str(row.get("parent_stage") or "").replace("end_to_end", "")
    words = ["frozen" if stage and row["stage"] == "universal" else "", stage, weights(row, "parent_")]
    told = [*words, row.get("parent_variant"), row.get("variant")]
    return " ".join(dict.fromkeys(word for word in told if word and isinstance(word, str)))


def matched_at(trials: pd.DataFrame) -> str:
    """Return what a sweep's penalties are matched at unless somebody says otherwise: what its objectives trade."""
    traded = trials["lambda_c"].notna().any() or not trials["lambda_p"].notna().any()
    return "cross_entropy" if traded else "sliced_w2"


def obstacle(trials: pd.DataFrame, at: str = "cross_entropy") -> str | None:
    """Return in one line what a penalty still needs, ``None`` if it can be told."""
    points, term = _points(trials, at), LAMBDAS[CONSTRAINTS[at]]
    known = points[points[f"val_{at}"].notna()]
    sizes = known.groupby(["stage", *RATE, "seed", "parent_id", "variant"], dropna=False).size().groupby("stage").max()
    for stage, names in (("end_to_end", ["end_to_end"]), ("universal", [*UNIVERSAL])):
        most = sizes.reindex(names, fill_value=0).max()
        if not most:
            return f"no penalty yet: it needs finished end-to-end and universal trials with a {term} term and {at}"
        if most < penalty.FEWEST_POINTS:
            change = f"give objective.{term} of stage {stage} more weights"
            return f"no penalty: a front needs at least two points, those of {stage} trials have one; {change}"
    return None if any(_matched(points)) else "no penalty: no universal trial shares rate and seed with end-to-end ones"


def penalties(trials: pd.DataFrame, at: str = "cross_entropy") -> pd.DataFrame:
    """Return the distortion penalty of universality at a matched constraint, one row per constraint.

    Per rate, base encoder and end-to-end weight, and per seed: C is that end-to-end trial's validation value of
    ``at`` (one of ``CONSTRAINTS``), D(C) = min{mse : at <= C} (>= where larger is better) is read off the end-to-end
    and the universal front, penalty = D_uni - D_e2e (MSE per pixel, test). Averaged over the seeds at which the
    universal front reaches C (``seeds`` of ``of_seeds``) with a paired 95 % interval; ``infeasible`` where none does.
    Trials whose objective lacks the term that the constraint is on are left out.
    """
    means = ["constraint", "mse_end_to_end", "mse_universal"]
    table = _averaged(_pairs(trials, at), [*BASE, *WEIGHTS], ["penalty"], means)
    percent = 100 * table["penalty"] / table["mse_end_to_end"]
    return table.assign(penalty_percent=percent, infeasible=table["seeds"] == 0)


def splits(trials: pd.DataFrame, at: str = "cross_entropy") -> pd.DataFrame:
    """Return where each gap of ``penalties`` comes from, MSE per pixel: ``gap`` = ``encoder`` + ``decoder``, exactly.

    Per seed, at the same constraint and of the same two points: encoder = mse_centroid(base encoder) -
    mse_centroid(end-to-end), what the base encoder lost; decoder = the rest, what decoders failed to learn. Seeds at
    which the universal front misses the constraint, and encoders without mse_centroid, are left out. The floor is that
    of evaluation mode: under ``frozen_batchnorm: batch``, what the batches change counts as the decoder's.
    """
    pairs = _pairs(trials, at).dropna(subset=["penalty", "base_centroid", "own_centroid"])
    read = pairs[["mse_universal", "mse_end_to_end", "base_centroid", "own_centroid"]].to_numpy(float).T
    pairs["gap"], (pairs["encoder"], pairs["decoder"]) = pairs["penalty"], penalty.split_gap(*read)
    return _averaged(pairs, [*BASE, *WEIGHTS], ["gap", "encoder", "decoder"], ["constraint"])


def rate_penalties(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what universality costs in bits, per rate R and base encoder: A(Omega(R)) and the profile.

    ``rate_penalty``: A = min{R' : decoders of one rate-R' encoder dominate every end-to-end point of rate R} - R in
    (mse, cross-entropy), over the ``rates`` at which this base encoder has decoders. ``profile_max`` and
    ``profile_mean`` of r_i = R - R_e2e(D_i, C_i) over the points of its front: end-to-end fronts interpolated over
    ``end_to_end_rates``, never extrapolated, so only a share ``placed`` of the points counts. ``status`` and
    ``profile_status`` name what is missing: with ``needs lower rates`` A is an upper bound, profile_max a lower one.
    """
    matched = list(_matched(_points(trials, "cross_entropy")))
    families = [(front["seed"].iloc[0], encoder(dict(front.iloc[0]))) for _, _, front in matched]
    reached_by = [(_rate(front), oriented(front, FRONT_AXES)) for _, _, front in matched]
    rows = []
    for family, (others, own, decoders) in zip(families, matched, strict=True):
        if len(own) < penalty.FEWEST_POINTS:
            continue
        encoders = [points for other, points in zip(families, reached_by, strict=True) if other == family]
        ends = [end for _, end in others.groupby("rate_bits")]
        rates = [_rate(end) for end in ends]
        needed = []
        for mse, level in decoders.loc[decoders["on_front"], ["mse", "val_cross_entropy"]].to_numpy(float):
            reached = [_read(level, end, "cross_entropy")[0] for end in ends]
            needed.append(penalty.rate_needed(mse, np.array(rates), np.array(reached)))
        value, word = penalty.rate_penalty(_rate(decoders), oriented(own, FRONT_AXES), encoders)
        profile = _rate(decoders) - pd.Series([bits for bits, _ in needed], dtype="float64")
        measured = [value, profile.max(), profile.mean(), profile.notna().mean()]
        told = [word, _words(word for _, word in needed), _bits(bits for bits, _ in encoders), _bits(rates)]
        rows.append([*decoders[BASE].iloc[0], *measured, *told])
    values = ["rate_penalty", "profile_max", "profile_mean"]
    words = ["status", "profile_status", "rates", "end_to_end_rates"]
    return _averaged(pd.DataFrame(rows, columns=[*BASE, *values, "placed", *words]), BASE, values, ["placed"], words)


def hypervolume_ratios(trials: pd.DataFrame) -> pd.DataFrame:
    """Return, per rate and base encoder, the universal front's hypervolume as a ``ratio`` of the end-to-end one's.

    In (mse, cross-entropy), both below the same reference (MSE of the best constant image, H(S)); paired by seed.
    """
    rows = []
    for _, own, decoders in _matched(_points(trials, "cross_entropy")):
        universal, end_to_end = (oriented(front[front["on_front"]], FRONT_AXES) for front in (decoders, own))
        reference = decoders[REFERENCE].iloc[0].to_numpy(float)
        rows.append(dict(decoders.iloc[0]) | {"ratio": penalty.hypervolume_ratio(universal, end_to_end, reference)})
    return _averaged(pd.DataFrame(rows, columns=[*BASE, "ratio"]), BASE, ["ratio"])


def explanations(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what may explain a gap (science, section 8): ``mean`` over paired seeds, per rate, explanation and arm.

    - ``lambda scale``: range of cross-entropy of a base encoder's decoders / of the end-to-end trials (a ratio).
    - ``batch norm``: penalty of decoders under ``frozen_batchnorm: batch`` - under eval, at the same constraints.
    - ``encoder optimisation``: change of the end-to-end trials' mse_centroid from the gradient soft to identity, and
      from the shortest to the longest training.
    - ``universality``: MSE of a joint encoder's decoder of classification weight 0 - of the end-to-end trial of
      weight 0, at seeds where that encoder's decoders also reach the cross-entropy (validation) of the base, the
      end-to-end trial of the largest weight whose encoder is frozen. One row per arm; ``best_arm`` is the one whose
      end-to-end trials of weight 0, whose objective is the MSE, have the least of it on validation.

    MSE per pixel; within a seed, means over weights. An explanation without its arms has one row with ``seeds`` 0.
    """
    points = _points(trials, "cross_entropy")
    ends = points[points["stage"] == "end_to_end"]
    keys = [*RATE, "explanation", "arm"]
    each = pd.DataFrame(_evidence(points, ends, _pairs(trials, "cross_entropy")), columns=[*keys, "seed", "value"])
    each = each.astype({"dim": "int64", "levels": "int64", "rate_bits": "float64", "value": "float64"})
    by_seed = each.groupby([*keys, "seed"])["value"].mean().reset_index()
    asked = ends[RATE].drop_duplicates().merge(pd.DataFrame({"explanation": ASKED}), how="cross")
    found = asked.merge(_averaged(by_seed, keys, ["value"]), how="left")
    zero = ends[ends["lambda_c"] == 0].groupby([*RATE, "arm"])["val_mse"].mean().reset_index()
    best = zero.sort_values("val_mse", kind="stable").drop_duplicates(RATE)[[*RATE, "arm"]].assign(best_arm=True)
    table = found.merge(best.assign(explanation=UNIVERSALITY), how="left").rename(columns={"value": "mean"})
    table["best_arm"] = table["best_arm"].eq(True)
    return table.fillna({"arm": "", "seeds": 0, "of_seeds": 0}).astype({"seeds": "int64", "of_seeds": "int64"})


def verdicts(explained: pd.DataFrame) -> Iterator[str]:
    """Yield the study's verdict per rate: real only if joint's interval is above 0 in the best-optimised arm."""
    for (dim, levels), rows in explained.groupby(RATE[:2]):
        judged = rows[rows["best_arm"]]
        if not (rows["explanation"].eq(UNIVERSALITY) & rows["of_seeds"].gt(0)).any():
            continue  # no joint trial, no verdict
        shown = "real" if (judged["low"] > 0).any() else "not shown"
        why = f"in the best-optimised arm, {judged['arm'].iloc[0]}" if len(judged) else "no joint trial in the best arm"
        yield f"({dim},{levels}): the universality gap is {shown} ({why})"


def compare(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how two sweeps' configurations differ, and the differences b - a of what they share, paired by seed.

    Configuration: keys of ``config_json`` whose values in the stages of both sweeps differ, with all their values in
    ``a`` and in ``b`` (ids of needed trials left out). Pairs: done trials of the same stage, rate, weights, encoder,
    variant and seed; test mse (per pixel), cross_entropy (nats), accuracy and sliced_w2.
    """
    stages = set(a["stage"]) & set(b["stage"])
    sides = {name: _values(table[table["stage"].isin(stages)]) for name, table in (("a", a), ("b", b))}
    config = pd.DataFrame(sides, columns=["a", "b"]).fillna("-").sort_index().reset_index(names="key")
    keys = [*RATE, *ENCODED, "variant", *WEIGHTS, "terms"]
    done = [compressors(table).query("status == 'done'") for table in (a, b)]
    one, two = (table.assign(terms=table["weights"].astype(str))[[*keys, "seed", *COMPARED]] for table in done)
    both = one.merge(two, on=[*keys, "seed"], suffixes=("_a", "_b"))
    both = both.assign(**{name: both[f"{name}_b"] - both[f"{name}_a"] for name in COMPARED})
    shared = _averaged(both[both[COMPARED].notna().any(axis=1)], keys, COMPARED)
    return config[config["a"] != config["b"]].reset_index(drop=True), shared.drop(columns="terms")


# -- what they share ---------------------------------------------------------------------------------------------------


def _points(trials: pd.DataFrame, at: str) -> pd.DataFrame:
    """Return the points that a penalty at ``at`` may use, with the settings that arms of a study differ in.

    ``epochs``, ``batchnorm``, ``gradient`` and the ``rest`` are a trial's own, ``arm`` says how its encoder was
    trained: a frozen encoder, and that of a joint trial's decoders, as its parent was.
    """
    if at not in CONSTRAINTS:
        raise SpecError(f"--at {at}: {choices(at, CONSTRAINTS)}")
    points = fronts(trials)
    read = list(dict.fromkeys([*_READ, f"val_{at}"]))
    points = points.loc[points[CONSTRAINTS[at]].notna() & ~points["worse_than_rate0"], read].copy()
    told = {name: _settings(text) for name, text in trials[["trial_id", "config_json"]].fillna("{}").to_numpy()}
    own = [told[trial] for trial in points["trial_id"]]
    points[["epochs", "gradient", "batchnorm", "rest"]] = pd.DataFrame(own, columns=range(4), index=points.index)
    trained = [told.get(parent, mine) for parent, mine in zip(points["parent_id"], own, strict=True)]
    arms = [f"{epochs:g} epochs, {gradient}" for epochs, gradient, _, _ in trained]
    return points.assign(arm=pd.Series(arms, index=points.index, dtype="str"))


def _configuration(text: str, **options: Any) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        config = json.loads(text, **options)
        if isinstance(config, dict) and all(isinstance(config.get(key, {}), dict) for key in ("train", "protocol")):
            return config
    raise StoreError("a config_json in the table trials is damaged; launch the sweep again to rebuild it")


def _settings(text: str) -> tuple[float, str, str, str]:
    config = _configuration(text)
    told = {**config.get("train", {}), **config.get("protocol", {}), "preset": ""}  # a preset only names the others
    arm = float(told.pop("epochs", "nan")), told.pop("quantizer_gradient", "soft"), told.pop("frozen_batchnorm", "eval")
    return *arm, json.dumps(told, sort_keys=True)


def _matched(points: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """Yield per universal front the end-to-end trials that judge it, of all rates and of its own, and its points.

    They are of its seed and of its encoder's variant. A joint or control encoder is judged by those that were trained
    as it was, else by the plain ones, else by the only ones there are.
    """
    ends = points[points["stage"] == "end_to_end"]
    decoders = points[points["stage"].isin(UNIVERSAL)]
    for _, front in decoders.groupby([*BASE, "seed", "parent_id"], dropna=False):
        first = front.iloc[0]
        others = ends[ends["seed"] == first["seed"]]
        own = others[(others["dim"] == first["dim"]) & (others["levels"] == first["levels"])]
        known = list(dict.fromkeys(own["variant"]))
        wanted = [first["parent_variant"]]
        if first["parent_stage"] != "end_to_end":
            wanted = [*own.loc[own["arm"] == first["arm"], "variant"], "", *(known if len(known) == 1 else ())]
        for variant in [name for name in wanted if name in known][:1]:
            yield others[others["variant"] == variant], own[own["variant"] == variant], front


_PAIR = ["seed", "constraint", "mse_end_to_end", "mse_universal", "penalty", "own_centroid", "base_centroid"]
_PAIRS = [*BASE, *WEIGHTS, *_PAIR, "encoder", "epochs", "batchnorm", "rest"]


def _pairs(trials: pd.DataFrame, at: str) -> pd.DataFrame:
    """Return one row per (end-to-end trial, universal front): the two test MSE, and both encoders', at its C."""
    rows, wanted = [], [*WEIGHTS, f"val_{at}"]
    for _, own, decoders in _matched(_points(trials, at)):
        first = dict(decoders.iloc[0])
        first |= {"encoder": encoder(first | {"variant": ""}), "base_centroid": first["parent_mse_centroid"]}
        first = {name: first[name] for name in _PAIRS if name in first}
        limits = oriented(own, [at], "val_")[:, 0]
        sides = (_reads(limits, front, at) for front in (own, decoders))
        for target, limit, (base, own_centroid), (reached, _) in zip(records(own[wanted]), limits, *sides, strict=True):
            row = first | target | {"constraint": target[f"val_{at}"]}
            row |= {"mse_end_to_end": base, "mse_universal": reached, "penalty": reached - base}
            if np.isfinite(limit) and np.isfinite(base):
                rows.append(row | {"own_centroid": own_centroid})
    return pd.DataFrame(rows, columns=_PAIRS)


def _read(limit: float, front: pd.DataFrame, at: str) -> tuple[float, float]:
    """Return the test MSE, and the encoder's, of the point that validation picks at a constraint; NaN if none is."""
    return _reads([limit], front, at)[0]


def _reads(limits: Iterable[float], front: pd.DataFrame, at: str) -> list[tuple[float, float]]:
    """Return the same at many constraints of one front."""
    cost, level = front["val_mse"].to_numpy(float), oriented(front, [at], "val_")[:, 0]
    points = list(map(tuple, front[["mse", "mse_centroid"]].to_numpy(float)))
    picked = (penalty.pick(limit, cost, level) for limit in limits)
    return [(np.nan, np.nan) if index is None else points[index] for index in picked]


def _averaged(table: pd.DataFrame, keys: Names, values: Names, means: Names = (), words: Names = ()) -> pd.DataFrame:
    """Return one row per group of seeds: each value's mean, ``low``, ``high`` and ``seeds``; ``of_seeds``.

    Of several values each has its own three: ``gap_low``. ``means`` are over the seeds that have a value, so that a
    row's columns subtract; ``words`` over all.
    """
    prefix = {name: f"{name}_" if len(values) > 1 else "" for name in values}
    ends = [column for name in values for column in (name, *(prefix[name] + end for end in ("low", "high", "seeds")))]
    rows = []
    for key, group in table.groupby(list(keys), dropna=False):
        used = group.dropna(subset=list(values), how="all")
        row = list(key) + [(used if len(used) else group)[name].mean() for name in means]
        for name in values:
            row += astuple(penalty.paired_interval(group[name].to_numpy(float), stream(FIXED_SEED, "bootstrap")))
        rows.append([*row, *(_words(group[name]) for name in words), len(group)])
    whole = pd.DataFrame(rows, columns=[*keys, *means, *ends, *words, "of_seeds"])
    kinds = {name: "int64" if name.endswith("seeds") else "float64" for name in ends}
    return whole.astype({name: table.dtypes[name] for name in keys} | kinds)


def _words(words: Iterable[str]) -> str:
    """Return the different words, without the one that says that nothing is missing if another does."""
    told = {word for text in words for word in text.split(", ")}
    return ", ".join(sorted(told - {penalty.FOUND})) or penalty.FOUND


def _rate(front: pd.DataFrame) -> float:
    return float(front["rate_bits"].iloc[0])


def _bits(rates: Iterable[float]) -> str:
    return " ".join(f"{rate:.4g}" for rate in sorted(set(rates)))


def _evidence(points: pd.DataFrame, ends: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[list[Any]]:
    """Yield rate, explanation, arm, seed and value of everything that ``explanations`` averages."""
    for _, own, decoders in _matched(points):
        first = dict(decoders.iloc[0])
        reach, whole = (float(np.ptp(front["cross_entropy"].to_numpy(float))) for front in (decoders, own))
        if whole > 0:
            yield [*(first[name] for name in RATE), SCALE, encoder(first), first["seed"], reach / whole]
    shortest, longest = ends["epochs"].min(), ends["epochs"].max()
    span = f"{shortest:g} to {longest:g} epochs"
    changes: list[tuple[str, pd.DataFrame, str, str, Any, Any, str]] = [
        (BATCH_NORM, pairs, "penalty", "batchnorm", "eval", "batch", "{encoder}"),
        (GRADIENT, ends, "mse_centroid", "gradient", "soft", "identity", "soft to identity, {epochs:g} epochs"),
        (EPOCHS, ends, "mse_centroid", "epochs", shortest, longest, "{span}, {gradient}"),
    ]
    for name, table, value, setting, before, after, arm in changes:
        same = [*RATE, "seed", *ENCODED, *WEIGHTS, *({"epochs", "gradient", "rest"} & {*table.columns} - {setting})]
        one, other = (table[table[setting] == side] for side in (before, after))
        for row in records(one.merge(other, on=same, suffixes=("", "_after"))) if before != after else ():
            change = row[f"{value}_after"] - row[value]
            yield [*(row[name] for name in RATE), name, arm.format(span=span, **row), row["seed"], change]
    joint = points[points["stage"] == "joint_decoder"]
    for (*rate, seed, trained, _), heads in joint.groupby([*RATE, "seed", "arm", "parent_id"]):
        own = ends[(ends[[*RATE, "seed", "arm"]] == [*rate, seed, trained]).all(axis=1)]
        frozen = points[(points["parent_stage"] == "end_to_end") & (points[RATE] == rate).all(axis=1)]
        base = frozen["parent_lambda_c"].max() if len(frozen) else own["lambda_c"].max()
        limit = own.loc[own["lambda_c"] == base, "val_cross_entropy"].min()
        zero = [front[(front["lambda_c"] == 0) & ~(front["lambda_p"] > 0)] for front in (heads, own)]
        universal, end_to_end = (_read(np.inf, front, "cross_entropy")[0] for front in zero)
        reached = heads["val_cross_entropy"].min() <= limit
        yield [*rate, UNIVERSALITY, trained, seed, universal - end_to_end if reached else np.nan]


def _values(trials: pd.DataFrame) -> dict[str, str]:
    """Return by key of the trials' configurations all its values; numbers as they are written."""
    told = [_configuration(text, parse_int=str, parse_float=str) for text in trials["config_json"].dropna()]
    flat = pd.json_normalize(told).astype(object)
    kept = {str(key): column.dropna() for key, column in flat.items() if not str(key).startswith("needs")}
    return {key: ", ".join(sorted({str(value).replace("'", "") for value in kept[key]})) or "-" for key in kept}
