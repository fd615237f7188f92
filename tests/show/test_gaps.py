"""What universality costs, against numbers by hand and against the definitions written out as loops."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.show.test_facts import frame, study, trial
from urc_sweep import cli
from urc_sweep.errors import SpecError
from urc_sweep.show import facts, gaps, terminal
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import TRIALS, to_bytes

UNTIMED = settings(deadline=None, max_examples=15)


def config(epochs: int = 30, gradient: str = "soft", batchnorm: str = "eval", **more: Any) -> dict[str, str]:
    protocol = {"preset": "sound", "quantizer_gradient": gradient, "frozen_batchnorm": batchnorm}
    return {"config_json": json.dumps({"train": {"epochs": epochs, "batch_size": 64}, "protocol": protocol} | more)}


def of(parent: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a trial's row says of the trial whose encoder it uses."""
    return {"parent_id": parent["trial_id"], "parent_lambda_c": parent["lambda_c"]} | more


# -- penalties ---------------------------------------------------------------------------------------------------------


def test_penalties_of_three_seeds_by_hand():
    table = gaps.penalties(frame(study(0, 0.005) + study(1, 0.006) + study(2, 0.007)))
    assert table["lambda_c"].tolist() == [0.0, 0.015, 0.05]
    loose, matched, tight = facts.records(table)
    # C = 1.5 is looser than any universal point: the front is flat there, its cheapest point on validation answers.
    assert loose["constraint"] == pytest.approx(1.5)
    assert loose["mse_end_to_end"] == pytest.approx(0.041)
    assert loose["penalty"] == pytest.approx(0.006)
    assert loose["penalty_percent"] == pytest.approx(100 * 0.006 / 0.041)
    # t(0.975, 2 degrees of freedom) = 4.3026527, standard deviation .001, n = 3.
    half = 4.3026527 * 0.001 / math.sqrt(3)
    assert (loose["low"], loose["high"]) == (pytest.approx(0.006 - half), pytest.approx(0.006 + half))
    assert (loose["seeds"], loose["of_seeds"], loose["infeasible"]) == (3, 3, False)
    assert matched["penalty"] == pytest.approx(0.020 - 0.052)
    # No universal decoder reaches C = .1: nothing is extrapolated.
    assert tight["infeasible"] is True
    assert tight["mse_end_to_end"] == pytest.approx(0.061)
    assert all(math.isnan(tight[name]) for name in ("penalty", "penalty_percent", "mse_universal", "low", "high"))
    assert (tight["seeds"], tight["of_seeds"]) == (0, 3)


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_there_is_a_mean_and_no_interval(seeds: int):
    table = gaps.penalties(frame([row for seed in range(seeds) for row in study(seed, 0.004 + 0.002 * seed)]))
    loose = facts.records(table)[0]
    assert loose["penalty"] == pytest.approx(0.004 if seeds == 1 else 0.005)
    assert math.isnan(loose["low"])
    assert math.isnan(loose["high"])
    assert loose["seeds"] == seeds


def test_ten_seeds_are_bootstrapped_and_the_same_every_time():
    trials = frame([row for seed in range(10) for row in study(seed, 0.001 * seed)])
    first, again = (gaps.penalties(trials).iloc[0] for _ in range(2))
    assert 0 < first["low"] < first["penalty"] < first["high"] < 0.009
    assert (first["low"], first["high"]) == (again["low"], again["high"])


def test_a_row_averages_only_the_seeds_that_reach_its_constraint():
    row = facts.records(gaps.penalties(frame(study(0, 0.005) + study(1, 0.006, tightest=0.25))))[1]
    assert (row["lambda_c"], row["seeds"], row["of_seeds"], row["infeasible"]) == (0.015, 1, 2, False)
    assert row["penalty"] == pytest.approx(0.020 - 0.052)


def test_seeds_that_failed_or_collapsed_or_are_to_come_are_asked_for():
    """At the weights that collapse, means over those who survived look too good: the row must say so."""
    cells = [study(seed, 0.005) for seed in range(5)]
    cells[1][1] |= {"status": "diverged"}
    cells[2][1] |= {"val_mse": 0.2, "mse": 0.2}  # worse than the best constant image
    for row in cells[4]:
        row["status"] = "pending"
    cells[3][3] |= {"status": "failed"}
    cells[3][4] |= {"status": "failed"}
    trials = frame([row for rows in cells for row in rows])
    of_seeds = {"lambda_c": [0.0, 0.015, 0.05], "of_seeds": [5, 5, 5]}
    assert gaps.penalties(trials)[[*of_seeds]].to_dict("list") == of_seeds
    # Seed 3 has no decoders, seed 4 nothing; the frozen encoder's own trial is lost at seeds 1 and 2.
    assert gaps.penalties(trials)["seeds"].tolist() == [3, 1, 0]
    assert gaps.hypervolume_ratios(trials)[["seeds", "of_seeds"]].to_numpy().tolist() == [[3, 5]]
    assert gaps.rate_penalties(trials)["of_seeds"].tolist() == [5]


