"""A person's own images. Invariant: the same bytes give the same arrays, wherever they lie and in whatever order.

Two layouts. A folder of PNG images, ``class/*.png``, or with its splits given, ``train/class/*.png``, ``test/...`` and
maybe ``validation/...``; further label sets are the columns of ``labels.csv`` (``file,<set>,<set>``, files relative to
the folder). Or an ``.npz`` file: ``images`` (n, h, w) or (n, h, w, channels) uint8, ``labels`` (n,), maybe
``labels_<set>`` (n,) and ``split`` (n,) with 0, 1, 2 for train, validation, test.

Classes are numbered in the order of their sorted names, or of their values where all are integers. Without given
splits every class is cut 70/10/20; without a validation split it is 10 % of each class of the training split.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from urc_sweep.errors import DataError
from urc_sweep.learn.data import MAX_BYTES, PRIMARY, SPLITS, Arrays, Images, Labels, bounded, reading, stratified

Values = NDArray[Any]  # one label set as it was read: integers or words
Pixels = Callable[[Labels], Images]  # reads the images at these indices, so that none is held twice
MAX_PIXELS, MAX_TEXT = 2**22, 2**26
LAYOUT = "expected class/*.png and nothing else, or train/ and test/ (and validation/) with class/*.png in each"


def read(place: Path) -> Arrays:
    """Return the splits of the folder or ``.npz`` file at ``place``, each with its further label sets."""
    return _npz(place) if place.suffix == ".npz" else _tree(place)


def _arrays(place: Path, pixels: Pixels, labels: Values, more: dict[str, Values], given: Values | None) -> Arrays:
    """Number the classes of every label set and cut the splits, or take them as ``given``."""
    sets: dict[str, Labels] = {}
    for name, values in [*more.items(), (PRIMARY, labels)]:
        if name in sets or not name.isidentifier():
            raise DataError(f"{place}: label set {name!r}: expected letters, digits and _, and not {PRIMARY!r}")
        classes, sets[name] = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"{place}: label set {name!r} has one class only")
    primary = sets.pop(PRIMARY)
    if given is None:
        parts = stratified(primary, "split.folder", 0.7, 0.8)
    else:
        parts = [np.flatnonzero(given == number) for number in range(len(SPLITS))]
        if len(parts[0]) and not len(parts[1]):
            parts[:2] = (parts[0][part] for part in stratified(primary[parts[0]], "split.folder", 0.9))
    arrays: dict[str, tuple[Images, Labels, dict[str, Labels]]] = {}
    for split, part in zip(SPLITS, parts, strict=True):
        lost = np.setdiff1d(labels, labels[part])
        if len(lost):
            raise DataError(f"{place}: split {split} has no image of class {lost[0]}; every split needs every class")
        arrays[split] = pixels(part), primary[part], {name: values[part] for name, values in sets.items()}
    return arrays


def _tree(place: Path) -> Arrays:
    """Read a folder of PNG images; files beside the class folders are left alone."""
    folders = [top for top in _visible(place) if top.is_dir()]
    given = {"train", "test"} <= {top.name for top in folders} <= set(SPLITS)
    files: list[Path] = []
    for folder in [inner for top in folders for inner in _visible(top)] if given else folders or [place]:
        images = _visible(_inside(folder, place))
        if not images or any(image.suffix.lower() != ".png" for image in images):
            raise DataError(f"{folder}: {LAYOUT}")
        for image in filter(Path.is_symlink, images):
            _inside(image, place)
        files += images
    shape = _png(files[0]).shape

    def pixels(index: Labels) -> Images:
        return np.fromiter((_png(files[i], shape) for i in index), np.dtype((np.uint8, shape)), len(index))

    splits = np.array([SPLITS.index(file.parts[-3]) for file in files]) if given else None
    more = _csv(place / "labels.csv", [file.relative_to(place).as_posix() for file in files])
    return _arrays(place, pixels, np.array([file.parts[-2] for file in files]), more, splits)


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _inside(path: Path, place: Path) -> Path:
    """Return ``path`` unless a link makes it lie outside of the data set."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(place)):
        raise DataError(f"{path}: leads out of {place}")
    return path


