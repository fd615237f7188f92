"""What a terminal sees: tables by rich, a live table while a sweep runs, one line per event where nobody watches."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from urc_sweep.errors import SpecError
from urc_sweep.plan.spec import Sweep
from urc_sweep.plan.trials import Trial
from urc_sweep.run.launch import Launch
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import METRICS, Projection

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "running", "ready", "blocked", "failed", "diverged", "oom", "skipped")
# Seconds of one step of 64 images at width 1 on one core, and how it falls with width: for estimates only.
STEP_S, WIDTH_POWER = 0.115, 1.2
ARTIFACT_MB = 6.0


def out() -> Console:
    """Return the console for data; plain and as wide as needed where stdout is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def err() -> Console:
    return Console(stderr=True, highlight=False)


def number(value: Any, digits: int = 4) -> str:
    """Return a number for a table, a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def name_of(trial: Trial) -> str:
    """Return a trial in words: stage, rate, weights, seed."""
    words = [trial.stage]
    if trial.stage == "classifier":
        words.append(str(trial.config["network"]["name"]))
    if trial.rate:
        words.append(f"({trial.rate.dim},{trial.rate.levels})")
    words += [f"{term} {weight:g}" for term, weight in trial.weights.items()]
    return " ".join([*words, f"seed {trial.seed}"])


def plan(sweep: Sweep, trials: list[Trial], missing: list[Trial]) -> None:
    """Print trials per stage, how many are committed, and what the rest will take."""
    table = Table(
        "stage", "trials", "missing", "CPU time, about", title=f"{sweep.name}: {sweep.dataset.name}, {sweep.model.name}"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    left = {trial.id for trial in missing}
    for stage in dict.fromkeys(trial.stage for trial in trials):
        members = [trial for trial in trials if trial.stage == stage]
        todo = [trial for trial in members if trial.id in left]
        table.add_row(stage, str(len(members)), str(len(todo)), duration(sum(map(estimate_s, todo))))
    total = sum(map(estimate_s, missing))
    table.add_row("total", str(len(trials)), str(len(missing)), duration(total), style="bold")
    console = out()
    console.print(table)
    protocol = ", ".join(f"{key} {value}" for key, value in sweep.protocol.model_dump().items())
    console.print(f"protocol: {protocol}")
    width = float(trials[-1].config.get("model", {}).get("width", 1.0))
    console.print(f"disk: about {max(1, round(len(missing) * ARTIFACT_MB * width**2 + 0.05 * len(missing)))} MB")


def estimate_s(trial: Trial) -> float:
    """Return about how many seconds of one core a trial takes."""
    from urc_sweep.plan.registry import find

    train = trial.config["train"]
    images = int(find("dataset", trial.config["dataset"]["name"]).facts.get("train", 50_000))
    step = (
        STEP_S * float(trial.config["model"].get("width", 1.0)) ** WIDTH_POWER
        if "model" in trial.config
        else STEP_S / 12
    )
    return float(step * train["epochs"] * images / 64)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@contextmanager
def progress(launch: Launch, quiet: bool) -> Iterator[None]:
    """Show a launch while it runs: live on a terminal, else one line per event."""
    console, began = err(), time.monotonic()

    def say(event: str, trial: Trial | None) -> None:
        clock = f"{time.monotonic() - began:7.1f}s"
        console.print(Text(f"{clock}  {event}{'' if trial is None else '  ' + name_of(trial)}"), soft_wrap=True)

    if quiet:
        yield
        return
    if not console.is_terminal:
        launch.on_event = say
        yield
        return
    board = _Board(launch, began)
    launch.on_event = board.note
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
        yield


class _Board:
    """The live table of a launch."""

    def __init__(self, launch: Launch, began: float) -> None:
        self.launch, self.began = launch, began
        self.last: list[str] = []

    def note(self, event: str, trial: Trial | None) -> None:
        if event != "started":
            self.last = [*self.last[-3:], f"{event}{'' if trial is None else '  ' + name_of(trial)}"]

    def render(self) -> Group:
        conductor = self.launch.conductor
        schedule = conductor.schedule if conductor else self.launch.schedule()
        counts = schedule.counts()
        elapsed = time.monotonic() - self.began
        todo = [t for t in self.launch.trials if schedule.state[t.id] in ("waiting", "running")]
        done_s = sum(
            estimate_s(t) for t in self.launch.trials if schedule.state[t.id] == "done" and schedule.attempts[t.id]
        )
        eta = f", about {duration(sum(map(estimate_s, todo)) / done_s * elapsed)} left" if done_s else ""
        table = by_stage(counts, f"{self.launch.sweep.name}: {duration(elapsed)}{eta}")
        running = [
            Text(f"  {name_of(t)}  {self._epoch(t)}", style="dim") for t in todo if schedule.state[t.id] == "running"
        ]
        return Group(table, *running[:8], *(Text(line, overflow="ellipsis", no_wrap=True) for line in self.last))

    def _epoch(self, trial: Trial) -> str:
        epoch, _ = self.launch.conductor.epochs.get(trial.id, (0, 0.0))
        return f"epoch {epoch}/{trial.config['train']['epochs']}" if epoch else ""


def by_stage(counts: Mapping[str, Mapping[str, int]], title: str) -> Table:
    """Return the table of trials by stage and state."""
    known = (*STATES, *sorted({state for row in counts.values() for state in row} - set(STATES)))
    states = [state for state in known if any(row.get(state) for row in counts.values())]
    table = Table("stage", *states, title=title, title_justify="left", min_width=len(title))
    for stage, row in counts.items():
        table.add_row(stage, *(str(row.get(state, 0) or "") for state in states))
    return table


def ending(launch: Launch) -> None:
    """Print how a launch ended: nothing to do, or the penalty table and where the report is."""
    from urc_sweep.show import facts

    console = err()
    counts = launch.schedule().counts()
    name, path = launch.sweep.name, launch.store.layout.report(launch.sweep.name)
    total = len(launch.trials)
    if not launch.worked:
        state = "done" if launch.exit_code == 0 else "settled"
        console.print(f"{name}: nothing to do, all {total} trials are {state}; {path}", soft_wrap=True)
    else:
        out().print(by_stage(counts, name))
        penalty(facts.load(launch.store, name))
        print(path)
    if launch.stopped:
        console.print(
            Text(f"stopped ({launch.stopped}); to go on: {launch.options.command(launch.path)}"), soft_wrap=True
        )
    elif launch.exit_code == 3:
        console.print(
            f"some trials failed: `urc-sweep show TRIAL` says why, `urc-sweep retry {name}` reopens them",
            soft_wrap=True,
        )
        for trial in launch.trials:
            for failure in launch.store.failures(trial.id)[-1:]:
                if failure["final"]:
                    line = f"  {trial.id[:12]} {failure['status']}: {failure['error_type']}: {failure['error_message']}"
                    console.print(Text(line.splitlines()[0], overflow="ellipsis", no_wrap=True))


def status(store: Store, name: str, as_json: bool) -> None:
    """Print a sweep's trials by stage and status."""
    from urc_sweep.store.lease import holder_of
    from urc_sweep.store.query import published_running

    projection = Projection(store, name)
    live = (holder_of(store) or {}).get("sweep") == name
    statuses = projection.statuses(published_running(store, name) if live else ())
    counts: dict[str, dict[str, int]] = {}
    for trial in projection.trials:
        row = counts.setdefault(trial.stage, {})
        row[statuses[trial.id]] = row.get(statuses[trial.id], 0) + 1
    if as_json:
        print(json.dumps({"sweep": name, "running": live, "stages": counts}))
    else:
        out().print(by_stage(counts, f"{name}: {'running' if live else 'not running'}"))


