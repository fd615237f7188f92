"""How tables reach a terminal or a pipe: fitted to its width, one row per line in a pipe, and no number ever cut.

Invariant: what came from data is text. No control code, markup or link reaches the terminal, and what its encoding
cannot write is written out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from urc_sweep.errors import printable
from urc_sweep.store.tables import FAILED

# What a trial may be, in the order in which people are told. In tables, what is ready or blocked is ``pending``.
LEFT = ("running", "ready", "blocked", "stopped")
FAILURES = (*FAILED, "skipped")
STATES = ("done", *LEFT, *FAILURES)

# Words may be broken over lines where there is no room, numbers never.
WORDS = frozenset("stage base weights arm explanation status profile_status rates key a b unit error".split())
NUMBER = re.compile(r"-?[\d.]+(e[-+]|/|\s|$)")
NARROW, GAP, ENDLESS = 10, 2, 100_000
RULE = box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)


class Plain(Console):
    """A console to which what came from data is text: no markup, no links, no control codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if not self.is_terminal:
            self.width = ENDLESS

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self._written(text), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(self._written(segment.text), segment.style)

    def _written(self, text: str) -> str:
        lines = "\n".join(map(printable, text.split("\n")))
        return lines.encode(self.encoding, "backslashreplace").decode(self.encoding)


def number(value: Any, form: str = ".4g") -> str:
    """Return a number for a table, a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:{form}}".rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Fitted:
    """A table of cells, a list of them per row, that fits what it is printed on, under its title.

    On a terminal, empty columns go; where it is too narrow others are left out, those of ``spare`` first, then from
    the right, and named below. Where nobody watches there is all of it, one row per line, lines of a cell joined.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    spare: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        watched, names = console.is_terminal, self.names
        heads = [name.replace("_", "\n") if watched else name for name in names]
        cells = [[row[n] if watched else " ".join(row[n].split("\n")) for row in self.rows] for n in range(len(names))]
        shown = [n for n, column in enumerate(cells) if not watched or not column or {*column} - {"", "-"}]
        widths = [max(map(cell_len, "\n".join([head, *cells[n]]).split("\n"))) for n, head in enumerate(heads)]
        least = [min(width, NARROW) if name in WORDS else width for name, width in zip(names, widths, strict=True)]
        lost = list[str]()
        for n in [*map(names.index, self.spare.split()), *shown[:1:-1]]:
            if n in shown and sum(least[kept] + 1 for kept in shown) - 1 > options.max_width:
                shown.remove(n)
                lost.append(names[n])
        roomy = not watched or sum(widths[n] + GAP for n in shown) - GAP <= options.max_width
        rule = None if not watched else box.SIMPLE_HEAD if console.encoding.startswith("utf") else RULE
        gap = (0, (GAP if roomy else 1) - watched, 0, 0)  # a rule brings a column of its own
        table = Table(box=rule, show_edge=False, pad_edge=False, padding=gap)
        for n in shown:
            words, numbers = names[n] in WORDS, any(map(NUMBER.match, cells[n]))
            side: Literal["left", "right"] = "right" if numbers and not words else "left"
            table.add_column(heads[n], justify=side, no_wrap=not words, overflow="fold", min_width=least[n])
        for row in zip(*(cells[n] for n in shown), strict=True):
            table.add_row(*row)
        yield from [Text(self.title, "bold")] if self.title else []
        yield table
        if lost:
            yield Text(f"left out at this width: {', '.join(lost)}; a wider terminal or a pipe has all", "dim")
