"""Every file name of a store, in one class. Nobody else joins paths."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import uuid
from pathlib import Path

from urc_sweep.errors import SpecError, StoreError

FORMAT = 1
_SWEEP = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")
_NAMES = {
    "commits": re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.json"),
    "failures": re.compile(r"[0-9a-f]{64}/(0|[1-9][0-9]{0,8})\.json"),
    "artifacts": re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.(safetensors|png|webp)"),
    "checkpoints": re.compile(r"[0-9a-f]{64}/(state\.json|[0-9a-f]{64}\.safetensors)"),
}


class Layout:
    """Paths of one store. Sweep names and ids are checked here, so that none can point outside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "format.json"
        self.lease = root / "lease.json"
        self.commits = root / "commits"

    def lease_claim(self, token: str, number: int) -> Path:
        """Return the name of a claim to the lease of a dead holder."""
        return self.root / "tmp" / f"claim-{hashlib.sha256(token.encode()).hexdigest()[:32]}-{number}"

    def private(self) -> Path:
        """Return a fresh name that no reader looks at, on the store's own filesystem."""
        return self.root / "tmp" / uuid.uuid4().hex

    def commit(self, commit_id: str) -> Path:
        return self.commits / self._hex(commit_id)[:2] / f"{commit_id}.json"

    def failure(self, trial_id: str, attempt: int) -> Path:
        return self.root / "failures" / self._hex(trial_id) / f"{attempt}.json"

    def artifact(self, sha256: str, suffix: str) -> Path:
        return self.root / "artifacts" / self._hex(sha256)[:2] / f"{sha256}{suffix}"

    def checkpoint(self, trial_id: str) -> Path:
        return self.root / "checkpoints" / self._hex(trial_id)

    def files(self, kind: str) -> tuple[list[Path], list[Path]]:
        """Return the files under ``commits``, ``failures`` ... that have a right name, and all that have not."""
        right: list[Path] = []
        strays: list[Path] = []
        for place, folders, names in os.walk(self.root / kind):
            for path in [Path(place, name) for name in (*names, *folders)]:
                named = _NAMES[kind].fullmatch(path.relative_to(self.root / kind).as_posix())
                with contextlib.suppress(FileNotFoundError):  # what vanishes meanwhile is nobody's problem
                    form = path.lstat().st_mode
                    if not stat.S_ISDIR(form):
                        (right if named and stat.S_ISREG(form) else strays).append(path)
        return sorted(right), sorted(strays)

    def sweep(self, name: str) -> Path:
        """Return the folder of one sweep; a link out of the store is refused."""
        if not _SWEEP.fullmatch(name):
            raise SpecError(f"{name!r} is not a sweep name: a lower-case letter, then up to 63 of a-z 0-9 . _ -")
        return self._inside(self.root / "sweeps" / name)

    def spec(self, name: str) -> Path:
        return self.sweep(name) / "spec.yaml"

    def generation(self, name: str, number: int) -> Path:
        return self.sweep(name) / "generations" / f"{number}.json"

    def stop(self, name: str) -> Path:
        return self.sweep(name) / "stop.json"

    def driver_log(self, name: str) -> Path:
        return self.sweep(name) / "driver.log"

    def report(self, name: str) -> Path:
        return self.sweep(name) / "report.html"

    def trials_table(self, name: str) -> Path:
        return self._inside(self.root / "trials" / f"sweep={self.sweep(name).name}" / "trials.parquet")

    def curves(self, name: str) -> Path:
        return self._inside(self.root / "curves" / f"sweep={self.sweep(name).name}")

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"{path} leads out of the store")
        return path

    @staticmethod
    def _hex(value: str) -> str:
        if not isinstance(value, str) or not _HEX.fullmatch(value):
            raise StoreError(f"{str(value)[:80]!r} is not an id (64 hex digits)")
        return value
