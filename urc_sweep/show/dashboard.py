"""The report, live: its page on this machine alone, following sweeps while they run.

Invariant: the store is only read. A state of the tables is looked at once for all open pages, and in at most ``SHARE``
of the time. What came from data is text: to React, or escaped by the report.
"""

from __future__ import annotations

import errno
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pandas as pd
from plotly.offline import get_plotlyjs

from urc_sweep.errors import SpecError, StoreError, UrcSweepError, choices, printable
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import exchange, gaps, progress, report
from urc_sweep.show.grid import LEFT, STATES
from urc_sweep.show.terminal import duration
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import EXPIRY_S, holder_of

try:
    import dash
    from dash import ClientsideFunction, Input, Output, State, dcc, html
    from flask import Response, abort, redirect, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.serving import WSGIRequestHandler, make_server
except ModuleNotFoundError as missing:
    raise exchange.lacking(missing, "dashboard") from None

POLL_S, SHARE = 1.0, 0.2
# How many choices of sweeps are remembered, how many running trials are named, how many bytes a question may have.
KEPT, RUNNING_SHOWN, MOST_BODY = 8, 4, 100_000
FILES = ("plotly.js", *report.SCRIPTS, "dashboard.js")
DASH = "<!-- Dash -->"  # no data can write this: in a page its "<" is escaped
ANSWER = "/_dash-update-component"
OWN = "|".join(map(re.escape, FILES))
READ = re.compile(rf"/|/(_dash-(layout|dependencies|component-suites/.+)|image/[0-9a-f]{{64}}\.png|page/({OWN}))")
ADDRESS = re.compile(r"[0-9.]+|[0-9a-f.]*:[0-9a-f.:]*")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Plotly and Dash set styles inline, so those are let in. Scripts are files of ours, or inline ones of a known hash.
POLICY = (
    "default-src 'none'; script-src 'self' {}; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What the browser does by itself: functions of page/dashboard.js.
CLIENT = (
    ("page", Output("page", "data"), Input("tick", "id")),
    ("update", Output("text", "id"), Input("text", "data")),
    ("go", Output("sweeps", "id"), Input("sweeps", "value"), State("page", "data")),
    ("silence", Output("silence", "children"), Input("tick", "n_intervals"), Input("beat", "data")),
)


class Snapshot:
    """What pages of some sweeps show of one state of their tables, which ``report.source`` marks."""

    def __init__(self, read: report.Shown) -> None:
        self.report, self.made = read, datetime.now(UTC)
        frames = [(name, read.trials[read.trials["sweep"] == name]) for name in read.sweeps]
        left = {name: int(progress.states(rows).isin(LEFT).sum()) for name, rows in frames}
        done = {name: f"{(rows['status'] == 'done').sum()} of {len(rows)} trials done" for name, rows in frames}
        self.sweeps = [(name, done[name], left[name], progress.eta_s(rows, self.made)) for name, rows in frames]
        self.stages = [_stages(name, rows) for name, rows in frames if left[name]]

    @cached_property
    def text(self) -> str:
        """What the page's script takes to show it."""
        return report.data(self.report)

    @cached_property
    def page(self) -> str:
        """The page that shows it, but for Dash's own scripts."""
        head = f"<style>{report.asset('dashboard.css')}</style>"
        return report.render(self.report, report.Live(head, '<div id="react-entry-point"></div>', DASH))

    def status(self, live: str, last: float) -> list[Any]:
        """Return a line per sweep: how far it is; ``live`` runs, ``last`` is the time of the last change."""
        now, lines = datetime.now(UTC), []
        for name, done, left, eta in self.sweeps:
            state = "running" if name == live else "unfinished" if left else "finished"
            soon = (eta or 0) - (now - self.made).total_seconds()
            when = f", about {duration(soon)} left" if name == live and soon > 0 else ""
            lines.append(html.P([html.Strong(name), f" {state}: {done}{when}"], className=state))
        return [*lines, html.P(f"changed {duration(max(now.timestamp() - last, 0))} ago", className="caption")]


class Feed:
    """The states of the tables that open pages are told, and when the next may be looked at."""

    def __init__(self, store: Store, references: Sequence[exchange.Reference]) -> None:
        self.store, self.references = store, references
        self.known: dict[tuple[str, ...], Snapshot] = {}
        self.lock, self.rest_until = threading.Lock(), 0.0
        self.heard: tuple[dict[str, Any] | None, float] = None, 0.0

    def changed(self, sweeps: Sequence[str]) -> tuple[str, float]:
        """Return a mark that is new once a table was replaced, and when one last was, in seconds since 1970."""
        try:
            found = [self.store.layout.trials_table(sweep).stat() for sweep in sweeps]
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from None
        # While a sweep runs its table names no source; but it is replaced only when something has changed.
        mark = " ".join(f"{each.st_ino:x}.{each.st_mtime_ns:x}.{each.st_size:x}" for each in found)
        return mark, max(each.st_mtime for each in found)

    def running(self) -> str:
        """Return the sweep whose launch runs, "" where none does: one whose heart does not beat any more is dead."""
        holder, now = holder_of(self.store), time.monotonic()
        if holder != self.heard[0]:
            self.heard = holder, now
        return str(holder.get("sweep")) if holder and now - self.heard[1] < EXPIRY_S else ""

    def now(self, sweeps: tuple[str, ...]) -> Snapshot:
        """Return what to show; not quite the newest while that is being made, or was too lately for what it costs."""
        known = self.known.get(sweeps)
        if known and (self.lock.locked() or time.monotonic() < self.rest_until):
            return known
        mark, _ = self.changed(sweeps)
        if known is None or known.report.source != mark:
            known = self.at_cost(lambda: Snapshot(report.read(self.store, sweeps, mark, self.references)))
            self.known = dict([*self.known.items(), (sweeps, known)][-KEPT:])
        return known

    def at_cost(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes, one thing at a time, and rest for as long as it is worth."""
        with self.lock:
            began = time.monotonic()
            made, ended = make(), time.monotonic()
            self.rest_until = max(self.rest_until, ended + (ended - began) * (1 / SHARE - 1))
            return made


class Dashboard(dash.Dash):  # type: ignore[misc]
    """The report's page as a Dash app, with Dash's own small layout above its sections."""

    def __init__(self, feed: Feed, sweeps: Sequence[str], names: Collection[str]) -> None:
        super().__init__("urc_sweep", include_assets_files=False, update_title="", add_log_handler=False)
        self.feed, self.sweeps, self.names = feed, sweeps, names
        # Whatever the environment's DASH_* say.
        self.enable_dev_tools(debug=False, dev_tools_ui=False, dev_tools_hot_reload=False)
        self.layout = _layout()
        told = [("status", "children"), ("beat", "data"), ("stages", "children"), ("mark", "data"), ("text", "data")]
        told += [("sweeps", "options"), ("sweeps", "value")]
        asked = [Input("tick", "n_intervals"), Input("page", "data"), State("mark", "data")]
        self.callback(*(Output(*each) for each in told), *asked, prevent_initial_call=True)(self.follow)
        for name, *ends in CLIENT:
            self.clientside_callback(ClientsideFunction("live", name), *ends, prevent_initial_call=name != "page")
        self.server.config["MAX_CONTENT_LENGTH"] = MOST_BODY
        self.server.add_url_rule("/image/<sha256>.png", view_func=self.image)
        self.server.add_url_rule("/page/<name>", view_func=self.script)
        self.server.before_request(self.guard)
        self.server.after_request(self.seal)
        self.server.register_error_handler(Exception, _problem)
        self.policy = POLICY.format(" ".join(self.csp_hashes()))

    # -- what is let in and out ----------------------------------------------------------------------------------------

    def guard(self) -> None:
        """Refuse all that is no read, and names that are not ours: others may be made to point here, addresses not."""
        name = urlsplit(f"//{request.host}").hostname or ""
        if name not in self.names and not ADDRESS.fullmatch(name):
            abort(421)
        if request.path != ANSWER and not READ.fullmatch(request.path):
            abort(404)
        if request.method not in (("POST",) if request.path == ANSWER else ("GET", "HEAD")):
            abort(405)

    def seal(self, response: Response) -> Response:
        """Keep other sites, frames, and scripts that are not ours out."""
        response.headers.update(HEADERS | {"Content-Security-Policy": self.policy})
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def image(self, sha256: str) -> Response:
        """Return an image of the store; its name says what it is, so it is asked for once."""
        caching = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(self.feed.store.get(sha256, ".png"), mimetype="image/png", headers=caching)

    def script(self, name: str) -> Response:
        """Return one of the page's scripts."""
        text = get_plotlyjs() if name == "plotly.js" else report.asset(name)
        response = Response(text, mimetype="text/javascript", headers={"Cache-Control": "no-cache"})
        response.add_etag()
        response.make_conditional(request)
        return response

    # -- the page ------------------------------------------------------------------------------------------------------

    def index(self, *arguments: Any, **more: Any) -> Any:
        """Return the page of the sweeps in the address; without any, lead to an address that names them."""
        known, chosen = self.feed.store.sweeps(), _chosen(request.query_string.decode(errors="replace"))
        if not known:
            raise SpecError("the store holds no sweep yet")
        if unknown := [name for name in chosen if name not in known]:
            raise SpecError(f"the store holds no sweep {', '.join(unknown):.80}; {choices(unknown[0], known)}")
        query = urlencode([("sweep", name) for name in self.sweeps or known[-1:]])
        return super().index(*arguments, **more) if chosen else redirect(f"/?{query}")

    def interpolate_index(self, **parts: str) -> str:
        """Return the report's page with Dash's parts in it."""
        files = [f'<script src="/page/{name}"></script>' for name in FILES]
        shown = self.feed.now(_chosen(request.query_string.decode(errors="replace")))
        page = self.feed.at_cost(lambda: shown.page)
        return str(page.replace(DASH, "".join([*files, *(parts[name] for name in ("config", "scripts", "renderer"))])))

    def follow(self, tick: int, page: Sequence[str], mark: str | None) -> tuple[Any, ...]:
        """Return what a page shows next: its words always, the rest where it is other than what the page has."""
        sweeps, beat, same = _chosen(page[0]), time.time(), dash.no_update
        try:
            shown, (_, last) = self.feed.now(sweeps), self.feed.changed(sweeps)
            status = shown.status(self.feed.running(), last)
            if (source := shown.report.source) == mark:
                return status, beat, *[same] * 5
            text = same if source == page[1] else self.feed.at_cost(lambda: shown.text)
            return status, beat, shown.stages, source, text, self.feed.store.sweeps()[::-1], list(sweeps)
        except (StoreError, SpecError) as error:
            told = f"{printable(str(error))}. What is here was read before; the page goes on once it can."
            return html.P(told, className="note"), beat, *[same] * 5


def _layout() -> Any:
    """Return what stands above the report's sections; answers fill it."""
    picker = dcc.Checklist(id="sweeps", options=[], value=[], labelClassName="chip")
    parts: list[Any] = [html.Div(id="status"), html.P(id="silence", className="note"), html.Div(id="stages")]
    parts += [dcc.Store(id=name) for name in ("page", "mark", "text", "beat")]
    tick = dcc.Interval(id="tick", interval=1000 * POLL_S)
    return html.Div([html.Fieldset([html.Legend("sweeps"), picker]), *parts, tick], className="live")


def _stages(name: str, trials: pd.DataFrame) -> Any:
    """Return a sweep's progress by stage, as bars with words beside them, and what is running."""
    rows: list[Any] = []
    for stage, own in progress.counts(trials, progress.states(trials)).items():
        counts = {state: own[state] for state in STATES if state in own}
        bars = [html.I(className=state, style={"flexGrow": int(count)}) for state, count in counts.items()]
        words = ", ".join(f"{count} {state}" for state, count in counts.items())
        rows += [html.Dt(stage_label(stage)), html.Dd(html.Span(bars)), html.Dd(words)]
    running: Any = trials[trials["status"] == "running"].to_dict("records")
    told = "; ".join([*map(_trial, running[:RUNNING_SHOWN]), *["…"] * (len(running) > RUNNING_SHOWN)])
    return html.Div([html.Dl(rows), html.P(f"{name} now: {told}" if told else "", className="caption")])


def _trial(row: Mapping[str, Any]) -> str:
    rate = f"({row['dim']:g}, {row['levels']:g})" if row["dim"] > 0 else ""
    words = (stage_label(row["stage"]), rate, gaps.weights(row), f"seed {row['seed']}")
    return " ".join(filter(None, words))


def _chosen(query: str) -> tuple[str, ...]:
    """Return the sweeps that an address names, each once."""
    return tuple(dict.fromkeys(parse_qs(query.removeprefix("?")).get("sweep", [])))


def _problem(error: Exception) -> Response:
    """Answer in one line what cannot be answered; stderr is told of mistakes of ours."""
    code, told = getattr(error, "code", None) or 404, printable(str(getattr(error, "name", error)))
    # Dash's own: a file that none of its packages offers.
    if not isinstance(error, (HTTPException, UrcSweepError, dash.exceptions.DependencyException)):
        code, told = 500, "no answer"
        print(f"urc-sweep: {request.path}: {printable(repr(error)):.500}", file=sys.stderr)
    return Response(f"{told}\n", code, mimetype="text/plain")


# -- the server --------------------------------------------------------------------------------------------------------


class _Handler(WSGIRequestHandler):
    server_version, sys_version, timeout = "urc-sweep", "", 30

    def log(self, type: str, message: str, *args: Any) -> None:
        """Keep the terminal for what matters."""


def serve(store: Store, sweeps: Sequence[str], host: str, port: int, references: Sequence[Path]) -> None:
    """Serve pages until Ctrl-C; ``sweeps`` are those of an address that names none (default: the newest).

    Werkzeug's threaded server comes with Dash and suffices for the few people who share one machine or tunnel.
    """
    own = [socket.gethostname().lower()] if host in ("0.0.0.0", "::", "") else []
    app = Dashboard(Feed(store, [*map(exchange.reference, references)]), sweeps, {"localhost", host.lower(), *own})
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        hint = f"; end what listens there, or choose --port {port + 1}" if error.errno == errno.EADDRINUSE else ""
        raise SpecError(f"--host {host} --port {port}: {error.strerror or error}{hint}") from None
    server = make_server(host, port, app.server, threaded=True, request_handler=_Handler, fd=listening.fileno())
    if not (host in ("localhost", "::1") or host.startswith("127.")):
        print(f"urc-sweep: --host {host}: whoever reaches this port sees the store; there is no login", file=sys.stderr)
    print(f"http://{f'[{host}]' if ':' in host else host}:{server.port}/ (Ctrl-C ends it)", flush=True)
    server.serve_forever()