def _png(path: Path, shape: tuple[int, ...] | None = None) -> Images:
    """Return one image (channels, height, width), of this shape; the checksum of every chunk is verified."""
    with reading(path), warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        raw = bounded(path, 10 * MAX_PIXELS).read_bytes()
        checked = Image.open(io.BytesIO(raw), formats=("PNG",))
        if checked.width * checked.height > MAX_PIXELS:
            raise DataError(f"{path}: {checked.width}x{checked.height}; expected at most {MAX_PIXELS:,} pixels")
        checked.verify()
        image = Image.open(io.BytesIO(raw), formats=("PNG",))
        depth = raw[24]  # in the header: pillow cuts 16-bit colours to 8 bits without a word
        if image.mode not in ("1", "L", "P", "RGB") or depth > 8 or "transparency" in image.info:
            raise DataError(f"{path}: mode {image.mode}, depth {depth}; expected opaque grey or RGB of at most 8 bits")
        array = np.asarray(image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode)))
    array = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
    if shape is not None and array.shape != shape:
        raise DataError(f"{path}: (c, h, w) is {array.shape}, but {shape} in the first image")
    return array


def _csv(path: Path, files: list[str]) -> dict[str, Values]:
    """Return the columns of ``labels.csv``, if it is there, in the order of ``files``."""
    if not path.exists():
        return {}
    with reading(path), bounded(path, MAX_TEXT).open(encoding="utf-8-sig", newline="") as text:
        (first, *names), *rows = [row for row in csv.reader(text, skipinitialspace=True, strict=True) if row] or [[""]]
    table = {file: values for file, *values in rows}
    if first != "file" or not names or len(set(names)) != len(names) or len(table) != len(rows):
        raise DataError(f"{path}: expected a first line file,<set>,<set> and one line for every file")
    for file in files:
        if len(table.get(file, ())) != len(names) or not all(table[file]):
            raise DataError(f"{path}: no line with {len(names)} values for {file}")
    return {name: _values([table[file][column] for file in files]) for column, name in enumerate(names)}


def _values(words: list[str]) -> Values:
    try:
        return np.array([int(word) for word in words])
    except ValueError:
        return np.array(words)


def _npz(place: Path) -> Arrays:
    with reading(place), zipfile.ZipFile(bounded(place, MAX_BYTES)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > min(MAX_BYTES, MAX_TEXT + 100 * place.stat().st_size):  # arrays of images are never that regular
            raise DataError(f"{place}: {unpacked:,} bytes when unpacked, more than any data set")
    with reading(place), np.load(place, allow_pickle=False) as content:
        arrays = {name: np.asarray(content[name]) for name in content.files}
    images, labels = (arrays.pop(name, np.empty(0)) for name in ("images", "labels"))
    given = arrays.pop("split", None)
    if not images.size or images.dtype != np.uint8 or images.ndim < 3 or images.shape[3:] not in ((), (1,), (3,)):
        raise DataError(f"{place}: images: expected uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3), not {_kind(images)}")
    for name, values in {"labels": labels, **arrays}.items():
        if not f"{name}_".startswith("labels_") or values.shape != images.shape[:1] or values.dtype.kind not in "biuU":
            raise DataError(f"{place}: {name}: expected labels[_<set>] (n,), integers or words, not {_kind(values)}")
    if given is not None and (given.shape != labels.shape or not set(given.tolist()) <= {0, 1, 2}):
        raise DataError(f"{place}: split: expected (n,) of 0, 1, 2 for train, validation, test, not {_kind(given)}")
    channels_first = images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)
    more = {name.removeprefix("labels_"): values for name, values in arrays.items()}
    return _arrays(place, lambda index: np.ascontiguousarray(channels_first[index]), labels, more, given)


def _kind(array: Values) -> str:
    return f"{array.dtype} {array.shape}"
