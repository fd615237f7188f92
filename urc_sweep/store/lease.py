"""One launch per store. The lease saves work, never correctness: commits decide who was first."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from urc_sweep.errors import StoreError
from urc_sweep.store.commits import Store, bytes_of

HEARTBEAT_S, EXPIRY_S, SETTLE_S = 2.0, 60.0, 0.02


class Lease:
    """Hold a store's lease while the ``with`` block runs; ``StoreError`` (exit 4) names another holder."""

    def __init__(self, store: Store, sweep: str, take_over: bool = False) -> None:
        self.store, self.path, self.take_over = store, store.layout.lease, take_over
        self.token = uuid.uuid4().hex
        self.mine = {"token": self.token, "sweep": sweep, "beat": 0, **process(os.getpid())}
        self.lost = threading.Event()
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        # A few rounds: a lease may be released, or taken by somebody else, while we look.
        for _ in range(20):
            if self.store.link(self.path, self._bytes()) or self._succeed(_read(self.path)):
                self._heart.start()
                return self
            time.sleep(SETTLE_S)
        if self.path.exists() and _read(self.path) is None:
            raise StoreError(f"{self.path}: damaged; --take-over replaces it if no launch is running")
        raise StoreError(f"{self.store.root}: the lease changes hands too fast; try again")

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._heart.join()  # a heartbeat under way would write the lease again
        if (_read(self.path) or {}).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _dead(self, holder: dict[str, Any], path: Path) -> bool | None:
        """Return whether the holder of a lease or claim is gone: by its process on this host, else by its heartbeat.

        ``None`` if it holds ``path`` no more.
        """
        lives = _lives(holder)
        if lives is not None:
            return not lives
        deadline = time.monotonic() + EXPIRY_S
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_S / 4)
            now = _read(path)
            if now is None or now.get("token") != holder.get("token"):
                return None
            if now.get("beat") != holder.get("beat"):
                return False
        return True

    def _succeed(self, holder: dict[str, Any] | None) -> bool:
        """Replace a dead lease by ours. Who may do so is decided by link(2) on a claim named after the dead one."""
        if self.take_over:
            self.store.replace(self.path, self._bytes())
            return True
        if holder is None:
            return False
        dead = self._dead(holder, self.path)
        if dead is None:
            return False  # look again
        if not dead:
            place = f"process {holder.get('pid')} on {holder.get('host')}"
            advice = "wait, `urc-sweep stop`, or --take-over if it is gone"
            raise StoreError(f"{self.store.root} is in use by sweep {holder.get('sweep')!r}, {place}; {advice}")
        for number in itertools.count():
            claim = self.store.layout.lease_claim(str(holder.get("token")), number)
            if self.store.link(claim, self._bytes()):
                # Only now: while we hold the claim nobody else replaces this very lease.
                mine = (_read(self.path) or {}).get("token") == holder.get("token")
                if mine:
                    self.store.replace(self.path, self._bytes())
                claim.unlink(missing_ok=True)
                return mine
            claimant = _read(claim)
            if claimant is None or not self._dead(claimant, claim):
                return False  # somebody is replacing it now; look again
        raise AssertionError("claims are tried until one is free")

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            if (_read(self.path) or {}).get("token") != self.token:
                self.lost.set()
                return
            self.mine["beat"] += 1
            with contextlib.suppress(OSError):  # a full disk may have room again at the next
                self.store.replace(self.path, self._bytes())

    def _bytes(self) -> bytes:
        return json.dumps(self.mine, sort_keys=True).encode()


def holder_of(store: Store) -> dict[str, Any] | None:
    """Return who holds the store's lease on this host and is alive; ``None`` where nobody is known to."""
    holder = _read(store.layout.lease)
    return None if holder is None or _lives(holder) is False else holder


def launching(store: Store) -> str | None:
    """Return the sweep whose launch runs, or was killed and left its lease: its tables may be behind."""
    return (_read(store.layout.lease) or {}).get("sweep")


def _lives(holder: dict[str, Any]) -> bool | None:
    """Return whether a holder's process runs, ``None`` for one of another host or boot: only its heart can tell."""
    here = process(os.getpid())
    if (holder.get("host"), holder.get("boot_id")) != (here["host"], here["boot_id"]):
        return None
    pid = holder.get("pid")
    return isinstance(pid, int) and process(pid).get("started") == holder.get("started")


def process(pid: int) -> dict[str, Any]:
    """Return what tells one process from every other: host, boot, pid and start time; no start time for a dead one."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "pid": pid, "boot_id": _boot_id()}
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return facts
    return facts if after_name[0] in "ZX" else facts | {"started": int(after_name[19])}


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(bytes_of(path, 10_000))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
