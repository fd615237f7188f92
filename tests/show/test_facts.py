"""Facts against hand-computed numbers. Frames are built by hand: no store, no training."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pandas as pd
import pytest

from urc_sweep.show import facts, figures, progress
from urc_sweep.store.tables import TRIALS

ANCHORS = {"mse_rate0": 0.1, "val_mse_rate0": 0.1, "label_entropy": 2.0, "mse_kmeans": 0.03}
COUNT = itertools.count()


def trial(
    stage: str, seed: int, lambda_c: float | None, val: tuple[float, float], test: tuple[float, float], **more: Any
):
    """One done trial at (3,3); ``val`` and ``test`` are (mse, cross_entropy)."""
    row = dict.fromkeys(TRIALS.names) | {"trial_id": f"{next(COUNT):064x}", "stage": stage, "seed": seed}
    row |= {"dataset": "digits", "dim": 3, "levels": 3, "rate_bits": 3 * math.log2(3), "status": "done"}
    row |= {"lambda_d": 1.0, "lambda_c": lambda_c, "val_mse": val[0], "val_cross_entropy": val[1]}
    row |= {"mse": test[0], "cross_entropy": test[1], "metrics": ANCHORS if stage == "end_to_end" else {}}
    return row | more


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows with the dtypes that the store's table has in pandas."""
    table = pd.DataFrame(rows, columns=TRIALS.names)
    numbers = [field.name for field in TRIALS if str(field.type) in ("double", "int64")]
    return table.astype(dict.fromkeys(numbers, "float64"))


def study(seed: int, shift: float, tightest: float = 0.15) -> list[dict[str, Any]]:
    """End-to-end at C = 1.5, .2 and .1; universal decoders reach ``tightest`` at best. Costs ``shift`` at C = 1.5."""
    rows = [
        trial("end_to_end", seed, 0.0, (0.040, 1.5), (0.041, 1.4)),
        trial("end_to_end", seed, 0.015, (0.050, 0.2), (0.052, 0.3)),
        trial("end_to_end", seed, 0.05, (0.060, 0.1), (0.061, 0.1)),
    ]
    encoder = {"parent_id": rows[1]["trial_id"], "parent_lambda_c": 0.015}
    rows.append(trial("universal", seed, 0.0, (0.046, 0.3), (0.041 + shift, 0.4), **encoder))
    # Its test MSE is by far the best; validation says otherwise, and validation decides.
    rows.append(trial("universal", seed, 0.05, (0.053, tightest), (0.020, 0.2), **encoder))
    return rows


def test_fronts_are_decided_on_validation():
    good_val = trial("end_to_end", 0, 0.0, (0.04, 1.0), (0.06, 1.2))
    good_test = trial("end_to_end", 0, 0.1, (0.05, 1.1), (0.03, 0.1))
    other_seed = trial("end_to_end", 1, 0.1, (0.09, 1.9), (0.09, 1.9))
    points = facts.fronts(frame([good_val, good_test, other_seed])).set_index("trial_id")["on_front"]
    assert points[good_val["trial_id"]]
    assert not points[good_test["trial_id"]]
    assert points[other_seed["trial_id"]]  # a front of its own


def test_fronts_of_two_frozen_encoders_do_not_compete():
    rows = study(0, 0.005)
    worse = trial("universal", 0, 0.0, (0.09, 1.9), (0.09, 1.9), parent_id=rows[0]["trial_id"], parent_lambda_c=0.0)
    points = facts.fronts(frame([*rows, worse])).set_index("trial_id")["on_front"]
    assert points[worse["trial_id"]]


def test_larger_is_better_for_accuracy():
    best = trial("end_to_end", 0, 0.1, (0.04, 1.0), (0.04, 1.0), val_accuracy=0.9, accuracy=0.9)
    worst = trial("end_to_end", 0, 0.0, (0.05, 0.5), (0.05, 0.5), val_accuracy=0.8, accuracy=0.8)
    points = facts.fronts(frame([best, worst]), "mse", "accuracy").set_index("trial_id")["on_front"]
    assert points.to_dict() == {best["trial_id"]: True, worst["trial_id"]: False}


