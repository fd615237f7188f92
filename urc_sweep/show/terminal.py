"""What a terminal sees: tables by rich, a live table while a sweep runs, one line per event where nobody watches."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from urc_sweep.errors import SpecError, choices, printable
from urc_sweep.plan.registry import find as component
from urc_sweep.plan.spec import COMPRESSORS, Sweep, protocol_of, stage_label
from urc_sweep.plan.trials import Trial, trains_critic
from urc_sweep.run.launch import Launch
from urc_sweep.show.grid import FAILURES, LEFT, STATES, Fitted, Plain, number
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import EXPIRY_S, holder_of, process
from urc_sweep.store.tables import METRICS, Projection

if TYPE_CHECKING:
    import pandas as pd

    from urc_sweep.show.progress import Pace

# Seconds of one step of 64 images at width 1 on one core, and how it falls with width: for estimates only.
STEP_S, WIDTH_POWER = 0.115, 1.2
CRITIC_FACTOR = 2.0  # of a critic, which takes every second step
ARTIFACT_MB = 6.0
WATCH_S, TIME = 1.0, "%Y-%m-%dT%H:%M:%SZ"
KNOWN = {"running": True, "": False}  # else it is not known whether a launch lives


def name_of(trial: Trial) -> str:
    """Return a trial in words: stage, rate, weights, seed."""
    told = [trial.stage]
    if trial.stage == "classifier":
        told.append(str(trial.config["network"]["name"]))
    if trial.rate:
        told.append(rate_of(trial.rate.dim, trial.rate.levels, trial.rate_bits))
    told += [f"{term} {weight:g}" for term, weight in trial.weights.items()]
    told += [f"of {len(trial.objectives)} decoders"] if trial.stage == "joint" else []
    return " ".join([*told, f"seed {trial.seed}"])


def rate_of(dim: float, levels: float, bits: float | None) -> str:
    """Return the paper's pair of a rate; with its bits where it has more than those, of a second encoder."""
    more = bits is not None and abs(bits - dim * math.log2(levels)) > 1e-6
    return f"({dim:g},{levels:g})" + (f" {bits:.4g} bits" if more else "")


def plan(sweep: Sweep, trials: list[Trial], missing: list[Trial]) -> None:
    """Print trials per stage, how many are committed, and what the rest will take."""
    left, rows = {trial.id for trial in missing}, []
    for stage in dict.fromkeys(trial.stage for trial in trials):
        members = [trial for trial in trials if trial.stage == stage]
        todo = [trial for trial in members if trial.id in left]
        rows.append([stage_label(stage), str(len(members)), str(len(todo)), duration(sum(map(estimate_s, todo)))])
    rows.append(["total", str(len(trials)), str(len(missing)), duration(sum(map(estimate_s, missing)))])
    title = f"{sweep.name}: {sweep.dataset.name}, {sweep.model.name}"
    console = Plain()
    console.print(Fitted(["stage", "trials", "missing", "CPU time, about"], rows, title))
    plain = protocol_of(sweep).settings
    console.print(f"protocol: {', '.join(f'{key} {value}' for key, value in plain.items())}")
    for stage in COMPRESSORS:
        for _, section in sweep.variants(stage):
            own = {key: value for key, value in protocol_of(sweep, section).settings.items() if value != plain[key]}
            if own:
                console.print(f"  {stage}: {', '.join(f'{key} {value}' for key, value in own.items())}")
    width = float(trials[-1].config.get("model", {}).get("width", 1.0))
    console.print(f"disk: about {max(1, round(len(missing) * ARTIFACT_MB * width**2 + 0.05 * len(missing)))} MB")


def estimate_s(trial: Trial) -> float:
    """Return about how many seconds of one core a trial takes."""
    images = int(component("dataset", trial.config["dataset"]["name"]).facts.get("train", 50_000))
    width = float(trial.config.get("model", {}).get("width", 1.0))
    step = STEP_S * (width**WIDTH_POWER if "model" in trial.config else 1 / 12)
    step *= max(1, len(trial.objectives)) * (CRITIC_FACTOR if trains_critic(trial.terms) else 1)
    return float(step * trial.setting("train", "epochs") * images / 64)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@contextlib.contextmanager
