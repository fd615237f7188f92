"""Disk full: real launches into a small tmpfs, of another size each time, and once more when there is room.

Command lines run in processes forked from one that has imported everything: many moments count, not many imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import small_sweep
from tests.faults.card import Budget, Card
from tests.faults.kill_points import UNFINISHED
from tests.faults.launches import remains
from tests.run.test_launch import results
from urc_sweep.store.commits import Store

SMALLEST_KIB, ROOMY = 64, "64m"
TIMEOUT_S = 300.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["urc_sweep.cli", "urc_sweep.run.launch", "urc_sweep.run.inline", "urc_sweep.show.report"])
READERS = (["status"], ["verify"], ["query", "select count(*) from trials"])


def mount(folder: Path, size: str, *options: str) -> str:
    """Mount a tmpfs, or give a mounted one another size; return why not, if it is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[str]:
    """Have a small disk at ``folder`` while the block runs; yield why not, if it cannot be had."""
    refused = mount(folder, f"{kib}k")
    try:
        yield refused
    finally:
        if not refused:
            unmount(folder)


@dataclass(frozen=True)
class Said:
    """How a command line ended."""

    returncode: int
    stderr: str


def say(folder: Path, *words: str) -> Said:
    """Run a command line in a fresh process."""
    spoken = folder / "stderr"
    process = FORKS.Process(target=command_line, args=(words, str(spoken)))
    process.start()
    process.join(TIMEOUT_S)
    process.kill()
    process.join()
    return Said(process.exitcode, spoken.read_text())


def command_line(words: tuple[str, ...], spoken: str) -> None:
    from urc_sweep import cli

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(os.open(spoken, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["urc-sweep", *words]
    cli.main()


class Scene:
    """One sweep, and what it gives where there is room."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk, self.path = folder, folder / "disk", folder / "sweep.yaml"
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text(small_sweep(epochs=2, weights="[0.01]").partition("  universal:")[0])
        done = self.launch(folder / "undisturbed")
        assert done.returncode == 0, done.stderr
        self.reference = results(folder / "undisturbed")
        files = (folder / "undisturbed").rglob("*")
        self.kib = sum(path.stat().st_size // 1024 + 1 for path in files)

    def launch(self, root: Path) -> Said:
        return say(self.folder, "launch", str(self.path), "--store", str(root), "--executor", "inline", "-q")

    def fill(self, kib: int, card: Card) -> Iterator[str]:
        """Launch on a disk of this size, read what is there, launch again with room; yield every broken promise."""
        root = self.disk / "store"
        with small_disk(self.disk, kib) as refused:
            if refused:
                yield f"no small disk: {refused}"
                return
            full = self.launch(root)
            if full.returncode == 0:
                return  # it had room enough
            card.injected += 1
            if full.returncode != 4 or full.stderr.count("\n") != 1 or "No space left" not in full.stderr:
                yield f"a full disk ends with {full.returncode}: {full.stderr[-600:]!r}"
            before = {}
            if Store(root).check():
                before = results(root)
                yield from self.read(root)
                yield from remains(root)
                if left := list((root / "tmp").iterdir()):
                    yield f"a full disk is filled with {len(left)} private files"
            card.acknowledged += len(before)
            mount(self.disk, ROOMY, "remount")
            again = self.launch(root)
            if again.returncode != 0:
                yield f"with room again the launch ends with {again.returncode}: {again.stderr[-600:]!r}"
            after = results(root)
            card.lost += sum(after.get(identity) != value for identity, value in before.items())
            card.runs += 1
            card.identical += after == self.reference
            checked = say(self.folder, "verify", "--store", str(root))
            if checked.returncode != 0:
                yield f"in the end: {checked.stderr}"

    def read(self, root: Path) -> Iterator[str]:
        """Every reader works on the full disk; before there is a plan, with one line that says so."""
        planned = bool(Store(root).sweeps())
        for words in READERS:
            read = say(self.folder, *words, "--store", str(root))
            lines = read.stderr.splitlines()
            excused = all(any(word in line for word in UNFINISHED) for line in lines) or not planned
            if read.returncode not in (0, 4) or "Traceback" in read.stderr or not (read.returncode == 0 or excused):
                yield f"{words[0]} ends with {read.returncode}: {read.stderr[-600:]!r}"


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Fill disks of sizes drawn by seed, from too small for a plan to almost large enough."""
    scene, rng = Scene(folder), random.Random(seed)
    for _ in budget.points():
        kib = round(SMALLEST_KIB * (scene.kib / SMALLEST_KIB) ** rng.random())
        problems = list(scene.fill(kib, card))
        card.problems += [f"{kib} KiB: {problem}" for problem in problems]
        if any(problem.startswith("no small disk") for problem in problems):
            return
