"""The live page: what it lets in and out, what a change costs, and that a browser sees a running sweep grow."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import small_sweep
from tests.show import browser
from tests.show.browser import chromium, until  # noqa: F401  (a fixture)
from tests.show.test_page import EVIL, study
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import EXPIRY_S

dash = pytest.importorskip("dash", reason="needs the extra: pip install '.[dashboard]'")

from urc_sweep.show import dashboard, report  # noqa: E402  (without Dash it says so and ends)

CLI = [sys.executable, "-m", "urc_sweep"]
HOSTILE = "<img src=x onerror=alert(1)>"
FOLLOW = "..status.children...beat.data...stages.children...mark.data...text.data...sweeps.options...sweeps.value.."


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Server(NamedTuple):
    """A dashboard in a process of its own."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Ask for a path just as it is written: no client tidies it up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)
        data = b"" if body is None else json.dumps(body).encode()
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        found = Answer(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def follow(self, search: str, mark: str | None = None, made: str = "") -> Answer:
        """Ask what a page asks once a second."""
        names = [("tick", "n_intervals", 1), ("page", "data", [search, made])]
        inputs = [{"id": name, "property": key, "value": value} for name, key, value in names]
        outputs = [dict(zip(("id", "property"), each.split("."), strict=True)) for each in FOLLOW[2:-2].split("...")]
        state = [{"id": "mark", "property": "data", "value": mark}]
        asked = {"output": FOLLOW, "outputs": outputs, "inputs": inputs, "state": state}
        return self.ask(dashboard.ANSWER, "POST", asked | {"changedPropIds": ["tick.n_intervals"]})


@contextmanager
def served(store: Path, *arguments: str) -> Iterator[Server]:
    """Yield a dashboard on a free port, among a developer's settings; it must end on Ctrl-C, without a word."""
    command = [*CLI, "dashboard", *arguments, "--store", str(store), "--port", "0"]
    environment = os.environ | {f"DASH_{name}": "true" for name in ("DEBUG", "UI", "HOT_RELOAD", "MCP_ENABLED")}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()[1]
        yield Server(int(line.split("/")[2].split(":")[1]))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()


def files(root: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path): path.stat() for path in sorted(root.rglob("*"))}
    return {path: (facts.st_ino, facts.st_mtime_ns, facts.st_size) for path, facts in found.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("dashboard") / "store")
    made.create()
    study(made, "second", seeds=2, failed=False)
    study(made)
    made.fail("f" * 64, 1, {"attempt": 1, "status": "failed", "final": True, "trace": f"Traceback\n  deep\n{EVIL}"})
    # Nobody can launch a sweep of this name, but a folder may have it.
    strange = made.root / "sweeps" / HOSTILE / "generations"
    strange.mkdir(parents=True)
    (strange / "0.json").write_text("{}")
    return made


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    before = files(store.root)
    with served(store.root, "study") as running:
        yield running
    assert files(store.root) == before, "the dashboard wrote into the store"


# -- what it lets in and out -------------------------------------------------------------------------------------------


