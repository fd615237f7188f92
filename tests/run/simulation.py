"""The real schedule under a fake clock on imagined machines, and how soon a sweep could end there at all.

A pack of K trials takes ``work * (1 + (K - 1) * lane)`` divided by the speed of its machine: ``lane`` is below 1 on a
GPU; on a CPU a pack has one trial. Ray gives a pack to any free machine, so the order in which free ones ask is random.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from urc_sweep.plan.trials import Trial
from urc_sweep.run.schedule import Schedule, work


@dataclass
class Run:
    """What happened."""

    makespan: float = 0.0
    packs: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return [len(pack) for pack in self.packs]


def simulate(trials: Sequence[Trial], speeds: Sequence[float], cap: int, lane: float, seed: int | None = 0) -> Run:
    """Run a sweep to its end; of free machines a random one asks first, without a seed the fastest."""
    schedule = Schedule(trials, lanes=lambda stage: cap, automatic={t.stage for t in trials}, slots=len(speeds))
    run, draw = Run(), random.Random(seed)
    free, live = list(range(len(speeds))), []
    while not schedule.settled:
        draw.shuffle(free)
        if seed is None:
            free.sort(key=lambda node: speeds[node])
        while free and (pack := schedule.dispatch()):
            node = free.pop()
            seconds = schedule.work[pack.trials[0]] * (1 + (len(pack.trials) - 1) * lane) / speeds[node]
            heapq.heappush(live, (run.makespan + seconds, len(run.packs), node, pack))
            run.packs.append(pack.trials)
        run.makespan = live[0][0]
        while live and live[0][0] <= run.makespan * (1 + 1e-12):  # those that end together free their machines together
            _, _, node, pack = heapq.heappop(live)
            free.append(node)
            for trial_id in pack.trials:
                schedule.finish(trial_id)
            schedule.end(pack)
    return run


class Bound:
    """A time before which no scheduler whatever can end a sweep, even one that knows every machine's speed.

    For any h and t: the trials before which lie at least h and behind which at least t on the fastest machine take,
    between the two, no less than their work at the best rate (every pack key in as few packs as can be, all machines
    busy to the end), and no less than it takes these machines to do so many indivisible trials of such size at all.
    """

    def __init__(self, trials: Sequence[Trial], speeds: Sequence[float], cap: int, lane: float) -> None:
        self.speeds, self.cap, self.lane = speeds, cap, lane
        self.work = {trial.id: work(trial) for trial in trials}
        self.before = dict.fromkeys(self.work, 0.0)
        self.behind = dict.fromkeys(self.work, 0.0)
        for trial in trials:
            known = [self.before[need] + self.work[need] for need in trial.required]
            self.before[trial.id] = max(known, default=0.0)
        for trial in reversed(trials):
            for need in trial.required:
                self.behind[need] = max(self.behind[need], self.behind[trial.id] + self.work[trial.id])
        self.chain = max(self.before[t] + self.work[t] + self.behind[t] for t in self.work)
        self.value = self.chain / max(speeds)
        for before in set(self.before.values()):
            for behind in set(self.behind.values()):
                members = [t for t in trials if self.before[t.id] >= before and self.behind[t.id] >= behind]
                if members:
                    around = (before + behind) / max(speeds)
                    self.value = max(self.value, around + self._area(members), around + self._indivisible(members))

    def _area(self, trials: Sequence[Trial]) -> float:
        count, size = Counter(t.pack_key for t in trials), {t.pack_key: self.work[t.id] for t in trials}
        return sum(self._time(count[key], size[key]) for key in count) / sum(self.speeds)

    def _time(self, count: int, size: float) -> float:
        """Return how long one machine of speed 1 needs for so many trials of a pack key."""
        return size * (self.lane * count + (1 - self.lane) * math.ceil(count / self.cap))

    def _indivisible(self, trials: Sequence[Trial]) -> float:
        best = 0.0
        for size in {self.work[t.id] for t in trials}:
            count = sum(self.work[t.id] >= size for t in trials)
            # One more trial at a time, where it would be done first: times are the same for all, so greedy is optimal.
            nodes = [(self._time(1, size) / speed, 1, speed) for speed in self.speeds]
            heapq.heapify(nodes)
            end = 0.0
            for _ in range(count):
                end, done, speed = nodes[0]
                heapq.heapreplace(nodes, (self._time(done + 1, size) / speed, done + 1, speed))
            best = max(best, end)
        return best
