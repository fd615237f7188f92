"""The scorecard: what was injected, and what became of the results. One row per kind of fault."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields


@dataclass
class Card:
    """One kind of fault. ``problems`` holds one line per broken promise, with the seed or point that shows it again."""

    kind: str
    injected: int = 0  # faults that really happened
    acknowledged: int = 0  # results that were committed when a fault struck, read outside the store
    lost: int = 0  # acknowledged results that are gone or changed afterwards
    doubled: int = 0  # results there twice, or trials trained twice
    runs: int = 0  # disturbed runs brought to their end
    identical: int = 0  # of these, the ones whose every number equals an undisturbed run's
    redone: int = 0  # epochs trained more than once
    orphans: int = 0  # processes left 30 s after the end
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.problems or self.lost or self.doubled or self.orphans or self.runs != self.identical)


@dataclass
class Budget:
    """When a kind of fault has been injected often enough: at its goal, or when its time is up."""

    goal: int
    seconds: float
    began: float = field(default_factory=time.monotonic)

    def points(self) -> Iterator[int]:
        """Count 0, 1, ... up to the goal, as long as there is time."""
        for number in range(self.goal):
            if time.monotonic() - self.began > self.seconds:
                return
            yield number


def table(cards: list[Card]) -> str:
    """Return the scorecard as Markdown, and below it every problem as a line."""
    columns = [column.name for column in fields(Card) if column.name not in ("kind", "problems")]
    lines = ["| fault | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([card.kind, *(str(getattr(card, name)) for name in columns)]) + " |" for card in cards]
    lines += [f"- {card.kind}: {problem}" for card in cards for problem in card.problems]
    return "\n".join(lines)
