"""What universality costs, and why: penalties, their split, rate penalties, the decisive study, two sweeps compared.

Invariant: a universal front is judged only by end-to-end trials of its sweep, rate, seed and encoder's settings. Its
members, and the points that are picked at a constraint, are decided on the ``val_*`` columns; every number that is
reported is a test value, a mean over paired seeds with how many they were and their 95 % interval. Several sweeps
may be stacked: each is judged by itself, and every table says which (column ``sweep``).

Points are handled by their positions in one table, not as tables of their own: a sweep has hundreds of fronts.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from urc_sweep.errors import SpecError, StoreError, choices
from urc_sweep.maths import penalty
from urc_sweep.maths.streams import FIXED_SEED
from urc_sweep.show.facts import (
    ENCODER,
    FRONT,
    OBJECTIVE,
    RATE,
    REFERENCE,
    WEIGHTS,
    cells,
    compressors,
    fronts,
    oriented,
    records,
)
from urc_sweep.store.tables import LAMBDAS

Names = Sequence[str]
Positions = NDArray[np.int64]

# What may be matched, and the weight of the term that it constrains: trials without that term are another study's.
LABELLED = ("cross_entropy", "accuracy", "heldout_cross_entropy", "heldout_accuracy")
CONSTRAINTS = dict.fromkeys(LABELLED, "lambda_c") | dict.fromkeys(("sliced_w2", "fresh_critic_gap"), "lambda_p")
UNIVERSAL = ("universal", "joint_decoder")
# What makes one base encoder, and one family of its decoders; the same in every seed.
ENCODED = ["stage", "parent_stage", "parent_variant", *ENCODER]
FAMILY = ["sweep", *ENCODED, "variant"]
BASE = ["sweep", *RATE, *ENCODED, "variant"]
FRONT_AXES = ["mse", "cross_entropy"]
_SETTINGS = ["epochs", "gradient", "batchnorm", "rest"]
# What is read of a point: a sweep has thousands, and copies cost for each of its hundred columns.
_READ = [*BASE, *OBJECTIVE, *REFERENCE, *FRONT_AXES, "val_mse", "val_cross_entropy", "mse_centroid", "on_front"]
_READ += ["parent_mse_centroid", "parent_id", "seed", "config_json", "parent_config_json"]
COMPARED = ["mse", "cross_entropy", "accuracy", "sliced_w2"]
ASKED = "lambda scale", "batch norm", "encoder optimisation: gradient", "encoder optimisation: epochs", "universality"
SCALE, BATCH_NORM, GRADIENT, EPOCHS, UNIVERSALITY = ASKED


def weights(row: Mapping[str, Any], prefix: str = "") -> str:
    """Return an objective in words: ``c 0.015 p 0.001 edges 1``; the weight of distortion where it is not 1."""
    told = [(name, row.get(f"{prefix}lambda_{name}")) for name in "dcp"]
    known = [f"{name} {value:g}" for name, value in told if pd.notna(value) and (name, value) != ("d", 1)]
    return " ".join([*known, *filter(None, [row.get(f"{prefix}terms")])])


def encoder(row: Mapping[str, Any]) -> str:
    """Return in words whose encoder a universal front is on, and its settings where they are not the plain ones."""
    stage = str(row.get("parent_stage") or "").replace("end_to_end", "")
    settings, own = (w if isinstance(w := row.get(name), str) else "" for name in ("parent_variant", "variant"))
    words = ["frozen" if stage and row["stage"] == "universal" else "", stage, weights(row, "parent_"), settings]
    told = " ".join(word for n, word in enumerate(words) if word and word not in words[:n])  # control random random
    # A control's variant is its kind, which decoders do not share.
    differ = own if row.get("parent_stage") == "control" else own != settings
    return f"{told}, decoders {own or 'plain'}" if told and differ else told or own


def matched_at(trials: pd.DataFrame) -> str:
    """Return what a sweep's penalties are matched at unless somebody says otherwise: what its objectives trade."""
    traded = trials["lambda_c"].notna().any() or not trials["lambda_p"].notna().any()
    return "cross_entropy" if traded else "sliced_w2"


