"""The checker is checked: planted bugs that need no training, and one that does. All of them: ``tests.faults``."""

from __future__ import annotations

import pytest

from tests.faults import planted
from tests.faults.planted import BUGS, found_in

QUICK = [name for name, (_, _, scenario) in BUGS.items() if scenario.__name__ in ("by_hand", "durable", "cut_short")]


@pytest.mark.parametrize("scenario", [planted.by_hand, planted.durable, planted.cut_short])
def test_without_a_bug_nothing_is_found(scenario, tmp_path) -> None:
    assert found_in(scenario, tmp_path / "clean") == {"verify": [], "harness": []}


@pytest.mark.parametrize("bug", [*QUICK, "resume forgets the running sums"])
def test_a_planted_bug_is_found(bug, tmp_path) -> None:
    where, _, scenario = BUGS[bug]
    found = found_in(scenario, tmp_path / "bug", bug)
    assert found[where], found


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 20