def test_trials_that_differ_by_a_further_weight_are_no_seeds_of_each_other():
    rows = []
    for seed in range(2):
        for edges in (0.0, 1.0):
            cell = study(seed, 0.005 + 0.001 * edges)
            for row in cell:
                row["weights"] = {"classification": row["lambda_c"], "edges": edges}
            rows += cell
    table = gaps.penalties(frame(rows)).query("lambda_c == 0 and terms == 'edges 1' and parent_terms == 'edges 1'")
    (row,) = facts.records(table)
    assert (row["seeds"], row["of_seeds"], math.isnan(row["low"])) == (2, 2, True)
    assert (gaps.encoder(row), gaps.weights(row)) == ("c 0.015 edges 1", "c 0 edges 1")


def test_runs_that_all_collapsed_are_called_that():
    rows = study(0, 0.005)
    for row in rows[:3]:
        row["val_mse"] = 0.3
    told = "no penalty: all 3 finished end_to_end trials are worse than zero rate, the best constant image"
    assert gaps.obstacle(frame(rows)) == told


def test_encoders_of_different_weight_get_their_own_rows():
    rows = study(0, 0.005)
    other = {"parent_id": rows[0]["trial_id"], "parent_lambda_c": 0.0}
    rows.append(trial("universal", 0, 0.0, (0.040, 1.0), (0.0415, 1.0), **other))
    table = gaps.penalties(frame(rows)).set_index(["parent_lambda_c", "lambda_c"])
    assert table.loc[(0.0, 0.0), "penalty"] == pytest.approx(0.0005)
    assert table.loc[(0.015, 0.0), "penalty"] == pytest.approx(0.005)
    assert table.loc[(0.0, 0.015), "infeasible"]


def test_penalties_leave_out_trials_without_a_classification_term_and_runs_worse_than_rate_0():
    rows = study(0, 0.005)
    rows.append(trial("end_to_end", 0, None, (0.001, 0.01), (0.001, 0.01)))
    rows.append(trial("end_to_end", 0, 0.3, (0.2, 0.05), (0.2, 0.05)))
    assert gaps.penalties(frame(rows))["lambda_c"].tolist() == [0.0, 0.015, 0.05]
    assert gaps.penalties(frame(rows))["mse_end_to_end"].iloc[0] == pytest.approx(0.041)


def test_no_universal_trial_means_no_penalty_row():
    table = gaps.penalties(frame(study(0, 0.005)[:3]))
    assert table.empty
    assert {"penalty", "low", "high", "seeds", "of_seeds", "infeasible"} <= set(table.columns)


VALUE = st.integers(1, 9)
POINTS = st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), min_size=1, max_size=4)


def rows_of(seed: int, own: Any, decoders: Any, axis: str = "cross_entropy") -> list[dict[str, Any]]:
    """End-to-end trials, and universal ones on the first one's encoder, of (val mse, val axis, mse, axis) / 100."""
    sign = 0.1 if axis == "accuracy" else 1.0
    rows: list[dict[str, Any]] = []
    for stage, points in (("end_to_end", own), ("universal", decoders)):
        for index, (val_mse, val_axis, mse, at) in enumerate(points):
            more = {f"val_{axis}": sign * val_axis, axis: sign * at} | (of(rows[0]) if stage == "universal" else {})
            row = trial(stage, seed, 0.01 * index, (val_mse / 100, 1.0), (mse / 100, 1.0), **more)
            rows.append(row | {"mse_centroid": mse / 200} if stage == "end_to_end" else row)
    return rows


def cheapest(limit: float, rows: list[dict[str, Any]], axis: str) -> dict[str, Any] | None:
    """D(C), word by word: of the rows that meet the limit on validation the one of the least validation MSE."""
    meets = [r for r in rows if (r[f"val_{axis}"] >= limit if axis == "accuracy" else r[f"val_{axis}"] <= limit)]
    return min(meets, key=lambda row: row["val_mse"]) if meets else None


@UNTIMED
@given(st.lists(st.tuples(POINTS, POINTS), min_size=1, max_size=4), st.sampled_from(["cross_entropy", "accuracy"]))
def test_penalties_and_their_splits_are_their_definitions(seeds, axis):
    cells = [rows_of(seed, own, decoders, axis) for seed, (own, decoders) in enumerate(seeds)]
    trials = frame([row for rows in cells for row in rows])
    table, split = (told(trials, axis).set_index("lambda_c") for told in (gaps.penalties, gaps.splits))
    for weight in {row["lambda_c"] for rows in cells for row in rows if row["stage"] == "end_to_end"}:
        expected, terms, of_seeds = [], [], 0
        for rows in cells:
            own, decoders = ([r for r in rows if r["stage"] == stage] for stage in ("end_to_end", "universal"))
            for target in own:
                if target["lambda_c"] == weight:
                    of_seeds += 1
                    base, reached = (cheapest(target[f"val_{axis}"], some, axis) for some in (own, decoders))
                    if reached:
                        expected.append(reached["mse"] - base["mse"])
                        terms.append(own[0]["mse_centroid"] - base["mse_centroid"])
        row = table.loc[weight]
        assert (row["seeds"], row["of_seeds"]) == (len(expected), of_seeds)
        assert row["infeasible"] == (not expected)
        if not expected:
            assert weight not in split.index
            continue
        assert row["penalty"] == pytest.approx(np.mean(expected), abs=1e-15)
        assert row["mse_universal"] - row["mse_end_to_end"] == pytest.approx(row["penalty"], abs=1e-15)
        assert split.loc[weight, "gap"] == pytest.approx(row["penalty"], abs=1e-15)
        assert split.loc[weight, "encoder"] == pytest.approx(np.mean(terms), abs=1e-15)
        assert split.loc[weight, "decoder"] == pytest.approx(np.mean(expected) - np.mean(terms), abs=1e-15)
        if len(expected) < 3:
            assert math.isnan(row["low"])
        elif np.std(expected) > 0:
            mean, error = np.mean(expected), stats.sem(expected)
            assert (row["low"], row["high"]) == pytest.approx(stats.t.interval(0.95, len(expected) - 1, mean, error))