def progress(launch: Launch, quiet: bool) -> Iterator[None]:
    """Show a launch while it runs: live on a terminal, else one line per event."""
    console, began = Plain(stderr=True), time.monotonic()

    def say(event: str, trial: Trial | None) -> None:
        clock = f"{time.monotonic() - began:7.1f}s"
        console.print(Text(f"{clock}  {_told(event, trial)}"))

    if quiet or not console.is_terminal:
        launch.on_event = launch.on_event if quiet else say
        yield
        return
    board = _Board(launch, began)
    launch.on_event = board.note
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
        yield


def _told(event: str, trial: Trial | None) -> str:
    return printable(event if trial is None else f"{event}  {name_of(trial)}")


class _Board:
    """The live table of a launch."""

    def __init__(self, launch: Launch, began: float) -> None:
        self.launch, self.began = launch, began
        self.last: list[str] = []

    def note(self, event: str, trial: Trial | None) -> None:
        if event != "started":
            self.last = [*self.last[-3:], _told(event, trial)]

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


def by_stage(counts: Mapping[str, Mapping[str, int]], title: str) -> Fitted:
    """Return the table of trials by stage and state."""
    known = (*STATES, *sorted({state for row in counts.values() for state in row} - set(STATES)))
    states = [state for state in known if any(row.get(state) for row in counts.values())]
    rows = [[stage_label(stage), *(str(row.get(state) or "") for state in states)] for stage, row in counts.items()]
    return Fitted(["stage", *states], rows, title)


def ending(launch: Launch) -> None:
    """Print how a launch ended: nothing to do, or the penalty table and where the report is."""
    from urc_sweep.show import facts

    say = Plain(stderr=True).print
    name, path = launch.sweep.name, launch.store.layout.report(launch.sweep.name)
    if not launch.worked:
        state = "done" if launch.exit_code == 0 else "settled"
        say(f"{name}: nothing to do, all {len(launch.trials)} trials are {state}; {path}")
    else:
        Plain().print(by_stage(launch.schedule().counts(), name))
        penalty(facts.load(launch.store, name))
        print(path)
    if launch.stopped:
        say(f"stopped ({launch.stopped}); to go on: {launch.options.command(launch.path)}")
    elif launch.exit_code == 3:
        say(f"some trials failed: `urc-sweep show TRIAL` says why, `urc-sweep retry {name}` reopens them")
        for trial in launch.trials:
            if failure := launch.store.final_failure(trial.id):
                line = f"  {trial.id[:12]} {failure['status']}: {failure['error_type']}: {failure['error_message']}"
                say(Text(line.splitlines()[0], overflow="ellipsis", no_wrap=True))


def status(store: Store, name: str, as_json: bool) -> None:
    """Print a sweep's trials by stage and status."""
    projection, running = Projection(store, name), list[str]()
    if live := _life(store, holder_of(store), name):
        from urc_sweep.store.query import published_running  # brings pandas: half a second

        running = published_running(store, name)
    statuses = projection.statuses(running)
    counts: dict[str, Counter[str]] = {}
    for trial in projection.trials:
        counts.setdefault(trial.stage, Counter())[statuses[trial.id]] += 1
    if as_json:
        print(json.dumps({"sweep": name, "running": KNOWN.get(live), "stages": counts}))
    else:
        Plain().print(by_stage(counts, f"{name}: {live or 'not running'}"))


def _life(store: Store, holder: Mapping[str, Any] | None, name: str) -> str:
    """Return in words whether the lease's holder runs a sweep, "" if not: of another host only its heart can tell."""
    if holder is None or holder.get("sweep") != name:
        return ""
    here, last = process(os.getpid()), 0.0
    if all(holder.get(key) == here[key] for key in ("host", "boot_id")):
        return "running"
    with contextlib.suppress(OSError):  # it may have ended meanwhile
        last = store.layout.lease.stat().st_mtime
    return f"perhaps running on {holder.get('host')}, last sign of life {datetime.fromtimestamp(last, UTC):{TIME}}"


