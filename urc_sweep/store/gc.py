"""``store gc``: removes what nothing references. Invariant: no commit, no failure, and nothing that one of them names.

Any 64 hex digits in a record count as a reference, so that records of later releases are understood, too. Age protects
what a worker has written and not yet named.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import time
from pathlib import Path

from urc_sweep.errors import StoreError
from urc_sweep.store.commits import Store, read_record
from urc_sweep.store.lease import Lease


def collect(store: Store, hours: float, dry_run: bool = False) -> list[tuple[Path, int]]:
    """Remove garbage that is older than ``hours``; return it with its sizes. ``StoreError`` while a launch runs."""
    # To look needs no lease, which a read-only store cannot give.
    with contextlib.nullcontext() if dry_run else Lease(store, "store gc"):
        found = garbage(store, time.time() - hours * 3600)
        for path, _ in [] if dry_run else found:
            path.unlink(missing_ok=True)
            if path.parent.parent.name in ("checkpoints", "trials", "curves"):
                with contextlib.suppress(OSError):  # it holds more
                    path.parent.rmdir()
    return found


def garbage(store: Store, before: float) -> list[tuple[Path, int]]:
    """Return the files, with sizes, that no record references and that were last changed before a moment.

    Refuses if a record is unreadable.
    """
    layout = store.layout
    commits, strays = layout.files("commits")
    failures, more = layout.files("failures")
    for path in strays + more:
        raise StoreError(f"{path}: does not belong there, and may reference what would be removed; run verify")
    plans = list(layout.root.glob("sweeps/*/generations/*.json"))
    planned = _references(plans)
    named = _references(commits + failures) | planned
    live = planned - {path.stem for path in commits}
    tables = [path for kind in ("trials", "curves") for path in layout.root.glob(f"{kind}/sweep=*/*")]
    sweeps = {f"sweep={path.parent.parent.name}" for path in plans}
    found = [
        *layout.root.glob("tmp/*"),
        *(path for path in layout.files("artifacts")[0] if path.stem not in named),
        # The state first: what a kill leaves then names nothing that is gone.
        *(path for path in reversed(layout.files("checkpoints")[0]) if path.parent.name not in live),
        *(path for path in tables if path.parent.name not in sweeps),
    ]
    old = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            facts = path.lstat()
            if facts.st_mtime <= before and not stat.S_ISDIR(facts.st_mode):
                old.append((path, facts.st_size))
    return old


def _references(paths: list[Path]) -> set[str]:
    return {word for path in paths for word in re.findall("[0-9a-f]{64}", json.dumps(read_record(path)))}