def test_runs_that_failed_or_are_worse_than_rate_0_are_on_no_front():
    collapsed = trial("universal", 0, 0.0, (0.11, 0.01), (0.09, 0.01), parent_id="e", parent_lambda_c=0.0)
    diverged = trial("end_to_end", 0, 0.1, (0.01, 0.01), (0.01, 0.01), status="diverged")
    fine = trial("end_to_end", 0, 0.0, (0.09, 1.0), (0.12, 1.0))  # worse on test only: validation decides
    points = facts.fronts(frame([collapsed, diverged, fine])).set_index("trial_id")
    assert points["worse_than_rate0"].to_dict() == {fine["trial_id"]: False, collapsed["trial_id"]: True}
    assert points["on_front"].to_dict() == {fine["trial_id"]: True, collapsed["trial_id"]: False}


def test_hypervolume_by_hand():
    rows = [
        trial("end_to_end", 0, 0.0, (0.03, 1.6), (0.04, 1.5)),
        trial("end_to_end", 0, 0.1, (0.06, 0.3), (0.05, 0.2)),
        trial("end_to_end", 0, 0.2, (0.07, 0.4), (0.01, 0.1)),  # dominated on validation: does not count
    ]
    row = facts.hypervolumes(frame(rows)).iloc[0]
    # Below (0.1, 2): a box of (.1 - .05)(2 - .2), and what (.04, 1.5) adds, (.05 - .04)(2 - 1.5).
    assert row["hypervolume"] == pytest.approx(0.05 * 1.8 + 0.01 * 0.5)
    assert (row["points"], row["reference_mse"], row["reference_cross_entropy"]) == (2, 0.1, 2.0)


def test_progress_and_failures_say_what_happened():
    rows = study(0, 0.005)
    rows[0] |= {"status": "diverged", "error_type": "diverged", "error_message": "loss is nan at epoch 3"}
    rows[3] |= {"status": "pending"}
    rows.append(trial("classifier", 0, None, (0, 0), (0, 0), dim=None, levels=None, rate_bits=None))
    counts = progress.counts(frame(rows), frame(rows)["status"])
    assert counts["end_to_end"] == {"done": 2, "diverged": 1}
    assert counts["classifier"] == {"done": 1}
    failed = facts.failures(frame(rows))
    assert failed["error_message"].tolist() == ["loss is nan at epoch 3"]


def test_figures_escape_names_and_draw_no_point_twice():
    rows = [row | {"trial_id": "<img src=x onerror=alert(1)>"[:12] + row["trial_id"][12:]} for row in study(0, 0.005)]
    figure = figures.frontier(frame(rows))
    assert "<img" not in figure.to_json()
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") == len(rows)
    assert "near-floor (not a bound)" in figure.to_json()


def test_variants_do_not_compete_and_old_tables_have_none():
    good = trial("end_to_end", 0, 0.0, (0.04, 1.0), (0.04, 1.0))
    bad = trial("end_to_end", 0, 0.0, (0.05, 1.1), (0.05, 1.1), variant="epochs 90")
    assert facts.fronts(frame([good, bad]))["on_front"].tolist() == [True, True]
    old = facts.fronts(frame([good, bad]).drop(columns="variant"))
    assert old["variant"].tolist() == ["", ""]
    assert sorted(old["on_front"]) == [False, True]
    assert facts.hypervolumes(frame([good, bad]))["variant"].tolist() == ["", "epochs 90"]


def test_what_is_known_of_the_encoder_stands_beside_its_decoders():
    base = trial("control", 0, 0.015, (0.05, 1.0), (0.05, 1.0), variant="random", mse_centroid=0.031)
    decoder = trial("universal", 0, 0.0, (0.05, 1.0), (0.05, 1.0), parent_id=base["trial_id"])
    stray = trial("universal", 0, 0.0, (0.05, 1.0), (0.05, 1.0), parent_id="not in this table")
    points = facts.compressors(frame([stray, decoder, base])).set_index("trial_id")
    names = ["parent_stage", "parent_variant", "parent_lambda_d", "parent_mse_centroid"]
    assert points.loc[decoder["trial_id"], names].tolist() == ["control", "random", 1.0, 0.031]
    assert points.loc[stray["trial_id"], names[:2]].tolist() == ["", ""]
    assert points.loc[stray["trial_id"], names[2:]].isna().all()


def test_a_joint_encoder_has_facts_but_no_front():
    own = {"lambda_d": None, "mse": None, "val_mse": None, "cross_entropy": None, "val_cross_entropy": None}
    joint = trial("joint", 0, None, (0, 0), (0, 0), mse_centroid=0.04, **own)
    decoder = trial("joint_decoder", 0, 0.0, (0.05, 1.0), (0.05, 1.0), parent_id=joint["trial_id"])
    rows = frame([trial("end_to_end", 0, 0.0, (0.05, 1.0), (0.05, 1.0)), joint, decoder])
    assert facts.encoders(rows)["stage"].tolist() == ["end_to_end", "joint"]
    assert facts.hypervolumes(rows)["stage"].tolist() == ["end_to_end", "joint_decoder"]
    assert not facts.fronts(rows).set_index("trial_id").loc[joint["trial_id"], "on_front"]


