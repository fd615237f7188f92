"""Damage to files at rest: whatever happens to one of them, ``verify`` names it.

Covered is every file that holds results or state. Not covered are the report, the log, and what only a running launch
has. One deletion cannot be seen: without its ``state.json`` a checkpoint is one that was never finished, and its trial
begins anew.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.card import Budget, Card
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

RELEASE = Path(__file__).parent.parent / "store" / "first_release"
COVERED = (
    "format.json",
    "commits/*/*.json",
    "failures/*/*.json",
    "artifacts/*/*.safetensors",
    "artifacts/*/*.png",
    "trials/*/*.parquet",
    "curves/*/*.parquet",
    "sweeps/*/generations/*.json",
    "sweeps/*/spec.yaml",
    "checkpoints/*/state.json",
    "checkpoints/*/*.safetensors",
)


def flip(data: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def extend(data: bytes, chance: random.Random) -> bytes:
    return data + chance.choice([b"\n", b" ", b"\0" * 512, chance.randbytes(16), data])


def zero(data: bytes, chance: random.Random) -> bytes:
    """A block that never reached the disk."""
    start = chance.randrange(len(data))
    length = min(chance.choice([1, 16, 512, 4096]), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, truncate, extend, zero)
DAMAGES = (*(change.__name__ for change in CHANGES), "delete", "swap")


def damage(root: Path, chance: random.Random) -> tuple[str, list[Path], dict[Path, bytes]]:
    """Damage one file of a store, or two; return what was done, to which, and what they held."""
    while True:
        pattern, kind = chance.choice(COVERED), chance.choice(DAMAGES)
        found = sorted(root.glob(pattern))
        path = chance.choice(found)
        before = {path: path.read_bytes()}
        if kind == "delete":
            if path.name == "state.json":
                continue
            path.unlink()
        elif kind == "swap":
            others = [other for other in found if other.read_bytes() != before[path]]
            if not others:
                continue
            other = chance.choice(others)
            before[other] = other.read_bytes()
            path.write_bytes(before[other])
            other.write_bytes(before[path])
        else:
            changed = next(change for change in CHANGES if change.__name__ == kind)(before[path], chance)
            if changed == before[path]:  # zeros over zeros
                continue
            path.write_bytes(changed)
        return kind, list(before), before


def is_named(path: Path, kind: str, problems: list[str]) -> bool:
    """Whether a problem names the file; of curves it may name the folder, of a deleted file what lacks it."""
    if kind == "delete":
        return bool(problems)
    names = [str(path), str(path.parent)] if path.match("curves/*/*") else [str(path)]
    return any(line.startswith((f"{name}:", f"{name} ")) for line in problems for name in names)


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Damage a store of a finished and of a stopped sweep, point by point; each point is restored."""
    root = folder / "store"
    shutil.copytree(RELEASE, root)
    assert verify(Store(root))[0] == []
    for number in budget.points():
        kind, paths, before = damage(root, random.Random(f"{seed}/{number}"))
        problems = verify(Store(root))[0]
        card.injected += 1
        if not any(is_named(path, kind, problems) for path in paths):
            place = ", ".join(str(path.relative_to(root)) for path in paths)
            card.problems.append(f"seed {seed}, point {number}: {kind} of {place}: not found; {problems[:2]}")
        for path, data in before.items():
            path.write_bytes(data)
    if verify(Store(root))[0]:
        card.problems.append(f"seed {seed}: the restored store is not whole")
