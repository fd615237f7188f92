"""What travels to a worker, and how a failed attempt is recorded. No torch: the driver of a sweep does without it."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from urc_sweep.plan.source import Source
from urc_sweep.plan.trials import Trial
from urc_sweep.store.commits import Record, Store

# Set once this process is told to leave (SIGTERM to a worker): what it trains is checkpointed, and goes on elsewhere.
leaving = threading.Event()


@dataclass(frozen=True)
class Job:
    """What a worker must know beside the ids of its trials; small and plain, it travels to every node."""

    root: str
    sweep: str
    source: Source
    dataset: tuple[tuple[str, Any], ...] = ()
    plugins: tuple[str, ...] = ()
    checkpoint_seconds: float = 300.0
    gpus: float = 0.0  # of a pack; less than 1: workers share a card
    git_sha: str | None = None


def planned(store: Store, name: str) -> dict[str, Trial]:
    """Return the trials of a sweep's plan by id; a worker reads it once, not once per pack, until it is replaced."""
    facts = store.layout.generation(name, 0).stat()
    return _planned(str(store.root), name, (facts.st_ino, facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=1)
def _planned(root: str, name: str, mark: tuple[int, int, int]) -> dict[str, Trial]:
    return {value["id"]: Trial.from_json(value) for value in Store(root).generation(name)["trials"]}


def fail(store: Store, trial: Trial, attempt: int, /, **record: Any) -> None:
    """Record a failed attempt, by default a final one, under the first free number from ``attempt`` on."""
    body: Record = {"kind": "failure", "trial_id": trial.id, "trial": trial.to_json(), "finished_at": now()}
    body |= {"status": "failed", "final": True, "curve": [], "error_type": None, "error_message": None, "trace": None}
    while not store.fail(trial.id, attempt, body | record | {"attempt": attempt}):
        attempt += 1


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()
