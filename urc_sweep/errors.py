"""Errors a person can cause. Each prints as one line and carries the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UrcSweepError(Exception):
    """Something a person can put right; ``str()`` is the one line they see."""

    exit_code = 1


class SpecError(UrcSweepError):
    """A sweep file, a name or an option is wrong. ``problems`` holds one line each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(UrcSweepError):
    """A data set is missing, incomplete or not the published one."""

    exit_code = 2


class StoreError(UrcSweepError):
    """The store is locked by somebody else, damaged, or cannot be read."""

    exit_code = 4


class ResourceError(UrcSweepError):
    """The machine or cluster cannot give what the sweep file asks for."""

    exit_code = 5


def choices(wrong: object, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? choices: a, b, c`` for a name that is not among ``known``."""
    names = sorted(known)
    near = difflib.get_close_matches(str(wrong), names, n=2, cutoff=0.6)
    guess = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"{guess}choices: {', '.join(names) or 'none'}"
