"""Clock jumps: real launches whose wall clock jumps by hours while they run, are killed, and go on on another host.

libfaketime reads the offset from a file, so that the clock of a running process can be moved.
"""

from __future__ import annotations

import contextlib
import glob
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import small_sweep
from tests.faults.card import Budget, Card
from tests.faults.launches import CLI, ELSEWHERE, remains
from tests.run.test_launch import results
from urc_sweep.store.commits import Store

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)
OFFSETS = ("-1h", "+1h", "-30d", "+400d", "-90s", "+0")
TIMEOUT_S = 180.0


class Host:
    """A machine of its own name and clock."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.clock = name, folder / f"clock of {name}"
        self.set("+0")

    def set(self, offset: str) -> None:
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(offset)
        fresh.replace(self.clock)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [*([] if self.name == "here" else ELSEWHERE), *CLI, *words]
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=self.environment
        )

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # no clock jump moves that one
        }


def disturb(host: Host, root: Path, command: list[str], rng: random.Random) -> tuple[int, str]:
    """Launch, move the clock while it works, and kill or stop it at some moment; return exit code and last words."""
    process = host.start(*command)
    ending = rng.choice((signal.SIGKILL, signal.SIGTERM, None))
    known = {path: path.stat().st_mtime_ns for path in progress(root)}
    steps = rng.randint(1, 4)  # checkpoints or commits until the end
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        fresh = {path: stamp for path in progress(root) if known.get(path) != (stamp := modified(path))}
        if fresh:
            known |= fresh
            host.set(rng.choice(OFFSETS))
            steps -= 1
        if steps == 0 and ending is not None:
            process.send_signal(ending)
            break
        time.sleep(0.01)
    return process.wait(TIMEOUT_S), process.stderr.read()


def progress(root: Path) -> list[Path]:
    return [*root.glob("checkpoints/*/state.json"), *root.glob("commits/*/*.json")]


def modified(path: Path) -> int:
    with contextlib.suppress(OSError):  # a checkpoint is gone once its trial is committed
        return path.stat().st_mtime_ns
    return 0


class Scene:
    """One sweep of some seconds, and what it gives while no clock jumps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.other = folder, folder / "sweep.yaml", folder / "other.yaml"
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        text = small_sweep(epochs=4, weights="[0.01]")
        self.path.write_text(text)
        self.other.write_text(text.replace("name: small", "name: other"))
        done = subprocess.run([*CLI, *self.command(folder / "undisturbed")], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        self.reference = results(folder / "undisturbed")

    def command(self, root: Path, path: Path | None = None) -> list[str]:
        return ["launch", str(path or self.path), "--store", str(root), "--executor", "inline", "-q"]

    def jump(self, rng: random.Random, card: Card) -> Iterator[str]:
        """Launch on two hosts in turn, clocks apart and jumping, until it is done; yield every broken promise."""
        from urc_sweep.store.verify import verify

        root = self.folder / "store"
        shutil.rmtree(root, ignore_errors=True)
        hosts = [Host(self.folder, "here"), Host(self.folder, "elsewhere")]
        last = ""
        for number in range(8):
            host, before = rng.choice(hosts), results(root) if root.exists() else {}
            host.set(rng.choice(OFFSETS))
            command = self.command(root)
            # A dead lease of another host would be watched for a minute; people who know say so.
            command += ["--take-over"] if last not in ("", host.name) and (root / "lease.json").exists() else []
            if number < 7:
                code, said = disturb(host, root, command, rng)
            else:
                process = host.start(*command)
                said, code = process.communicate(timeout=TIMEOUT_S)[1], process.returncode
            last = host.name
            card.injected += 1
            card.acknowledged += len(before)
            after = results(root)
            card.lost += sum(after.get(identity) != value for identity, value in before.items())
            if code not in (0, 130, -signal.SIGKILL, -signal.SIGTERM) or "Traceback" in said:
                yield f"launch {number} ends with {code}: {said[-600:]!r}"
            if code == 0:
                break
        card.runs += 1
        card.identical += results(root) == self.reference
        yield from verify(Store(root))[0]
        yield from remains(root)
        yield from self.newest(hosts[0], root)

    def newest(self, host: Host, root: Path) -> Iterator[str]:
        """The sweep that is launched last is the newest, whatever the clock says."""
        host.set("-800d")
        process = host.start(*self.command(root, self.other))
        said = process.communicate(timeout=TIMEOUT_S)[1]
        if process.returncode != 0 or Store(root).sweeps()[-1] != "other":
            yield f"a launch 800 days ago ends with {process.returncode}, order {Store(root).sweeps()}: {said[-600:]!r}"


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Jump with other offsets, moments and endings for every number."""
    if LIBRARY is None:
        card.problems.append("libfaketime is not installed")
        return
    scene = Scene(folder)
    for number in budget.points():
        problems = list(scene.jump(random.Random(seed + number), card))
        card.problems += [f"seed {seed + number}: {problem}" for problem in problems]
