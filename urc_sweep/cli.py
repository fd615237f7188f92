"""The command line: parse, call, print. Data goes to stdout, everything else to stderr. Nothing heavy at import."""

from __future__ import annotations

import io
import json
import re
import sys
from gc import set_threshold
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from urc_sweep.errors import SpecError, StoreError, UrcSweepError, choices

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run, trust and show a rate-distortion-perception-classification study with one command.",
)

Spec = Annotated[Path, typer.Argument(help="the sweep file (YAML)", show_default=False)]
StoreOption = Annotated[str, typer.Option("--store", envvar="URC_SWEEP_STORE", help="the store's directory")]
SweepName = Annotated[str | None, typer.Argument(help="a sweep of the store; default: the newest", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the file: train.epochs=2")
]
Plugin = Annotated[list[str] | None, typer.Option("--plugin", help="a module or .py file with more components")]
DataRoot = Annotated[str | None, typer.Option("--data-root", envvar="URC_SWEEP_DATA", help="where data sets live")]
Offline = Annotated[bool, typer.Option("--offline", help="never download a data set")]


def _options(store: str, overrides: list[str] | None, plugins: list[str] | None, **more: object):  # type: ignore[no-untyped-def]
    from urc_sweep.run.launch import Options

    if "://" in store:
        raise SpecError(f"--store {store}: only directories (local disk or NFS) are supported by this release")
    return Options(store=store, overrides=tuple(overrides or ()), plugins=tuple(plugins or ()), **more)  # type: ignore[arg-type]


def _open(store: str):  # type: ignore[no-untyped-def]
    from urc_sweep.store.commits import Store

    opened = Store(store)
    opened.require()
    return opened


def _newest(store, name: str | None) -> str:  # type: ignore[no-untyped-def]
    names = store.sweeps()
    if name is None and not names:
        raise StoreError(f"{store.root} holds no sweep yet")
    if name is not None and name not in names:
        raise SpecError(f"no sweep {name!r} in {store.root}; {choices(name, names)}")
    return name or names[-1]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="the file to write")] = Path("sweep.yaml"),
    template: Annotated[str, typer.Option(help="quickstart, rdc, rdp or rdpc")] = "quickstart",
) -> None:
    """Write a commented sweep file of the file's name, and its JSON schema beside it for the editor."""
    templates = {entry.stem: entry for entry in (Path(__file__).parent / "plan" / "templates").glob("*.yaml")}
    if template not in templates:
        raise SpecError(f"--template {template}: {choices(template, templates)}")
    from urc_sweep.plan.spec import NAME, json_schema

    text = templates[template].read_text(encoding="utf-8")
    if re.match(NAME, path.stem):
        text = re.sub("^name: .*$", f"name: {path.stem}", text, count=1, flags=re.MULTILINE)
    try:
        if path.exists():
            raise SpecError(f"{path} exists already; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.with_name("sweep.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from None
    print(path)


@app.command()
def validate(spec: Spec, overrides: Set = None, plugins: Plugin = None) -> None:
    """Check a sweep file: one line per problem, exit 2 if there is any."""
    from urc_sweep.run.launch import plan as make_plan

    sweep, trials = make_plan(str(spec), _options("results", overrides, plugins))
    print(f"{spec}: ok: sweep {sweep.name}, {len(trials)} trials")


@app.command()
def plan(
    spec: Spec,
    store: StoreOption = "results",
    overrides: Set = None,
    plugins: Plugin = None,
    data_root: DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="every trial with its configuration")] = False,
) -> None:
    """Show what a launch would do: trials per stage, what is committed, time and disk. Runs nothing."""
    from urc_sweep.run.launch import Launch
    from urc_sweep.show import terminal

    launch = Launch(str(spec), _options(store, overrides, plugins, data_root=data_root))
    if as_json:
        print(json.dumps([trial.to_json() for trial in launch.trials], indent=1))
    else:
        terminal.plan(launch.sweep, launch.trials, launch.missing)