def obstacle(trials: pd.DataFrame, at: str = "cross_entropy") -> str | None:
    """Return in one line what a penalty still needs, ``None`` if it can be told."""
    points, term = _points(trials, at), LAMBDAS[CONSTRAINTS[at]]
    known = points[points[f"val_{at}"].notna()]
    sizes = known.groupby(FRONT, dropna=False).size().groupby("stage").max()
    for stage, names in (("end_to_end", ["end_to_end"]), ("universal", [*UNIVERSAL])):
        most = sizes.reindex(names, fill_value=0).max()
        if not most:
            every = compressors(trials).query("stage in @names").dropna(subset=[f"val_{at}", CONSTRAINTS[at]])
            if lost := len(every[every["worse_than_rate0"]]):
                return (
                    f"no penalty: all {lost} finished {stage} trials are worse than zero rate, the best constant image"
                )
            return f"no penalty yet: it needs finished end-to-end and universal trials with a {term} term and {at}"
        if most < penalty.FEWEST_POINTS:
            change = f"give objective.{term} of stage {stage} more weights"
            return f"no penalty: a front needs at least two points, those of {stage} trials have one; {change}"
    return None if _matched(points) else "no penalty: no universal trial shares rate and seed with end-to-end ones"


def penalties(trials: pd.DataFrame, at: str = "cross_entropy") -> pd.DataFrame:
    """Return the distortion penalty of universality at a matched constraint, one row per constraint.

    Per rate, base encoder and end-to-end weight, and per seed: C is that end-to-end trial's validation value of
    ``at`` (one of ``CONSTRAINTS``), D(C) = min{mse : at <= C} (>= where larger is better) is read off the end-to-end
    and the universal front, penalty = D_uni - D_e2e (MSE per pixel, test). Averaged over the seeds at which the
    universal front reaches C (``seeds`` of ``of_seeds``) with a paired 95 % interval; ``infeasible`` where none does.
    Trials whose objective lacks the term that the constraint is on are left out.
    """
    means = ["constraint", "mse_end_to_end", "mse_universal"]
    table = _averaged(_pairs(_points(trials, at), at), [*BASE, *OBJECTIVE], ["penalty"], means)
    table["of_seeds"] = _planned(table, trials)
    percent = 100 * table["penalty"] / table["mse_end_to_end"]
    return table.assign(penalty_percent=percent, infeasible=table["seeds"] == 0)


def splits(trials: pd.DataFrame, at: str = "cross_entropy") -> pd.DataFrame:
    """Return where each gap of ``penalties`` comes from, MSE per pixel: ``gap`` = ``encoder`` + ``decoder``, exactly.

    Per seed, at the same constraint and of the same two points: encoder = mse_centroid(base encoder) -
    mse_centroid(end-to-end), what the base encoder lost; decoder = the rest, what decoders failed to learn. Seeds at
    which the universal front misses the constraint, and encoders without mse_centroid, are left out. The floor is that
    of evaluation mode: under ``frozen_batchnorm: batch``, what the batches change counts as the decoder's.
    """
    pairs = _pairs(_points(trials, at), at).dropna(subset=["penalty", "base_centroid", "own_centroid"])
    read = pairs[["mse_universal", "mse_end_to_end", "base_centroid", "own_centroid"]].to_numpy(float).T
    pairs["gap"], (pairs["encoder"], pairs["decoder"]) = pairs["penalty"], penalty.split_gap(*read)
    table = _averaged(pairs, [*BASE, *OBJECTIVE], ["gap", "encoder", "decoder"], ["constraint"])
    return table.assign(of_seeds=_planned(table, trials))


