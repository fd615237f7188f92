"""Lost nodes: a Ray cluster of two one-core nodes, of which one goes without a word while a sweep joins it.

With ``asleep`` the lost node's worker was stopped before, nobody reaps it, and it wakes up when the sweep is done.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.card import Budget, Card
from tests.faults.real_ray import Bench, Undisturbed
from tests.run.test_launch import results

TOKEN = "0123456789abcdef" * 4


@contextlib.contextmanager
def two_nodes(bench: Bench) -> Iterator[tuple[Any, list[Any]]]:
    """Start a head without cores and two nodes; their processes carry the bench's mark."""
    before = dict(os.environ)
    bench.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # else it would be refused
    os.environ.update({**bench.environment, "RAY_worker_niceness": "0"})
    os.environ.update({"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"})
    try:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        bench.address = cluster.address
        try:
            yield cluster, nodes
        finally:
            cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Lose one of two nodes at a random moment; the launch goes on by itself on the other one."""
    undisturbed = Undisturbed.run(folder / "undisturbed")
    for number in budget.points():
        rng = random.Random(f"{seed} {number}")
        asleep = bool((seed + number) % 2)
        place = f"node lost{', its worker asleep' if asleep else ''}, seed {seed}, number {number}"
        bench = Bench(folder / f"cluster-{number}")
        with two_nodes(bench) as (cluster, nodes):
            driver = bench.launch()
            with bench.watched():
                card.injected += bench.wait_for_work(driver, rng.randrange(1, undisturbed.steps // 2))
                lost = rng.choice(nodes)
                raylet = lost.all_processes["raylet"][0].process.pid
                stopped = [pid for pid in bench.workers() if asleep and parent(pid) == raylet]
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                cluster.remove_node(lost, allow_graceful=False)
                code = bench.ended(driver)
                if code != 0:
                    card.problems.append(f"{place}: the launch ended with {code} instead of going on")
                    bench.finish()
            before = results(bench.root)
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        card.orphans += len(bench.end())
        bench.address = None
        if results(bench.root) != before:
            card.problems.append(f"{place}: a worker that woke up changed results")
        undisturbed.judge(bench, card, place)
        card.orphans += len(bench.end())
