"""Data sets, held in memory as uint8. A data set is one decorated function that returns three splits of arrays."""

from __future__ import annotations

import functools
import gzip
import hashlib
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from urc_sweep.errors import DataError
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.plan import registry
from urc_sweep.plan.registry import component
from urc_sweep.plan.source import IDX_FILES, Source

SPLITS = ("train", "validation", "test")
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Arrays = dict[str, tuple[Images, Labels]]


@dataclass(frozen=True, eq=False)
class Split:
    """Images (n, channels, height, width) uint8 and labels (n,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return the chosen images as floats in [0, 1] (float32; float64 only under the goldens' default dtype)."""
        return self.images[index].to(torch.get_default_dtype()).div_(255.0)


@dataclass(frozen=True, eq=False)
class Data:
    """The three splits of one data set, and the hash of their bytes."""

    train: Split
    validation: Split
    test: Split
    sha256: str

    @property
    def image(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        return int(max(split.labels.max() for split in (self.train, self.validation, self.test))) + 1


@functools.lru_cache(maxsize=2)
def _load(name: str, parameters: tuple[tuple[str, object], ...], source: Source, device: str) -> Data:
    entry = registry.find("dataset", name)
    arrays: Arrays = entry.load()(source, **dict(parameters))
    found = sha256_of(arrays)
    pinned = entry.facts.get("sha256")
    if pinned is not None and "archives" not in entry.facts and found != pinned:
        raise DataError(f"data set {name}: bytes have SHA-256 {found[:12]}, the published ones {pinned[:12]}")
    splits = {
        split: Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))
        for split, (images, labels) in arrays.items()
    }
    return Data(**splits, sha256=found)


def load(name: str, parameters: Mapping[str, object], source: Source, device: str = "cpu") -> Data:
    """Return the data set on ``device``; loaded once per process. Raises ``DataError`` in one line."""
    return _load(name, tuple(sorted(parameters.items())), source, device)


def sha256_of(arrays: Arrays) -> str:
    """Return the hash of a data set's bytes: shapes, images and labels of the three splits in order."""
    sha = hashlib.sha256()
    for split in SPLITS:
        images, labels = arrays[split]
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),):
            raise DataError(
                f"split {split}: expected uint8 images (n, c, h, w) and n labels, not {images.dtype} {images.shape}"
            )
        sha.update(repr((split, images.shape)).encode())
        sha.update(np.ascontiguousarray(images).tobytes())
        sha.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return sha.hexdigest()