def trials(frame: pd.DataFrame) -> None:
    """Print one line per trial."""
    columns = ["stage", "dim", "levels", "seed", "lambda_c", "parent_lambda_c", "status"]
    columns += ["mse", "cross_entropy", "accuracy", "heldout_accuracy", "wall_s"]
    shown = frame[columns].copy()
    shown.insert(0, "trial", frame["trial_id"].str[:12])
    for whole in ("dim", "levels"):
        shown[whole] = shown[whole].astype("Int64")
    table(shown)


def show(store: Store, prefix: str) -> None:
    """Print everything known of one trial."""
    known: dict[str, tuple[str, Trial]] = {}
    for sweep in store.sweeps():
        for trial in Projection(store, sweep).trials:
            known[trial.id] = (sweep, trial)
    found = [identity for identity in known if prefix and identity.startswith(prefix)]
    if len(found) != 1:
        raise SpecError(f"{prefix!r} names {len(found) or 'no'} trials of {store.root}; `urc-sweep trials` lists them")
    sweep, trial = known[found[0]]
    row = next(
        row for row in Projection(store, sweep).rows(Projection(store, sweep).statuses()) if row["trial_id"] == trial.id
    )
    console = out()
    console.print(Text(f"{name_of(trial)}  {row['status']}", style="bold"))
    plain = {
        key: value
        for key, value in row.items()
        if value is not None and key not in (*METRICS, "config_json", "weights", "metrics")
    }
    for key, value in plain.items():
        if not key.startswith("val_"):
            console.print(Text(f"  {key:24} {value}"), soft_wrap=True)
    metrics = Table("metric", "test", "validation", "unit")
    extra = dict(row["metrics"])
    for key in (*METRICS, *(k for k in extra if not k.startswith("val_"))):
        pair = [extra.get(k, row.get(k)) for k in (key, f"val_{key}")]
        if any(value is not None for value in pair):
            metrics.add_row(key, *(number(value, 6) for value in pair), METRICS.get(key, ""))
    if metrics.row_count:
        console.print(metrics)
    console.print_json(row["config_json"])
    for failure in store.failures(trial.id):
        head = f"attempt {failure['attempt']}: {failure['status']}: {failure['error_type']}: {failure['error_message']}"
        console.print(Text(head, style="bold"), soft_wrap=True)
        console.print(Text(failure.get("trace") or ""), soft_wrap=True)


