"""The notebook face: ``load`` a sweep file, ``launch`` it, ``open_store`` to read it, ``figures`` to draw it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urc_sweep.plan.spec import load
    from urc_sweep.show import figures
    from urc_sweep.store.commits import Store

__all__ = ["figures", "launch", "load", "open_store"]


def launch(path: str, store: str = "results", **options: Any) -> int:
    """Run the sweep of a file as ``urc-sweep launch`` does and return its exit code; options as there."""
    from urc_sweep.run.launch import Launch, Options
    from urc_sweep.show import report

    run = Launch(path, Options(store=store, **options))
    run.write_report = lambda opened, name, source: report.write(opened, name, opened.layout.report(name), source)
    return run.run()


def open_store(store: str = "results") -> Store:
    """Return the store at a directory; ``urc_sweep.show.facts`` and ``figures`` read it."""
    from urc_sweep.store.commits import Store

    opened = Store(store)
    opened.require()
    return opened


def __getattr__(name: str) -> Any:
    """Import rooms when they are asked for: the command line must start without pandas and plotly."""
    if name == "figures":
        return import_module("urc_sweep.show.figures")
    if name == "load":
        return import_module("urc_sweep.plan.spec").load
    raise AttributeError(name)