def watch(store: Store, name: str, as_json: bool) -> int:
    """Follow a sweep until nobody runs it: live on a terminal, else a line per change. Return the exit code."""
    from urc_sweep.show import progress

    console, said, seen, best = Plain(), None, None, Group()
    lively = console.is_terminal and not console.is_dumb_terminal and not as_json
    try:
        with Live(console=console, auto_refresh=False) if lively else contextlib.nullcontext() as live:
            for frame, running in _followed(store, name):
                now = datetime.now(UTC)
                eta, speed = (progress.eta_s(frame, now), progress.pace(frame)) if running else (None, None)
                counts = progress.counts(frame, progress.states(frame))
                head = f"{name}: {_gist(counts, running, eta, speed)}"
                if live:
                    if frame is not seen:
                        seen, best = frame, _best(progress.best(frame))
                    live.update(Group(by_stage(counts, head), best), refresh=True)
                elif (counts, running) != said:
                    said = counts, running
                    told: dict[str, Any] = {"sweep": name, "running": KNOWN.get(running)}
                    told |= {"stages": progress.counts(frame, frame["status"])}
                    told |= {"eta_s": eta, "trials_per_minute": speed and speed.trials_per_minute}
                    console.print(json.dumps(told) if as_json else f"{now:{TIME}} {head}")
    except KeyboardInterrupt:
        return 130
    return 0


def _followed(store: Store, name: str) -> Iterator[tuple[pd.DataFrame, str]]:
    """Yield the trials table and in words whether the sweep runs, again and again; last once it does not ("").

    The table is read when it was replaced. Looking takes at most a tenth of a core, however large the sweep.
    """
    from urc_sweep.show import facts

    path, read, holder, beat, running = store.layout.trials_table(name), 0, None, 0.0, ""
    while True:
        began = time.monotonic()
        # Who holds the lease is asked first: after its last sign of life the table is whole.
        if (now := holder_of(store)) != holder:
            beats = holder is not None and now is not None and holder.get("token") == now.get("token")
            holder, beat, running = now, began, _life(store, now, name)
            running = "running" if running and beats else running
        elif began - beat >= EXPIRY_S:
            running = ""
        if (written := path.stat().st_mtime_ns) != read:
            read, frame = written, facts.load(store, name)
        yield frame, running
        if not running:
            return
        time.sleep(max(WATCH_S, 9 * (time.monotonic() - began)))


def _gist(counts: Mapping[str, Mapping[str, int]], running: str, eta: float | None, speed: Pace | None) -> str:
    """Return in a line how far a sweep is."""
    total = sum(map(Counter, counts.values()), Counter[str]())
    left = any(total[state] for state in LEFT)
    told = [running or ("not running" if left else "finished"), f"{total['done']} of {total.total()} done"]
    told += [f"{total[state]} {state}" for state in FAILURES if total[state]]
    told += [f"about {duration(eta)} left"] if eta is not None else []
    told += [f"{speed.trials_per_minute:.3g} trials/min"] if speed else []
    told += [f"{speed.steps_per_s:.3g} steps/s"] if speed and math.isfinite(speed.steps_per_s) else []
    return ", ".join(told)


def _best(points: pd.DataFrame) -> Group:
    """Return the table of the best points so far, a row per rate and stage."""
    rows, metrics = list[list[str]](), ["mse", *({*points["metric"]} - {"mse"})]
    key: Any
    for key, group in points.groupby(["dim", "levels", "rate_bits", "stage"]):
        best = {row["metric"]: [number(row["value"], "#.4g"), row["trial_id"][:12]] for row in group.to_dict("records")}
        cells = [cell for name in metrics for cell in best.get(name, ["-", "-"])]
        rows.append([rate_of(*key[:3]), stage_label(key[3]), *cells])
    names = ["rate", "stage", *(word for name in metrics for word in (f"least {name}", "trial"))]
    return Group(*([Fitted(names, rows, "best so far: chosen on validation, read on test")] if rows else []))


