"""Data sets, held in memory as uint8. A data set is one decorated function that returns three splits of arrays.

A split is ``(images, labels)`` or, with label sets beside the primary one, ``(images, labels, {name: labels})``. The
decorator's fact ``labels`` names them, the primary one first (without it, that is ``class``). A set ``parity`` that
the function does not return is derived here from the primary label, so it adds nothing to the bytes that are hashed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from urc_sweep.errors import DataError, choices
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.plan import registry
from urc_sweep.plan.registry import component
from urc_sweep.plan.source import Source

SPLITS = ("train", "validation", "test")
PRIMARY = "class"
MAX_BYTES, MAX_IDX = 2**33, 2**27  # of a data set; of one IDX file, whose largest has 47 million
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Arrays = Mapping[str, tuple[Images, Labels] | tuple[Images, Labels, Mapping[str, Labels]]]


@dataclass(frozen=True, eq=False)
class Split:
    """Images (n, channels, height, width) uint8 and labels (n,) int64, on one device.

    ``labels`` are the primary ones; ``label_sets`` holds every set by name, the primary one first: left out, it is
    the primary one alone, as ``class``.
    """

    images: Tensor
    labels: Tensor
    label_sets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.label_sets:
            object.__setattr__(self, "label_sets", {PRIMARY: self.labels})

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
    def label_names(self) -> tuple[str, ...]:
        """Names of the label sets, the primary one first."""
        return tuple(self.train.label_sets)

    @property
    def classes(self) -> int:
        """Number of classes of the primary label set."""
        return self.classes_of(self.label_names[0])

    def classes_of(self, label: str) -> int:
        """Return the number of classes of label set ``label``."""
        if label not in self.label_names:
            raise DataError(f"the data has no label set {label!r}; {choices(label, self.label_names)}")
        return int(max(split.label_sets[label].max() for split in (self.train, self.validation, self.test))) + 1


@functools.lru_cache(maxsize=2)
def _load(name: str, parameters: tuple[tuple[str, object], ...], source: Source, device: str) -> Data:
    entry = registry.find("dataset", name)
    arrays: Arrays = entry.load()(source, **dict(parameters))
    found = sha256_of(arrays)
    pinned = entry.facts.get("sha256")
    if pinned is not None and "archives" not in entry.facts and found != pinned:
        raise DataError(f"data set {name}: bytes have SHA-256 {found[:12]}, the published ones {pinned[:12]}")
    primary, *others = entry.facts.get("labels", (PRIMARY,))
    splits = {}
    for split in SPLITS:
        images, labels, more = _parts(arrays, split)
        derived = {"parity": labels % 2} if "parity" in others else {}
        every = {primary: labels, **derived, **dict(sorted(more.items()))}
        sets = {label: torch.from_numpy(values).to(device) for label, values in every.items()}
        splits[split] = Split(torch.from_numpy(images).to(device), sets[primary], sets)
    return Data(**splits, sha256=found)


def _parts(arrays: Arrays, split: str) -> tuple[Images, Labels, Mapping[str, Labels]]:
    part = arrays[split]
    return (*part, {}) if len(part) == 2 else part


def load(name: str, parameters: Mapping[str, object], source: Source, device: str = "cpu") -> Data:
    """Return the data set on ``device``; loaded once per process. Raises ``DataError`` in one line."""
    return _load(name, tuple(sorted(parameters.items())), source, device)


def sha256_of(arrays: Arrays) -> str:
    """Return the hash of a data set's bytes: shapes, images and labels of the three splits in order.

    Label sets beside the primary one follow it, sorted by name and with their names.
    """
    sha = hashlib.sha256()
    names = sorted(_parts(arrays, SPLITS[0])[2])
    for split in SPLITS:
        images, labels, more = _parts(arrays, split)
        shapes = {values.shape for values in (labels, *more.values())}
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or shapes != {images.shape[:1]}:
            found = f"{images.dtype} {images.shape}"
            raise DataError(f"split {split}: expected uint8 images (n, c, h, w) and n labels, not {found}")
        if sorted(more) != names:
            raise DataError(f"split {split}: expected the label sets {names} of the first split, not {sorted(more)}")
        sha.update(repr((split, images.shape)).encode())
        sha.update(np.ascontiguousarray(images).reshape(-1).data)  # a view: no second copy of the images
        sha.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
        for name in names:
            sha.update(repr((split, name)).encode())
            sha.update(np.ascontiguousarray(more[name], dtype="<i8").tobytes())
    return sha.hexdigest()


@component(
    "dataset",
    "digits",
    version=1,
    sha256="f9a653046e9842ff83303e43b8ae8bd8ef0d0846e43d7040ba6d0d360e8ec53e",
    image=(1, 28, 28),
    labels=("digit", "parity"),
    train=1078,
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
    parts = stratified(labels, "split.digits", 0.60, 0.75)
    return {split: (images[part], labels[part]) for split, part in zip(SPLITS, parts, strict=True)}


def stratified(labels: Labels, name: str, *cuts: float) -> list[NDArray[np.int64]]:
    """Cut every class at the same shares of its members, in the order of a fixed stream; return sorted indices."""
    order = stream(FIXED_SEED, name).permutation(len(labels))
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    parts = [np.split(members, [round(cut * len(members)) for cut in cuts]) for members in classes]
    return [np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)]


@component(
    "dataset",
    "mnist",
    version=1,
    folder="MNIST",
    sha256="5e8a56a8a5f29b16329f3285957b0df32e12a28e94eab1134cfe300edc629904",
    image=(1, 28, 28),
    labels=("digit", "parity"),
    train=55000,
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
    labels=("garment",),
    train=55000,
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
    labels=("character",),
    train=55000,
)
def kmnist(source: Source) -> Arrays:
    """Kuzushiji-MNIST (Clanuwat et al. 2018), split like MNIST; named by the MD5 of its published archives."""
    return _idx(source, "kmnist")


@component(
    "dataset",
    "svhn",
    version=1,
    folder="SVHN",
    files=("train_32x32.mat", "test_32x32.mat"),
    sha256="svhn/e26dedcc+eb5a983b",
    archives=("e26dedcc434d2e4c54c9b2d4a06d8373", "eb5a983be6a315427106f1b164d9cef3"),
    image=(3, 32, 32),
    labels=("digit", "parity"),
    train=68257,
)
def svhn(source: Source) -> Arrays:
    """Street View House Numbers (Netzer et al. 2011), cropped; split like MNIST; named by the MD5 of its two files."""
    train, test = (_mat(path, md5) for path, md5 in _files(source, "svhn"))
    return _held_out(*train, *test)


@component("dataset", "folder", version=1, location=("path",))
def folder(source: Source, *, path: str = "") -> Arrays:
    """Your own PNG images or .npz file below the data root, at ``path``; see ``urc_sweep.learn.folder``."""
    from urc_sweep.learn.folder import read

    return read(source.inside("folder", path))


def _idx(source: Source, name: str) -> Arrays:
    """Read the four IDX files of an MNIST-like set."""
    images, labels, test_images, test_labels = (_read(path, md5) for path, md5 in _files(source, name))
    return _held_out(images[:, None], labels, test_images[:, None], test_labels)


def _held_out(images: Images, labels: Images, test_images: Images, test_labels: Images) -> Arrays:
    """Cut the validation split off the training one: 5,000 images, the same for everybody."""
    order = stream(FIXED_SEED, "split.idx").permutation(len(labels))
    held, kept = np.sort(order[:5000]), np.sort(order[5000:])
    return {
        "train": (images[kept], labels[kept].astype(np.int64)),
        "validation": (images[held], labels[held].astype(np.int64)),
        "test": (test_images, test_labels.astype(np.int64)),
    }


def bounded(path: Path, most: int) -> Path:
    """Return ``path`` if it is a file of at most ``most`` bytes: a device has no end, a pipe no writer."""
    if not path.is_file() or path.stat().st_size > most:
        raise DataError(f"{path}: not a file of at most {most:,} bytes")
    return path


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one ``DataError`` line that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # on damaged bytes: zlib.error, SyntaxError, struct.error, MemoryError, KeyError ...
        raise DataError(f"{path}: cannot be read: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _files(source: Source, name: str) -> list[tuple[Path, str]]:
    """Return the files of a published set with their MD5 (empty where none is pinned), after a download if need be."""
    if source.missing(name):
        _download(source, name)
    paths = source.paths(name)
    return list(zip(paths, registry.find("dataset", name).facts.get("archives", ("",) * len(paths)), strict=True))


def _check_md5(path: Path, found: str, md5: str) -> None:
    if md5 and found != md5:
        print(f"note: {path} is not the published archive (other MD5); its content is used as it is", file=sys.stderr)


def _read(path: Path, md5: str) -> NDArray[np.uint8]:
    """Return the array of one IDX file, unpacked or ``.gz``."""
    with reading(path):
        raw = bounded(path, MAX_IDX).read_bytes()
        if path.suffix == ".gz":
            _check_md5(path, hashlib.md5(raw, usedforsecurity=False).hexdigest(), md5)
            with gzip.open(io.BytesIO(raw)) as packed:
                raw = packed.read(MAX_IDX)
    start = 4 + 4 * raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 4
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if not shape or len(raw) != start + math.prod(shape):
        raise DataError(f"{path}: not an IDX file of unsigned bytes, or cut short")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _mat(path: Path, md5: str) -> tuple[Images, Images]:
    """Return images (n, 3, 32, 32) and digits of one file of SVHN, which labels the digit 0 as 10."""
    from scipy.io import loadmat

    with reading(path), path.open("rb") as file:
        found = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False))
        _check_md5(path, found.hexdigest(), md5)
        file.seek(0)
        content = loadmat(file, variable_names=("X", "y"))
        images, labels = content["X"], content["y"].ravel()
    small = images.dtype == np.uint8 and images.shape == (32, 32, 3, len(labels))
    if not small or labels.dtype.kind not in "iu" or not np.isin(labels, range(1, 11)).all():
        raise DataError(f"{path}: not a file of SVHN: expected X (32, 32, 3, n) uint8 and y (n, 1) of 1 to 10")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels % 10


def _download(source: Source, name: str) -> None:
    source.require(name)
    facts, directory = registry.find("dataset", name).facts, source.directory(name)
    print(f"downloading {name} to {directory} (12 to 250 MB)", file=sys.stderr, flush=True)
    from torchvision import datasets

    published = getattr(datasets, facts["folder"])
    try:
        if "files" in facts:  # torchvision has them one by one, and would replace a file that is there already
            for file in source.missing(name):
                published(root=str(directory), split=file.partition("_")[0], download=True)
        else:
            published(root=str(directory.parent.parent), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data set {name} could not be downloaded ({_line(error)}): {source.remedy(name)}") from None
