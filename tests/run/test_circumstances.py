"""The same store in other circumstances: another working directory, user, host name; moved; read-only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import small_sweep
from tests.run.test_launch import CLI, files, results
from urc_sweep.run.launch import Launch, Options
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

# Root may write everywhere: without its capabilities it is a user like any other.
NOBODY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
STRANGER = 54_321
READING = [
    ["status"],
    ["trials"],
    ["query", "select count(*) from trials"],
    ["frontier"],
    ["penalty"],
    ["verify"],
    ["store", "gc", "--dry-run"],
]


def run(*words: str, cwd: Path, under: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(under or []), *CLI, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a sweep file and its finished store."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "small.yaml").write_text(small_sweep())
    assert Launch(str(folder / "small.yaml"), Options(str(folder / "store"), executor="inline")).run() == 0
    return folder


@pytest.fixture
def moved(finished, tmp_path) -> Path:
    """A copy of it somewhere else."""
    return Path(shutil.copytree(finished, tmp_path / "there"))


def test_a_moved_store_is_read_and_goes_on_from_anywhere(finished, moved, tmp_path) -> None:
    for words in READING:
        assert run(*words, "--store", "there/store", cwd=tmp_path).returncode == 0, words
    before = files(moved / "store")
    again = run("launch", "../there/small.yaml", "--store", "store", "--executor", "inline", cwd=moved)
    assert "nothing to do" in again.stderr
    assert files(moved / "store") == before
    (moved / "small.yaml").write_text(small_sweep(weights="[0, 0.01, 0.03]"))
    more = run("launch", "there/small.yaml", "--store", "there/store", "--executor", "inline", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert results(finished / "store").items() <= results(moved / "store").items()
    assert verify(Store(moved / "store"))[0] == []


def test_another_host_takes_up_the_store_of_a_killed_launch(moved, tmp_path) -> None:
    """The lease of a dead process of another host; nobody's heart beats, so that after a minute it is taken over."""
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"] if os.geteuid() == 0 else []
    assert "nothing to do" in run("launch", "small.yaml", "--store", "store", cwd=moved, under=elsewhere).stderr
    (moved / "small.yaml").write_text(small_sweep(weights="[0, 0.01, 0.03]"))
    words = ["launch", "small.yaml", "--store", "store", "--executor", "inline"]
    first = subprocess.Popen([*CLI, *words], cwd=moved, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (moved / "store" / "lease.json").exists():
        assert first.poll() is None
    first.kill()
    first.wait()
    taken = run(*words, "--take-over", cwd=moved, under=elsewhere)
    assert taken.returncode == 0, taken.stderr
    assert verify(Store(moved / "store"))[0] == []


def test_another_user_reads_a_store_that_is_not_theirs_to_write(moved, tmp_path) -> None:
    root = moved / "store"
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if NOBODY:
            os.chown(path, STRANGER, STRANGER)
    before = files(root)
    for words in READING:
        read = run(*words, "--store", str(root), cwd=tmp_path, under=NOBODY)
        assert read.returncode == 0, (words, read.stderr)
    page = tmp_path / "mine.html"
    assert run("report", "--store", str(root), "-o", str(page), cwd=tmp_path, under=NOBODY).returncode == 0
    assert page.stat().st_size > 1_000_000
    assert "nothing to do" in run("launch", "small.yaml", "--store", "store", cwd=moved, under=NOBODY).stderr
    (moved / "small.yaml").write_text(small_sweep(weights="[0, 0.01, 0.03]"))
    writing = [["report"], ["launch", str(moved / "small.yaml")], ["store", "gc"], ["retry"]]
    for words in writing:
        refused = run(*words, "--store", str(root), cwd=tmp_path, under=NOBODY)
        if words == ["retry"]:  # nothing failed, so there is nothing to write
            assert refused.returncode == 0, refused.stderr
            continue
        assert refused.returncode in (2, 4), words
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert "Permission denied" in refused.stderr or "cannot be written" in refused.stderr
    assert files(root) == before


@pytest.mark.parametrize("table", ["trials/*/trials.parquet", "curves/*/part-00000.parquet"])
def test_a_damaged_table_is_rebuilt_by_the_next_launch(table, moved) -> None:
    (path,) = (moved / "store").glob(table)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem, *_) = verify(Store(moved / "store"))[0]
    assert problem.startswith(f"{path}: damaged table")
    assert Launch(str(moved / "small.yaml"), Options(str(moved / "store"), executor="inline")).run() == 0
    assert verify(Store(moved / "store"))[0] == []


def test_scratch_of_killed_launches_is_removed_and_that_of_living_ones_is_not(tmp_path) -> None:
    from urc_sweep.run.ray_tune import _clean
    from urc_sweep.store.lease import process

    mine = "urc-ray-{pid}-{started}-x".format(**process(os.getpid()))
    names = [mine, f"urc-ray-{os.getpid()}-1-x", "urc-ray-4000000-5-x", "urc-ray-word-5-x", "urc-ray-short", "other"]
    for name in names:
        (tmp_path / name / "session").mkdir(parents=True)
    _clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine, "urc-ray-word-5-x", "urc-ray-short", "other"}


@pytest.mark.parametrize("word", [b"left", b""])
def test_the_guard_leaves_no_process_and_no_file_of_a_cluster(word, tmp_path) -> None:
    """Told that the driver left, it kills what is left at once; when the driver just died, after a grace."""
    from urc_sweep.run import guard

    scratch = tmp_path / "scratch"
    (scratch / "session").mkdir(parents=True)
    others = {"PATH": os.environ["PATH"], guard.MARK: f"{scratch}-2"}
    marked = subprocess.Popen(["sleep", "60" if word else "1"], env=others | {guard.MARK: str(scratch)})
    other = subprocess.Popen(["sleep", "60"], env=others)
    # Ray's agents lose the mark: their title stands where their environment was. Their logs are open, but not only
    # theirs: a driver waits for its guard with its own log open.
    with (scratch / "session/agent.log").open("w") as log:
        agent = ["ray::RuntimeEnvAgent", "60" if word else "1"]
        titled = subprocess.Popen(agent, executable=shutil.which("sleep"), env=others, stdout=log)
        driver = subprocess.Popen(["sleep", "60"], env=others, stdout=log)
    watch = guard.start(str(scratch))
    time.sleep(0.5)
    watch.send_signal(signal.SIGTERM)  # as every process of a job gets it
    time.sleep(0.2)
    assert watch.poll() is None
    watch.communicate(word, timeout=20)
    for process in (marked, titled):
        assert process.wait(timeout=5) == (-signal.SIGKILL if word else 0)
    assert not scratch.exists()
    for process in (other, driver):
        assert process.poll() is None
        process.kill()
        process.wait()