def trials(frame: pd.DataFrame, stage: str | None = None, status: str | None = None) -> None:
    """Print one line per trial, of one stage or status if asked: stages in plan order, then by rate and weight."""
    from urc_sweep.show import facts

    words = ["variant", "terms", "parent_stage", "parent_variant", "parent_terms"]
    told = facts.compressors(frame).set_index("trial_id")[words]
    frame = frame.drop(columns=words, errors="ignore").join(told, on="trial_id").fillna(dict.fromkeys(words, ""))
    for name, wanted in (("stage", stage), ("status", status)):
        known = list(dict.fromkeys(frame[name]))
        if wanted is not None and wanted not in known:
            raise SpecError(f"--{name} {wanted}: {choices(wanted, known)}")
        frame = frame if wanted is None else frame[frame[name] == wanted]
    place = {name: n for n, name in enumerate(dict.fromkeys(frame["stage"]))}
    order = ["place", "rate_bits", "dim", "parent_lambda_c", "parent_lambda_p", "lambda_c", "lambda_p", "seed"]
    frame = frame.assign(place=frame["stage"].map(place)).sort_values(order, kind="stable", na_position="first")
    columns = "trial stage rate base weights seed status mse cross_entropy accuracy sliced_w2 wall_s error"
    _grid("", frame.assign(trial=frame["trial_id"].str[:12], error=frame["error_type"]), columns, "wall_s sliced_w2")


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
    """Print everything known of one trial; last, why it failed."""
    sweep, trial = find(store, prefix)
    projection, console = Projection(store, sweep), Plain()
    row = next(row for row in projection.rows(projection.statuses()) if row["trial_id"] == trial.id)
    elsewhere = (*METRICS, "config_json", "weights", "metrics")
    known = [(k, str(v)) for k, v in row.items() if v is not None and k not in elsewhere and not k.startswith("val_")]
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    for key, value in known:
        grid.add_row(key, Text(value, overflow="fold"))
    console.print(Text(f"{name_of(trial)}  {row['status']}", style="bold"), grid, "")
    extra, rows = dict(row["metrics"]), []
    for key in (*METRICS, *(k for k in extra if not k.startswith("val_"))):
        pair = [extra.get(k, row.get(k)) for k in (key, f"val_{key}")]
        if any(value is not None for value in pair):
            rows.append([key, *(number(value, "#.6g") for value in pair), METRICS.get(key, "")])
    if rows:
        console.print(Fitted(["metric", "test", "validation", "unit"], rows), "")
    console.print(Text(json.dumps(json.loads(row["config_json"]), indent=1)))
    for failure in store.failures(trial.id):
        head = f"attempt {failure['attempt']}: {failure['status']}: {failure['error_type']}: {failure['error_message']}"
        console.print("", Text(printable(head), style="bold"), Text(failure.get("trace") or ""), sep="\n")


def frontier(frame: pd.DataFrame) -> None:
    """Print the points on the fronts, rate by rate, and the hypervolumes."""
    from urc_sweep.show import facts, gaps, progress

    at = gaps.matched_at(frame)
    points, volumes = facts.fronts(frame, "mse", at), facts.hypervolumes(frame)
    order = ["rate_bits", "dim", "stage", *facts.ENCODER, "variant", "seed", "mse"]
    front = points[points["on_front"]].sort_values(order)
    title = f"points on the (mse, {at.replace('_', '-')}) fronts: chosen on validation, read on test"
    further = [name for name in ("cross_entropy", "accuracy", "sliced_w2") if name != at]
    columns = f"rate stage base weights seed mse mse_se {at} {' '.join(further)} trial"
    _grid(title, front.assign(trial=front["trial_id"].str[:12]), columns, f"mse_se {further[-1]} trial {further[0]}")
    title = "hypervolume [MSE x nats] below zero rate: mse {0:.4g}, cross-entropy {1:.4g}"
    _grid(title.format(*volumes[facts.REFERENCE].mean()), volumes, "rate stage base seed points hypervolume")
    if front.empty:
        Plain().print(progress.no_front(points))