@app.command()
def launch(
    spec: Spec,
    store: StoreOption = "results",
    executor: Annotated[str, typer.Option(help="ray or inline")] = "ray",
    address: Annotated[str | None, typer.Option(help="an existing Ray cluster; default: start a local one")] = None,
    overrides: Set = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="packs at the same time")] = None,
    plugins: Plugin = None,
    data_root: DataRoot = None,
    offline: Offline = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="take a lease whose holder is gone")] = False,
    quiet: Annotated[bool, typer.Option("-q", help="errors only")] = False,
) -> None:
    """Run a sweep. The same command again resumes it, or does nothing if it is done."""
    from urc_sweep.run.launch import Launch
    from urc_sweep.show import terminal

    where = {"executor": executor, "address": address, "max_concurrent": max_concurrent, "data_root": data_root}
    options = _options(store, overrides, plugins, **where, offline=offline, take_over=take_over)
    run = Launch(str(spec), options)
    run.write_report = lambda opened, name, source: _write_report(opened, name, opened.layout.report(name), source)
    with terminal.progress(run, quiet):
        code = run.run()
    if not quiet:
        terminal.ending(run)
    raise typer.Exit(code)


def _write_report(store, *arguments: object) -> None:  # type: ignore[no-untyped-def]
    from urc_sweep.show import report

    report.write(store, *arguments)  # type: ignore[arg-type]


@app.command()
def status(
    sweep: SweepName = None,
    store: StoreOption = "results",
    follow: Annotated[bool, typer.Option("--watch", help="until nobody runs it; a line per change in a pipe")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Count a sweep's trials by stage and status; with --watch also how long it will take, and the best points."""
    from urc_sweep.show import terminal

    opened = _open(store)
    name = _newest(opened, sweep)
    if follow:
        raise typer.Exit(terminal.watch(opened, name, as_json))
    terminal.status(opened, name, as_json)


@app.command()
def trials(
    sweep: SweepName = None,
    store: StoreOption = "results",
    stage: Annotated[str | None, typer.Option(help="only this stage")] = None,
    status: Annotated[str | None, typer.Option(help="only this status")] = None,
) -> None:
    """List a sweep's trials with their main numbers."""
    from urc_sweep.show import facts, terminal

    opened = _open(store)
    terminal.trials(facts.load(opened, _newest(opened, sweep)), stage, status)


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="a trial id, or its first digits")], store: StoreOption = "results"
) -> None:
    """Show one trial: configuration, metrics, files, and its traceback if it failed."""
    from urc_sweep.show import terminal

    terminal.show(_open(store), trial)


@app.command()
def frontier(sweep: SweepName = None, store: StoreOption = "results") -> None:
    """Print the rate-distortion-classification fronts and their hypervolumes."""
    from urc_sweep.show import facts, terminal

    opened = _open(store)
    terminal.frontier(facts.load(opened, _newest(opened, sweep)))


@app.command()
def penalty(
    sweep: SweepName = None,
    store: StoreOption = "results",
    at: Annotated[str, typer.Option(help="what is matched: cross_entropy, accuracy, sliced_w2 ...")] = "",
) -> None:
    """Print what universality costs: universal against end-to-end at a matched constraint, paired by seed."""
    from urc_sweep.show import facts, gaps, terminal

    opened = _open(store)
    name = _newest(opened, sweep)
    frame = facts.load(opened, name)
    if reason := gaps.obstacle(frame, at := at or gaps.matched_at(frame)):
        raise SpecError(f"sweep {name!r}: {reason}")
    terminal.penalty(frame, at)


Compared = Annotated[str, typer.Argument(help="a sweep of the store, or STORE:SWEEP", show_default=False)]


@app.command()
def compare(a: Compared, b: Compared, store: StoreOption = "results") -> None:
    """Print how two sweeps' configurations differ, and the differences b - a of what they share, paired by seed."""
    from urc_sweep.show import facts, terminal

    named = [(_open(place or store), name) for place, _, name in (a.rpartition(":"), b.rpartition(":"))]
    terminal.compare(*(facts.load(opened, _newest(opened, name)) for opened, name in named))


