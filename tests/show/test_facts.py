"""Facts against hand-computed numbers. Frames are built by hand: no store, no training."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas as pd
import pytest

from urc_sweep.show import facts, figures
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
    counts = facts.progress(frame(rows))
    assert counts.columns.tolist() == ["done", "pending", "diverged"]
    assert counts.loc["end_to_end"].tolist() == [2, 0, 1]
    assert counts.loc["classifier"].tolist() == [1, 0, 0]
    failed = facts.failures(frame(rows))
    assert failed["error_message"].tolist() == ["loss is nan at epoch 3"]


def test_figures_escape_names_and_draw_no_point_twice():
    rows = [row | {"trial_id": "<img src=x onerror=alert(1)>"[:12] + row["trial_id"][12:]} for row in study(0, 0.005)]
    figure = figures.frontier(frame(rows))
    assert "<img" not in figure.to_json()
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") == len(rows)
    assert any("near-floor (not a bound)" in note.text for note in figure.layout.annotations)


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
    assert facts.near_floors(frame([base, refined]))["rate_bits"].tolist() == [base["rate_bits"]]