def test_anchors_of_no_bits_are_the_data_sets_and_that_of_k_means_is_the_rates():
    base = trial("end_to_end", 0, 0.0, (0.05, 1.0), (0.05, 1.0))
    refined = trial("refined", 0, 0.0, (0.2, 1.0), (0.2, 1.0), parent_id=base["trial_id"], rate_bits=9.5)
    points = facts.fronts(frame([base, refined])).set_index("stage")
    assert points["worse_than_rate0"].to_dict() == {"end_to_end": False, "refined": True}
    told = facts.overlays(frame([base, refined]))
    assert told.loc[told["overlay"] == "k-means 3 3", ["rate_bits", "metric", "value"]].values.tolist() == [
        [base["rate_bits"], "mse", 0.03]
    ]


# -- several sweeps, rates, bands and overlays -------------------------------------------------------------------------


def stacked(*sweeps: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of sweeps a, b ... one under the other, as the store gives them."""
    named = zip("abc", sweeps, strict=False)
    return pd.concat([frame(rows).assign(sweep=name) for name, rows in named], ignore_index=True)


def test_sweeps_share_trials_and_neither_fronts_nor_variants_nor_anchors():
    rows = study(0, 0.005)
    best = trial("end_to_end", 0, 0.0, (0.001, 0.001), (0.001, 0.001), metrics=ANCHORS | {"mse_rate0": 0.2})
    # The same trials are of another variant in the other sweep, which also has one that beats them all.
    other = [row | {"variant": "epochs 90"} if row["stage"] == "end_to_end" else row for row in rows]
    points = facts.fronts(stacked(rows, [*other, best | {"variant": "epochs 90"}])).set_index(["sweep", "trial_id"])
    alone = facts.fronts(frame(rows)).set_index("trial_id")
    assert points.loc["a", "on_front"].to_dict() == alone["on_front"].to_dict()
    assert points.loc["b", "on_front"].sum() == 1 + alone.loc[alone["stage"] == "universal", "on_front"].sum()
    decoder = rows[-1]["trial_id"]
    assert points.loc[("a", decoder), "parent_variant"] == ""
    assert points.loc[("b", decoder), "parent_variant"] == "epochs 90"
    assert alone["sweep"].unique().tolist() == [""]
    mixed = facts.compressors(stacked(rows, [best]))
    assert mixed.groupby("sweep")["reference_mse"].unique().map(list).to_dict() == {"a": [0.1], "b": [0.2]}


def test_what_was_computed_once_is_taken_as_it_is():
    rows = study(0, 0.005) + study(1, 0.006)
    running = trial("end_to_end", 2, 0.0, (0.04, 1.0), (0.04, 1.0), status="running")
    trials = frame([*rows, running, trial("end_to_end", 1, 0.3, (0.08, 1.6), (0.08, 1.6))])
    points = facts.compressors(trials)
    assert facts.compressors(points) is points
    for told in (facts.fronts, facts.hypervolumes, facts.encoders, facts.bands, facts.overlays):
        pd.testing.assert_frame_equal(told(points), told(trials))
    # Membership is of the axes that are asked for, and of the rows that are there.
    kept = facts.fronts(points)
    pd.testing.assert_frame_equal(facts.fronts(kept, "mse", "accuracy"), facts.fronts(trials, "mse", "accuracy"))
    assert facts.fronts(kept[~kept["on_front"]])["on_front"].any()


def test_a_front_over_rates_is_of_all_rates_and_of_encoders_trained_alike():
    def at(dim: int, seed: int, mse: float, **more: Any) -> dict[str, Any]:
        own = {"dim": dim, "rate_bits": 4.0 * dim, "mse_centroid": 0.01}
        return trial(more.pop("stage", "end_to_end"), seed, 0.0, (mse, 1.0), (mse, 1.0), **own | more)

    rows = [at(1, 0, 0.06), at(2, 0, 0.05), at(3, 0, 0.055), at(1, 1, 0.04)]
    bases = {"stage": "universal", "parent_lambda_c": 0.1}
    decoders = [at(1, 0, 0.08, parent_id="one", **bases), at(2, 0, 0.085, parent_id="two", **bases)]
    points = facts.fronts(frame([*rows, *decoders]), "rate_bits", "mse").set_index("trial_id")["on_front"]
    assert [points[row["trial_id"]] for row in rows] == [True, True, False, True]
    assert [points[row["trial_id"]] for row in decoders] == [True, False]
    assert facts.fronts(frame(rows), "bits_per_pixel", "mse")["on_front"].sum() == 3
    table = facts.bands(frame([row | {"seed": seed} for row in rows[:3] for seed in range(3)]), "rate_bits", "mse")
    middle = table[table["share"] == 0.5]
    assert middle[["x", "y"]].values.tolist() == [[4, 0.06], [8, 0.06], [8, 0.05]]
    assert middle[facts.RATE].isna().all(axis=None)


def test_bits_per_pixel_are_of_the_registrys_images():
    rows = [
        trial("end_to_end", 0, 0.0, (0.05, 1.0), (0.05, 1.0), dataset=name) for name in ("digits", "svhn", "folder")
    ]
    told = facts.compressors(frame(rows)).set_index("dataset")["bits_per_pixel"]
    bits = rows[0]["rate_bits"]
    assert (told["digits"], told["svhn"]) == (pytest.approx(bits / 784), pytest.approx(bits / 1024))
    assert math.isnan(told["folder"])  # whose images are known to who trains alone
    assert math.isnan(facts.compressors(frame([rows[0] | {"dataset": "of a plugin"}]))["bits_per_pixel"].iloc[0])


def test_bands_by_hand():
    def seed(number: int, *points: tuple[float, float]) -> list[dict[str, Any]]:
        return [
            trial("end_to_end", number, 0.1 * n, p, p, accuracy=p[1], val_accuracy=p[1]) for n, p in enumerate(points)
        ]

    rows = seed(0, (0.01, 0.5), (0.03, 0.9)) + seed(1, (0.02, 0.6)) + seed(2, (0.04, 0.8)) + seed(3, (0.2, 0.99))
    table = facts.bands(frame(rows), "mse", "accuracy")
    reached = {share: part[["x", "y"]].values.tolist() for share, part in table.groupby("share")}
    assert reached[0.25] == [[0.01, 0.5], [0.02, 0.5], [0.02, 0.6], [0.03, 0.6], [0.03, 0.9]]
    assert reached[0.5] == [[0.02, 0.5], [0.03, 0.5], [0.03, 0.6], [0.04, 0.6], [0.04, 0.8]]
    # Seed 3 is worse than zero rate: it counts, and reaches nothing.
    assert reached[0.75] == [[0.04, 0.6]]
    assert table["seeds"].unique().tolist() == [4]
    assert facts.bands(frame(seed(0, (0.01, 0.5)) + seed(1, (0.02, 0.6)))).empty
    assert facts.bands(frame([])).columns.tolist() == table.columns.tolist()


def test_overlays_by_hand():
    rows = study(0, 0.005)
    for row in rows[:3]:
        row |= {"mse_centroid": 0.02 + row["lambda_c"], "latent_label_entropy": 0.7, "latent_accuracy": 0.8}
        row["metrics"] = ANCHORS | {"sliced_w2_floor": 0.01, "fresh_critic_gap_floor": 0.002}
    table = facts.overlays(frame(rows))
    told = {(row["kind"], row["overlay"], row["metric"]): row["value"] for row in facts.records(table)}
    base = rows[1]["trial_id"]  # the only encoder that decoders use
    assert told == {
        ("bound", base, "mse"): 0.035,
        ("bound", base, "cross_entropy"): 0.7,
        ("bound", base, "accuracy"): 0.8,
        ("near-floor", "k-means 3 3", "mse"): 0.03,
        ("near-floor", "real", "sliced_w2"): 0.01,
        ("near-floor", "real", "fresh_critic_gap"): 0.002,
        ("achievable", "zero rate", "mse"): 0.1,
        ("achievable", "zero rate", "cross_entropy"): 2.0,
    }
    assert table.groupby("kind")["rate_bits"].first().to_dict() == {
        "achievable": 0.0,
        "bound": rows[0]["rate_bits"],
        "near-floor": rows[0]["rate_bits"],
    }
    assert facts.overlays(frame([])).columns.tolist() == table.columns.tolist()
    assert facts.overlays(stacked(rows, study(0, 0.0))).groupby("sweep").size().to_dict() == {"a": 8, "b": 3}


def test_failures_of_several_sweeps_say_whose_they_are():
    lost = study(0, 0.005)[0] | {"status": "oom"}
    assert facts.failures(stacked([], [lost]))["sweep"].tolist() == ["b"]
    assert facts.failures(frame([lost]))["sweep"].tolist() == [""]


def test_metrics_of_plugins_and_label_sets_are_axes_as_well():
    extra = {"edge_mse": 0.3, "val_edge_mse": 0.4, "edge_mse_se": 0.01, "val_edge_mse_se": 0.01, "only_test": 1.0}
    extra |= {"seed": 7.0, "val_seed": 7.0}
    low = trial("end_to_end", 0, 0.0, (0.04, 1.0), (0.04, 1.0))
    high = trial("end_to_end", 0, 0.1, (0.05, 0.5), (0.05, 0.5))
    for row, (edges, right) in ((low, (0.4, 0.9)), (high, (0.2, 0.5))):
        own = extra | {"val_edge_mse": edges, "parity_accuracy": right, "val_parity_accuracy": right}
        row["metrics"] = {**dict(row["metrics"]), **own}
    points = facts.compressors(frame([low, high]))
    assert {"edge_mse", "parity_accuracy"} <= facts.axes(points).keys()
    assert points["seed"].tolist() == [0, 0]  # a metric of a column's name takes nobody's place
    assert not {"seed", "edge_mse_se", "only_test", "mse_kmeans", "val_edge_mse"} & facts.axes(points).keys()
    assert facts.fronts(points, "mse", "edge_mse")["on_front"].tolist() == [True, True]
    # More accuracy is better, so the first one, of less MSE, is alone on its front.
    assert facts.fronts(points, "mse", "parity_accuracy")["on_front"].tolist() == [True, False]
    figure = figures.frontier(points, "edge_mse", "parity_accuracy")
    assert figure.layout.xaxis.title.text == "edge mse (less is better)"
    assert figure.layout.yaxis.title.text == "parity accuracy (more is better)"


def test_a_plugins_metric_says_by_its_name_that_more_of_it_is_better():
    assert all(map(facts.larger_is_better, ["ms_ssim", "auroc", "tumour_IoU", "f1_macro", "latent_accuracy"]))
    assert not any(map(facts.larger_is_better, ["edge_mse", "inaccuracy", "lpips", "fid", "label_entropy"]))


def test_further_terms_are_part_of_an_objective():
    """Trials that differ by a plugin's weight alone are not seeds of each other, nor are the decoders on them."""
    ends = [
        trial("end_to_end", seed, 0.1, (0.04, 1.0), (0.04, 1.0), weights={"distortion": 1.0, "edges": edges})
        for seed, edges in itertools.product(range(2), (0.0, 0.5))
    ]
    on = [trial("universal", t["seed"], 0.1, (0.05, 1.0), (0.05, 1.0), parent_id=t["trial_id"]) for t in ends]
    points = facts.compressors(frame([*ends, *on]))
    told = points.groupby("stage")["terms"].agg(set).to_dict()
    assert told == {"end_to_end": {"edges 0", "edges 0.5"}, "universal": {""}}
    assert points.groupby("parent_terms").size().to_dict() == {"": 4, "edges 0": 2, "edges 0.5": 2}
    assert not facts.bands(points).size  # two seeds each, not four
    volumes = facts.hypervolumes(points).query("stage == 'universal'")
    assert sorted(volumes["parent_terms"]) == ["edges 0", "edges 0", "edges 0.5", "edges 0.5"]


def test_warm_starts_from_two_trials_are_two_settings():
    def begun(source: dict[str, Any], **more: Any) -> dict[str, Any]:
        needs = json.dumps({"needs": {"init.decoder": source["trial_id"]}})
        return trial("end_to_end", 0, 0.1, (0.05, 0.5), (0.05, 0.5), config_json=needs, variant="init given", **more)

    weights = [{"distortion": 1.0, "classification": c} for c in (0.0, 0.2)]
    ends = [trial("end_to_end", 0, w["classification"], (0.04, 1.0), (0.04, 1.0), weights=w) for w in weights]
    decoder = begun(ends[0], parent_id=ends[0]["trial_id"])  # of the trial whose encoder it has: nothing more to say
    points = facts.compressors(frame([*ends, *map(begun, ends), decoder])).set_index("trial_id")
    assert sorted(points["variant"]) == ["", "", "init c 0 d 1", "init c 0.2 d 1", "init given"]