SweepNames = Annotated[
    list[str] | None, typer.Argument(help="sweeps of the store; default: the newest", show_default=False)
]
Reference = Annotated[
    list[Path] | None, typer.Option("--reference", help="others' results to draw beside ours, CompressAI's JSON")
]


def _references(paths: list[Path] | None):  # type: ignore[no-untyped-def]
    from urc_sweep.show import exchange

    return [exchange.reference(path) for path in paths or ()]


@app.command()
def report(
    sweeps: SweepNames = None,
    store: StoreOption = "results",
    output: Annotated[
        Path | None, typer.Option("-o", help="default: report.html in the sweep's folder; A-B.html here for several")
    ] = None,
    references: Reference = None,
    verify: Annotated[bool, typer.Option("--verify", help="check the store first, and say so in the report")] = False,
) -> None:
    """Write the report of a sweep, or of several overlaid: one self-contained HTML file."""
    from urc_sweep.store.tables import published
    from urc_sweep.store.verify import verify as check

    opened = _open(store)
    names = list(dict.fromkeys(_newest(opened, name) for name in sweeps or ())) or [_newest(opened, None)]
    path = output or (opened.layout.report(names[0]) if len(names) == 1 else Path(f"{'-'.join(names)}.html"))
    problems, checked = check(opened) if verify else ([], "")
    if problems:
        raise StoreError(*problems)
    source = " ".join(published(opened.layout.trials_table(name)).source or "" for name in names)
    try:
        _write_report(opened, names, path, source, _references(references), checked)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from None
    print(path)


@app.command()
def dashboard(
    sweeps: SweepNames = None,
    store: StoreOption = "results",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8050,
    host: Annotated[str, typer.Option(help="another address is open to all who reach it: no login")] = "127.0.0.1",
    references: Reference = None,
) -> None:
    """Serve the report live: it follows running sweeps, several side by side. Reads the store, never writes."""
    from urc_sweep.show.dashboard import serve

    opened = _open(store)
    serve(opened, [_newest(opened, name) for name in sweeps or ()], host, port, references or ())


# What exports take besides sweeps, --store and -o.
_TAKEN = {"figure": "--format --width --height --style", "table": "--format", "frontier": "--x --y --reference"}
_TAKEN |= dict.fromkeys(("gap", "penalty"), "--at")


def _only(context: typer.Context, kind: str, what: str) -> None:
    """Refuse options that an export does not take: who gives one expects it to do something."""
    taken = " ".join(["-o", *(_TAKEN.get(key, "") for key in (kind, what))]).split()
    for option in context.command.params:
        name, source = option.opts[-1], context.get_parameter_source(str(option.name))
        if name in " ".join(_TAKEN.values()).split() and name not in taken and source and source.name == "COMMANDLINE":
            raise SpecError(f"export --{kind} {what} takes no {name}; {choices(name, taken)}")