def penalty(frame: pd.DataFrame, at: str = "") -> None:
    """Print what universality costs at a matched constraint, in distortion and in rate, and what may explain it."""
    from urc_sweep.show import gaps

    say = Plain().print
    if reason := gaps.obstacle(frame, at := at or gaps.matched_at(frame)):
        say(reason)
        return
    rows, explained = gaps.penalties(frame, at), gaps.explanations(frame)
    title = f"distortion penalty of universality at matched {at}: points chosen on validation, MSE on test"
    shown = rows.rename(columns={"constraint": at, "penalty_percent": "%"})
    shown["penalty"] = rows["penalty"].astype(object).mask(rows["infeasible"], "infeasible")
    columns = f"rate base weights {at} mse_end_to_end mse_universal penalty interval % seeds"
    _grid(title, shown, columns, "mse_universal mse_end_to_end %")
    few = rows["seeds"].max() < 3
    say("under 3 seeds there is no interval: single runs mean little" if few else "intervals: 95 %, over paired seeds")
    title = "where the gaps come from: gap = encoder (what the base lost: mse_centroid) + decoder (the rest)"
    _grid(title, gaps.splits(frame, at), "rate base weights gap encoder decoder seeds")
    title = "rate penalty A(Omega(R)), and profile R - R_e2e(D, C) of the points that could be placed, in bits"
    profile = "profile_max profile_mean placed profile_status end_to_end_rates"
    columns = f"rate base rate_penalty status rates {profile} seeds"
    _grid(title, gaps.rate_penalties(frame), columns, "end_to_end_rates rates placed profile_mean")
    _grid("hypervolume, universal / end-to-end", gaps.hypervolume_ratios(frame), "rate base ratio interval seeds")
    _grid("what may explain the gaps", explained[explained["of_seeds"] > 0], "rate explanation arm mean interval seeds")
    for line in gaps.verdicts(explained):
        say(line)


def compare(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Print how two sweeps' configurations differ, and what that changed in the trials that they share."""
    from urc_sweep.show import gaps

    config, shared = gaps.compare(one, other)
    _grid("configurations", config, "key a b")
    columns = " ".join(["stage rate base weights", *gaps.COMPARED, "seeds"])
    _grid("b - a, on test, paired by seed", shared, columns, "sliced_w2 accuracy")
    if shared.empty:
        Plain().print("no done trials of the two share stage, rate, weights, encoder and seed")


def _grid(title: str, frame: pd.DataFrame, columns: str, spare: str = "") -> None:
    """Print columns of facts as a table, nothing if there are no rows."""
    rows = [[_cell(row, name) for name in columns.split()] for row in frame.to_dict("records")]
    if rows:
        Plain().print(Fitted(columns.split(), rows, title, spare), "")


def _cell(row: Mapping[Any, Any], name: str) -> str:
    """Return what a row says under a heading; a mean with seeds of its own has them and its interval underneath."""
    from urc_sweep.show import gaps

    if name in ("base", "weights"):
        return gaps.encoder(row) if name == "base" else gaps.weights(row)
    if name == "rate" and math.isnan(row["dim"]):
        return "-"
    if name == "rate":
        return rate_of(*(row[key] for key in ("dim", "levels", "rate_bits"))).replace(" ", "\n", 1)
    if name == "seeds":
        return f"{row.get('seeds', row['of_seeds'])}/{row['of_seeds']}"
    if name == "stage":
        return stage_label(row[name])
    low, high = (number(row.get(end if name == "interval" else f"{name}_{end}"), ".3g") for end in ("low", "high"))
    interval = "-" if low == "-" else f"[{low}, {high}]"
    if name == "interval":
        return interval
    n = row.get(f"{name}_seeds", row.get("of_seeds"))
    lines = [number(row[name], "#.4g"), *([interval.replace(", ", ",\n")] if low != "-" else [])]
    return "\n".join([*lines, *([f"n = {n}"] if n != row.get("of_seeds") else [])])


def table(frame: pd.DataFrame) -> None:
    """Print a data frame."""
    Plain().print(Fitted([*map(str, frame.columns)], [[*map(number, row)] for row in frame.itertuples(index=False)]))
