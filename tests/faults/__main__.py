"""The campaign: every kind of fault, by seed, until its goal or its time is up. Exit 1 if a promise broke.

    python -m tests.faults --hours 1 --seed 0             the campaign
    python -m tests.faults --sample --seed 0              a few points of everything, for every change
    python -m tests.faults --only "real Ray" --goal 20    one kind
    python -m tests.faults --plain-tune                   the same column for plain Ray Tune
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.faults import clocks, cluster, corruption, full_disk, kill_points, launches, planted, real_ray, simulated
from tests.faults.card import Budget, Card, table

# Kind: its campaign, the goal of a campaign, its share of the time, and the goal of a sample.
KINDS = {
    "simulated schedules": (simulated.campaign, 10_000, 0.12, 500),
    "syscall kill points": (kill_points.campaign, 300, 0.2, 24),
    "corruptions": (corruption.campaign, 2_000, 0.12, 200),
    "planted bugs": (planted.campaign, 1_000, 0.08, 1_000),
    "simultaneous launches": (launches.campaign, 50, 0.12, 4),
    "clock jumps": (clocks.campaign, 6, 0.06, 1),
    "full disks": (full_disk.campaign, 10, 0.06, 2),
    "real Ray": (real_ray.campaign, 20, 0.4, 2),
    "lost nodes": (cluster.campaign, 4, 0.1, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="a few points of everything")
    parser.add_argument("--only", choices=KINDS, help="one kind, with all of the time")
    parser.add_argument("--goal", type=int, help="how many points of each kind")
    parser.add_argument("--folder", type=Path, help="where stores are made and left; default: a temporary folder")
    parser.add_argument("--plain-tune", action="store_true", help="plain Ray Tune instead of urc-sweep")
    asked = parser.parse_args()
    kinds = KINDS
    if asked.plain_tune:
        from tests.faults import plain_tune

        kinds = {"plain Ray Tune": (plain_tune.campaign, 5, 1.0, 1)}
    cards = []
    with tempfile.TemporaryDirectory(prefix="urc-faults-", ignore_cleanup_errors=True) as temporary:
        for kind, (campaign, goal, share, sample) in kinds.items():
            if asked.only not in (None, kind):
                continue
            folder = (asked.folder or Path(temporary)) / kind.replace(" ", "-")
            folder.mkdir(parents=True)
            began, card = time.monotonic(), Card(kind)
            seconds = asked.hours * 3600 * (1.0 if asked.only else share)
            campaign(card, Budget(asked.goal or (sample if asked.sample else goal), seconds), asked.seed, folder)
            cards.append(card)
            took = time.monotonic() - began
            verdict = "ok" if card.ok else "NOT ok"
            print(f"{kind}: {card.injected} injected in {took:.0f} s: {verdict}", file=sys.stderr, flush=True)
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "pyarrow"))
    print(f"seed {asked.seed}; {machine}; {versions}")
    print(table(cards))
    return 0 if all(card.ok for card in cards) else 1


if __name__ == "__main__":
    sys.exit(main())