@component(
    "dataset",
    "digits",
    version=1,
    sha256="f9a653046e9842ff83303e43b8ae8bd8ef0d0846e43d7040ba6d0d360e8ec53e",
    image=(1, 28, 28),
    classes=10,
    train=1078,
    validation=269,
    test=450,
)
def digits(source: Source) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8 at 17 grey levels, bilinear to 28x28; stratified 60/15/25 split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small, labels = bunch.images.astype(np.int64), bunch.target.astype(np.int64)
    # Output pixel i lies at (4i - 5) / 14 of the input: integer weights over 14, hence the same bytes everywhere.
    position = np.clip(4 * np.arange(28) - 5, 0, 14 * 7)
    low, weight = np.minimum(position // 14, 6), position - 14 * np.minimum(position // 14, 6)
    resize = np.zeros((28, 8), dtype=np.int64)
    resize[np.arange(28), low] += 14 - weight
    resize[np.arange(28), low + 1] += weight
    scaled = np.einsum("ai,nij,bj->nab", resize, small, resize)  # 0 .. 16 * 196
    images = ((scaled * 2 * 255 + 16 * 196) // (2 * 16 * 196)).astype(np.uint8)[:, None]
    order = stream(FIXED_SEED, "split.digits").permutation(len(labels))
    chosen: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    for label in range(10):
        members = order[labels[order] == label]
        cuts = [round(0.60 * len(members)), round(0.75 * len(members))]
        for split, part in zip(SPLITS, np.split(members, cuts), strict=True):
            chosen[split].append(part)
    index = {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}
    return {split: (images[index[split]], labels[index[split]]) for split in SPLITS}


@component(
    "dataset",
    "mnist",
    version=1,
    folder="MNIST",
    sha256="5e8a56a8a5f29b16329f3285957b0df32e12a28e94eab1134cfe300edc629904",
    image=(1, 28, 28),
    classes=10,
    train=55000,
    validation=5000,
    test=10000,
)
def mnist(source: Source) -> Arrays:
    """MNIST; 5,000 of its 60,000 training images, the same for everybody, are the validation split."""
    return _idx(source, "mnist")


@component(
    "dataset",
    "fashion_mnist",
    version=1,
    folder="FashionMNIST",
    sha256="fashion-mnist/8d4fb7e6+25c81989+bef4ecab+bb300cfd",
    archives=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    image=(1, 28, 28),
    classes=10,
    train=55000,
    validation=5000,
    test=10000,
)
def fashion_mnist(source: Source) -> Arrays:
    """Fashion-MNIST (Xiao et al. 2017), split like MNIST; named by the MD5 of its published archives."""
    return _idx(source, "fashion_mnist")


@component(
    "dataset",
    "kmnist",
    version=1,
    folder="KMNIST",
    sha256="kmnist/bdb82020+e144d726+5c965bf0+7320c461",
    archives=(
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
    image=(1, 28, 28),
    classes=10,
    train=55000,
    validation=5000,
    test=10000,
)
def kmnist(source: Source) -> Arrays:
    """Kuzushiji-MNIST (Clanuwat et al. 2018), split like MNIST; named by the MD5 of its published archives."""
    return _idx(source, "kmnist")


def _idx(source: Source, name: str) -> Arrays:
    """Read the four IDX files of an MNIST-like set, and cut the validation split off the training one."""
    facts = registry.find("dataset", name).facts
    if source.missing(name):
        _download(source, name, facts["folder"])
    directory, md5s = source.directory(facts["folder"]), facts.get("archives", ("",) * len(IDX_FILES))
    images, labels, test_images, test_labels = (
        _read(directory / file, md5) for file, md5 in zip(IDX_FILES, md5s, strict=True)
    )
    order = stream(FIXED_SEED, "split.idx").permutation(len(labels))
    held, kept = np.sort(order[:5000]), np.sort(order[5000:])
    return {
        "train": (images[kept][:, None], labels[kept].astype(np.int64)),
        "validation": (images[held][:, None], labels[held].astype(np.int64)),
        "test": (test_images[:, None], test_labels.astype(np.int64)),
    }


def _read(path: Path, md5: str) -> NDArray[np.uint8]:
    """Return the array of one IDX file; an unpacked one wins over its ``.gz``."""
    try:
        if path.is_file():
            raw = path.read_bytes()
        else:
            path = path.with_name(path.name + ".gz")
            packed = path.read_bytes()
            raw = gzip.decompress(packed)
            if md5 and hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5:
                print(
                    f"note: {path} is not the published archive (other MD5); its content is used as it is",
                    file=sys.stderr,
                )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    dimensions = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = (
        np.frombuffer(raw, ">i4", count=dimensions, offset=4) if len(raw) >= 4 + 4 * dimensions else np.zeros(1, int)
    )
    if dimensions == 0 or len(raw) != 4 + 4 * dimensions + int(np.prod(shape.astype(np.int64))):
        raise DataError(f"{path}: not an IDX file of unsigned bytes, or cut short")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape.tolist()).copy()


def _download(source: Source, name: str, folder: str) -> None:
    source.require(name)
    directory = source.directory(folder)
    print(f"downloading {name} to {directory} (12 to 30 MB)", file=sys.stderr, flush=True)
    from torchvision import datasets

    try:
        getattr(datasets, folder)(root=str(directory.parent.parent), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"data set {name} could not be downloaded ({reason}): {source.remedy(name)}") from None
