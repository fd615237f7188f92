"""What people see in a terminal, in a pipe, and while a sweep runs: the commands themselves, widths in cells."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.show.test_facts import frame, trial
from tests.show.test_gaps import decisive, run, save, two_sweeps
from urc_sweep.show import progress, terminal
from urc_sweep.show.grid import Fitted, Plain
from urc_sweep.store.lease import Lease

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-\d+)?")


class Screen(io.TextIOWrapper):
    """A stdout that says it is a terminal, of any encoding."""

    def __init__(self, encoding: str = "utf-8", watched: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        self.watched = watched

    def isatty(self) -> bool:
        return self.watched

    @property
    def lines(self) -> list[str]:
        return ANSI.sub("", self.buffer.getvalue().decode(self.encoding)).splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def screen(monkeypatch):
    """Return a function that runs a command before a screen of some width, and returns the screen."""
    monkeypatch.setenv("TERM", "xterm-256color")

    def look(*arguments: object, width: int = 80, code: int = 0, **how: Any) -> Screen:
        shown = Screen(**how)
        monkeypatch.setenv("COLUMNS", str(width))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", shown)
            assert run(patch, *arguments) == code
        return shown

    return look


def study() -> list[dict[str, Any]]:
    return [row for seed in range(3) for row in decisive(seed)]


@pytest.fixture
def store(tmp_path) -> Path:
    save(tmp_path, "study", study())
    for name, rows in zip(("one", "two"), two_sweeps(), strict=True):
        save(tmp_path, name, rows)
    return tmp_path


VIEWS = (("trials", "study"), ("frontier", "study"), ("penalty", "study"), ("compare", "one", "two"))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0])
def test_a_terminal_is_never_overrun_and_no_number_is_cut(view, store, screen):
    piped = screen(*view, "--store", store, watched=False)
    everything = set(NUMBER.findall("\n".join(piped.lines)))
    rows = len(piped.lines)
    for width in (80, 200):
        shown = screen(*view, "--store", store, width=width)
        assert max(map(cell_len, shown.lines)) <= width
        numbers = NUMBER.findall("\n".join(shown.lines))
        assert numbers
        assert set(numbers) <= everything, "every number that is shown is whole"
        assert len(shown.lines) >= rows - 8, "no row is left out"
    assert not any(line.startswith("left out") for line in shown.lines), "on a wide terminal there is everything"


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0])
def test_a_pipe_gets_plain_lines_and_everything(view, store, screen):
    text = screen(*view, "--store", store, watched=False).buffer.getvalue().decode()
    assert "\x1b" not in text
    assert text.isascii()
    assert "left out" not in text


def test_a_row_is_a_line_in_a_pipe_and_its_id_opens_the_trial(store, screen):
    rows = study()
    lines = screen("trials", "study", "--store", store, watched=False).lines
    assert lines[0].split()[:7] == ["trial", "stage", "rate", "base", "weights", "seed", "status"]
    told = [line.split()[0] for line in lines[1:] if line]
    assert len(told) == len(rows)
    assert set(told) == {row["trial_id"][:12] for row in rows}
    front = screen("frontier", "study", "--store", store, watched=False).lines
    ends = [line for line in front if line.startswith("(3,3)") and "end-to-end" in line and len(line.split()) > 9]
    assert ends
    assert {line.split()[-1] for line in ends} <= set(told)


def test_trials_tell_further_terms_and_whose_decoders_have_settings_of_their_own(capsys):
    rows = [trial("end_to_end", 0, 0.01, (0.04, 1.0), (0.04, 1.0), weights={"edges": 0.5}, variant="epochs 90")]
    rows += [trial("universal", 0, 0.0, (0.05, 1.0), (0.05, 1.0), parent_id=rows[0]["trial_id"], parent_lambda_c=0.01)]
    rows += [trial("classifier", 0, None, (0, 0), (0, 0), dim=None, levels=None, rate_bits=None)]
    terminal.trials(frame(rows))
    ends, on, classifier = capsys.readouterr().out.splitlines()[1:4]
    assert re.search("end-to-end +\\(3,3\\) +epochs 90 +c 0.01 edges 0.5 ", ends)
    assert re.search("universal +\\(3,3\\) +c 0.01 edges 0.5 epochs 90, decoders plain +c 0 ", on)
    assert re.search(r"classifier +- +[\d.]+ +done", classifier)


def test_trials_can_be_filtered_and_a_wrong_stage_is_one_line(store, screen, capsys):
    lines = screen("trials", "study", "--stage", "joint_decoder", "--store", store).lines
    assert sum("joint decoder" in " ".join(line.split()) or "joint" in line for line in lines) >= 24
    assert not any("end-to-end" in line for line in lines)
    screen("trials", "study", "--status", "failed", "--store", store, code=2)
    assert capsys.readouterr().err == "urc-sweep: --status failed: choices: done\n"


def test_joint_and_its_decoders_are_told_apart(store, screen):
    text = "\n".join(screen("trials", "study", "--store", store, watched=False).lines)
    assert re.search(r"  joint  ", text)
    assert re.search(r"  joint decoder  ", text)
    assert "end_to_end" not in text


def test_left_out_columns_are_named_and_wider_terminals_have_them(store, screen):
    texts = (" ".join(screen("frontier", "study", "--store", store, width=width).lines) for width in (60, 200))
    narrow, wide = (" ".join(text.split()) for text in texts)
    note = re.search(r"left out at this width: (.*?); a wider terminal or a pipe has all", narrow)
    assert note, narrow
    assert "trial" in note[1].split(", ")
    assert study()[0]["trial_id"][:4] in wide


def test_penalties_have_their_intervals_their_seeds_and_infeasible_as_a_word(store, screen):
    text = " ".join(" ".join(screen("penalty", "study", "--store", store).lines).split())
    assert "intervals: 95 %, over paired seeds" in text
    assert re.search(r"\(3,3\) c 0\.015 .*?-?\d\.\d+ \[-?[\d.e-]+, -?[\d.e-]+\].*? 3/3", text)
    rows = decisive(0)
    for row in rows:
        if row["stage"] == "universal":
            row["cross_entropy"] = row["val_cross_entropy"] = 3.0
    save(store, "lone", rows)
    text = " ".join(screen("penalty", "lone", "--store", store).lines)
    assert "infeasible" in text
    assert "under 3 seeds there is no interval" in text


def test_what_carries_no_interval_is_told_by_the_seeds_that_have_a_value(store, screen):
    """Three seeds are planned; only two have decoders, or reach any constraint."""
    rows = [row for row in study() if row["stage"] in ("end_to_end", "universal")]
    for row in rows:
        row["status"] = "failed" if (row["stage"], row["seed"]) == ("universal", 2) else "done"
    save(store, "two", rows)
    text = " ".join(screen("penalty", "two", "--store", store).lines)
    assert " 2/3" in text
    assert "under 3 seeds there is no interval" in text


def test_a_second_encoders_rate_is_told_apart_from_the_plain_one(store, screen):
    rows = [trial("end_to_end", 0, 0.01, (0.04, 1.0), (0.04, 1.0))]
    refined = {"rate_bits": rows[0]["rate_bits"] + 2 * math.log2(3), "parent_id": rows[0]["trial_id"]}
    rows += [trial("refined", 0, 0.01, (0.03, 0.8), (0.03, 0.8), **refined)]
    refined["rate_bits"] += 1
    rows += [trial("refined", 0, 0.01, (0.02, 0.7), (0.02, 0.7), **refined)]
    save(store, "rates", rows)
    for view in ("trials", "frontier"):
        told = "\n".join(screen(view, "rates", "--store", store, watched=False).lines)
        assert re.findall(r"\(3,3\)(?: 7.925 bits| 8.925 bits)?", told)[:3] == [
            "(3,3)",
            "(3,3) 7.925 bits",
            "(3,3) 8.925 bits",
        ]
    console = Plain(file=Screen(watched=False))
    console.print(terminal._best(progress.best(frame(rows))))
    assert [line.split("  ")[0] for line in console.file.lines[2:]] == [  # type: ignore[attr-defined]
        "(3,3)",
        "(3,3) 7.925 bits",
        "(3,3) 8.925 bits",
    ]


def test_a_sweep_that_trades_perception_has_its_fronts_there(store, screen):
    rows = [
        trial("end_to_end", 0, None, (mse, 1.0), (mse, 1.0), lambda_p=p, val_sliced_w2=w2, sliced_w2=w2)
        for mse, p, w2 in ((0.03, 0.0, 0.4), (0.04, 0.01, 0.2))
    ]
    save(store, "seen", rows)
    lines = screen("frontier", "seen", "--store", store, watched=False).lines
    assert lines[0].startswith("points on the (mse, sliced-w2) fronts")
    assert lines[1].split()[5:8] == ["mse", "mse_se", "sliced_w2"]
    assert [line.split()[-1] for line in lines[2:4]] == [row["trial_id"][:12] for row in rows]
    console = Plain(file=Screen(watched=False))
    console.print(terminal._best(progress.best(frame(rows))))
    heads = console.file.lines[1]  # type: ignore[attr-defined]
    assert re.search("least mse +trial +least sliced_w2 +trial", heads)


def test_an_empty_front_says_why(store, screen):
    save(store, "lost", [trial("end_to_end", 0, 0.1, (0.2, 1.0), (0.2, 1.0))])
    text = " ".join(screen("frontier", "lost", "--store", store, watched=False).lines)
    assert "no front: all 1 finished trials are worse than the best constant image" in text


def test_a_hypervolume_is_printed_with_its_reference(store, screen):
    text = " ".join(screen("frontier", "study", "--store", store).lines)
    assert "hypervolume [MSE x nats] below zero rate: mse 0.1, cross-entropy 2" in text


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0])
def test_an_ascii_terminal_gets_ascii(view, watched, store, screen):
    rows = study()
    rows[0] |= {"variant": "größer ─ 中", "parent_variant": "…"}
    save(store, "study", rows)
    shown = screen(*view, "--store", store, encoding="ascii", watched=watched)
    assert "".join(shown.lines).isascii()


def test_hostile_names_are_text(store, screen):
    rows = study()
    for row in rows:
        row["variant"] = "[red]x[/red]\x1b[31m\x1b]8;;http://evil.invalid\x07\u202e\n"
    save(store, "study", rows)
    for watched in (True, False):
        text = screen("trials", "study", "--store", store, watched=watched, width=300).buffer.getvalue().decode()
        assert "[red]x[/red]\\x1b[31m" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f\u202e]", text.replace("\r", ""))
        assert "\x1b]8" not in text


def test_colour_is_never_needed(store, screen, monkeypatch):
    coloured = screen("frontier", "study", "--store", store).lines
    monkeypatch.setenv("NO_COLOR", "1")
    plain = screen("frontier", "study", "--store", store)
    assert plain.lines == coloured
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain.buffer.getvalue().decode())


NAMES = ["rate", "stage", "mse_se", "penalty", "seeds", "trial"]
CELL = st.sampled_from(["", "-", "0.1234", "-3.142e-05", "a few words", "0.5\n[0.1,\n0.9]", "中文"])


@given(st.lists(st.lists(CELL, min_size=6, max_size=6), max_size=5), st.integers(20, 120))
@settings(deadline=None, max_examples=60)
def test_any_table_fits_or_loses_columns_but_the_first_two(rows, width):
    console = Plain(file=Screen(), width=width, force_terminal=True, color_system=None)
    console.print(Fitted(NAMES, rows, "a title", "seeds penalty"))
    lines = console.file.lines  # type: ignore[attr-defined]
    assert max(map(cell_len, lines)) <= width
    piped = Plain(file=Screen(watched=False))
    piped.print(Fitted(NAMES, rows, "a title", "seeds penalty"))
    assert len(piped.file.lines) == 2 + len(rows)  # type: ignore[attr-defined]


# -- while a sweep runs ------------------------------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own, 80 columns wide; all that it ever wrote."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.process = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=_own_terminal, **pipes)  # type: ignore[call-overload]
        os.close(slave)
        self.text = ""

    def read_until(self, done: Callable[[str], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done(self.text) and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break

    def end(self, seconds: float = 60) -> int:
        self.read_until(lambda text: False, seconds)
        os.close(self.master)
        return self.process.wait(timeout=seconds)


def _own_terminal() -> None:
    ioctl(0, termios.TIOCSCTTY, 0)


def test_watching_a_sweep_live_in_a_pipe_and_until_ctrl_c(sweep_file, tmp_path):
    store, here = str(tmp_path / "store"), [sys.executable, "-m", "urc_sweep"]
    launch = [*here, "launch", sweep_file(epochs=6), "--store", store, "--executor", "inline", "-q"]
    watch = [*here, "status", "--watch", "--store", store]
    with subprocess.Popen(launch, stderr=subprocess.PIPE, text=True) as sweep:
        deadline = time.monotonic() + 60
        while not (tmp_path / "store/trials/sweep=small/trials.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        piped = subprocess.Popen([*watch, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen, broken = Terminal(*watch), Terminal(*watch)
        broken.read_until(lambda text: "small: running" in text, 60)
        os.write(broken.master, b"\x03")
        assert broken.end() == 130
        assert "Traceback" not in broken.text
        assert broken.text.rstrip().endswith("\x1b[?25h"), "the cursor is back"
        assert seen.end(120) == 0, "it ends by itself"
        assert sweep.wait(timeout=60) == 0, sweep.stderr.read() if sweep.stderr else ""
    out, err = piped.communicate(timeout=60)
    assert (piped.returncode, err) == (0, "")
    text = ANSI.sub("", seen.text)
    assert max(cell_len(line) for line in text.replace("\r", "\n").split("\n")) <= 80
    assert text.count("small: running") > 1, "changes were seen"
    assert text.rpartition("small: ")[2].startswith("finished, 6 of 6 done")
    assert "best so far: chosen on validation, read on test" in text
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == len({json.dumps([line["stages"], line["running"]]) for line in lines}), "a line per change"
    assert [line["running"] for line in lines[-2:]] == [True, False]
    assert lines[-1]["stages"]["universal"] == {"done": 2}
    assert lines[-1]["eta_s"] is None
    last = subprocess.run(watch, capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"\S+Z small: finished, 6 of 6 done\n", last.stdout), "nobody runs it: one line, and the end"


def test_a_failed_trial_ends_with_its_traceback(tmp_path, screen):
    from tests.store.build import Study

    study = Study(tmp_path / "store")
    failed = study.of_stage("end_to_end")[0]
    study.fail(failed).launch()
    for how in ({"width": 80}, {"watched": False}):
        lines = screen("show", failed.id[:12], "--store", tmp_path / "store", **how).lines
        heads = [n for n, line in enumerate(lines) if line.startswith("attempt 1:")]
        assert heads
        assert heads[0] > max(n for n, line in enumerate(lines) if line.startswith(("}", "trial_id")))
        assert [line.rstrip() for line in lines[-2:]] == [
            "attempt 1: failed: FloatingPointError: loss is nan",
            "Traceback ...",
        ], "a trace has lines"
        if "width" in how:
            assert max(map(cell_len, lines)) <= 80


def test_a_launch_of_another_host_is_alive_once_its_heart_was_seen(tmp_path, screen, monkeypatch):
    from tests.store.build import Study

    store = Study(tmp_path / "store").launch().store
    (name,) = store.sweeps()
    lease = Lease(store, name)
    store.replace(store.layout.lease, lease._bytes())
    (head, *_) = screen("status", "--store", store.root, watched=False).lines
    assert head == f"{name}: running"
    lease.mine |= {"host": "far\x1b[31m", "pid": 1}
    store.replace(store.layout.lease, lease._bytes())
    os.utime(store.layout.lease, (0, 1_767_268_800))
    (head, *_) = screen("status", "--store", store.root, watched=False).lines
    assert head == f"{name}: perhaps running on far\\x1b[31m, last sign of life 2026-01-01T12:00:00Z"
    told = screen("status", "--json", "--store", store.root, watched=False).lines
    assert json.loads("".join(told))["running"] is None
    monkeypatch.setattr(terminal, "WATCH_S", 0.0)
    seen = terminal._followed(store, name)
    assert next(seen)[1].startswith("perhaps running on far")
    lease.mine["beat"] += 1
    store.replace(store.layout.lease, lease._bytes())
    assert next(seen)[1] == "running"
    monkeypatch.setattr(terminal, "EXPIRY_S", 0.0)
    assert next(seen)[1] == "", "its heart stopped"
    assert next(seen, None) is None


def test_status_counts_by_stage(tmp_path, screen):
    from tests.store.build import Study

    Study(tmp_path / "store").launch()
    lines = screen("status", "--store", tmp_path / "store", watched=False).lines
    assert lines[0].endswith(": not running")
    assert lines[1].split()[:2] == ["stage", "pending"]
    assert terminal.stage_label("joint_decoder") == "joint decoder"


def test_a_state_that_a_later_release_adds_is_shown_behind_ours():
    counts = {"universal": {"paused": 1, "stopped": 2, "ready": 3, "oom": 4}}
    assert terminal.by_stage(counts, "").names == ["stage", "ready", "stopped", "oom", "paused"]
    told = terminal._gist(counts, "", None, None)
    assert told == "not running, 0 of 10 done, 4 oom"