@UNTIMED
@given(st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), min_size=1, max_size=5))
def test_a_dominated_universal_front_never_gains(points):
    own = [(mse, at, mse, at) for mse, at, _, _ in points]
    decoders = [(mse + more, at + worse, mse + more, at + worse) for mse, at, more, worse in points]
    found = gaps.penalties(frame(rows_of(0, own, decoders)))
    assert not (found["penalty"] < 0).any()
    same = gaps.penalties(frame(rows_of(0, own, own)))
    assert same["penalty"].tolist() == [0.0] * len(points)


def test_perception_is_matched_among_trials_with_a_perception_term():
    def row(stage: str, p: float | None, val: tuple[float, float], test: float, **more: Any) -> dict[str, Any]:
        distances = {"val_sliced_w2": val[1], "sliced_w2": val[1], "lambda_p": p}
        return trial(stage, 0, more.pop("c", None), (val[0], 1.0), (test, 1.0), **distances, **more)

    ends = [row("end_to_end", 0.0, (0.040, 0.09), 0.041), row("end_to_end", 0.01, (0.050, 0.05), 0.052)]
    parent = {"parent_id": ends[1]["trial_id"], "parent_lambda_p": 0.01}
    decoders = [
        row("universal", 0.0, (0.045, 0.07), 0.046, **parent),
        row("universal", 0.01, (0.055, 0.05), 0.056, **parent),
    ]
    # Its numbers are the best of all at any constraint, but it is of another study.
    other = row("end_to_end", None, (0.001, 0.001), 0.001, c=0.1)
    table = gaps.penalties(frame([*ends, *decoders, other]), "sliced_w2")
    assert table["lambda_p"].tolist() == [0.0, 0.01]
    assert table["penalty"].tolist() == pytest.approx([0.046 - 0.041, 0.056 - 0.052])
    assert table["parent_lambda_p"].tolist() == [0.01, 0.01]
    # Without a classification term there is nothing to match in cross-entropy.
    assert gaps.penalties(frame([*ends, *decoders])).empty
    assert "classification" in str(gaps.obstacle(frame([*ends, *decoders, other])))


def test_an_unknown_constraint_is_one_line_with_the_choices():
    with pytest.raises(SpecError, match=r"--at acuracy: did you mean 'accuracy'.*choices: accuracy, cross_entropy"):
        gaps.penalties(frame([]), "acuracy")


# -- who is compared with whom -----------------------------------------------------------------------------------------


