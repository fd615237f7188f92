"""What travels to a worker, and how a failed attempt is recorded. No torch: the driver of a sweep does without it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from urc_sweep.plan.source import Source
from urc_sweep.plan.trials import Trial
from urc_sweep.store.commits import Record, Store


@dataclass(frozen=True)
class Job:
    """What a worker must know beside the ids of its trials; small and plain, it travels to every node."""

    root: str
    sweep: str
    source: Source
    plugins: tuple[str, ...] = ()
    checkpoint_seconds: float = 300.0
    use_gpu: bool = False
    git_sha: str | None = None


def fail(
    store: Store,
    trial: Trial,
    attempt: int,
    record: Record,
    kind: str | None,
    message: str | None,
    trace: str | None = None,
) -> None:
    """Record a failed attempt with its error and traceback, under the first free number from ``attempt`` on."""
    body = {"kind": "failure", "trial_id": trial.id, "trial": trial.to_json(), "finished_at": now(), **record}
    body |= {"error_type": kind, "error_message": message, "trace": trace}
    while not store.fail(trial.id, attempt, body | {"attempt": attempt}):
        attempt += 1


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def cpu_count() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
