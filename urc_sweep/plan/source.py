"""Where data sets live on this machine. Known without torch: a missing one is an error before anything starts."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import safetensors

from urc_sweep.errors import DataError
from urc_sweep.plan import registry

MAX_FILE, MAX_HEADER, MAX_TENSORS = 256 * 2**20, 10**6, 10_000  # of a checkpoint that a sweep file names
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """A data root, and whether a missing set may be downloaded into it.

    A published set says by its fact ``folder`` where its files lie, and by ``files`` which they are (without: IDX
    files, also as ``.gz``). Other sets have no files of their own here.
    """

    root: str | None = None
    offline: bool = False

    @property
    def base(self) -> Path:
        return Path(self.root) if self.root else Path.home() / ".cache" / "urc-sweep"

    def directory(self, name: str) -> Path:
        """Return where the files of a published set belong: ``<root>/<folder>/raw``, as torchvision has it."""
        folder = registry.find("dataset", name).facts.get("folder")
        return self.base if folder is None else self.base / folder / "raw"

    def paths(self, name: str) -> list[Path]:
        """Return where each file of a published set is, else where it belongs; unpacked wins over ``.gz``."""
        facts, directory = registry.find("dataset", name).facts, self.directory(name)
        if "folder" not in facts:
            return []
        endings = ("",) if "files" in facts else ("", ".gz")
        places = [
            [folder / f"{file}{ending}" for folder in (directory, directory.parent) for ending in endings]
            for file in facts.get("files", IDX_FILES)
        ]
        return [next(filter(Path.is_file, candidates), candidates[0]) for candidates in places]

    def missing(self, name: str) -> list[str]:
        """Return the files of data set ``name`` that are not there."""
        return [path.name for path in self.paths(name) if not path.is_file()]

    def require(self, name: str) -> None:
        """Raise ``DataError`` if the set is missing and may not be downloaded."""
        if self.offline and self.missing(name):
            why = "is not on this machine and --offline forbids a download"
            raise DataError(f"data set {name} {why}: {self.remedy(name)}")

    def remedy(self, name: str) -> str:
        """Return what to put where."""
        facts = registry.find("dataset", name).facts
        files = ", ".join(self.missing(name)) + ("" if "files" in facts else " (or .gz)")
        what = files if "folder" in facts else "it"
        return f"put {what} into {self.directory(name)}, or name another folder with --data-root or URC_SWEEP_DATA"

    def inside(self, name: str, path: str) -> Path:
        """Return the place that a sweep file names for data set ``name``; it never lies outside of the data root."""
        place = Path(path)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            wanted = f"a folder or .npz file below {self.base}, without `..`"
            raise DataError(f"data set {name}: path {path!r}: expected {wanted}")
        if not os.path.exists(self.base / place):  # unlike Path.exists, False for names no file system takes
            raise DataError(f"data set {name}: there is no {path!r}: {self.remedy(name)}")
        if not (self.base / place).is_file() and not (self.base / place).is_dir():
            raise DataError(f"data set {name}: {path!r} is no file and no folder")
        return self.base / place


def read_safetensors(path: Path) -> bytes:
    """Return the bytes of a stranger's safetensors file; ``OSError`` or ``ValueError`` says why they are none."""
    # A pipe has no writer, a device no end, and what /proc shows as a file has no size.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or not 8 <= facts.st_size <= MAX_FILE:
            raise ValueError(f"not a file of 8 to {MAX_FILE:,} bytes")
        data = file.read(MAX_FILE)
    if (length := int.from_bytes(data[:8], "little")) > min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"not a safetensors file: a header of {length:,} bytes in {len(data):,}")
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            count = len(opened.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from None
    if count > MAX_TENSORS:
        raise ValueError(f"not a network: {count:,} tensors")
    return data