def arm(variant: str, shift: float, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """Two end-to-end trials of one variant, costing ``shift``."""
    values = ((0.0, 0.040, 1.5), (0.015, 0.050, 0.2))
    more = {"variant": variant, **config(**settings)}
    return [trial("end_to_end", seed, c, (mse + shift, ce), (mse + shift, ce), **more) for c, mse, ce in values]


def penalty_at(rows: list[dict[str, Any]], mse: float = 0.06) -> list[float]:
    """The penalties of every universal front at the loosest constraint, plus what they are judged by: mse - D_e2e."""
    table = gaps.penalties(frame(rows))
    return [mse - value for value in table.loc[table["lambda_c"] == 0, "penalty"]]


def test_a_universal_front_is_judged_by_the_variant_of_its_encoder():
    plain, longer = arm("", 0.0), arm("epochs 90", -0.01, epochs=90)
    for parent, judged in ((plain[1], 0.040), (longer[1], 0.030)):
        # Its own variant says nothing about its encoder's.
        decoder = trial("universal", 0, 0.0, (0.06, 0.1), (0.06, 0.1), variant="frozen_batchnorm batch", **of(parent))
        assert penalty_at([*plain, *longer, decoder]) == pytest.approx([judged])


@pytest.mark.parametrize(
    ("stage", "variant", "epochs", "arms", "judged"),
    [
        ("control", "random", 30, ("", "epochs 90"), 0.040),  # trained as the plain ones
        ("control", "random", 30, ("epochs 90",), 0.030),  # the only ones there are
        ("control", "random", 60, ("", "epochs 90"), 0.040),  # as none of them: the plain ones
        ("control", "random", 60, ("epochs 90", "epochs 120"), None),  # nothing to choose by
        ("joint", "", 90, ("", "epochs 90"), 0.030),  # the only variant of its stage, trained as the other arm was
    ],
)
def test_a_joint_or_control_encoder_is_judged_by_what_was_trained_alike(stage, variant, epochs, arms, judged):
    known = {"": (0.0, 30), "epochs 90": (-0.01, 90), "epochs 120": (-0.02, 120)}
    rows = [row for name in arms for row in arm(name, known[name][0], epochs=known[name][1])]
    parent = trial(stage, 0, None, (0.07, 2.0), (0.07, 2.0), variant=variant, **config(epochs))
    decoder = "joint_decoder" if stage == "joint" else "universal"
    rows += [parent, trial(decoder, 0, 0.0, (0.06, 0.1), (0.06, 0.1), parent_id=parent["trial_id"])]
    assert penalty_at(rows) == pytest.approx([] if judged is None else [judged])
    if judged is None:
        assert "shares rate and seed" in str(gaps.obstacle(frame([*rows, {**rows[-1], "trial_id": "f" * 64}])))
    else:
        assert gaps.penalties(frame(rows))[["stage", "parent_stage"]].iloc[0].tolist() == [decoder, stage]


def test_decoders_of_one_encoder_under_two_settings_are_two_fronts():
    rows = arm("", 0.0)
    for variant, mse in (("", 0.06), ("frozen_batchnorm batch", 0.055)):
        rows.append(trial("universal", 0, 0.0, (mse, 0.1), (mse, 0.1), variant=variant, **of(rows[1])))
    table = gaps.penalties(frame(rows))
    assert table.groupby("variant")["mse_universal"].first().to_dict() == {"": 0.06, "frozen_batchnorm batch": 0.055}
    words = [gaps.encoder(row) for row in facts.records(table)][::2]
    assert words == ["c 0.015", "c 0.015, decoders frozen_batchnorm batch"]


def test_other_seeds_and_rates_do_not_judge():
    rows = arm("", 0.0, seed=1) + [row | {"levels": 4, "rate_bits": 6.0} for row in arm("", 0.0, seed=0)]
    rows.append(trial("universal", 0, 0.0, (0.06, 0.1), (0.06, 0.1), **of(rows[1])))
    assert gaps.penalties(frame(rows)).empty


# -- rates -------------------------------------------------------------------------------------------------------------


def at_rate(
    dim: int, stage: str, points: list[tuple[float, float]], seed: int = 0, **more: Any
) -> list[dict[str, Any]]:
    own = {"dim": dim, "rate_bits": dim * math.log2(3)} | more
    return [trial(stage, seed, 0.01 * index, point, point, **own) for index, point in enumerate(points)]


def gaussian_study(excess: float, seed: int = 0) -> list[dict[str, Any]]:
    """End-to-end fronts D = .1 * 2^(-2R) at two constraints; decoders of dim 3 at what R - excess bits reach."""
    rows = []
    for dim in (1, 2, 3, 4):
        mse = 0.1 * 2 ** (-2 * dim * math.log2(3))
        rows += at_rate(dim, "end_to_end", [(mse, 0.5), (mse * 2, 0.2)], seed)
    wasted = 0.1 * 2 ** (-2 * (3 * math.log2(3) - excess))
    parent = of(rows[5])
    return rows + at_rate(3, "universal", [(wasted, 0.5), (2 * wasted, 0.2)], seed, **parent)


@pytest.mark.parametrize("steps", [0, 1])
def test_the_profile_of_a_gaussian_encoder_is_its_excess_rate(steps):
    # Whole steps between trained rates are knots of the interpolation: there the closed form is exact.
    row = gaps.rate_penalties(frame(gaussian_study(steps * math.log2(3)))).iloc[0]
    assert row["profile_max"] == pytest.approx(steps * math.log2(3))
    assert row["profile_mean"] == pytest.approx(steps * math.log2(3))
    assert (row["profile_status"], row["placed"]) == ("found", 1.0)
    assert row["end_to_end_rates"] == "1.585 3.17 4.755 6.34"
    assert row["rates"] == "4.755"
    if steps:
        assert math.isnan(row["rate_penalty"])
        assert row["status"] == "needs higher rates"
    else:
        assert (row["rate_penalty"], row["status"]) == (0.0, "found")


def test_the_profile_between_rates_is_the_chords():
    row = gaps.rate_penalties(frame(gaussian_study(0.5))).iloc[0]
    # Both points of the front have the same excess, and the chord the same shape at both constraints.
    rates = np.log2(3) * np.arange(1, 5)
    chord = np.interp(-(2 ** (-2 * (rates[2] - 0.5))), -(2.0 ** (-2 * rates)), rates)
    assert row["profile_max"] == pytest.approx(rates[2] - chord)
    assert 0 < row["profile_max"] < 0.5


def test_points_outside_the_trained_rates_are_not_placed():
    rows = [row for row in gaussian_study(1.0) if row["stage"] == "universal" or row["dim"] == 3]
    row = gaps.rate_penalties(frame(rows)).iloc[0]
    assert (row["profile_status"], row["placed"]) == ("needs lower rates", 0.0)
    assert math.isnan(row["profile_max"])
    assert math.isnan(row["profile_mean"])


def test_the_profile_is_placed_by_validation_and_measured_on_test():
    rows = gaussian_study(0.0)
    for row in rows[-2:]:
        row["cross_entropy"] += 0.3  # on test it would meet neither constraint that tightly
    for row in rows:
        row["mse"] *= 2  # of all alike, so that rates stay where they are
    row = gaps.rate_penalties(frame(rows)).iloc[0]
    assert (row["profile_max"], row["placed"]) == (pytest.approx(0.0), 1.0)
    for row in rows[-2:]:
        row["val_cross_entropy"] -= 0.25  # .25 only the dearer points meet, -.05 none
    row = gaps.rate_penalties(frame(rows)).iloc[0]
    assert row["placed"] == 0.5
    assert row["profile_status"] == "infeasible"
    # D is half of what end-to-end trials of its own rate reach at that constraint: they need a higher one.
    rates = np.log2(3) * np.arange(1, 5)
    expected = rates[2] - np.interp(-0.5 * 2 ** (-2 * rates[2]), -(2.0 ** (-2 * rates)), rates)
    assert row["profile_max"] == pytest.approx(expected)


def test_rate_penalty_is_over_one_encoders_family_and_paired_by_seed():
    rows = []
    for seed in range(3):
        low, high = [(0.04, 1.0), (0.05, 0.5)], [(0.03, 0.9), (0.045, 0.4)]
        ends = at_rate(2, "end_to_end", low, seed) + at_rate(3, "end_to_end", high, seed)
        rows += ends
        rows += at_rate(2, "universal", [(0.041, 1.0), (0.05, 0.5)], seed, **of(ends[1]))
        rows += at_rate(3, "universal", [(0.035, 0.9), (0.046, 0.4)], seed, **of(ends[3]))
        # The decoders of another base would do at once; they are not this encoder's.
        rows += at_rate(2, "universal", [(0.01, 0.1)], seed, **of(ends[0]))
    table = gaps.rate_penalties(frame(rows)).set_index(["parent_lambda_c", "dim"])
    row = table.loc[(0.01, 2)]
    assert row["rate_penalty"] == pytest.approx(math.log2(3))
    assert (row["rate_penalty_low"], row["rate_penalty_seeds"], row["of_seeds"]) == (pytest.approx(math.log2(3)), 3, 3)
    assert (row["status"], row["rates"]) == ("found", "3.17 4.755")
    assert table.loc[(0.01, 3), "status"] == "needs higher rates"
    assert table.loc[(0.0, 2), "rate_penalty"] == 0.0


def test_four_families_of_two_settings_have_four_names_and_their_own_rate_penalties():
    """Decoders trained longer on an encoder that was not, and the other way round, are no kin."""
    long, rows = "epochs 90", []
    for dim, points in ((2, [(0.04, 1.0), (0.05, 0.5)]), (3, [(0.03, 0.9), (0.045, 0.4)])):
        for own in ("", long):
            ends = at_rate(dim, "end_to_end", points, variant=own)
            weak = at_rate(dim, "universal", [(0.06, 1.0), (0.07, 0.5)], variant="" if own else long, **of(ends[1]))
            strong = at_rate(dim, "universal", points, variant=own, **of(ends[1]))
            rows += [*ends, *weak, *strong]
    table = gaps.rate_penalties(frame(rows)).query("dim == 2")
    told = {gaps.encoder(row): row["status"] for row in facts.records(table)}
    assert told == {
        "c 0.01": "found",
        "c 0.01, decoders epochs 90": "needs higher rates",
        "c 0.01 epochs 90": "found",
        "c 0.01 epochs 90, decoders plain": "needs higher rates",
    }


def test_an_end_to_end_front_of_one_point_has_no_rate_penalty():
    rows = arm("", 0.0)[:1]
    rows += [trial("universal", 0, c, (0.06, ce), (0.06, ce), **of(rows[0])) for c, ce in ((0.0, 0.5), (0.1, 0.1))]
    assert gaps.rate_penalties(frame(rows)).empty
    line = str(gaps.obstacle(frame(rows)))
    assert line.startswith("no penalty: a front needs at least two points, those of end_to_end trials have one; give")
    assert "\n" not in line


def test_hypervolume_ratios_by_hand():
    rows = arm("", 0.0)
    rows += [trial("universal", 0, c, (0.05, 0.2), (0.06, 0.2), **of(rows[1])) for c in (0.0, 0.1)]
    # Dominated on validation: that it is the best of all on test does not count.
    rows.append(trial("universal", 0, 0.2, (0.07, 0.3), (0.01, 0.1), **of(rows[1])))
    row = gaps.hypervolume_ratios(frame(rows)).iloc[0]
    # Below (.1, 2): (.1 - .06)(2 - .2) against (.1 - .05)(2 - .2) + (.05 - .04)(2 - 1.5).
    assert row["ratio"] == pytest.approx(0.04 * 1.8 / (0.05 * 1.8 + 0.01 * 0.5))
    assert (row["seeds"], math.isnan(row["low"])) == (1, True)


# -- the decisive study ------------------------------------------------------------------------------------------------


def decisive(seed: int, joint_gap: float = 0.002, joint_ce: float = 0.2) -> list[dict[str, Any]]:
    """The whole study of one seed, of numbers that differ between seeds only by a common term."""
    noise = 0.001 * seed
    rows: list[dict[str, Any]] = []
    for variant, epochs, gradient, gain in (
        ("", 30, "soft", 0.0),
        ("epochs 90", 90, "soft", 0.003),
        ("quantizer_gradient identity", 30, "identity", 0.004),
        ("epochs 90, quantizer_gradient identity", 90, "identity", 0.010 + 0.0001 * seed),
    ):
        told = {"variant": variant, **config(epochs, gradient)}
        own = []
        for c, mse, ce in ((0.0, 0.040, 1.5), (0.005, 0.044, 0.6), (0.015, 0.050, 0.2)):
            point = (mse + noise - gain, ce + noise)
            own.append(trial("end_to_end", seed, c, point, point, mse_centroid=point[0] - 0.002, **told))
        rows += own
        joint = trial("joint", seed, None, (math.nan, math.nan), (math.nan, math.nan), **told)
        point = (0.040 + noise - gain + joint_gap + 0.0001 * seed, 1.4)
        rows.append(joint)
        rows.append(trial("joint_decoder", seed, 0.0, point, point, parent_id=joint["trial_id"], variant=variant))
        tight = (0.055, joint_ce + noise)
        rows.append(trial("joint_decoder", seed, 0.015, tight, tight, parent_id=joint["trial_id"], variant=variant))
    base = rows[2]
    for batchnorm, more in (("eval", 0.0), ("batch", 0.003 + 0.0002 * seed)):
        told = {"variant": "" if batchnorm == "eval" else "frozen_batchnorm batch", **config(batchnorm=batchnorm)}
        for c, mse, ce in ((0.0, 0.048, 0.45), (0.05, 0.052, 0.19)):
            point = (mse + noise + more, ce + noise)
            rows.append(trial("universal", seed, c, point, point, **of(base), **told))
    return rows


def whole(**more: Any) -> pd.DataFrame:
    return frame([row for seed in range(3) for row in decisive(seed, **more)])


def explained(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["explanation"], row["arm"]): row for row in facts.records(gaps.explanations(table))}


