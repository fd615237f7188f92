"""One launch per store: whoever holds the lease is named, whoever is dead is succeeded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.store.build import in_processes
from urc_sweep.errors import StoreError
from urc_sweep.store import lease
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import Lease, holder_of, process

HOLD = """
import sys
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import Lease
with Lease(Store(sys.argv[1]), "theirs"):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    return store


@pytest.fixture
def holder(store):
    """Another process that holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(lease, "EXPIRY_S", 0.2)


def written(store: Store) -> dict:
    return json.loads(store.layout.lease.read_bytes())


def leave(store: Store, **changes) -> dict:
    """Leave a lease behind as its holder would have written it."""
    facts = {"token": "t" * 32, "sweep": "theirs", "beat": 7, **process(os.getpid()), **changes}
    store.layout.lease.write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))
    return facts


def test_a_lease_says_who_holds_it_and_is_gone_afterwards(store):
    with Lease(store, "mine") as held:
        found = written(store)
        assert (found["sweep"], found["pid"], found["token"]) == ("mine", os.getpid(), held.token)
        assert found["started"] == process(os.getpid())["started"]
        assert holder_of(store) == found
        assert not held.lost.is_set()
    assert not store.layout.lease.exists()
    assert holder_of(store) is None
    with Lease(store, "mine"):
        pass


def test_an_error_inside_releases_the_lease(store):
    with pytest.raises(RuntimeError, match="boom"), Lease(store, "mine"):
        raise RuntimeError("boom")
    assert not store.layout.lease.exists()


def test_a_living_holder_is_named(store, holder):
    before = store.layout.lease.stat().st_ino
    with pytest.raises(StoreError) as caught, Lease(store, "mine"):
        pass
    host = process(1)["host"]
    assert str(caught.value) == (
        f"{store.root} is in use by sweep 'theirs', process {holder.pid} on {host}; "
        "wait, `urc-sweep stop`, or --take-over if it is gone"
    )
    assert caught.value.exit_code == 4
    assert (written(store)["pid"], store.layout.lease.stat().st_ino) == (holder.pid, before)


def test_a_launch_refused_by_a_living_holder_exits_4_without_a_traceback(store, holder, tmp_path):
    spec = tmp_path / "sweep.yaml"
    stages = "{end_to_end: {objective: {distortion: 1}}}"
    spec.write_text(f"name: mine\ndataset: {{name: digits}}\nrates: [{{dim: 2, levels: 3}}]\nstages: {stages}\n")
    command = [
        sys.executable,
        "-m",
        "urc_sweep",
        "launch",
        str(spec),
        "--store",
        str(store.root),
        "--executor",
        "inline",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"urc-sweep: {store.root} is in use by sweep 'theirs', process {holder.pid} on ")
    assert "Traceback" not in done.stderr
    assert not (store.root / "sweeps").exists()


def test_a_killed_holder_is_succeeded(store, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert written(store)["pid"] == holder.pid
    assert holder_of(store) is None
    with Lease(store, "mine"):
        assert written(store)["sweep"] == "mine"
    assert not list((store.root / "tmp").iterdir())


def test_a_zombie_is_dead(store, holder):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, nobody has reaped it
    assert "started" not in process(holder.pid)
    with Lease(store, "mine"):
        assert written(store)["sweep"] == "mine"


@pytest.mark.parametrize("changes", [{"started": 1}, {"started": None}, {"pid": 2**22 + 1}])
def test_a_pid_that_another_process_has_now_is_no_holder(store, changes):
    leave(store, **changes)
    assert holder_of(store) is None
    with Lease(store, "mine"):
        assert written(store)["sweep"] == "mine"


def test_a_boot_later_nothing_is_known_but_the_heartbeat(store, quick):
    leave(store, boot_id="before the reboot")
    with Lease(store, "mine"):
        assert written(store)["sweep"] == "mine"


def test_a_foreign_holder_whose_heart_beats_is_refused(store, quick):
    facts = leave(store, host="elsewhere")
    assert holder_of(store)["host"] == "elsewhere"
    end = threading.Event()

    def beat():
        while not end.wait(0.005):
            facts["beat"] += 1
            store.replace(store.layout.lease, json.dumps(facts).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreError, match=f"in use by sweep 'theirs', process {os.getpid()} on elsewhere"):
            Lease(store, "mine").__enter__()
    finally:
        end.set()
        thread.join()


def test_a_foreign_holder_is_not_taken_over_before_its_time(store, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    leave(store, host="elsewhere")
    now = iter([0.0, 1.0, 59.0, 61.0])
    waited = []
    monkeypatch.setattr(lease.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(lease.time, "sleep", waited.append)
    assert Lease(store, "mine")._dead(written(store), store.layout.lease) is True
    assert len(waited) == 2, "watched until 60 s had passed"


def test_take_over_asks_nobody(store, holder, quick):
    with Lease(store, "mine", take_over=True):
        assert written(store)["sweep"] == "mine"
    leave(store, host="elsewhere")
    with Lease(store, "mine", take_over=True):
        assert written(store)["sweep"] == "mine"


def test_a_heart_beats_and_its_loss_is_noticed(store, quick):
    with Lease(store, "mine") as held:
        beats = set()
        for _ in range(2000):
            beats.add(written(store)["beat"])
            if len(beats) == 3 or held.lost.wait(0.005):
                break
        assert len(beats) == 3
        assert not held.lost.is_set()
        with Lease(store, "theirs", take_over=True) as other:
            assert held.lost.wait(10)
            assert not other.lost.is_set()
            held.__exit__()
            assert written(store)["token"] == other.token, "who lost the lease leaves the new holder's alone"


def test_a_lease_that_vanished_is_lost(store, quick):
    with Lease(store, "mine") as held:
        store.layout.lease.unlink()
        assert held.lost.wait(10)
    assert not store.layout.lease.exists()


def test_a_heartbeat_under_way_does_not_bring_a_released_lease_back(store, quick, monkeypatch):
    replace, beating, released = Store.replace, threading.Event(), threading.Event()

    def slow(self, path, data):
        beating.set()
        released.wait(0.5)
        replace(self, path, data)

    monkeypatch.setattr(Store, "replace", slow)
    with Lease(store, "mine"):
        assert beating.wait(10)
    released.set()
    for thread in threading.enumerate():
        if thread.name == "lease":
            thread.join(10)
    assert not store.layout.lease.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_heartbeat_survives_a_full_disk(store, quick, monkeypatch):
    replace, failed = Store.replace, threading.Event()

    def full_once(self, path, data):
        if not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        replace(self, path, data)

    monkeypatch.setattr(Store, "replace", full_once)
    with Lease(store, "mine") as held:
        assert failed.wait(10)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "lease")
        thread.join(0.3)
        assert thread.is_alive() or held.lost.is_set()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"host": 3}'])
def test_a_lease_that_cannot_be_read_can_be_taken_over(store, content, quick):
    store.layout.lease.write_bytes(content)
    with Lease(store, "mine", take_over=True):
        assert written(store)["sweep"] == "mine"


ENTER = """
from urc_sweep.errors import StoreError
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import Lease
def work(number):
    global held  # until the process ends
    held = Lease(Store(sys.argv[1]), f"s{number}")
    try:
        held.__enter__()
    except StoreError as error:
        return str(error)
    return "held"
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_eight_processes_at_once_exactly_one_holds(store, stale):
    if stale:
        leave(store, started=1)
    answers = in_processes(ENTER, 8, str(store.root))
    assert answers.count("held") == 1
    winner = answers.index("held")
    assert all(f"in use by sweep 's{winner}'" in answer for answer in answers if answer != "held")
