"""The pure scheduler: properties that hold for every plan and every order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import small_sweep
from urc_sweep.plan import spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.trials import Trial
from urc_sweep.run.schedule import MAX_ATTEMPTS, Schedule


def chain(name: str, stage: str = "end_to_end", needs: tuple[str, ...] = (), key: int = 0, epochs: int = 1) -> Trial:
    config = {"stage": stage, "seed": key, "train": {"epochs": epochs}, "needs": {n: n for n in needs}, "objective": {}}
    return Trial(name, stage, config, {}, f"evaluation of {name}")


@st.composite
def plans(draw: st.DrawFn) -> list[Trial]:
    """Trials that need some of the trials before them."""
    trials: list[Trial] = []
    for index in range(draw(st.integers(1, 12))):
        earlier = [trial.id for trial in trials]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        key, epochs = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        trials.append(chain(f"t{index}", needs=tuple(needs), key=key, epochs=epochs))
    return trials


@settings(max_examples=400, deadline=None)
@given(plans(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_plan_settles_whatever_happens(trials: list[Trial], lanes: int, workers: int, data) -> None:
    """Random workers finish, fail, crash or come back empty, in random order; the promises hold throughout."""
    schedule = Schedule(trials, lanes=lambda stage: lanes)
    live, handed_out = [], []
    lost: set[str] = set()
    for _ in range(10_000):
        if schedule.settled and not live:
            break
        pack = schedule.dispatch() if len(live) < workers else None
        if pack is not None:
            running = [t for other in live for t in other.trials]
            assert not set(pack.trials) & set(running), "a trial is handed out to one pack at a time"
            assert 1 <= len(pack.trials) <= lanes
            assert len({schedule.trials[t].pack_key for t in pack.trials}) == 1
            for trial_id in pack.trials:
                assert schedule.needs[trial_id] <= schedule.trained, "released before what it needs is committed"
            live.append(pack)
            handed_out += pack.trials
            continue
        assert live, "nothing ready, nothing live, not settled: this would hang"
        pack = live.pop(data.draw(st.integers(0, len(live) - 1)))
        for trial_id in pack.trials:
            event = data.draw(st.sampled_from(["finish", "finish", "train", "failed", "diverged", "nothing"]))
            if event == "finish":
                schedule.finish(trial_id)
            elif event == "train":
                schedule.train(trial_id)
            elif event in ("failed", "diverged"):
                schedule.fail(trial_id, event)
        for trial_id in schedule.end(pack):
            schedule.fail(trial_id, "failed")
            lost.add(trial_id)
    assert schedule.settled
    bad = {"failed", "diverged", "skipped"}
    for trial in trials:
        state = schedule.state[trial.id]
        assert state in {"done", *bad}, "every planned trial ends in exactly one terminal state"
        untrained = [n for n in schedule.needs[trial.id] if schedule.state[n] in bad and n not in schedule.trained]
        assert (state == "skipped") <= bool(untrained), "skipped only where something needed was never trained"
        assert not (untrained and state == "done")
        assert handed_out.count(trial.id) <= MAX_ATTEMPTS


def test_what_others_wait_for_goes_first_and_there_is_no_barrier() -> None:
    trials = [chain("plain-1"), chain("plain-2"), chain("base", key=1), chain("child", "universal", ("base",), key=2)]
    schedule = Schedule(trials)
    assert schedule.dispatch().trials == ("base",)
    assert schedule.dispatch().trials == ("plain-1",)
    schedule.train("base")  # its own evaluation may still run
    assert schedule.dispatch().trials in [("plain-2",), ("child",)]
    assert schedule.dispatch() is not None


def test_packs_are_cut_from_trials_that_differ_only_in_weights() -> None:
    planned = expand(spec.parse(small_sweep(weights="[0, 0.01, 0.1]")))
    schedule = Schedule(planned, lanes=lambda stage: 2)
    first, second = schedule.dispatch(), schedule.dispatch()
    assert [len(first.trials), len(second.trials)] == [1, 1], "classifiers differ in network and seed"
    for trial in planned[:2]:
        schedule.finish(trial.id)
    encoders = [schedule.dispatch(), schedule.dispatch()]
    assert [len(pack.trials) for pack in encoders] == [2, 1]
    assert schedule.dispatch() is None


def test_a_crashed_pack_is_retried_lane_by_lane_and_given_up_after_three_attempts() -> None:
    trials = [chain("a"), chain("b")]
    schedule = Schedule(trials, lanes=lambda stage: 2)
    pack = schedule.dispatch()
    assert pack.trials == ("a", "b")
    assert schedule.end(pack) == []
    alone = [schedule.dispatch(), schedule.dispatch()]
    assert [p.trials for p in alone] == [("a",), ("b",)]
    assert [p.attempts for p in alone] == [(2,), (2,)]
    schedule.finish("b")
    assert schedule.end(alone[1]) == []
    assert schedule.end(alone[0]) == []
    assert schedule.end(schedule.dispatch()) == ["a"]


def test_failures_skip_everything_below_and_are_kept_by_the_next_launch() -> None:
    trials = [chain("a"), chain("b", needs=("a",)), chain("c", needs=("b",)), chain("d")]
    schedule = Schedule(trials, failed={"a": "diverged"})
    assert schedule.state == {"a": "diverged", "b": "skipped", "c": "skipped", "d": "waiting"}
    assert schedule.dispatch().trials == ("d",)


def test_attempts_of_earlier_launches_number_this_ones() -> None:
    schedule = Schedule([chain("a")], attempted={"a": 4})
    assert schedule.dispatch().attempts == (5,)


def test_a_trial_whose_evaluation_failed_still_serves_its_dependents() -> None:
    schedule = Schedule([chain("a"), chain("b", needs=("a",))])
    pack = schedule.dispatch()
    schedule.train("a")
    schedule.fail("a", "failed")
    schedule.end(pack)
    assert schedule.dispatch().trials == ("b",)


def test_an_attempt_that_came_further_uses_up_none() -> None:
    """Preempted ten times, each time after a new checkpoint; then it dies three times at one place."""
    schedule = Schedule([chain("a")])
    for attempt in range(1, 11):
        pack = schedule.dispatch()
        assert pack.attempts == (attempt,)
        assert schedule.end(pack, further={"a"}) == []
    ends = [schedule.end(schedule.dispatch()) for _ in range(MAX_ATTEMPTS)]
    assert ends == [[], [], ["a"]]


def test_a_pack_is_cut_to_what_the_budget_leaves() -> None:
    schedule = Schedule([chain("a"), chain("b"), chain("c")], lanes=lambda stage: 3)
    assert schedule.dispatch(2).trials == ("a", "b")
    assert schedule.dispatch(5).trials == ("c",)