def test_every_explanation_by_hand():
    rows = explained(whole())
    t = stats.t.ppf(0.975, 2)

    scale = rows["lambda scale", "c 0.015"]
    assert scale["mean"] == pytest.approx((0.45 - 0.19) / (1.5 - 0.2))
    assert scale["seeds"] == 3
    assert rows["lambda scale", "c 0.015, decoders frozen_batchnorm batch"]["mean"] == pytest.approx(0.2)
    assert rows["lambda scale", "joint"]["mean"] == pytest.approx((1.4 - 0.201) / 1.3)

    # At every constraint both fronts lose .003, .0032, .0034 more.
    norm = rows["batch norm", "c 0.015"]
    half = t * 0.0002 / math.sqrt(3)
    assert (norm["mean"], norm["low"], norm["high"]) == pytest.approx((0.0032, 0.0032 - half, 0.0032 + half))
    assert norm["seeds"] == 3

    gradient, epochs = "encoder optimisation: gradient", "encoder optimisation: epochs"
    assert rows[gradient, "soft to identity, 30 epochs"]["mean"] == pytest.approx(-0.004)
    assert rows[gradient, "soft to identity, 90 epochs"]["mean"] == pytest.approx(-0.0071)
    assert rows[epochs, "30 to 90 epochs, soft"]["mean"] == pytest.approx(-0.003)
    assert rows[epochs, "30 to 90 epochs, identity"]["mean"] == pytest.approx(-0.0061)

    best = rows["universality", "90 epochs, identity"]
    half = t * 0.0001 / math.sqrt(3)
    assert (best["mean"], best["low"], best["high"]) == pytest.approx((0.0021, 0.0021 - half, 0.0021 + half))
    assert {arm for (name, arm), row in rows.items() if row["best_arm"]} == {"90 epochs, identity"}
    assert len([name for name, _ in rows if name == "universality"]) == 4


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({}, "real"),
        ({"joint_gap": 0.00001}, "not shown"),  # [-.00014, .00036]: the interval holds 0
        ({"joint_gap": -0.002}, "not shown"),  # better than end-to-end is no gap
        ({"joint_ce": 0.21}, "not shown"),  # the encoder does not serve the base's constraint: no pair
    ],
)
def test_the_verdict_is_joints_in_the_best_arm(more, shown):
    lines = list(gaps.verdicts(gaps.explanations(whole(**more))))
    assert len(lines) == 1
    assert lines[0].startswith(f"(3,3): the universality gap is {shown} (")


