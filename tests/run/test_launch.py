"""Real sweeps, end to end: digits, tiny networks, the inline executor and a real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import small_sweep
from urc_sweep.run.launch import Launch, Options
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

HELDOUT = "stages.heldout_classifier"
CLI = [sys.executable, "-m", "urc_sweep"]


def run(*arguments: str, check: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([*CLI, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    if check is not None:
        assert result.returncode == check, result.stderr
    assert "Traceback" not in result.stderr
    return result


def results(root: Path) -> dict[str, tuple]:
    """Every trial's weights by hash, curve without its clock, and metrics: what must not depend on circumstances."""
    store = Store(root)
    records = [store.committed(commit_id) for commit_id in store.commit_ids()]
    found = {}
    for record in records:
        if record["kind"] == "training":
            curve = [point[:4] for point in record["curve"]]
            found[record["id"]] = (record["artifacts"], record["used"], curve)
        else:
            found[record["id"]] = (record["metrics"], record.get("samples_sha256"))
    return found


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of 12 trials run through a real Ray by the command line, five lanes to a pack."""
    folder = tmp_path_factory.mktemp("ray")
    path = folder / "small.yaml"
    path.write_text(small_sweep(weights="[0, 0.01, 0.003, 0.03, 0.1]", lanes=5))
    result = run("launch", str(path), "--store", str(folder / "store"))
    return path, folder / "store", result


def test_ray_runs_a_sweep_to_its_report(finished) -> None:
    _, root, result = finished
    frame = pd.read_parquet(root / "trials")
    assert len(frame) == 12
    assert set(frame["status"]) == {"done"}
    assert frame.groupby("stage").size().to_dict() == {"classifier": 2, "end_to_end": 5, "universal": 5}
    assert (frame["pack_lanes"] == frame["stage"].map({"classifier": 1, "end_to_end": 5, "universal": 5})).all()
    report = root / "sweeps" / "small" / "report.html"
    assert str(report) in result.stdout
    assert "distortion penalty" in result.stdout
    assert report.stat().st_size > 1_000_000
    assert verify(Store(root))[0] == []
    assert not [name for name in files(root) if name.endswith((".pkl", ".pickle", ".pt"))]


@pytest.mark.parametrize("lanes", [1, 2])
def test_inline_and_other_packs_give_the_same_bits_as_ray(lanes, finished, tmp_path, sweep_file) -> None:
    path = sweep_file(weights="[0, 0.01, 0.003, 0.03, 0.1]", lanes=lanes)
    assert Launch(path, Options(store=str(tmp_path / "store"), executor="inline")).run() == 0
    assert results(tmp_path / "store") == results(finished[1])


def test_a_second_launch_does_nothing_and_writes_nothing(finished) -> None:
    path, root, _ = finished
    before = files(root)
    began = time.monotonic()
    result = run("launch", str(path), "--store", str(root))
    assert "nothing to do, all 12 trials are done" in result.stderr
    assert files(root) == before
    assert time.monotonic() - began < 60


def test_a_universal_trial_ran_with_the_very_bytes_its_parent_committed(finished) -> None:
    store = Store(finished[1])
    trainings = [r for r in map(store.committed, store.commit_ids()) if r["kind"] == "training"]
    by_id = {record["id"]: record for record in trainings}
    universal = [record for record in trainings if record["trial"]["stage"] == "universal"]
    assert len(universal) == 5
    for record in universal:
        parent = by_id[record["trial"]["config"]["needs"]["encoder"]]
        assert record["used"]["encoder"] == parent["artifacts"]["encoder"]
        assert "encoder" not in record["artifacts"]


def test_a_damaged_encoder_is_found_at_load_and_its_decoders_are_skipped_over(tmp_path, sweep_file) -> None:
    """Corrupt the parent's encoder between two launches: no universal trial trains on other bytes."""
    path, root = sweep_file(), tmp_path / "store"
    end_to_end_only = small_sweep().split("  universal:")[0]
    first = sweep_file(end_to_end_only, name="first.yaml")
    assert Launch(first, Options(store=str(root), executor="inline")).run() == 0
    frame = pd.read_parquet(root / "trials")
    sha256 = frame.loc[frame["lambda_c"] == 0.01, "encoder_sha256"].iloc[0]
    artifact = Store(root).layout.artifact(sha256, ".safetensors")
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.write_bytes(data)
    launch = Launch(path, Options(store=str(root), executor="inline"))
    assert launch.run() == 3
    frame = pd.read_parquet(root / "trials")
    universal = frame[frame["stage"] == "universal"]
    assert set(universal["status"]) == {"failed"}
    assert universal["error_message"].str.contains("damaged: its bytes have SHA-256").all()


PLUGIN = '''
"""A network that cannot be built at two latent dimensions."""

from urc_sweep.learn.models import Paper
from urc_sweep.plan.registry import component


@component("model", "fragile", version=1)
class Fragile(Paper):
    """Breaks at dim 2."""

    def __init__(self, dim, image, *, width: float = 1.0):
        super().__init__(dim, image, width=width)

    def encoder(self):
        if self.dim == 2:
            raise RuntimeError("no encoder at two dimensions")
        return super().encoder()
'''


