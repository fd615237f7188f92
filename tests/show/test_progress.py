"""Progress by hand-computed cases, and what holds for any table."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urc_sweep.show import progress

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONFIG = json.dumps({"dataset": {"name": "digits"}, "train": {"batch_size": 100}})  # 1,078 images: 11 steps an epoch


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def row(trial: str, stage: str = "end_to_end", status: str = "pending", **more: Any) -> dict[str, Any]:
    told = {"trial_id": trial, "stage": stage, "status": status, "dim": None if stage == "classifier" else 3}
    told |= dict.fromkeys((*progress.NEEDS, "cached_from", "lambda_p", "wall_s", "started_at", "finished_at"))
    return told | {"epochs": 10, "pack_lanes": None, "config_json": CONFIG} | more


def ran(trial: str, began: float, ended: float, stage: str = "end_to_end", **more: Any) -> dict[str, Any]:
    """A done trial that ran from one second after noon to another; its training was all of that."""
    told = {"wall_s": (ended - began) / more.get("pack_lanes", 1), "pack_lanes": 1}
    return row(trial, stage, "done") | told | {"started_at": at(began), "finished_at": at(ended)} | more


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(row("")))
    numbers = dict.fromkeys(("dim", "lambda_p", "wall_s", "epochs", "pack_lanes"), "float64")
    times = dict.fromkeys(("started_at", "finished_at"), "datetime64[us, UTC]")
    return table.astype(numbers | times | dict.fromkeys((*progress.NEEDS, "cached_from"), "object"))


def test_pending_trials_are_ready_or_blocked_by_what_they_need():
    table = frame(
        [
            ran("c", 0, 5, "classifier"),
            row("h", "classifier", "running"),
            row("e", classifier_id="c"),
            row("f", classifier_id="c", heldout_classifier_id="h"),
            row("u", "universal", classifier_id="c", parent_id="e"),
            row("v", "universal", "skipped", parent_id="e"),
            row("w", "universal", "paused", parent_id="e"),
        ]
    )
    assert progress.states(table).tolist() == ["done", "running", "ready", "blocked", "blocked", "skipped", "paused"]
    assert list(progress.counts(table, progress.states(table)).items()) == [
        ("classifier", {"done": 1, "running": 1}),
        ("end_to_end", {"ready": 1, "blocked": 1}),
        ("universal", {"blocked": 1, "skipped": 1, "paused": 1}),
    ]
    assert progress.eta_s(table, at(6)) is None, "classifiers do not tell how long compressors take"
    # It began when the other one ended, a second ago.
    assert progress.eta_s(table[table["stage"] == "classifier"], at(6)) == 4


def test_the_time_left_is_the_work_left_by_the_packs_that_were_at_work():
    done = [ran("a", 0, 10), ran("b", 0, 10), ran("c", 10, 20), ran("d", 11, 20)]
    left = [row(str(n), status="running") for n in range(2)] + [row(str(n)) for n in range(2, 7)]
    # Two at once: 39 seconds of packs in 20. Each takes 10 (the median); the running ones began at 20, 4 seconds ago.
    assert progress.eta_s(frame(done + left), at(24)) == pytest.approx((2 * 6 + 5 * 10) / (39 / 20))
    speed = progress.pace(frame(done + left))
    assert speed == pytest.approx((39 / 20, 4 / 20 * 60, 4 * 10 * 11 / 20))


def test_a_chain_of_trials_that_wait_for_each_other_takes_its_time_however_many_run_at_once():
    done = [ran(f"{n}", 0, 10) for n in range(8)] + [ran(f"{n}u", 10, 14, "universal") for n in range(8)]
    left = [row("e", status="running"), row("u", "universal", parent_id="e"), row("r", "universal", parent_id="u")]
    assert progress.eta_s(frame(done + left), at(14)) == pytest.approx(10 + 4 + 4)


def test_a_pause_between_two_launches_counts_as_no_work_and_as_no_progress():
    done = [ran("a", 0, 10), ran("b", 12, 22), ran("c", 86400, 86410)]
    left = [row("d", status="running"), row("e")]
    # 30 seconds of packs in 32: the two seconds between a and b are a hand-over, the day is not.
    assert progress.pace(frame(done)).packs == pytest.approx(30 / 32)
    # Launched again a day later: when d began is not known, so that all of it is left.
    assert progress.eta_s(frame(done + left), at(2 * 86400)) == pytest.approx(20 * 32 / 30)


def test_lanes_of_a_pack_share_its_time_and_an_interrupted_trial_took_more_than_its_last_attempt():
    pack = [ran(f"{n}", 0, 40, pack_lanes=4) for n in range(4)]
    assert progress.pace(frame(pack)).packs == pytest.approx(1)
    assert progress.eta_s(frame([*pack, row("x")]), at(40)) == pytest.approx(10)
    resumed = [ran("a", 0, 10, wall_s=70.0), row("x")]
    assert progress.eta_s(frame(resumed), at(10)) == pytest.approx(70)


def test_kinds_are_told_apart_and_stand_in_for_each_other_only_where_that_is_fair():
    done = [ran("c", 0, 1, "classifier"), ran("a", 1, 11), ran("p", 11, 41, lambda_p=0.1)]
    packs = 41 / 41
    assert progress.eta_s(frame([*done, row("u", "universal")]), at(41)) == pytest.approx(10 / packs)
    assert progress.eta_s(frame([*done, row("u", "universal", lambda_p=0.0)]), at(41)) == pytest.approx(30 / packs)
    assert progress.eta_s(frame([*done, row("b", epochs=20)]), at(41)) == pytest.approx(20 / packs)
    assert progress.eta_s(frame([done[0], row("u", "universal")]), at(41)) is None
    # What another sweep trained tells how long, not how many at once; this sweep's own trials tell both.
    cached = [ran("z", 0, 50, cached_from="other")]
    assert progress.eta_s(frame([*cached, row("b")]), at(50)) is None
    assert progress.eta_s(frame([*cached, ran("c", 50, 52, "classifier"), row("b")]), at(52)) == pytest.approx(50)
    assert progress.eta_s(frame([*cached, *done[1:], row("b")]), at(52)) == pytest.approx(10)


def test_nothing_is_said_of_a_stopped_sweep_and_nothing_is_left_of_a_finished_one():
    assert progress.eta_s(frame([ran("a", 0, 10), row("b", status="stopped")]), at(10)) is None
    assert progress.eta_s(frame([ran("a", 0, 10), row("b", status="failed"), row("c", status="skipped")]), at(10)) == 0
    assert progress.eta_s(frame([row("b")]), at(10)) is None
    assert progress.eta_s(frame([]), at(10)) == 0
    assert progress.pace(frame([])) is None
    assert progress.counts(frame([]), progress.states(frame([]))) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": {"name": "mine"}, "train": {"batch_size": 9}}'])
def test_steps_of_an_unknown_data_set_are_not_guessed(text: str):
    assert math.isnan(progress.pace(frame([ran("a", 0, 10, config_json=text)])).steps_per_s)


def test_the_best_points_are_chosen_on_validation_and_read_on_test():
    from tests.show.test_facts import frame as facts_frame
    from tests.show.test_facts import trial

    def point(lambda_c: float, val: tuple[float, float], test: tuple[float, float], **more: Any) -> dict[str, Any]:
        return trial("end_to_end", 0, lambda_c, val, test, **more)

    rows = [
        point(0.0, (0.03, 1.5), (0.05, 1.4)),
        point(0.1, (0.04, 0.5), (0.01, 0.6)),
        point(0.2, (0.9, 0.1), (0.9, 0.1)),  # worse than the best constant image
        point(0.3, (0.01, 0.2), (0.01, 0.2), status="failed"),
    ]
    table = progress.best(facts_frame(rows))
    assert table[["metric", "val", "value"]].values.tolist() == [["cross_entropy", 0.5, 0.6], ["mse", 0.03, 0.05]]
    assert table["trial_id"].tolist() == [rows[1]["trial_id"], rows[0]["trial_id"]]
    assert progress.best(facts_frame(rows[3:])).empty
    # Where no objective classifies, what the critic is for is told instead.
    rows = [point(None, (0.03, 1.0), (0.03, 1.0), lambda_p=p, val_sliced_w2=w2, sliced_w2=w2) for p, w2 in PERCEPTION]
    table = progress.best(facts_frame(rows))
    assert table[["metric", "value"]].values.tolist() == [["mse", 0.03], ["sliced_w2", 0.2]]


PERCEPTION = ((0.0, 0.4), (0.01, 0.2))


def test_the_reason_why_nothing_is_on_a_front_is_the_true_one():
    from tests.show.test_facts import frame as facts_frame
    from tests.show.test_facts import trial
    from urc_sweep.show import facts

    worse = [trial("end_to_end", seed, 0.1, (0.2, 1.0), (0.2, 1.0)) for seed in range(3)]
    alone = [trial("joint", 0, 0.1, (None, None), (None, None))]
    said = [progress.no_front(facts.fronts(facts_frame(rows))) for rows in ([], worse, alone)]
    assert [why.partition(": ")[2] for why in said] == [
        "no compressor is trained",
        "all 3 finished trials are worse than the best constant image",
        "no finished trial has a value on both axes",
    ]


SECONDS = st.floats(0, 1e5, allow_nan=False)
STATUS = st.sampled_from(["done", "running", "pending", "stopped", "failed", "diverged", "oom", "skipped", "later"])
TRIALS = st.lists(
    st.tuples(STATUS, st.sampled_from(["classifier", "end_to_end", "universal"]), SECONDS, SECONDS, st.integers(1, 8)),
    max_size=12,
)


@given(TRIALS, SECONDS, st.booleans())
@settings(deadline=None, max_examples=15)
def test_no_time_is_negative_every_trial_is_counted_once_and_a_settled_sweep_takes_none(trials, now, own):
    rows = []
    for n, (status, stage, began, length, lanes) in enumerate(trials):
        ended = status in ("done", "failed")
        times = {"started_at": at(began), "finished_at": at(began + length), "wall_s": length, "pack_lanes": lanes}
        links = {"parent_id": str(n // 2), "cached_from": None if own or n % 2 else "other"}
        rows.append(row(str(n + 1), stage, status, **links, **(times if ended else {})))
    table = frame(rows)
    eta, told = progress.eta_s(table, at(now)), progress.counts(table, progress.states(table))
    assert eta is None or 0 <= eta < math.inf
    assert {stage: sum(own.values()) for stage, own in told.items()} == table["stage"].value_counts().to_dict()
    if not {status for status, *_ in trials} & {"running", "pending", "stopped"}:
        assert eta == 0