def frontier(frame: pd.DataFrame) -> None:
    """Print the points on the fronts, rate by rate, and the hypervolumes."""
    from urc_sweep.show import facts

    points = facts.fronts(frame)
    columns = [
        "dim",
        "levels",
        "stage",
        "seed",
        "lambda_c",
        "parent_lambda_c",
        "mse",
        "mse_se",
        "cross_entropy",
        "accuracy",
    ]
    front = points[points["on_front"]].sort_values(["rate_bits", "stage", "seed", "mse"])
    table(front[columns], "points on the (mse, cross-entropy) fronts: chosen on validation, read on test")
    table(
        facts.hypervolumes(frame).drop(columns="parent_id", errors="ignore"),
        "hypervolume; reference: MSE and label entropy at rate 0",
    )


def penalty(frame: pd.DataFrame) -> None:
    """Print the distortion penalty of universal decoders at matched cross-entropy."""
    from urc_sweep.show import facts

    rows = facts.penalties(frame)
    grid = Table(
        title="distortion penalty of universality at matched cross-entropy\npoints chosen on validation, MSE on test",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    heads = (
        "rate|encoder\nlambda_c|target\nlambda_c|CE at\nmost|MSE\nend-to-end|MSE\nuniversal|penalty|95 % interval|seeds"
    )
    for head in heads.split("|"):
        grid.add_column(head, justify="right")
    for row in rows.to_dict("records"):
        interval = "-" if row["low"] is None or math.isnan(row["low"]) else f"[{row['low']:+.5f}, {row['high']:+.5f}]"
        gap = "infeasible" if row["infeasible"] else f"{row['penalty']:+.5f} ({row['penalty_percent']:+.1f} %)"
        grid.add_row(
            f"({row['dim']},{row['levels']})",
            *(
                number(row[key])
                for key in ("parent_lambda_c", "lambda_c", "constraint", "mse_end_to_end", "mse_universal")
            ),
            gap,
            interval,
            f"{row['seeds']}/{row['of_seeds']}",
        )
    if grid.row_count:
        out().print(grid)
        if rows["of_seeds"].max() < 3:
            out().print("under 3 seeds there is no interval: single runs mean little")
    else:
        out().print("no penalty yet: it needs finished end-to-end and universal trials with a classification term")


def table(frame: pd.DataFrame, title: str | None = None) -> None:
    """Print a data frame."""
    grid = Table(*map(str, frame.columns), title=title, title_justify="left")
    for row in frame.itertuples(index=False):
        grid.add_row(*(Text(number(value)) for value in row))
    out().print(grid)
