"""The commit protocol. Invariant: a name, once linked, holds one complete, durable, immutable record for ever.

A record is written to a private name, fsynced, and linked into place with link(2), which fails if the name exists:
the first writer wins, everybody else discards. No locks, no rename over a commit, no in-place write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from urc_sweep.errors import StoreError
from urc_sweep.maths.ids import digest
from urc_sweep.store.layout import FORMAT, Layout

# What a record may ask of a reader: a plan of 10,000 trials has 14 MB and 600,000 values. Three bytes of a stranger's
# JSON can take 64 in memory, so values are bounded as well, by what separates and opens them.
MAX_RECORD_BYTES, MAX_RECORD_VALUES = 32 * 2**20, 4_000_000
MAX_ARTIFACT_BYTES = 4 * 2**30
Record = dict[str, Any]


class Store:
    """One store directory: commits and failures (the truth), artifacts and checkpoints (bytes)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.layout = Layout(self.root)
        self._read: dict[str, Record] = {}

    # -- the directory -------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the store's folders, or check the format of one that exists."""
        if self.check():
            return
        try:
            _make_durably(self.root / "tmp")
            self.link(self.layout.format, json.dumps({"format": FORMAT, "made_by": "urc-sweep"}).encode())
        except OSError as error:
            raise StoreError(f"{self.root}: cannot make a store here: {error.strerror or error}") from None

    def check(self) -> bool:
        """Return whether this is a store; raise ``StoreError`` if it is one that cannot be read."""
        try:
            text = bytes_of(self.layout.format, 1_000)
        except (FileNotFoundError, NotADirectoryError):
            if self.root.exists() and not self.root.is_dir():
                raise StoreError(f"{self.root} is a file, not a store") from None
            return False
        except OSError as error:
            raise StoreError(f"{self.root}: the store cannot be read: {error.strerror}") from None
        try:
            number = json.loads(text)["format"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(f"{self.layout.format} is damaged: it should name the store's format") from None
        if not isinstance(number, int) or number > FORMAT:
            raise StoreError(f"{self.layout.format}: format {number} is newer than this urc-sweep reads ({FORMAT})")
        return True

    def require(self) -> None:
        """Raise ``StoreError`` unless this is a store."""
        if not self.check():
            raise StoreError(f"{self.root} is not a store; `urc-sweep launch SPEC --store {self.root}` makes one")

    # -- the protocol --------------------------------------------------------------------------------------------

    def link(self, path: Path, data: bytes) -> bool:
        """Publish ``data`` at ``path`` unless something is there; return whether this writer won."""
        private = self.write_private(data)
        try:
            _make_durably(path.parent)
            try:
                os.link(private, path)
            except OSError as error:
                # NFS may lose the answer of a link that was done, or ask for it once more: the link count tells.
                if os.stat(private).st_nlink != 2:
                    if isinstance(error, FileExistsError):
                        return False
                    raise
            _sync_directory(path.parent)
            return True
        finally:
            private.unlink(missing_ok=True)

    def replace(self, path: Path, data: bytes) -> None:
        """Put ``data`` at ``path``, whole or not at all; for projections, never for the truth."""
        private = self.write_private(data)
        _make_durably(path.parent)
        os.replace(private, path)
        _sync_directory(path.parent)

    def write_private(self, data: bytes) -> Path:
        """Write and fsync ``data`` under a private name and return it."""
        private = self.layout.private()
        private.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(private, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            private.unlink(missing_ok=True)  # on a full disk every retry would leave one
            raise
        return private

    # -- commits and failures ------------------------------------------------------------------------------------

    def commit(self, commit_id: str, record: Record) -> bool:
        """Commit a record under its content id; return whether this writer won."""
        return self.link(self.layout.commit(commit_id), _seal(record))

    def committed(self, commit_id: str) -> Record | None:
        """Return the record of an id, ``None`` if there is none; raise ``StoreError`` if it is damaged."""
        if commit_id not in self._read:
            record = read_record(self.layout.commit(commit_id))
            if record is None:
                return None
            if record.get("id") != commit_id:
                raise StoreError(f"{self.layout.commit(commit_id)} holds the record of {str(record.get('id'))[:12]}")
            self._read[commit_id] = record
        return self._read[commit_id]

    def commit_ids(self) -> list[str]:
        """Return the ids of all commits, sorted."""
        return [path.stem for path in sorted(self.layout.commits.glob("??/*.json"))]

    def fail(self, trial_id: str, attempt: int, record: Record) -> bool:
        """Record how an attempt at a trial failed; return whether this writer was first."""
        return self.link(self.layout.failure(trial_id, attempt), _seal(record))

    def failures(self, trial_id: str) -> list[Record]:
        """Return the failed attempts of a trial, oldest first."""
        paths = self.layout.failure(trial_id, 0).parent.glob("*.json")
        by_attempt = sorted((path for path in paths if path.stem.isdecimal()), key=lambda path: int(path.stem))
        found = {path: record for path in by_attempt if (record := read_record(path)) is not None}
        for path, record in found.items():
            if (type(record.get("final")), type(record.get("status")), type(record.get("attempt"))) != (bool, str, int):
                raise StoreError(f"{path}: damaged: not a whole record")
        return list(found.values())

    def final_failure(self, trial_id: str) -> Record | None:
        """Return the failure that ended a trial, ``None`` while attempts are left or it was reopened.

        A worker that was given up may record its attempt after that: it neither ends nor reopens anything.
        """
        for record in reversed(self.failures(trial_id)):
            if record["final"]:
                return record
            if record["status"] == "reopened":
                return None
        return None

    # -- artifacts -----------------------------------------------------------------------------------------------

    def put(self, data: bytes, suffix: str) -> str:
        """Store bytes under their own SHA-256 and return it; the same bytes are stored once."""
        sha256 = digest(data)
        path = self.layout.artifact(sha256, suffix)
        if not self.link(path, data):
            os.utime(path)  # as fresh as one that was just written: `store gc` leaves it to its commit
            if digest(path.read_bytes()) != sha256:
                self.replace(path, data)  # rotten since: its name says what it should be
        return sha256

    def get(self, sha256: str, suffix: str) -> bytes:
        """Return an artifact's bytes, checked against their name."""
        path = self.layout.artifact(sha256, suffix)
        try:
            data = bytes_of(path, MAX_ARTIFACT_BYTES)
        except OSError as error:
            raise StoreError(f"{path}: the artifact cannot be read: {error.strerror}") from None
        if digest(data) != sha256:
            raise StoreError(f"{path}: damaged: its bytes have SHA-256 {digest(data)[:12]}")
        return data

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, trial_id: str, tensors: bytes, state: Record) -> None:
        """Replace a trial's checkpoint: tensors first, then the state that names their hash."""
        folder = self.layout.checkpoint(trial_id)
        name = digest(tensors)
        self.replace(folder / f"{name}.safetensors", tensors)
        self.replace(folder / "state.json", _seal(state | {"trial_id": trial_id, "tensors": name}))
        for old in folder.glob("*.safetensors"):
            if old.stem != name:
                old.unlink(missing_ok=True)

    def load_checkpoint(self, trial_id: str) -> tuple[bytes, Record] | None:
        """Return the last whole checkpoint of a trial, ``None`` if there is none or it is damaged."""
        folder = self.layout.checkpoint(trial_id)
        try:
            state = read_record(folder / "state.json")
            if state is None or state["trial_id"] != trial_id:
                return None
            tensors = bytes_of(folder / f"{state['tensors']}.safetensors", MAX_ARTIFACT_BYTES)
        except (OSError, StoreError, KeyError, TypeError):
            return None
        return (tensors, state) if digest(tensors) == state["tensors"] else None

    def checkpoint_mark(self, trial_id: str) -> tuple[int, int] | None:
        """Return what changes with every checkpoint of a trial, ``None`` while there is none."""
        with contextlib.suppress(OSError):
            facts = os.stat(self.layout.checkpoint(trial_id) / "state.json")
            return facts.st_ino, facts.st_mtime_ns
        return None

    def drop_checkpoint(self, trial_id: str) -> None:
        """Remove a trial's checkpoint; it is committed."""
        folder = self.layout.checkpoint(trial_id)
        # The state first: what a kill leaves then names nothing that is gone.
        for path in (folder / "state.json", *folder.glob("*.safetensors")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or a zombie is writing there still
            folder.rmdir()

    # -- sweeps --------------------------------------------------------------------------------------------------

    def sweeps(self) -> list[str]:
        """Return the names of the store's sweeps, the newest launch last."""
        launched = self._launched()
        return sorted(launched, key=lambda name: (*launched[name], name))

    def next_sequence(self) -> int:
        """Return the number of the next launch: clocks may jump, so order is by sequence."""
        return max((number for number, _ in self._launched().values()), default=0) + 1

    def _launched(self) -> dict[str, tuple[int, str]]:
        launched = {}
        for path in (self.root / "sweeps").glob("*/generations/0.json"):
            try:
                record = read_record(path) or {}
            except StoreError:
                record = {}  # whoever reads the plan itself is told
            number, moment = record.get("sequence"), str(record.get("launched_at", ""))
            launched[path.parent.parent.name] = (number if isinstance(number, int) else 0, moment)
        return launched

    def generation(self, name: str) -> Record:
        """Return what the last launch planned for a sweep; raise ``StoreError`` if there is no such sweep."""
        record = read_record(self.layout.generation(name, 0))
        if record is None:
            raise StoreError(f"{self.root} holds no sweep {name!r}; it has: {', '.join(self.sweeps()) or 'none'}")
        return record

    def save_generation(self, name: str, record: Record) -> None:
        self.replace(self.layout.generation(name, 0), _seal(record))


def _seal(record: Mapping[str, Any]) -> bytes:
    return _sealed(json.dumps(record, sort_keys=True, allow_nan=False).encode())


def _sealed(body: bytes) -> bytes:
    return b'{"record": %b, "sha256": "%b"}' % (body, digest(body).encode())


def read_record(path: Path) -> Record | None:
    """Return the record of a sealed file, ``None`` if there is none."""
    try:
        data = bytes_of(path, MAX_RECORD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_RECORD_VALUES:
        raise StoreError(f"{path}: damaged: it holds more values than any record")
    body = data.partition(b": ")[2].rpartition(b", ")[0]
    try:
        record: Record = json.loads(body, parse_float=_finite, parse_constant=_finite)
        # Byte by byte: 1E5 for 1e5 or a space at the end is damage, too.
        intact = isinstance(record, dict) and data == _sealed(body)
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise StoreError(f"{path}: damaged: its checksum does not match its content")
    return record


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def bytes_of(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file, else raise ``OSError``: a pipe has no writer, a device no end."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        raise OSError(errno.EFBIG, f"damaged: not a file of at most {most:,} bytes", str(path))
    return path.read_bytes()


def _make_durably(folder: Path) -> None:
    """Make a folder such that its name survives a power cut, too."""
    if not folder.is_dir():
        _make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_directory(folder.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
