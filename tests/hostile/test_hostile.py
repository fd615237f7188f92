"""Whatever a stranger hands over ends in an error line: no traceback, no cost, nothing written, nothing executed.

Every case is one run of the command line in a fork (``forks``); a sample of them also in processes of their own, so
that forks hide no cost. To look at one: ``pytest tests/hostile -k 'npz-lying'``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import cases
from tests.hostile.build import every
from tests.hostile.cases import Case
from tests.hostile.forks import Forks

CASES = list(every())
KINDS = sorted({case.kind for case in CASES})
WITHOUT_TORCH = [case for case in CASES if not case.torch and case.code and case.kind not in ("lease", "parquet")]
SAMPLE = random.Random(0).sample(WITHOUT_TORCH, 15)


@pytest.fixture(scope="module")
def light() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def with_torch() -> Iterator[Forks]:
    server = Forks("urc_sweep.learn.folder", "urc_sweep.learn.artifacts")
    yield server
    server.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_ends_in_an_error_line_and_nothing_else(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    forks: Forks = request.getfixturevalue("with_torch" if case.torch else "light")
    found = cases.problems(case, cases.run(case, tmp_path, forks))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_forks_hide_no_cost(case: Case, tmp_path: Path) -> None:
    found = cases.problems(case, cases.run(case, tmp_path, None))
    assert not found, "\n".join(found)


def test_names_are_unique() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 250