def test_a_gap_in_a_lesser_arm_does_not_count():
    table = whole()
    best = table["variant"].eq("epochs 90, quantizer_gradient identity") & table["stage"].str.startswith("joint")
    rows = gaps.explanations(table[~best])
    assert (rows.loc[rows["explanation"] == "universality", "low"] > 0).all()
    assert list(gaps.verdicts(rows)) == ["(3,3): the universality gap is not shown (no joint trial in the best arm)"]
    assert list(gaps.verdicts(gaps.explanations(table[~table["stage"].str.startswith("joint")]))) == []


def test_the_base_of_a_control_does_not_set_the_joint_constraint():
    # A classifier-only encoder has classification weight 1, and there is no end-to-end trial of it.
    rows = [row for seed in range(3) for row in decisive(seed)]
    for seed in range(3):
        control = trial("control", seed, 1.0, (0.09, 0.01), (0.09, 0.01), variant="classifier_only", **config())
        rows += [control, trial("universal", seed, 0.0, (0.08, 0.02), (0.08, 0.02), **of(control), **config())]
    assert explained(frame(rows))["universality", "90 epochs, identity"]["mean"] == pytest.approx(0.0021)


def test_one_arm_is_compared_with_no_other():
    table = whole()
    rows = gaps.explanations(table[~table["variant"].str.contains("epochs")]).set_index("explanation")
    assert rows.loc["encoder optimisation: epochs", "of_seeds"] == 0
    assert rows.loc["encoder optimisation: gradient", "mean"] == pytest.approx(-0.004)


