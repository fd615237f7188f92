"""What a terminal sees: tables by rich, a live table while a sweep runs, one line per event where nobody watches."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from urc_sweep.errors import SpecError, printable
from urc_sweep.plan.spec import COMPRESSORS, Sweep, protocol_of
from urc_sweep.plan.trials import Trial, trains_critic
from urc_sweep.run.launch import Launch
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import METRICS, Projection

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "running", "ready", "blocked", "failed", "diverged", "oom", "skipped")
# Seconds of one step of 64 images at width 1 on one core, and how it falls with width: for estimates only.
STEP_S, WIDTH_POWER = 0.115, 1.2
CRITIC_FACTOR = 2.0  # of a critic, which takes every second step
ARTIFACT_MB = 6.0


class Plain(Console):
    """A console to which what came from data is text: no markup, no links, no control codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*arguments, **options):
            known = segment.control or segment.text == "\n"
            yield segment if known else Segment(printable(segment.text), segment.style)


def out() -> Console:
    """Return the console for data; as wide as needed where stdout is no terminal."""
    return Plain(width=None if sys.stdout.isatty() else 160)


def err() -> Console:
    return Plain(stderr=True)


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
    words += [f"of {len(trial.objectives)} decoders"] if trial.stage == "joint" else []
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
    plain = protocol_of(sweep).settings
    console.print(f"protocol: {', '.join(f'{key} {value}' for key, value in plain.items())}", soft_wrap=True)
    for stage in COMPRESSORS:
        for _, section in sweep.variants(stage):
            own = {key: value for key, value in protocol_of(sweep, section).settings.items() if value != plain[key]}
            if own:
                console.print(f"  {stage}: {', '.join(f'{key} {value}' for key, value in own.items())}")
    width = float(trials[-1].config.get("model", {}).get("width", 1.0))
    console.print(f"disk: about {max(1, round(len(missing) * ARTIFACT_MB * width**2 + 0.05 * len(missing)))} MB")


def estimate_s(trial: Trial) -> float:
    """Return about how many seconds of one core a trial takes."""
    from urc_sweep.plan.registry import find

    images = int(find("dataset", trial.config["dataset"]["name"]).facts.get("train", 50_000))
    step = (
        STEP_S * float(trial.config["model"].get("width", 1.0)) ** WIDTH_POWER
        if "model" in trial.config
        else STEP_S / 12
    )
    step *= max(1, len(trial.objectives)) * (CRITIC_FACTOR if trains_critic(trial.terms) else 1)
    return float(step * trial.setting("train", "epochs") * images / 64)


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
        done = [t for t in self.launch.trials if schedule.state[t.id] == "done" and schedule.attempts[t.id]]
        done_s = sum(map(estimate_s, done))
        eta = f", about {duration(sum(map(estimate_s, todo)) / done_s * elapsed)} left" if done_s else ""
        table = by_stage(counts, f"{self.launch.sweep.name}: {duration(elapsed)}{eta}")
        live = [t for t in todo if schedule.state[t.id] == "running"]
        running = [Text(f"  {name_of(t)}  {self._epoch(t)}", style="dim") for t in live]
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
    say = partial(console.print, soft_wrap=True)
    name, path = launch.sweep.name, launch.store.layout.report(launch.sweep.name)
    if not launch.worked:
        state = "done" if launch.exit_code == 0 else "settled"
        say(f"{name}: nothing to do, all {len(launch.trials)} trials are {state}; {path}")
    else:
        out().print(by_stage(launch.schedule().counts(), name))
        penalty(facts.load(launch.store, name))
        print(path)
    if launch.stopped:
        say(f"stopped ({launch.stopped}); to go on: {launch.options.command(launch.path)}")
    elif launch.exit_code == 3:
        say(f"some trials failed: `urc-sweep show TRIAL` says why, `urc-sweep retry {name}` reopens them")
        for trial in launch.trials:
            if failure := launch.store.final_failure(trial.id):
                line = f"  {trial.id[:12]} {failure['status']}: {failure['error_type']}: {failure['error_message']}"
                console.print(Text(line.splitlines()[0], overflow="ellipsis", no_wrap=True))


def status(store: Store, name: str, as_json: bool) -> None:
    """Print a sweep's trials by stage and status."""
    from urc_sweep.store.lease import holder_of
    from urc_sweep.store.query import published_running

    projection = Projection(store, name)
    live = (holder_of(store) or {}).get("sweep") == name
    statuses = projection.statuses(published_running(store, name) if live else ())
    counts: dict[str, Counter[str]] = {}
    for trial in projection.trials:
        counts.setdefault(trial.stage, Counter())[statuses[trial.id]] += 1
    if as_json:
        print(json.dumps({"sweep": name, "running": live, "stages": counts}))
    else:
        out().print(by_stage(counts, f"{name}: {'running' if live else 'not running'}"))


def trials(frame: pd.DataFrame) -> None:
    """Print one line per trial."""
    columns = "trial stage rate base weights seed status mse cross_entropy accuracy heldout_accuracy wall_s"
    _grid(None, frame.assign(trial=frame["trial_id"].str[:12]), columns)