@app.command()
def export(
    context: typer.Context,
    sweeps: SweepNames = None,
    store: StoreOption = "results",
    figure: Annotated[Literal["frontier", "gap", "penalty", "images", "surface"] | None, typer.Option()] = None,
    table: Annotated[Literal["penalty", "gap", "hypervolume", "encoders", "points"] | None, typer.Option()] = None,
    to: Annotated[Literal["compressai", "mlflow", "tensorboard"] | None, typer.Option(help="another tool")] = None,
    form: Annotated[
        Literal["pdf", "svg", "png", "latex", "csv"] | None,
        typer.Option("--format", help="of a figure: pdf (default), svg, png; of a table: latex (default), csv"),
    ] = None,
    width: Annotated[str, typer.Option(help="with a unit: in, cm, mm, pt, px")] = "3.25in",
    height: Annotated[str, typer.Option(help="default: what the figure needs")] = "",
    style: Annotated[Literal["print", "screen"], typer.Option(help="print: 8 pt, black, legend below")] = "print",
    x: Annotated[str, typer.Option(help="of the frontier: mse, accuracy, rate_bits ...")] = "mse",
    y: Annotated[str, typer.Option(help="as --x; default: what the sweep trades for the MSE")] = "",
    at: Annotated[str, typer.Option(help="what gap and penalty are matched at; default: what the sweep trades")] = "",
    references: Reference = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="default: here, a table to stdout; for --to, a folder (needed)")
    ] = None,
) -> None:
    """Write a figure (PDF, SVG, PNG) or a table (LaTeX, CSV) for a paper, or a sweep for another tool."""
    from urc_sweep.show import exchange, facts
    from urc_sweep.show import export as paper
    from urc_sweep.store.tables import published

    if sum(map(bool, (figure, table, to))) != 1:
        raise SpecError("export: name one of --figure, --table and --to")
    kind = "figure" if figure else "table" if table else "to"
    _only(context, kind, figure or table or to or "")
    forms = {"figure": ("pdf", "svg", "png"), "table": ("latex", "csv"), "to": ("",)}[kind]
    if (ext := form or forms[0]) not in forms:
        raise SpecError(f"--format {ext}: {choices(ext, forms)}")
    opened = _open(store)
    names = list(dict.fromkeys(_newest(opened, name) for name in (sweeps or (None,))))
    try:
        if to:
            if output is None or (output.exists() and not output.is_dir()):
                raise SpecError(f"export --to {to}: name a folder with -o" + (f": {output} is none" if output else ""))
            written = [getattr(exchange, to)(opened, name, output) for name in names]
            print(*(path for paths in written for path in (paths if isinstance(paths, list) else [paths])), sep="\n")
            return
        trials = facts.load(opened, names)
        if figure:
            wide, high = paper.pixels("--width", width), paper.pixels("--height", height) if height else None
            options = {"x": x, "y": y, "references": _references(references)}
            drawn = paper.figure(trials, figure, lambda sha256: opened.get(sha256, ".png"), at, **options)
            data = paper.render(drawn, ext, style, wide, high)
            output = output or Path(f"{'-'.join(names)}-{figure}.{ext}")
        elif table:
            hashes = [(published(opened.layout.trials_table(name)).source or "not final")[:12] for name in names]
            told = ", ".join(f"{name} ({source})" for name, source in zip(names, hashes, strict=True))
            text = paper.csv(paper.table(trials, table, at)) if ext == "csv" else paper.latex(trials, table, at, told)
            data = text.encode()
        if output is None:
            sys.stdout.write(data.decode())
            return
        output.write_bytes(data)
    except OSError as error:
        raise SpecError(f"{error.filename or output or 'stdout'}: cannot be written: {error.strerror}") from None
    print(output)


@app.command()
def cite(sweep: SweepName = None, store: StoreOption = "results") -> None:
    """Print BibTeX of what a sweep rests on, and of this software with the hash of what the sweep shows."""
    from urc_sweep.show import export, facts
    from urc_sweep.store.tables import published

    opened = _open(store)
    name = _newest(opened, sweep)
    source = published(opened.layout.trials_table(name)).source or "not final"
    print(export.citations(facts.load(opened, name), name, source), end="")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="SQL over trials, curves and unique_trials")],
    store: StoreOption = "results",
    style: Annotated[Literal["table", "csv", "json", "parquet"], typer.Option("--format")] = "table",
) -> None:
    """Ask the tables in SQL (DuckDB, read-only)."""
    from urc_sweep.show import terminal
    from urc_sweep.store import query as tables

    answer = tables.sql(_open(store), sql)
    if style == "table":
        terminal.table(tables.frame(answer))
        return
    text = tables.to_format(answer, style)
    if isinstance(text, bytes):
        sys.stdout.buffer.write(text)
    else:
        sys.stdout.write(text)