def test_an_explanation_without_its_arms_has_no_number():
    table = gaps.explanations(frame(study(0, 0.005)))
    found = table.set_index("explanation")
    assert found.loc["lambda scale", "mean"] == pytest.approx(0.2 / 1.3)
    empty = found.drop(index="lambda scale")
    assert empty.index.tolist() == [
        *("batch norm", "encoder optimisation: gradient", "encoder optimisation: epochs", "universality")
    ]
    assert empty["mean"].isna().all()
    assert empty[["seeds", "of_seeds"]].eq(0).all(axis=None)
    assert gaps.explanations(frame([])).empty


# -- order, and two sweeps ---------------------------------------------------------------------------------------------


TABLES = (gaps.penalties, gaps.splits, gaps.rate_penalties, gaps.hypervolume_ratios, gaps.explanations)


@pytest.mark.parametrize("told", TABLES)
def test_no_table_depends_on_the_order_of_rows(told):
    rows = decisive(0) + decisive(1)[:6] + gaussian_study(0.7, seed=5)
    shuffled = random.Random(7).sample(rows, len(rows))
    one, other = told(frame(rows)), told(frame(shuffled))
    keys = [name for name in one.columns if name in (*gaps.BASE, *facts.WEIGHTS, "explanation", "arm")]
    one, other = (some.sort_values(keys).reset_index(drop=True) for some in (one, other))
    assert len(one) > 1
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("told", TABLES)
def test_stacked_sweeps_are_judged_each_by_itself(told):
    one, two = decisive(0) + decisive(1), gaussian_study(0.7) + decisive(2, joint_gap=0.1)
    rows = [pd.DataFrame(frame(some)).assign(sweep=name) for name, some in (("a", one), ("b", two))]
    together, alone = told(pd.concat(rows, ignore_index=True)), [told(some) for some in rows]
    assert set(together["sweep"]) == {"a", "b"}
    for name, table in zip("ab", alone, strict=True):
        part = together[together["sweep"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, table.reset_index(drop=True), check_dtype=False)


@pytest.mark.parametrize("told", TABLES)
def test_points_serve_as_trials(told):
    trials = frame(decisive(0) + decisive(1))
    for points in (facts.compressors(trials), facts.fronts(trials)):
        pd.testing.assert_frame_equal(told(points), told(trials))
        assert gaps.matched_at(points) == gaps.matched_at(trials)
        assert gaps.obstacle(points) is None


def test_verdicts_of_several_sweeps_name_them():
    both = pd.concat([whole().assign(sweep="a"), whole(joint_gap=-0.002).assign(sweep="b")], ignore_index=True)
    one, two = gaps.verdicts(gaps.explanations(both))
    assert one.startswith("a (3,3): the universality gap is real")
    assert two.startswith("b (3,3): the universality gap is not shown")


def two_sweeps() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    sweeps = []
    for epochs, gain in ((30, 0.0), (60, 0.003)):
        rows: list[dict[str, Any]] = []
        for seed in range(4):
            more = config(epochs, needs={"classifier": f"{epochs}"}, objective={"classification": {"weight": 0.015}})
            value = 0.05 - gain - 0.0001 * seed * gain
            own = trial("end_to_end", seed, 0.015, (value, 0.2), (value, 0.2 + gain), **more)
            decoder = trial("universal", seed, 0.0, (0.06, 0.3), (0.06, 0.3), accuracy=0.9 + gain, **of(own), **more)
            rows += [own, decoder]
        sweeps.append(rows)
    sweeps[1] = [row for row in sweeps[1] if row["seed"] < 3]  # b lacks a seed
    sweeps[1][0]["status"] = "diverged"  # and in another one a trial
    return sweeps[0], sweeps[1]


def test_compare_pairs_what_two_sweeps_share():
    a, b = two_sweeps()
    told, shared = gaps.compare(frame(a), frame(b))
    assert told.to_dict("records") == [{"key": "train.epochs", "a": "30", "b": "60"}]
    own, decoder = facts.records(shared)
    assert (own["stage"], own["mse_seeds"], own["of_seeds"]) == ("end_to_end", 2, 2)
    assert own["mse"] == pytest.approx(np.mean([-0.003 - 0.0001 * seed * 0.003 for seed in (1, 2)]))
    assert own["cross_entropy"] == pytest.approx(0.003)
    assert math.isnan(own["accuracy"])
    assert (decoder["stage"], decoder["parent_lambda_c"], decoder["mse"]) == ("universal", 0.015, 0.0)
    assert (decoder["accuracy"], decoder["accuracy_seeds"]) == (pytest.approx(0.003), 3)
    back = gaps.compare(frame(b[::-1]), frame(a[::-1]))[1]
    assert back["mse"].tolist() == pytest.approx((-shared["mse"]).tolist())


def test_compare_says_what_only_one_sweep_has():
    a, b = two_sweeps()
    for row in a:
        row["config_json"] = row["config_json"].replace('"batch_size": 64', '"batch_size": 64, "betas": [0.5, 0.9]')
    told, _ = gaps.compare(frame(a), frame([row | {"seed": 9} for row in b]))
    assert told.set_index("key").loc["train.betas"].tolist() == ["[0.5, 0.9]", "-"]
    assert gaps.compare(frame(a), frame([row | {"seed": 9} for row in b]))[1].empty


# -- what the terminal says --------------------------------------------------------------------------------------------


def save(root: Path, name: str, rows: list[dict[str, Any]]) -> Store:
    store = Store(root)
    store.create()
    rows = [row | {"metrics": sorted(row["metrics"].items()), "weights": []} for row in rows]
    whole = {"dim", "levels", "seed"}
    rows = [{key: int(v) if key in whole and v is not None else v for key, v in row.items()} for row in rows]
    store.replace(store.layout.trials_table(name), to_bytes(pa.Table.from_pylist(rows, TRIALS)))
    store.save_generation(name, {"launched_at": "", "trials": [], "command": ""})
    return store


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["urc-sweep", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_penalty_prints_every_table_that_has_rows(tmp_path, monkeypatch, capsys):
    save(tmp_path, "study", [row for seed in range(3) for row in decisive(seed)])
    assert run(monkeypatch, "penalty", "study", "--store", tmp_path) == 0
    text = capsys.readouterr().out
    for title in ("distortion penalty", "where the gaps come from", "rate penalty", "hypervolume", "may explain"):
        assert title in text
    assert "(3,3): the universality gap is real (in the best-optimised arm, 90 epochs, identity)" in text
    assert run(monkeypatch, "penalty", "--at", "psnr", "--store", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("urc-sweep: --at psnr: ")
    assert error.count("\n") == 1


def test_a_sweep_without_a_front_is_one_line_that_says_what_to_change(tmp_path, monkeypatch, capsys):
    save(tmp_path, "ends", arm("", 0.0))
    assert run(monkeypatch, "penalty", "--store", tmp_path) == 2
    assert capsys.readouterr().err.startswith("urc-sweep: sweep 'ends': no penalty yet: it needs finished end-to-end")
    # The end of a launch says it too, and fails of nothing.
    for rows in ([], arm("", 0.0), [trial("classifier", 0, None, (0, 0), (0, 0), dim=None, status="pending")]):
        terminal.penalty(frame(rows))
        assert capsys.readouterr().out.startswith("no penalty yet: it needs finished end-to-end and universal trials")


def test_compare_takes_sweeps_of_two_stores(tmp_path, monkeypatch, capsys):
    a, b = two_sweeps()
    save(tmp_path / "one", "a", a)
    save(tmp_path / "two", "b", b)
    assert run(monkeypatch, "compare", "a", f"{tmp_path / 'two'}:b", "--store", tmp_path / "one") == 0
    text = capsys.readouterr().out
    assert "train.epochs" in text
    assert "-0.003" in text
    assert run(monkeypatch, "compare", "a", "c", "--store", tmp_path / "one") == 2
    assert "no sweep 'c'" in capsys.readouterr().err


def test_tables_of_trials_and_fronts_name_the_variants(capsys):
    table = frame([row for seed in range(2) for row in decisive(seed)])
    terminal.trials(table)
    terminal.frontier(table)
    text = capsys.readouterr().out
    assert text.count("c 0.015, decoders frozen_batchnorm batch") > 4
    terminal.frontier(frame([]))
    assert "no front yet" in capsys.readouterr().out


def test_words_of_several_seeds_are_told_once() -> None:
    assert gaps._words(["infeasible, needs higher rates", "needs higher rates", "found"]) == (
        "infeasible, needs higher rates"
    )
    assert gaps._words(["found", "found"]) == "found"