def rate_penalties(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what universality costs in bits, per rate R and base encoder: A(Omega(R)) and the profile.

    ``rate_penalty``: A = min{R' : decoders of one rate-R' encoder dominate every end-to-end point of rate R} - R in
    (mse, cross-entropy), over the ``rates`` at which this base encoder has decoders. ``profile_max`` and
    ``profile_mean`` of r_i = R - R_e2e(D_i, C_i) over the points of its front: end-to-end fronts interpolated over
    ``end_to_end_rates``, never extrapolated, so only a share ``placed`` of the points counts. ``status`` and
    ``profile_status`` name what is missing: with ``needs lower rates`` A is an upper bound, profile_max a lower one.
    """
    points = _points(trials, "cross_entropy")
    names = ("rate_bits", "val_mse", "val_cross_entropy", "mse")
    bits, cost, level, mse = (points[name].to_numpy(float) for name in names)
    reached, member = oriented(points, FRONT_AXES), points["on_front"].to_numpy()
    matched, rows = _matched(points), []
    family_of = points.groupby([*FAMILY, "seed"], dropna=False).ngroup().to_numpy()
    families = [family_of[front[0]] for *_, front in matched]
    reached_by = [(row["rate_bits"], reached[front]) for row, _, _, front in matched]
    for family, (row, others, own, front) in zip(families, matched, strict=True):
        if len(own) < penalty.FEWEST_POINTS:
            continue
        encoders = [points for other, points in zip(families, reached_by, strict=True) if other == family]
        rates, shown = np.unique(bits[others]), front[member[front]]
        sides = (others[bits[others] == rate] for rate in rates)
        picked = ((side, penalty.pick(level[shown], cost[side], level[side])) for side in sides)
        ends = np.array([np.append(mse[side], np.nan)[index] for side, index in picked])
        needed = [penalty.rate_needed(mse[point], rates, least) for point, least in zip(shown, ends.T, strict=True)]
        value, word = penalty.rate_penalty(row["rate_bits"], reached[own], encoders)
        profile = row["rate_bits"] - pd.Series([least for least, _ in needed], dtype="float64")
        row |= {"rate_penalty": value, "status": word, "profile_status": _words(word for _, word in needed)}
        row |= {"profile_max": profile.max(), "profile_mean": profile.mean(), "placed": profile.notna().mean()}
        rows.append(row | {"rates": _bits(rate for rate, _ in encoders), "end_to_end_rates": _bits(rates)})
    values = ["rate_penalty", "profile_max", "profile_mean"]
    words = ["status", "profile_status", "rates", "end_to_end_rates"]
    table = _averaged(pd.DataFrame(rows, columns=[*BASE, *values, "placed", *words]), BASE, values, ["placed"], words)
    return table.assign(of_seeds=_planned(table, trials))


def hypervolume_ratios(trials: pd.DataFrame) -> pd.DataFrame:
    """Return, per rate and base encoder, the universal front's hypervolume as a ``ratio`` of the end-to-end one's.

    In (mse, cross-entropy), both below the same reference (MSE of the best constant image, H(S)); paired by seed.
    """
    points = _points(trials, "cross_entropy")
    reached, member = oriented(points, FRONT_AXES), points["on_front"].to_numpy()
    corner, rows = points[REFERENCE].to_numpy(float), []
    for row, _, own, front in _matched(points):
        universal, end_to_end = (reached[side[member[side]]] for side in (front, own))
        rows.append(row | {"ratio": penalty.hypervolume_ratio(universal, end_to_end, corner[front[0]])})
    table = _averaged(pd.DataFrame(rows, columns=[*BASE, "ratio"]), BASE, ["ratio"])
    return table.assign(of_seeds=_planned(table, trials))


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
    own = map(_settings, points["config_json"].fillna("{}"))
    points[_SETTINGS] = pd.DataFrame(own, columns=range(4), index=points.index)
    points["arm"] = pd.Series(_arms(points), index=points.index, dtype="str")
    ends = points[points["stage"] == "end_to_end"]
    rate, keys = ["sweep", *RATE], ["sweep", *RATE, "explanation", "arm"]
    told = [[sweep, *row] for sweep, own in points.groupby("sweep") for row in _evidence(own.reset_index(drop=True))]
    each = pd.DataFrame(told, columns=[*keys, "seed", "value"])
    each = each.astype({"dim": "int64", "levels": "int64", "rate_bits": "float64", "value": "float64"})
    by_seed = each.groupby([*keys, "seed"])["value"].mean().reset_index()
    asked = ends[rate].drop_duplicates().merge(pd.DataFrame({"explanation": ASKED}), how="cross")
    found = asked.merge(_averaged(by_seed, keys, ["value"]), how="left")
    zero = ends[ends["lambda_c"] == 0].groupby([*rate, "arm"])["val_mse"].mean().reset_index()
    best = zero.sort_values("val_mse", kind="stable").drop_duplicates(rate)[[*rate, "arm"]].assign(best_arm=True)
    table = found.merge(best.assign(explanation=UNIVERSALITY), how="left").rename(columns={"value": "mean"})
    table["best_arm"] = table["best_arm"].eq(True)
    return table.fillna({"arm": "", "seeds": 0, "of_seeds": 0}).astype({"seeds": "int64", "of_seeds": "int64"})


def verdicts(explained: pd.DataFrame) -> Iterator[str]:
    """Yield the study's verdict per rate: real only if joint's interval is above 0 in the best-optimised arm."""
    several = explained["sweep"].nunique() > 1
    for (sweep, dim, levels), rows in explained.groupby(["sweep", *RATE[:2]]):
        judged = rows[rows["best_arm"]]
        if not (rows["explanation"].eq(UNIVERSALITY) & rows["of_seeds"].gt(0)).any():
            continue  # no joint trial, no verdict
        shown = "real" if (judged["low"] > 0).any() else "not shown"
        why = f"in the best-optimised arm, {judged['arm'].iloc[0]}" if len(judged) else "no joint trial in the best arm"
        yield f"{f'{sweep} ' if several else ''}({dim},{levels}): the universality gap is {shown} ({why})"


def compare(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how two sweeps' configurations differ, and the differences b - a of what they share, paired by seed.

    Configuration: keys of ``config_json`` whose values in the stages of both sweeps differ, with all their values in
    ``a`` and in ``b`` (ids of needed trials left out). Pairs: done trials of the same stage, rate, weights, encoder,
    variant and seed; test mse (per pixel), cross_entropy (nats), accuracy and sliced_w2.
    """
    stages = set(a["stage"]) & set(b["stage"])
    sides = {name: _values(table[table["stage"].isin(stages)]) for name, table in (("a", a), ("b", b))}
    config = pd.DataFrame(sides, columns=["a", "b"]).fillna("-").sort_index().reset_index(names="key")
    keys = [*RATE, *ENCODED, "variant", *OBJECTIVE]
    one, two = (compressors(table).query("status == 'done'")[[*keys, "seed", *COMPARED]] for table in (a, b))
    both = one.merge(two, on=[*keys, "seed"], suffixes=("_a", "_b"))
    both = both.assign(**{name: both[f"{name}_b"] - both[f"{name}_a"] for name in COMPARED})
    shared = _averaged(both[both[COMPARED].notna().any(axis=1)], keys, COMPARED)
    return config[config["a"] != config["b"]].reset_index(drop=True), shared


# -- what they share ---------------------------------------------------------------------------------------------------


def _points(trials: pd.DataFrame, at: str) -> pd.DataFrame:
    """Return the points that a penalty at ``at`` may use."""
    if at not in CONSTRAINTS:
        raise SpecError(f"--at {at}: {choices(at, CONSTRAINTS)}")
    points = fronts(trials)
    used = points[CONSTRAINTS[at]].notna() & ~points["worse_than_rate0"]
    return points.loc[used, list(dict.fromkeys([*_READ, f"val_{at}"]))].reset_index(drop=True)


def _configuration(text: str, **options: Any) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        config = json.loads(text, **options)
        if isinstance(config, dict) and all(isinstance(config.get(key, {}), dict) for key in ("train", "protocol")):
            return config
    raise StoreError("a config_json in the table trials is damaged; launch the sweep again to rebuild it")


@functools.lru_cache(maxsize=2**15)
def _settings(text: str) -> tuple[float, str, str, str]:
    config = _configuration(text)
    told = {**config.get("train", {}), **config.get("protocol", {}), "preset": ""}  # a preset only names the others
    arm = float(told.pop("epochs", "nan")), told.pop("quantizer_gradient", "soft"), told.pop("frozen_batchnorm", "eval")
    return *arm, json.dumps(told, sort_keys=True)


def _arms(points: pd.DataFrame) -> list[str]:
    """Return how each point's encoder was trained: a frozen one, and a joint trial's, as the parent."""
    trained = points["parent_config_json"].fillna(points["config_json"]).fillna("{}")
    return ["{:g} epochs, {}".format(*_settings(text)) for text in trained]


def _matched(points: pd.DataFrame) -> list[tuple[dict[str, Any], Positions, Positions, Positions]]:
    """Return of every universal front its keys, the positions of what judges it, of all rates and its own, and its own.

    End-to-end trials of its sweep, its seed and its encoder's variant judge it. A joint or control encoder is judged
    by those that were trained as it was, else by the plain ones, else by the only ones there are.
    """
    ends, decoders = (np.flatnonzero(points["stage"].isin(stages)) for stages in (["end_to_end"], UNIVERSAL))
    rate, variants = ["sweep", "seed", "dim", "levels"], sorted(set(points["variant"].iloc[ends]))
    of_seed, of_rate = (points.iloc[ends].groupby([*keys, "variant"]).indices for keys in (rate[:2], rate))
    whole = [decoders[cell] for cell in cells(points.iloc[decoders], [*BASE, "seed", "parent_id"])]
    rows, matched = records(points[[*BASE, "seed"]].iloc[[front[0] for front in whole]]), []
    for front, row in zip(whole, rows, strict=True):
        places = {variant: (*map(row.get, rate), variant) for variant in variants}
        known = {variant: ends[of_rate[place]] for variant, place in places.items() if place in of_rate}
        wanted = [row["parent_variant"]]
        if row["parent_stage"] != "end_to_end":
            arm = {*_arms(points.iloc[front[:1]])}
            alike = [variant for variant, own in known.items() if arm & {*_arms(points.iloc[own])}]
            wanted = [*alike, "", *(known if len(known) == 1 else ())]
        for variant in [name for name in wanted if name in known][:1]:
            matched.append((row, ends[of_seed[row["sweep"], row["seed"], variant]], known[variant], front))
    return matched


def _pairs(points: pd.DataFrame, at: str) -> pd.DataFrame:
    """Return one row per (end-to-end trial, universal front): the two test MSE, and both encoders', at its C."""
    cost, level = points["val_mse"].to_numpy(float), oriented(points, [at], "val_")[:, 0]
    parts = [np.empty((4, 0), dtype=np.int64)]
    for _, _, own, front in _matched(points):
        picked = (np.append(side, -1)[penalty.pick(level[own], cost[side], level[side])] for side in (own, front))
        parts.append(np.vstack([own, np.full(len(own), front[0]), *picked]))
    mse, centroid = (np.append(points[name].to_numpy(float), np.nan) for name in ("mse", "mse_centroid"))
    known = np.hstack(parts)
    target, first, base, reached = known[:, np.isfinite(level[known[0]]) & np.isfinite(mse[known[2]])]
    words = [*BASE, "seed", *(name for name in _SETTINGS if name in points)]
    pairs: pd.DataFrame = points[words].iloc[first].reset_index(drop=True)
    pairs[[*WEIGHTS, "constraint"]] = points[[*WEIGHTS, f"val_{at}"]].to_numpy(float)[target]
    pairs["terms"] = points["terms"].to_numpy()[target]
    ends = {"mse_end_to_end": mse[base], "mse_universal": mse[reached], "penalty": mse[reached] - mse[base]}
    ends |= {"own_centroid": centroid[base], "base_centroid": points["parent_mse_centroid"].to_numpy(float)[first]}
    return pairs.assign(**ends)


def _averaged(table: pd.DataFrame, keys: Names, values: Names, means: Names = (), words: Names = ()) -> pd.DataFrame:
    """Return one row per group of seeds: each value's mean, ``low``, ``high`` and ``seeds``; ``of_seeds``.

    Of several values each has its own three: ``gap_low``. ``means`` are over the seeds that have a value, so that a
    row's columns subtract; ``words`` over all.
    """
    prefix = {name: f"{name}_" if len(values) > 1 else "" for name in values}
    ends = [column for name in values for column in (name, *(prefix[name] + end for end in ("low", "high", "seeds")))]
    read = {name: table[name].to_numpy() for name in (*values, *means, *words)}
    some, groups, rows = table[[*values]].notna().any(axis=1).to_numpy(), cells(table, keys), []
    for group in groups:
        used = group[some[group]] if some[group].any() else group
        row = [penalty.paired_interval(read[name][used]).mean for name in means]
        for name in values:
            row += astuple(penalty.paired_interval(read[name][group], FIXED_SEED))
        rows.append([*row, *(_words(read[name][group]) for name in words), len(group)])
    whole = pd.DataFrame(rows, columns=[*means, *ends, *words, "of_seeds"])
    kinds = {name: "int64" if name.endswith("seeds") else "float64" for name in (*means, *ends)}
    first = table[[*keys]].iloc[[group[0] for group in groups]].reset_index(drop=True)
    return pd.concat([first, whole.astype(kinds)], axis=1)


def _planned(table: pd.DataFrame, trials: pd.DataFrame) -> list[int]:
    """Return of each row at how many seeds its decoders, and the end-to-end trial it is about, were planned.

    One that failed, collapsed or is still to come counts: without it, means would seem to be over all seeds.
    """
    if table.empty:  # its columns have no types to merge by
        return []
    every = compressors(trials)
    judges = every[every["stage"] == "end_to_end"]
    ends = ["sweep", *RATE, *OBJECTIVE]
    told: list[NDArray[np.float64]] = []
    for planned, keys in ((every, BASE), (judges, ends)):
        if {*keys} <= {*table.columns}:
            seeds = planned.groupby(keys, dropna=False)["seed"].nunique().rename("planned").reset_index()
            told.append(table[keys].merge(seeds, how="left")["planned"].to_numpy())
    return list(np.min(told, axis=0).tolist())


def _words(words: Iterable[str]) -> str:
    """Return the different words, without the one that says that nothing is missing if another does."""
    told = {word for text in words for word in text.split(", ")}
    return ", ".join(sorted(told - {penalty.FOUND})) or penalty.FOUND


def _bits(rates: Iterable[float]) -> str:
    return " ".join(f"{rate:.4g}" for rate in sorted(set(rates)))


def _evidence(points: pd.DataFrame) -> Iterator[list[Any]]:
    """Yield rate, explanation, arm, seed and value of everything that ``explanations`` averages, of one sweep."""
    level, pairs = points["cross_entropy"].to_numpy(float), _pairs(points, "cross_entropy")
    for row, _, judges, front in _matched(points):
        if (whole := np.ptp(level[judges])) > 0:
            yield [*(row[name] for name in RATE), SCALE, encoder(row), row["seed"], np.ptp(level[front]) / whole]
    ends = points[points["stage"] == "end_to_end"]
    shortest, longest = ends["epochs"].min(), ends["epochs"].max()
    span = f"{shortest:g} to {longest:g} epochs"
    changes: list[tuple[str, pd.DataFrame, str, str, Any, Any, str]] = [
        (BATCH_NORM, pairs, "penalty", "batchnorm", "eval", "batch", "{whose}"),
        (GRADIENT, ends, "mse_centroid", "gradient", "soft", "identity", "soft to identity, {epochs:g} epochs"),
        (EPOCHS, ends, "mse_centroid", "epochs", shortest, longest, "{span}, {gradient}"),
    ]
    for name, table, value, setting, before, after, arm in changes:
        same = [*RATE, "seed", *ENCODED, *OBJECTIVE, *({"epochs", "gradient", "rest"} & {*table.columns} - {setting})]
        one, other = (table[table[setting] == side] for side in (before, after))
        for row in records(one.merge(other, on=same, suffixes=("", "_after"))) if before != after else ():
            change = row[f"{value}_after"] - row[value]
            told = arm.format(span=span, whose=encoder(row | {"variant": row["parent_variant"]}), **row)
            yield [*(row[name] for name in RATE), name, told, row["seed"], change]
    joint = points[points["stage"] == "joint_decoder"]
    for (*rate, seed, trained, _), heads in joint.groupby([*RATE, "seed", "arm", "parent_id"]):
        own = ends[(ends[[*RATE, "seed", "arm"]] == [*rate, seed, trained]).all(axis=1)]
        frozen = points[(points["parent_stage"] == "end_to_end") & (points[RATE] == rate).all(axis=1)]
        base = frozen["parent_lambda_c"].max() if len(frozen) else own["lambda_c"].max()
        limit = own.loc[own["lambda_c"] == base, "val_cross_entropy"].min()
        zero = [front[(front["lambda_c"] == 0) & ~(front["lambda_p"] > 0)] for front in (heads, own)]
        # The cheapest one by validation, NaN if there is none.
        universal, end_to_end = (front.nsmallest(1, "val_mse")["mse"].sum(min_count=1) for front in zero)
        reached = heads["val_cross_entropy"].min() <= limit
        yield [*rate, UNIVERSALITY, trained, seed, universal - end_to_end if reached else np.nan]


def _values(trials: pd.DataFrame) -> dict[str, str]:
    """Return by key of the trials' configurations all its values; numbers as they are written."""
    told = [_configuration(text, parse_int=str, parse_float=str) for text in trials["config_json"].dropna()]
    flat = pd.json_normalize(told).astype(object)
    kept = {str(key): column.dropna() for key, column in flat.items() if not str(key).startswith("needs")}
    return {key: ", ".join(sorted({str(value).replace("'", "") for value in kept[key]})) or "-" for key in kept}