def test_every_answer_keeps_others_out(server: Server, store: Store):
    image = next(path.stem for path in store.layout.files("artifacts")[0])
    for path in ("/", "/?sweep=study", f"/image/{image}.png", "/page/report.js", "/_dash-layout", "/nowhere"):
        headers = server.ask(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"].startswith("'self' 'sha256-")
        assert "unsafe" not in policy["script-src"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        for what in ("opener-policy", "resource-policy"):
            assert headers[f"cross-origin-{what}"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "python" not in headers["server"].lower()


STRANGERS = ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil", "[::1", ""]


@pytest.mark.parametrize("host", STRANGERS)
def test_a_name_that_somebody_made_point_here_is_refused(server: Server, host: str):
    assert server.ask("/?sweep=study", Host=host).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost:1234", "LOCALHOST", "127.0.0.1", "[::1]:80"])
def test_our_own_names_and_tunnels_are_let_in(server: Server, host: str):
    assert server.ask("/?sweep=study", Host=host).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/image/../format.json",
        "/image/%2e%2e/%2e%2e/format.json",
        "/image/..%2f..%2fformat.json",
        "/image//etc/passwd",
        f"/image/{'0' * 63}.png",
        f"/image/{'0' * 64}.png",
        f"/image/{'0' * 64}.png/../../../format.json",
        f"/image/{'0' * 64}.safetensors",
        "/page/../dashboard.py",
        "/page/report.html",
        "/assets/report.css",
        "/_reload-hash",
        "/_mcp",
        "/_dash-component-suites/urc_sweep/cli.py",
        "/_dash-component-suites/dash/../flask/app.py",
        "/store/format.json",
        "//evil.example/",
    ],
)
def test_nothing_but_the_page_is_served(server: Server, path: str):
    assert server.ask(path).status == 404


def test_methods_that_could_change_something_are_refused(server: Server):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for path in ("/", "/?sweep=study", "/_dash-layout"):
            assert server.ask(path, method).status == 405, (method, path)
    assert server.ask(dashboard.ANSWER).status == 405
    assert server.ask("/?sweep=study", "HEAD").body == b""


def test_a_form_of_another_site_is_not_answered(server: Server):
    body = {"output": FOLLOW}
    assert server.ask(dashboard.ANSWER, "POST", body, **{"Content-Type": "text/plain"}).status == 415
    assert server.ask(dashboard.ANSWER, "POST", {"more": "x" * dashboard.MOST_BODY}).status == 413


def test_an_image_is_the_stores_and_never_asked_for_twice(server: Server, store: Store):
    path = store.layout.files("artifacts")[0][0]
    answer = server.ask(f"/image/{path.stem}.png")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "image/png", path.read_bytes())
    assert "immutable" in answer.headers["cache-control"]


def test_an_address_without_a_sweep_leads_to_a_permalink(server: Server):
    answer = server.ask("/")
    assert (answer.status, answer.headers["location"]) == (302, "/?sweep=study")


def test_an_unknown_sweep_says_which_exist(server: Server):
    answer = server.ask("/?sweep=stduy&sweep=<b>")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert b"second, study" in answer.body
    for sweep in ("../../etc", "s/../study"):
        assert server.ask(f"/?sweep={sweep}").status == 404
        assert b"is not a sweep name" in server.follow(f"?sweep={sweep}").body


# -- what it costs -----------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only moves when something is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.made = 100.0, 0

        def data(shown: report.Shown) -> str:
            self.now += cost
            self.made += 1
            return f"what {shown.source} holds"

        monkeypatch.setattr(dashboard.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(dashboard.report, "data", data)


@pytest.fixture
def small(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.create()
    study(made, seeds=1, failed=False)
    return made


def touch(store: Store) -> None:
    path = store.layout.trials_table("study")
    store.replace(path, path.read_bytes())


def follow(app: dashboard.Dashboard, mark: str | None = None, made: str = "") -> dict[str, Any]:
    names = [part.split(".")[0] for part in FOLLOW[2:-2].split("...")]
    return dict(zip(names, app.follow(1, ["?sweep=study", made], mark), strict=True))


def words(parts: Any) -> str:
    """Return the text of Dash's components."""
    if isinstance(parts, list):
        return "".join(map(words, parts))
    return parts if isinstance(parts, str) else words(getattr(parts, "children", None) or [])


def test_ten_pages_cost_one_computation(small: Store, monkeypatch: pytest.MonkeyPatch):
    clock, app = Clock(monkeypatch, cost=1.0), dashboard.Dashboard(dashboard.Feed(small, []), ["study"], ())
    told = [follow(app) for _ in range(10)]
    assert clock.made == 1
    assert len({each["text"] for each in told}) == 1
    quiet = follow(app, told[0]["mark"])
    assert quiet["text"] is quiet["stages"] is dash.no_update  # nothing has changed: words only
    assert clock.made == 1


def test_a_page_that_has_just_been_rendered_is_not_sent_its_data_again(small: Store, monkeypatch: pytest.MonkeyPatch):
    clock, app = Clock(monkeypatch, cost=1.0), dashboard.Dashboard(dashboard.Feed(small, []), ["study"], ())
    mark, _ = app.feed.changed(["study"])
    assert follow(app, made=mark)["text"] is dash.no_update
    assert clock.made == 0


def test_a_costly_sweep_is_looked_at_a_fifth_of_the_time(small: Store, monkeypatch: pytest.MonkeyPatch):
    clock, app = Clock(monkeypatch, cost=3.0), dashboard.Dashboard(dashboard.Feed(small, []), ["study"], ())
    mark, began = follow(app)["mark"], clock.now
    for _ in range(60):
        touch(small)
        clock.now += 1.0
        mark = told["mark"] if (told := follow(app, mark))["mark"] is not dash.no_update else mark
    assert 3.0 * (clock.made - 1) / (clock.now - began) == pytest.approx(dashboard.SHARE, abs=0.03)


def test_a_damaged_table_is_one_line_and_the_page_goes_on_once_it_is_back(small: Store):
    app = dashboard.Dashboard(dashboard.Feed(small, []), ["study"], ())
    path = small.layout.trials_table("study")
    whole, mark = path.read_bytes(), follow(app)["mark"]
    for harm, said in ((lambda: path.write_bytes(whole[:99]), "damaged table"), (path.unlink, "No such file")):
        harm()
        app.feed.rest_until = 0.0
        told = follow(app, mark)
        assert said in told["status"].children
        assert "\n" not in told["status"].children
        assert told["text"] is dash.no_update
    path.write_bytes(whole)
    app.feed.rest_until = 0.0
    told = follow(app, mark)
    assert "finished" in str(told["status"])
    assert told["mark"] not in (mark, dash.no_update)


def test_a_launch_whose_heart_stopped_is_not_running(small: Store, monkeypatch: pytest.MonkeyPatch):
    """Of another host, or of this one before it was started anew: nobody can ask whether its process lives."""
    clock, app = Clock(monkeypatch, cost=0.0), dashboard.Dashboard(dashboard.Feed(small, []), ["study"], ())

    def running(beat: int) -> bool:
        small.layout.lease.write_text(json.dumps({"token": "t", "sweep": "study", "host": "elsewhere", "beat": beat}))
        return "study running" in words(follow(app)["status"])

    assert running(1)
    clock.now += EXPIRY_S - 1
    assert running(1)
    clock.now += 2
    assert not running(1)
    assert running(2)
    clock.now += EXPIRY_S - 1
    assert running(3)
    clock.now += EXPIRY_S - 1
    assert running(3)
    small.layout.lease.unlink()
    assert "study finished" in words(follow(app)["status"])


def test_progress_is_told_by_stage(small: Store):
    import pyarrow as pa

    from urc_sweep.store.tables import TRIALS, to_bytes

    base = {"dim": 3, "levels": 4, "rate_bits": 6.0, "seed": 1, "lambda_c": 0.01, "epochs": 4, "lambda_d": 1.0}
    states = ["done", "running", "pending", "failed"]
    rows = [base | {"trial_id": f"{n:064x}", "stage": "end_to_end", "status": s} for n, s in enumerate(states)]
    rows.append(base | {"trial_id": "e" * 64, "stage": "universal", "status": "pending", "parent_id": f"{1:064x}"})
    small.replace(small.layout.trials_table("study"), to_bytes(pa.Table.from_pylist(rows, TRIALS)))
    shown = dashboard.Snapshot(report.read(small, ["study"], "mark"))
    words = json.dumps(shown.stages, default=lambda part: part.to_plotly_json(), ensure_ascii=False)
    assert "1 done, 1 running, 1 ready, 1 failed" in words
    assert "1 blocked" in words
    assert "study now: end-to-end (3, 4) c 0.01 seed 1" in words
    assert "1 of 5 trials done" in str(shown.status("study", 0.0))
    assert [part.className for part in shown.status("", 0.0)] == ["unfinished", "caption"]


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", code] if code else CLI
    return subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_a_taken_port_is_one_line(store: Store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("dashboard", "--store", str(store.root), "--port", str(port))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"--port {port}: Address already in use" in ended.stderr
    assert f"--port {port + 1}" in ended.stderr


def test_without_dash_it_says_what_to_install(store: Store):
    code = "import sys; sys.modules['dash'] = None\nfrom urc_sweep.cli import main; main()"
    ended = run("dashboard", "--store", str(store.root), code=code)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "pip install '.[dashboard]'" in ended.stderr


def test_help_waits_for_no_dash():
    code = "import sys; from urc_sweep.cli import app\ntry:\n    app()\n"
    code += "finally:\n    assert not {'dash', 'pandas'} & {*sys.modules}"
    ended = run("dashboard", "--help", code=code)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_store_without_sweeps_says_so(tmp_path: Path):
    Store(tmp_path).create()
    with served(tmp_path) as server:
        answer = server.ask("/")
    assert (answer.status, b"holds no sweep yet" in answer.body) == (404, True)


def test_another_host_is_warned_about(store: Store):
    command = [*CLI, "dashboard", "--store", str(store.root), "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "there is no login" in process.stderr.readline()
        finally:
            process.kill()


# -- in a browser ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(chromium: Any, url: str, **options: Any) -> Iterator[Any]:  # noqa: F811
    with browser.opened(chromium, url, (url.split("/")[2],), **options) as page:
        page.wait_for_selector("#status strong")
        yield page


def shown(page: Any) -> int:
    return int(page.locator("#count").inner_text().split(" of ")[0])


def test_the_live_page_is_the_report(chromium: Any, server: Server):  # noqa: F811
    with opened(chromium, f"{server.url}?sweep=study") as page:
        assert "finished: 56 of 57 trials done" in page.locator("#status").inner_text()
        until(lambda: page.locator("#plot .scatterlayer path.point").count() > 40)
        image = page.locator("img.strip, img").first
        assert image.get_attribute("src").startswith("image/")
        until(lambda: image.evaluate("(image) => image.naturalWidth") == 280)
        # What came from data is text: in the failures and their tracebacks, and in the picker.
        failures = page.locator("[data-part=failures]")
        assert EVIL in failures.inner_text()
        failures.locator("summary").first.click()
        assert f"deep\n{EVIL}" in failures.locator("pre").first.inner_text()
        until(lambda: HOSTILE in page.locator("#sweeps").inner_text())
        assert page.title() == "study · urc-sweep"
        assert page.locator("[class*=dash-debug]").count() == 0
        # Last: without a GPU its frames hold up whatever is clicked after it.
        page.locator("summary", has_text="3-D").click()
        until(lambda: page.locator("#surface canvas").count() > 0)


def test_pictures_that_come_late_move_nothing(chromium: Any, server: Server):  # noqa: F811
    late: list[Any] = []
    with chromium.new_context() as context:
        page = context.new_page()
        page.route("**/image/*", lambda route: late.append(route))
        page.goto(f"{server.url}?sweep=study", wait_until="commit")
        page.wait_for_selector("html[data-ready=true] #status strong")
        places = "[...document.querySelectorAll('section')].map((part) => part.getBoundingClientRect().y)"
        before, loaded = page.evaluate(places), "[...document.images].filter((image) => image.naturalWidth).length"
        assert page.evaluate(loaded) == 0

        def all_loaded() -> bool:
            while late:
                late.pop().continue_()
            return bool(page.evaluate(f"{loaded} === document.images.length"))

        until(all_loaded)
        assert page.evaluate(places) == before


def test_sweeps_side_by_side_and_the_readers_view_are_in_the_address(chromium: Any, server: Server):  # noqa: F811
    with opened(chromium, f"{server.url}?sweep=study") as page:
        assert shown(page) == 56
        # By keyboard: the status above grows and shrinks, and with it every place on the page.
        for box in ("[data-filter=seed] input[value='1']", "#logx"):
            page.locator(box).press("Space")
        until(lambda: "logx" in page.evaluate("location.href"))
        page.locator("#sweeps label", has_text="second").locator("input").press("Space")
        page.wait_for_url("**sweep=second**", wait_until="commit")
        page.wait_for_selector("html[data-ready=true]", state="attached")
        until(lambda: page.locator("#status strong").count() == 2)
        link, both = page.evaluate("location.href"), shown(page)
        assert "logx" in link
        assert both == 3 * 14 + 14  # three seeds of one sweep and the other one of the second
    with opened(chromium, link) as page:
        assert shown(page) == both
        assert page.locator("#logx").is_checked()
        assert not page.locator("[data-filter=seed] label", has_text="1").locator("input").is_checked()
        assert page.locator("#sweeps input:checked").count() == 2


def test_it_fits_a_phone_in_the_dark(chromium: Any, server: Server):  # noqa: F811
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    with opened(chromium, f"{server.url}?sweep=study", **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#status p").first.bounding_box()["width"] <= 390


def test_a_running_sweep_grows_before_the_readers_eyes(chromium: Any, tmp_path: Path):  # noqa: F811
    """A real sweep is extended by another process while its page is open."""
    spec, root = tmp_path / "sweep.yaml", tmp_path / "store"
    launch = [*CLI, "launch", str(spec), "--store", str(root), "--executor", "inline", "-q"]
    spec.write_text(small_sweep(epochs=1))
    subprocess.run(launch, check=True, timeout=300)
    with served(root) as server, opened(chromium, server.url) as page:
        assert shown(page) == 4
        page.evaluate("window.never = 'reloaded'")
        page.locator("[data-filter=stage] label", has_text="universal").click()
        page.locator("#listing summary").click()
        page.locator("#listing tbody button").first.click()
        card = page.locator("#pins .card")
        assert (shown(page), card.count()) == (2, 1)
        name = card.inner_text()
        spec.write_text(small_sweep(epochs=1, weights="[0, 0.01, 0.02, 0.03]"))
        running = subprocess.Popen(launch)
        try:
            until(lambda: page.locator("#status .running").count() == 1)
            until(lambda: page.locator("#stages dt").count() > 0)
            until(lambda: shown(page) > 2)
            until(lambda: running.poll() is not None)
        finally:
            running.kill()
            running.wait()
        until(lambda: shown(page) == 4)
        until(lambda: "finished" in page.locator("#status").inner_text())
        assert card.inner_text() == name
        assert page.evaluate("window.never") == "reloaded"
        assert not page.locator("[data-filter=stage] label", has_text="universal").locator("input").is_checked()