@app.command()
def verify(store: StoreOption = "results") -> None:
    """Check every promise of the store that its files can show; exit 4 on damage. Repairs nothing."""
    from urc_sweep.store.verify import verify as check

    opened = _open(store)
    problems, checked = check(opened)
    if problems:
        raise StoreError(*problems)
    print(f"{store}: ok: {checked}")


upkeep = typer.Typer(help="Look after the store's files.")
app.add_typer(upkeep, name="store")


@upkeep.command()
def gc(
    store: StoreOption = "results",
    older_than: Annotated[float, typer.Option(min=0, metavar="HOURS", help="spare what is younger")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
) -> None:
    """Remove files that no commit, failure or plan names: leftovers of kills, weights of lost races. Never a result."""
    from urc_sweep.store.gc import collect

    found = collect(_open(store), older_than, dry_run)
    if dry_run:
        print("".join(f"{path}\n" for path, _ in found), end="")
    print(f"{'would remove' if dry_run else 'removed'} {len(found)} files, {sum(size for _, size in found)} bytes")


@app.command()
def stop(sweep: SweepName = None, store: StoreOption = "results") -> None:
    """Ask a running sweep to checkpoint and stop; launching it again goes on."""
    from urc_sweep.run.launch import request_stop
    from urc_sweep.store.lease import holder_of

    opened = _open(store)
    name = _newest(opened, sweep)
    holder = holder_of(opened)
    if holder is None or holder.get("sweep") != name:
        raise SpecError(f"sweep {name!r} is not running in {store}")
    request_stop(opened, name)
    print(f"asked {name} to stop")


@app.command()
def retry(sweep: SweepName = None, store: StoreOption = "results") -> None:
    """Reopen a sweep's failed, diverged and oom trials, and what they made skip; the next launch runs them."""
    from urc_sweep.run.launch import reopen

    opened = _open(store)
    name = _newest(opened, sweep)
    print(f"reopened {reopen(opened, name)} trials of {name}; launch it again to run them")


@app.command()
def reproduce(
    trial: Annotated[str, typer.Argument(help="a trial id, or its first digits")],
    store: StoreOption = "results",
    plugins: Plugin = None,
    data_root: DataRoot = None,
    offline: Offline = False,
) -> None:
    """Train one committed trial again, beside the store, and compare: bit for bit on the CPU; exit 1 if it differs."""
    from urc_sweep.run.reproduce import reproduce as again
    from urc_sweep.show import terminal

    options = _options(store, None, plugins, data_root=data_root, offline=offline)
    opened = _open(store)
    sweep, found = terminal.find(opened, trial)
    same, compared = again(opened, sweep, found, options)
    print(f"{found.id[:12]}: {'reproduced' if same else 'NOT reproduced'}: {compared}")
    raise typer.Exit(0 if same else 1)


@app.command()
def schema() -> None:
    """Print the JSON schema of the sweep file."""
    from urc_sweep.plan.spec import json_schema

    print(json.dumps(json_schema(), indent=1))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"urc-sweep {version('urc-sweep')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; a person's error is one line per problem on stderr and the design's exit code."""
    set_threshold(100_000)  # the records of a large study are a million objects, none of them garbage
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII alone
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except UrcSweepError as error:
        told = error
    except OSError as error:
        told = StoreError(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises, whose own base class it does not name
            raise
        told = SpecError(_said(error))
    for line in told.lines:
        print(f"urc-sweep: {line}", file=sys.stderr)
    sys.exit(told.exit_code)


def _said(error: Any) -> str:
    """Return what typer found wrong as we say it: with the choices, else with the command whose --help tells more."""
    text, context = error.format_message().replace("Value error, ", ""), getattr(error, "ctx", None)
    if found := re.fullmatch(r"Invalid value for '(-.*?)': '(.*)' is not one of '(.*)'\.", text):
        option, wrong, known = found.groups()
        return f"{option} {wrong}: " + choices(wrong, known.split("', '"))
    return f"{text} (`{context.command_path if context else 'urc-sweep'} --help` tells more)"


if __name__ == "__main__":
    main()
