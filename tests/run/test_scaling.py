"""How soon sweeps end on 1 to 256 machines, beside a lower bound; and that scheduling costs what it changes.

``python -m tests.run.test_scaling`` prints makespan / bound for every sweep, number and kind of machines.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.run.simulation import Bound, simulate
from tests.run.test_schedule import chain
from urc_sweep.plan import spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.trials import Trial
from urc_sweep.run import schedule as scheduling
from urc_sweep.run.conductor import Conductor
from urc_sweep.run.schedule import LANE, Pack, Schedule, work

SWEEPS = Path(__file__).parents[2] / "sweeps"
GRID = """
name: grid
dataset: {{name: mnist}}
rates: [{{dim: 3, levels: 3}}, {{dim: 3, levels: 4}}, {{dim: 4, levels: 4}}]
seeds: {seeds}
stages:
  end_to_end:
    - objective: {{distortion: 1.0, classification: {weights}}}
    - objective: {{distortion: 1.0, perception: {weights}}}
  universal:
    - encoders: {{classification: 0.01}}
      objective: {{distortion: 1.0, classification: {weights}}}
    - encoders: {{perception: 0.01}}
      objective: {{distortion: 1.0, perception: {weights}}}
"""
NODES = (1, 2, 4, 16, 64, 256)
KINDS = {"same": (1.0,), "mixed": (1.0, 0.5, 0.25)}
CAP = 8


@functools.cache
def planned(name: str) -> list[Trial]:
    if name.startswith("grid"):
        seeds, weights = range(int(name.removeprefix("grid"))), [round(0.001 * i, 3) for i in range(20)]
        return expand(spec.parse(GRID.format(seeds=list(seeds), weights=weights)))
    return expand(spec.load(SWEEPS / f"{name}.yaml"))


def speeds_of(kind: str, nodes: int) -> list[float]:
    return [KINDS[kind][node % len(KINDS[kind])] for node in range(nodes)]


def measured(
    name: str, nodes: int, kind: str, lane: float, seed: int | None = 0, cap: int = CAP
) -> tuple[float, Bound]:
    trials, speeds = planned(name), speeds_of(kind, nodes)
    return simulate(trials, speeds, cap, lane, seed).makespan, Bound(trials, speeds, cap, lane)


# Within 5 % of the bound: where no trial takes more than a fifteenth of it on the slowest machine, or where it is the
# longest chain. Elsewhere one sees packs that do not come out even, by less than a trial, and on machines of several
# speeds the last trials on slow ones: who does not know on which machine a pack will land cannot spare them.
CLOSE = {
    ("rdc", "same"): (1, 2, 4, 256),
    ("rdc", "mixed"): (1, 2),
    ("paper/rdp", "same"): (1, 2, 4, 256),
    ("paper/rdp", "mixed"): (1, 2),
    ("paper/gap", "same"): NODES,
    ("paper/gap", "mixed"): (1, 2, 4),
    ("grid5", "same"): (1, 2, 4, 16, 64),
    ("grid5", "mixed"): (1, 2, 4),
    ("grid12", "same"): (1, 2, 4, 16, 64),
    ("grid12", "mixed"): (1, 2, 4, 16),
}


@pytest.mark.parametrize(("name", "kind"), CLOSE)
def test_sweeps_end_about_as_soon_as_they_can(name: str, kind: str) -> None:
    for nodes in NODES:
        for seed in (0, None) if kind == "mixed" else (0,):
            makespan, bound = measured(name, nodes, kind, LANE, seed)
            assert makespan >= bound.value * (1 - 1e-9), "the bound is none"
            slack = 0.0
            if nodes not in CLOSE[name, kind]:
                slack = max(bound.work.values()) if kind == "same" else bound.chain / min(bound.speeds)
            assert makespan <= 1.05 * bound.value + slack, (nodes, seed, makespan / bound.value)


@pytest.mark.parametrize("lane", [0.25, 0.6])
def test_machines_on_which_packs_gain_more_or_less_than_was_thought(lane: float) -> None:
    for name, nodes in (("rdc", 2), ("grid5", 16), ("grid12", 16)):
        makespan, bound = measured(name, nodes, "same", lane)
        assert makespan <= 1.05 * bound.value, (name, nodes)


def test_on_cpus_packs_of_one_end_together() -> None:
    for name, nodes in (("rdc", 4), ("paper/rdp", 4), ("grid5", 16), ("grid5", 64)):
        makespan, bound = measured(name, nodes, "same", 1.0, cap=1)
        assert makespan <= 1.05 * bound.value, (name, nodes)


def test_packs_shrink_as_machines_grow_in_number() -> None:
    sizes = [simulate(planned("grid5"), speeds_of("same", nodes), CAP, LANE).sizes for nodes in NODES]
    assert max(sizes[0]) == 7, "twenty of a key: not eight, eight and four"
    means = [sum(each) / len(each) for each in sizes]
    assert means == sorted(means, reverse=True)
    assert max(simulate(planned("rdc"), speeds_of("same", 256), CAP, LANE).sizes) == 1


def test_encoders_that_others_wait_for_go_first() -> None:
    trials = planned("grid5")
    run = simulate(trials, [1.0], 1, 1.0)
    place = {trial_id: index for index, (trial_id,) in enumerate(run.packs)}
    awaited = {need for trial in trials for need in trial.needs.values()}
    others = [trial for trial in trials if trial.stage == "end_to_end" and trial.id not in awaited]
    dear = {t.id for t in trials if t.stage == "end_to_end" and t.id in awaited and "perception" in t.terms}
    assert len(dear) == 15
    assert max(place[t] for t in dear) < min(place[t.id] for t in others)
    universal = [t for t in trials if t.stage == "universal"]
    assert min(place[t.id] for t in universal) < max(place[t.id] for t in others), "no barrier between stages"


def test_work_is_counted_as_in_the_field() -> None:
    """Giga-operations of a step of 64 images: 10.6 with a classifier, 33.6 and 16.5 in turn with a critic."""
    trials = [*planned("grid5"), *planned("paper/gap"), *expand(spec.load(SWEEPS / "rdpc.yaml"))]
    kinds = {(t.stage, "perception" in t.terms): t for t in reversed(trials)}
    step = {
        kind: 2 * 64 * work(t) / t.setting("train", "epochs") / 1000
        for kind, t in kinds.items()
        if "joint" not in kind[0]
    }
    assert step["end_to_end", False] == pytest.approx(10.6, rel=0.03)
    assert step["end_to_end", True] == pytest.approx((33.6 + 16.5) / 2, rel=0.03)
    assert step["universal", False] < step["end_to_end", False]
    assert step["classifier", False] < step["end_to_end", False] / 50
    joint, row = (next(t for t in planned("paper/gap") if t.stage == stage) for stage in ("joint", "joint_decoder"))
    assert work(joint) == pytest.approx(5 * work(kinds["end_to_end", False]), rel=0.05)
    assert 0 < work(row) < work(joint) / 100, "its networks are there, but it is evaluated"


# -- which packs ----------------------------------------------------------------------------------------------------


def alike(count: int, **settings: Any) -> Schedule:
    return Schedule([chain(f"t{i}") for i in range(count)], **settings)


def drain(schedule: Schedule) -> list[int]:
    """Hand everything out at once; return the sizes of the packs."""
    return [len(pack.trials) for pack in iter(schedule.dispatch, None)]


def test_ready_trials_are_spread_over_the_free_slots() -> None:
    automatic = {"lanes": lambda stage: 8, "automatic": {"end_to_end"}}
    assert drain(alike(9, slots=1, **automatic)) == [5, 4], "as many packs as eight and one"
    assert sorted(drain(alike(9, slots=4, **automatic))) == [2, 2, 2, 3]
    assert drain(alike(9, slots=100, **automatic)) == [1] * 9
    assert drain(alike(64, slots=8, **automatic)) == [8] * 8
    schedule = alike(9, slots=4, **automatic)
    assert len(schedule.dispatch(2).trials) == 2, "cut to what the budget leaves"


def test_lanes_that_a_person_chose_are_used() -> None:
    assert drain(alike(9, slots=4, lanes=lambda stage: 8)) == [8, 1]


@pytest.mark.parametrize("automatic", [(), ("end_to_end",)])
def test_no_pack_is_larger_than_the_smallest_device_has_memory_for(automatic: tuple[str, ...]) -> None:
    schedule = alike(13, lanes=lambda stage: 8, automatic=automatic)
    conductor = Conductor(SimpleNamespace(store=None), schedule, lambda event, trial: None)  # type: ignore[arg-type]
    for stage, lanes in (("universal", 1), ("end_to_end", 3), ("end_to_end", 5)):
        conductor.on_result("any", {"event": "fits", "stage": stage, "lanes": lanes})
    assert len(schedule.dispatch().trials) == 3
    conductor.on_result("any", {"event": "fits", "stage": "end_to_end", "lanes": 0})
    assert drain(schedule) == [1] * 10


@pytest.mark.parametrize("at_first", [1, 2])
def test_a_trial_to_be_tried_alone_joins_no_pack_of_a_more_urgent_one(at_first) -> None:
    late, other = chain("late", "classifier"), chain("b")
    judged = Trial("a", "end_to_end", other.config, {"classifier": "late"}, "evaluation of a")
    lanes = [at_first]
    schedule = Schedule([late, judged, other], lanes=lambda stage: lanes[0])
    first, second = schedule.dispatch(), schedule.dispatch()
    lanes[0] = 2
    assert (first.trials, second.trials) == (("late",), ("b",))
    schedule.end(second)
    schedule.finish("late")
    assert [schedule.dispatch().trials, schedule.dispatch().trials] == [("a",), ("b",)]


# -- the same as a schedule that looks at everything at every call ----------------------------------------------------


class Naive(Schedule):
    """What ``Schedule`` hands out, said without any bookkeeping; both are told the same events."""

    def __init__(self, trials: list[Trial], **settings: Any) -> None:
        super().__init__(trials, **settings)
        self.ends: dict[Pack, float] = {}
        self.now = 0.0

    def waiting(self) -> list[str]:
        return [t for t in self._order if self.state[t] == "waiting" and self.needs[t] <= self.trained]

    def next(self, most: int | None) -> tuple[str, ...]:
        """Return the trials that should be handed out next."""
        ready = self.waiting()
        if not ready:
            return ()
        lead, own = self.trials[ready[0]], work(self.trials[ready[0]])
        mates = [t for t in ready if self.trials[t].pack_key == lead.pack_key and t not in self.alone]
        if lead.id in self.alone:
            return (lead.id,)
        lanes = max(1, min(self.lanes(lead.stage), self.fitting.get(lead.stage, 1000)))
        if lead.stage in self.automatic and lanes > 1:
            share = sum(work(self.trials[t]) for t in ready) / own / max(1, self.slots - len(self.ends))
            left = sum(work(self.trials[t]) for t, state in self.state.items() if state == "waiting") / own
            packs = (left - len(mates)) / lanes + round_up(len(mates) / lanes)
            running = sum(max(0.0, end - self.now) for end in self.ends.values()) / own
            time = (left * LANE + packs * (1 - LANE) + running) / self.slots
            waves = max(1, round_up(time / (1 + LANE * (lanes - 1))))
            lanes = max(1, min(lanes, round_up(share), round_up(1 + (time / waves - 1) / LANE)))
            lanes = round_up(len(mates) / round_up(len(mates) / lanes))
        return tuple(mates[:lanes][:most])

    def begun(self, pack: Pack) -> None:
        alone = work(self.trials[pack.trials[0]])
        self.ends[pack] = self.now + alone * (1 + LANE * (len(pack.trials) - 1))

    def ended(self, pack: Pack) -> None:
        self.now = max(self.now, self.ends.pop(pack))


def round_up(x: float) -> int:
    return -int(-(x - 1e-6) // 1)


@st.composite
def plans(draw: st.DrawFn) -> list[Trial]:
    """Up to thirty trials that need some of those before them, many of them with others of their pack key."""
    trials: list[Trial] = []
    for index in range(draw(st.integers(1, 30))):
        earlier = [trial.id for trial in trials[:6]]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
        stage, key = draw(st.sampled_from(["a", "a", "b"])), draw(st.integers(0, 1))
        trials.append(chain(f"t{index}", stage, tuple(needs), key, epochs=draw(st.integers(1, 2))))
    return trials


@settings(max_examples=80, deadline=None, derandomize=True)
@given(plans(), st.integers(1, 6), st.integers(1, 5), st.data())
def test_every_event_leaves_what_looking_at_everything_would_find(trials, lanes, slots, data) -> None:
    begin = data.draw(st.sets(st.sampled_from([t.id for t in trials]), max_size=3))
    failed = data.draw(st.sets(st.sampled_from([t.id for t in trials]), max_size=2)) - begin
    schedule = Naive(
        trials,
        trained=begin,
        failed=dict.fromkeys(failed, "failed"),
        lanes=lambda stage: lanes,
        automatic={"a"},
        slots=slots,
    )
    live: list[Pack] = []
    for _ in range(500):
        assert schedule.settled == (not live and not schedule.waiting())
        assert sum(counts["ready"] for counts in schedule.counts().values()) == len(schedule.waiting())
        assert schedule.handed_out == sum(schedule.attempts.values())
        if schedule.settled:
            return
        most = data.draw(st.sampled_from([None, None, 1, 2]))
        expected = schedule.next(most)
        if expected and (not live or data.draw(st.booleans())):
            pack = schedule.dispatch(most)
            assert pack.trials == expected
            schedule.begun(pack)
            live.append(pack)
            continue
        if not live:
            assert schedule.dispatch(most) is None
            return
        pack = live.pop(data.draw(st.integers(0, len(live) - 1)))
        for trial_id in pack.trials:
            match data.draw(st.sampled_from(["finish", "finish", "finish", "train", "failed", "nothing", "fits"])):
                case "finish":
                    schedule.finish(trial_id)
                case "train":
                    schedule.train(trial_id)
                case "failed":
                    schedule.fail(trial_id, "failed")
                case "fits":
                    schedule.fits("a", data.draw(st.integers(0, 4)))
        schedule.ended(pack)
        for trial_id in schedule.end(pack, further=data.draw(st.sampled_from([(), pack.trials]))):
            schedule.fail(trial_id, "failed")


def lines_run(trials: list[Trial], slots: int) -> int:
    """Return how many lines of the schedule a whole sweep runs, once it is made."""
    schedule = Schedule(trials, lanes=lambda stage: 2, automatic={t.stage for t in trials}, slots=slots)
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == scheduling.__file__ else None

    live, tracing = [], sys.gettrace()
    sys.settrace(trace)
    try:
        while not schedule.settled:
            while len(live) < slots and (pack := schedule.dispatch()):
                live.append(pack)
            pack = live.pop(0)
            for trial_id in pack.trials:
                schedule.finish(trial_id)
            schedule.end(pack)
    finally:
        sys.settrace(tracing)
    return count


def test_an_event_costs_no_more_in_a_large_sweep() -> None:
    def sweep(count: int) -> list[Trial]:
        parents = [chain(f"p{i}", key=i) for i in range(count // 4)]
        return parents + [chain(f"c{i}", "universal", (f"p{i // 3}",), key=i // 3) for i in range(3 * len(parents))]

    few, many = lines_run(sweep(400), 4), lines_run(sweep(1600), 16)
    assert many < 4.5 * few


def main() -> None:
    """Print the table: smallest and largest makespan / bound over several orders in which free machines ask."""
    for name in ("rdc", "paper/rdp", "paper/gap", "grid5", "grid12"):
        for kind in KINDS:
            cells = []
            for nodes in NODES:
                ratios = [m / b.value for m, b in (measured(name, nodes, kind, LANE, s) for s in (0, 1, 2, None))]
                cells.append(f"{min(ratios):.3f}-{max(ratios):.3f}" if kind == "mixed" else f"{ratios[0]:.3f}")
            print(f"{name:10} {len(planned(name)):5} {kind:6}", *(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