def test_a_failed_encoder_skips_its_dependents_and_the_sweep_exits_3(tmp_path, sweep_file) -> None:
    plugin = tmp_path / "fragile.py"
    plugin.write_text(PLUGIN)
    text = small_sweep().replace("name: paper", "name: fragile")
    text = text.replace("[{dim: 2, levels: 3}]", "[{dim: 2, levels: 3}, {dim: 3, levels: 2}]")
    path, root = sweep_file(text), tmp_path / "store"
    result = run("launch", path, "--store", str(root), "--plugin", str(plugin), check=3)
    assert "failed: RuntimeError: no encoder at two dimensions" in result.stderr
    frame = pd.read_parquet(root / "trials")
    states = frame.groupby(["stage", "dim"], dropna=False)["status"].agg(set).to_dict()
    assert states["end_to_end", 2] == {"failed"}
    assert states["universal", 2] == {"skipped"}
    assert states["end_to_end", 3] == states["universal", 3] == {"done"}
    failed = frame.loc[frame["status"] == "failed", "trial_id"].iloc[0]
    shown = run("show", failed[:12], "--store", str(root))
    assert "RuntimeError: no encoder at two dimensions" in shown.stdout
    assert run("launch", path, "--store", str(root), "--plugin", str(plugin), check=3).stderr.count("settled")
    plugin.write_text(PLUGIN.replace("if self.dim == 2:", "if self.dim == 99:"))
    assert "reopened 2 trials" in run("retry", "--store", str(root)).stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep file and what it gives when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "small.yaml"
    path.write_text(small_sweep(epochs=6))
    assert Launch(str(path), Options(store=str(folder / "store"), executor="inline")).run() == 0
    return str(path), results(folder / "store")


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bits(executor, tmp_path, undisturbed) -> None:
    """kill -9 the whole process group in the middle of a training; the next launch finishes. More: tests.faults."""
    path, straight = undisturbed
    killed = tmp_path / "killed"
    command = [*CLI, "launch", path, "--store", str(killed), "--executor", executor]
    resumed_from = []
    for _ in range(2 if executor == "inline" else 1):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **silent)
        known = set(killed.glob("checkpoints/*/state.json"))
        while not (fresh := set(killed.glob("checkpoints/*/state.json")) - known) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        resumed_from += fresh
        for worker in ray_workers(killed):
            os.kill(worker, signal.SIGKILL)
    assert resumed_from, "nothing was killed inside a training"
    acknowledged = results(killed)
    result = run("launch", path, "--store", str(killed), "--executor", executor)
    assert "penalty" in result.stdout
    final = results(killed)
    assert acknowledged.items() <= final.items(), "nothing that was committed is lost or changed"
    assert final == straight
    assert verify(Store(killed))[0] == []
    assert not list(killed.glob("checkpoints/*/state.json"))


