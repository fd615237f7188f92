"""Quick samples of the fault campaigns, and that each finds what it is there to find. All of it: -m tests.faults."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import clocks, kill_points, launches, simulated
from tests.faults.card import Budget, Card, table
from urc_sweep.run.conductor import Conductor
from urc_sweep.run.schedule import Schedule


def run(campaign, goal: int, folder: Path, seed: int = 0) -> Card:
    card = Card(campaign.__module__)
    campaign(card, Budget(goal, 120), seed, folder)
    assert card.ok, table([card])
    return card


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_few_calls_of_a_commit(tmp_path) -> None:
    assert run(kill_points.campaign, 6, tmp_path).injected == 6


def test_what_was_not_forced_to_disk_is_read_from_the_trace() -> None:
    store, ack = "/s", Path("/ack")
    whole = [
        f'1 openat(AT_FDCWD, "{store}/tmp/a", O_WRONLY|O_CREAT) = 3<{store}/tmp/a>',
        f'1 write(3<{store}/tmp/a>, ""..., 9) = 9',
        f"1 fsync(3<{store}/tmp/a>) = 0",
        f'1 link("{store}/tmp/a", "{store}/commits/a") = 0',
        f"1 fsync(3<{store}/commits>) = 0",
        '1 write(4</ack>, ""..., 9) = 9',
    ]
    assert kill_points.undurable(whole, ack) == []
    assert "bytes" in kill_points.undurable(whole[:2] + whole[3:], ack)[0]
    assert "folder" in kill_points.undurable(whole[:4] + whole[5:], ack)[0]


def test_simulated_sweeps(tmp_path) -> None:
    card = run(simulated.campaign, 300, tmp_path)
    assert card.injected > 1000


BROKEN = {
    "a dead worker's pack is not read": (Conductor, "_read", lambda self, pack: None),
    "messages are believed": (Conductor, "on_result", lambda self, handle, result: believe(self, result)),
    "needs are not waited for": (Schedule, "_ready", lambda self, trial_id: self.state[trial_id] == "waiting"),
    "nobody is skipped": (Schedule, "fail", lambda self, trial_id, status: self.state.update({trial_id: status})),
}


def believe(conductor: Conductor, result: dict) -> None:
    for trial in conductor.schedule.dependents.get(result.get("trial", ""), ()):
        conductor.schedule.trained |= set(conductor.schedule.needs[trial])


@pytest.mark.parametrize("name", BROKEN)
def test_the_simulation_finds_a_broken_driver(name, monkeypatch) -> None:
    owner, method, broken = BROKEN[name]
    monkeypatch.setattr(owner, method, broken)
    assert any(simulated.replay(seed).problems for seed in range(100))


def test_a_seed_is_replayed_event_by_event() -> None:
    first, again, other = simulated.replay(3), simulated.replay(3), simulated.replay(4)
    assert first.log == again.log
    assert first.digest != other.digest


def test_eight_launches_at_once(tmp_path) -> None:
    run(launches.campaign, 2, tmp_path)


@pytest.mark.skipif(clocks.LIBRARY is None, reason="libfaketime is not installed")
def test_a_clock_that_a_process_sees_can_be_moved(tmp_path) -> None:
    host = clocks.Host(tmp_path, "here")
    code = "from time import monotonic, time; a, b = time(), monotonic(); print('ready', flush=True); input()"
    code += "; print(time() - a, monotonic() - b)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=host.environment, **pipes)
    assert process.stdout.readline() == "ready\n"
    host.set("-1h")
    wall, monotonic = map(float, process.communicate("\n", timeout=20)[0].split())
    assert -3601 < wall < -3500
    assert 0 < monotonic < 20