def find(store: Store, prefix: str) -> tuple[str, Trial]:
    """Return the trial whose id begins so, and the newest sweep that plans it."""
    known: dict[str, tuple[str, Trial]] = {}
    for sweep in store.sweeps():
        for trial in Projection(store, sweep).trials:
            known[trial.id] = (sweep, trial)
    found = [identity for identity in known if prefix and identity.startswith(prefix)]
    if len(found) != 1:
        raise SpecError(f"{prefix!r} names {len(found) or 'no'} trials of {store.root}; `urc-sweep trials` lists them")
    return known[found[0]]


def show(store: Store, prefix: str) -> None:
    """Print everything known of one trial."""
    sweep, trial = find(store, prefix)
    projection = Projection(store, sweep)
    row = next(row for row in projection.rows(projection.statuses()) if row["trial_id"] == trial.id)
    console = out()
    console.print(Text(f"{name_of(trial)}  {row['status']}", style="bold"))
    elsewhere = (*METRICS, "config_json", "weights", "metrics")
    for key, value in row.items():
        if value is not None and key not in elsewhere and not key.startswith("val_"):
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
    front = points[points["on_front"]].sort_values(["rate_bits", "stage", "variant", "seed", "mse"])
    title = "points on the (mse, cross-entropy) fronts: chosen on validation, read on test"
    _grid(title, front, "rate stage base weights seed mse mse_se cross_entropy accuracy")
    title = "hypervolume; reference: MSE and label entropy at rate 0"
    _grid(title, facts.hypervolumes(frame), f"rate stage base seed points hypervolume {' '.join(facts.REFERENCE)}")
    if front.empty:
        out().print("no front yet: no trial of a rate is done")


def penalty(frame: pd.DataFrame, at: str = "") -> None:
    """Print what universality costs at a matched constraint, in distortion and in rate, and what may explain it."""
    from urc_sweep.show import gaps

    if reason := gaps.obstacle(frame, at := at or gaps.matched_at(frame)):
        out().print(reason, soft_wrap=True)
        return
    rows, explained = gaps.penalties(frame, at), gaps.explanations(frame)
    title = f"distortion penalty of universality at matched {at}\npoints chosen on validation, MSE on test"
    shown = rows.rename(columns={"constraint": at, "penalty_percent": "%"})
    shown["penalty"] = rows["penalty"].astype(object).mask(rows["infeasible"], "infeasible")
    _grid(title, shown, f"rate base weights {at} mse_end_to_end mse_universal penalty % interval seeds")
    if rows["of_seeds"].max() < 3:
        out().print("under 3 seeds there is no interval: single runs mean little")
    title = "where the gaps come from: gap = encoder (what the base lost: mse_centroid) + decoder (the rest)"
    _grid(title, gaps.splits(frame, at), "rate base weights gap encoder decoder seeds")
    title = "rate penalty A(Omega(R)), and profile R - R_e2e(D, C) of the points that could be placed, in bits"
    profile = "profile_max profile_mean placed profile_status end_to_end_rates"
    _grid(title, gaps.rate_penalties(frame), f"rate base rate_penalty status rates {profile} seeds")
    _grid("hypervolume, universal / end-to-end", gaps.hypervolume_ratios(frame), "rate base ratio interval seeds")
    _grid("what may explain the gaps", explained[explained["of_seeds"] > 0], "rate explanation arm mean interval seeds")
    for line in gaps.verdicts(explained):
        out().print(line, soft_wrap=True)


def compare(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Print how two sweeps' configurations differ, and what that changed in the trials that they share."""
    from urc_sweep.show import gaps

    config, shared = gaps.compare(one, other)
    _grid("configurations", config, "key a b")
    _grid("b - a, on test, paired by seed", shared, " ".join(["stage rate base weights", *gaps.COMPARED, "seeds"]))
    if shared.empty:
        out().print("no done trials of the two share stage, rate, weights, encoder and seed")


def _grid(title: str | None, frame: pd.DataFrame, columns: str) -> None:
    """Print columns of facts as a table, nothing if there are no rows."""
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns.split():
        grid.add_column(name.replace("_", "\n"), justify="right", overflow="fold")
    for row in frame.to_dict("records"):
        grid.add_row(*(_cell(row, name) for name in columns.split()))
    if grid.row_count:
        out().print(grid)


def _cell(row: Mapping[Any, Any], name: str) -> str:
    """Return what a row says under a heading; a mean with seeds of its own has them and its interval underneath."""
    from urc_sweep.show import gaps

    if name in ("base", "weights"):
        return gaps.encoder(row) if name == "base" else gaps.weights(row)
    if name == "rate":
        return "-" if math.isnan(row["dim"]) else f"({row['dim']:g},{row['levels']:g})"
    if name == "seeds":
        return f"{row.get('seeds', row['of_seeds'])}/{row['of_seeds']}"
    low, high = (number(row.get(end if name == "interval" else f"{name}_{end}")) for end in ("low", "high"))
    interval = "-" if low == "-" else f"[{low}, {high}]"
    if name == "interval":
        return interval
    n = row.get(f"{name}_seeds", row.get("of_seeds"))
    lines = [
        number(row[name]),
        *([interval] if low != "-" else []),
        *([f"n = {n}"] if n != row.get("of_seeds") else []),
    ]
    return "\n".join(lines)


def table(frame: pd.DataFrame, title: str | None = None) -> None:
    """Print a data frame."""
    grid = Table(*map(str, frame.columns), title=title, title_justify="left")
    for row in frame.itertuples(index=False):
        grid.add_row(*map(number, row))
    out().print(grid)