def ray_workers(root: Path) -> list[int]:
    """Processes that a killed driver left behind and that hold files of this store open or in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            parent_gone = (entry / "stat").read_text().rpartition(")")[2].split()[1] == "1"
        except OSError:
            continue
        if b"urc-ray-" in command and parent_gone:
            found.append(int(entry.name))
    return found


def test_a_stop_drains_and_the_printed_command_resumes(tmp_path, sweep_file) -> None:
    path, root = sweep_file(epochs=30), tmp_path / "store"
    command = [*CLI, "launch", path, "--store", str(root), "--executor", "inline"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(root.glob("checkpoints/*/state.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"to go on: urc-sweep launch {path} --store {root} --executor inline" in stderr
    assert "stopped" in set(pd.read_parquet(root / "trials")["status"])
    assert verify(Store(root))[0] == []


def test_two_launches_at_once(tmp_path, sweep_file) -> None:
    """The second exits 4 and names the holder, fast; the first is undisturbed."""
    path, root = sweep_file(epochs=8), tmp_path / "store"
    command = [*CLI, "launch", path, "--store", str(root), "--executor", "inline"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (root / "lease.json").exists() and first.poll() is None:
        time.sleep(0.02)
    second = run("launch", path, "--store", str(root), check=4)
    assert f"is in use by sweep 'small', process {first.pid} on" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.wait(timeout=120) == 0
    assert len(pd.read_parquet(root / "trials")) == 6


def test_editing_the_file_extends_the_sweep_and_shares_what_was_trained(tmp_path, sweep_file) -> None:
    root = tmp_path / "store"
    options = Options(store=str(root), executor="inline")
    assert Launch(sweep_file(weights="[0, 0.01]"), options).run() == 0
    before = results(root)
    wider = Launch(sweep_file(weights="[0.01, 0.03]"), options)
    assert len(wider.missing) == 2
    assert wider.run() == 0
    assert before.items() <= results(root).items()
    frame = pd.read_parquet(root / "trials")
    assert sorted(frame.loc[frame["stage"] == "end_to_end", "lambda_c"]) == [0.01, 0.03]
    other = Launch(sweep_file(small_sweep(weights="[0.01, 0.03]").replace("name: small", "name: other")), options)
    assert other.missing == []
    assert other.run() == 0
    both = pd.read_parquet(root / "trials")
    assert set(both.loc[both["sweep"] == "other", "cached_from"]) == {"small"}
    curves = pd.read_parquet(root / "curves")
    assert not curves.duplicated(["sweep", "trial_id", "epoch", "split", "metric"]).any()
    assert verify(Store(root))[0] == []


def test_a_metric_added_later_is_computed_without_training(tmp_path, sweep_file) -> None:
    path, root = sweep_file(), tmp_path / "store"
    assert Launch(path, Options(store=str(root), executor="inline")).run() == 0
    trained = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/*/*.safetensors")}
    plugin = tmp_path / "brightness.py"
    plugin.write_text(
        '"""A metric."""\n'
        "from urc_sweep.plan.registry import component\n\n"
        '@component("metric", "brightness", version=1)\n'
        "def brightness(view):\n"
        '    """Mean pixel of the reconstructions."""\n'
        '    return {"brightness": float(view.x_hat.mean())}\n'
    )
    run("launch", path, "--store", str(root), "--plugin", str(plugin))
    frame = pd.read_parquet(root / "trials")
    values = [dict(metrics).get("brightness") for metrics in frame.loc[frame["stage"] != "classifier", "metrics"]]
    assert all(0.1 < value < 0.6 for value in values)
    assert {path: path.stat().st_mtime_ns for path in root.glob("artifacts/*/*.safetensors")} == trained


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*"launch SPEC --set dataset.name=mnist --offline --data-root TMP/none".split()], 2, "put train-images-idx3"),
        (["launch", "TMP/nothing.yaml"], 2, "cannot read the sweep file"),
        (f"launch SPEC --set {HELDOUT}.network=paper --set {HELDOUT}.seed=0".split(), 2, "losses see"),
        (["launch", "SPEC", "--executor", "slurm"], 2, "choices: ray, inline"),
        (["launch", "SPEC", "--store", "SPEC"], 4, "is a file, not a store"),
        (["launch", "SPEC", "--store", "s3://bucket/x"], 2, "only directories"),
        (["launch", "SPEC", "--plugin", "TMP/nothing.py"], 2, "is not a Python file"),
        (["launch", "SPEC", "--address", "10.1.2.3:6379"], 5, "without RAY_AUTH_MODE=token"),
        (["launch", "SPEC", "--address", "127.0.0.1:1"], 5, "nobody answers there"),
        (["launch", "SPEC", "--address", "127.0.0.1"], 5, "expected HOST:PORT"),
        (["status", "--store", "TMP/none"], 4, "is not a store"),
        (["query", "select 1", "--store", "TMP/none"], 4, "is not a store"),
        (["verify", "--store", "TMP/none"], 4, "is not a store"),
        (["init", "SPEC"], 2, "exists already"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, code, message, tmp_path, sweep_file) -> None:
    path = sweep_file()
    words = [word.replace("SPEC", path).replace("TMP", str(tmp_path)) for word in arguments]
    if words[0] == "launch" and "--store" not in words:
        words += ["--store", str(tmp_path / "store")]
    before = files(tmp_path)
    result = run(*words, check=code)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stdout == ""
    assert files(tmp_path) == before


def test_plan_and_status_as_json(finished) -> None:
    path, root, _ = finished
    planned = json.loads(run("plan", str(path), "--json").stdout)
    assert [entry["stage"] for entry in planned].count("universal") == 5
    status = json.loads(run("status", "--json", "--store", str(root)).stdout)
    assert status["stages"]["end_to_end"] == {"done": 5}


def test_a_pack_must_fit_on_one_node() -> None:
    from urc_sweep.errors import ResourceError
    from urc_sweep.plan.spec import Resources
    from urc_sweep.run.ray_tune import Cluster

    two = Cluster(((4.0, 0.0), (4.0, 2.0)))
    assert two.slots(Resources(cpus=3, gpus=0)) == 2
    assert two.slots(Resources(cpus=1)) == 2, "with auto a pack takes a GPU where there are any"
    assert two.slots(Resources(cpus=1, gpus=0.5)) == 4
    assert two.at_once([Resources(cpus=3, gpus=0), Resources(cpus=1, gpus=0.5)], None) == 4
    assert two.at_once([Resources(cpus=1, gpus=0.5)], 3) == 3
    with pytest.raises(ResourceError, match="needs 8 CPUs and 0 GPUs on one node; nodes have 4 and 0, 4 and 2"):
        two.slots(Resources(cpus=8, gpus=0))


def test_a_sweep_that_fits_nowhere_is_one_line(tmp_path, sweep_file) -> None:
    path, root = sweep_file(small_sweep().replace("checkpoint_minutes: 0", "cpus: 999")), tmp_path / "store"
    result = run("launch", path, "--store", str(root), "-q", check=5)
    assert "a pack needs 999 CPUs" in result.stderr
    assert len(result.stderr.splitlines()) == 1
