"""Errors a person can cause. Each prints as one line and carries the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 1_000


class UrcSweepError(Exception):
    """Something a person can put right: one line per problem."""

    exit_code, most_lines = 1, 10_000

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    @property
    def lines(self) -> list[str]:
        """What a terminal shows: one line per problem, whatever a stranger's file made of it."""
        texts = [str(problem) for problem in self.args[: self.most_lines]]
        texts = [f"{text[:600]} ... {text[-300:]}" if len(text) > LONGEST_LINE else text for text in texts]
        more = len(self.args) - len(texts)
        return [*map(printable, texts), *([f"and {more:,} problems more"] if more else [])]


class SpecError(UrcSweepError):
    """A sweep file, a name or an option is wrong."""

    exit_code, most_lines = 2, 50


class DataError(UrcSweepError):
    """A data set is missing, incomplete or not the published one."""

    exit_code = 2


class StoreError(UrcSweepError):
    """The store is locked by somebody else, damaged, or cannot be read."""

    exit_code = 4


class ResourceError(UrcSweepError):
    """The machine or cluster cannot give what the sweep file asks for."""

    exit_code = 5


def printable(text: str) -> str:
    """Return text that commands no terminal: control codes, line ends and marks of direction are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def choices(wrong: object, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? choices: a, b, c`` for a name that is not among ``known``."""
    names = sorted(known)
    near = difflib.get_close_matches(str(wrong), names, n=2, cutoff=0.6)
    guess = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"{guess}choices: {', '.join(names) or 'none'}"
