"""Where data sets live on this machine. Known without torch: a missing one is an error before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from urc_sweep.errors import DataError
from urc_sweep.plan import registry

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """A data root, and whether a missing set may be downloaded into it."""

    root: str | None = None
    offline: bool = False

    def directory(self, folder: str) -> Path:
        """Return where the IDX files of one MNIST-like set lie: ``<root>/<folder>/raw``, as torchvision has it."""
        root = Path(self.root) if self.root else Path.home() / ".cache" / "urc-sweep"
        return root / folder / "raw"

    def missing(self, name: str) -> list[str]:
        """Return the files of data set ``name`` that are there neither unpacked nor as ``.gz``."""
        folder = registry.find("dataset", name).facts.get("folder")
        if folder is None:
            return []
        directory = self.directory(folder)
        return [
            file for file in IDX_FILES if not (directory / file).is_file() and not (directory / f"{file}.gz").is_file()
        ]

    def require(self, name: str) -> None:
        """Raise ``DataError`` if the set is missing and may not be downloaded."""
        if self.offline and self.missing(name):
            raise DataError(
                f"data set {name} is not on this machine and --offline forbids a download: {self.remedy(name)}"
            )

    def remedy(self, name: str) -> str:
        """Return what to put where."""
        directory = self.directory(registry.find("dataset", name).facts["folder"])
        files = ", ".join(self.missing(name))
        return f"put {files} (or .gz) into {directory}, or name another folder with --data-root or URC_SWEEP_DATA"
