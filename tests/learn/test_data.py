"""Data sets: pinned bytes, splits, label sets, files in every wrapping, and errors that say what to put where."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.io import savemat

from urc_sweep.errors import DataError
from urc_sweep.learn import data
from urc_sweep.plan import registry
from urc_sweep.plan.source import IDX_FILES, Source


def test_digits_are_the_pinned_bytes_and_the_splits_are_stratified(digits: data.Data) -> None:
    assert digits.sha256 == registry.find("dataset", "digits").facts["sha256"]
    for split, size in (("train", 1078), ("validation", 269), ("test", 450)):
        part = getattr(digits, split)
        assert len(part) == size
        share = np.bincount(part.labels.numpy(), minlength=10) / len(part)
        assert np.abs(share - 0.1).max() < 0.01
    assert digits.train.images.max() == 255


def test_digits_are_a_bilinear_enlargement(digits: data.Data) -> None:
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    small = torch.tensor(load_digits().images)[:, None] / 16
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False) * 255
    ours = torch.cat([getattr(digits, split).images for split in data.SPLITS]).double().flatten(1)
    gaps = [(large.flatten(1) - image).abs().max(1).values.min() for image in ours[::150]]
    assert max(gaps) <= 0.5 + 1e-9


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def kmnist(tmp_path):
    """A folder of small files in the published layout."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (6000, 28, 28)), rng.integers(0, 10, 6000)]
    arrays += [rng.integers(0, 256, (50, 28, 28)), rng.integers(0, 10, 50)]
    folder = tmp_path / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, array in zip(IDX_FILES, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return folder, arrays


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_unpacked_and_packed(kmnist, packed: bool) -> None:
    folder, arrays = kmnist
    if packed:
        for name in IDX_FILES:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    splits = data.kmnist(Source(str(folder.parent.parent), offline=True))
    assert len(splits["train"][1]) == 1000
    assert len(splits["validation"][1]) == 5000
    np.testing.assert_array_equal(splits["test"][0][:, 0], arrays[2])
    rows = {image.tobytes() for split in ("train", "validation") for image in splits[split][0]}
    assert rows == {image.astype(np.uint8).tobytes() for image in arrays[0]}


def test_a_missing_set_says_which_files_go_where(tmp_path) -> None:
    source = Source(str(tmp_path), offline=True)
    with pytest.raises(DataError, match=r"put train-images-idx3-ubyte, .* \(or \.gz\) into .*MNIST/raw") as caught:
        data.mnist(source)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_foreign_file_is_one_line(kmnist) -> None:
    folder, _ = kmnist
    (folder / IDX_FILES[0]).write_bytes((folder / IDX_FILES[0]).read_bytes()[:-1])
    with pytest.raises(DataError, match="train-images-idx3-ubyte: not an IDX file of unsigned bytes, or cut short"):
        data.kmnist(Source(str(folder.parent.parent)))
    (folder / IDX_FILES[0]).unlink()
    (folder / f"{IDX_FILES[0]}.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        data.kmnist(Source(str(folder.parent.parent)))


def test_other_bytes_under_a_published_name_are_refused(kmnist) -> None:
    folder, _ = kmnist
    folder.parent.rename(folder.parent.parent / "MNIST")
    with pytest.raises(DataError, match=r"data set mnist: bytes have SHA-256 .* the published ones 5e8a56a8a5f2"):
        data.load("mnist", {}, Source(str(folder.parent.parent)))


# -- label sets --------------------------------------------------------------------------------------------------------


def test_parity_is_derived_beside_the_pinned_digits(digits: data.Data) -> None:
    assert digits.label_names == ("digit", "parity")
    assert (digits.classes, digits.classes_of("digit"), digits.classes_of("parity")) == (10, 10, 2)
    for split in data.SPLITS:
        part = getattr(digits, split)
        assert part.label_sets["digit"] is part.labels, "held once"
        assert torch.equal(part.label_sets["parity"], part.labels % 2)
    with pytest.raises(DataError) as caught:
        digits.classes_of("partiy")
    assert str(caught.value) == ("the data has no label set 'partiy'; did you mean 'parity'? choices: digit, parity")


def test_a_split_without_label_sets_has_its_labels_as_one() -> None:
    labels = torch.tensor([1, 0, 2])
    split = data.Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels)
    assert list(split.label_sets) == ["class"]
    assert split.label_sets["class"] is labels
    one = data.Data(split, split, split, "")
    assert (one.label_names, one.classes) == (("class",), 3)


@pytest.mark.parametrize("entry", registry.of_kind("dataset"), ids=lambda entry: entry.name)
def test_a_published_set_names_its_labels(entry: registry.Component) -> None:
    labels = entry.facts.get("labels")
    if entry.name == "folder":
        assert labels is None, "known only from the data"
        assert "sha256" not in entry.facts
        assert set(entry.facts["location"]) <= set(entry.parameters)
    else:
        assert all(label.isidentifier() for label in labels)
        assert ("parity" in labels) == (labels[0] == "digit")


def arrays_of(more: dict[str, list[int]] | None = None) -> data.Arrays:
    images = np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2)
    labels = np.array([0, 1, 1, 0])
    further = () if more is None else ({name: np.array(values) for name, values in more.items()},)
    return dict.fromkeys(data.SPLITS, (images, labels, *further))


def test_without_further_sets_the_hash_is_that_of_the_first_release() -> None:
    """Ids of trained trials hang on it: shapes, images and labels, split by split."""
    sha = hashlib.sha256()
    for split, (images, labels) in arrays_of().items():
        sha.update(repr((split, images.shape)).encode() + images.tobytes() + labels.astype("<i8").tobytes())
    assert data.sha256_of(arrays_of()) == sha.hexdigest()
    assert data.sha256_of(arrays_of({})) == sha.hexdigest()
    strided = {
        split: (images[:, :, ::-1].copy()[:, :, ::-1], labels) for split, (images, labels) in arrays_of().items()
    }
    assert data.sha256_of(strided) == sha.hexdigest(), "values, not their layout in memory"


def test_further_sets_are_hashed_with_their_names_in_any_order() -> None:
    tint, dot = [0, 1, 0, 1], [1, 1, 0, 0]
    both = data.sha256_of(arrays_of({"tint": tint, "dot": dot}))
    assert both == data.sha256_of(arrays_of({"dot": dot, "tint": tint}))
    others = [
        arrays_of(),
        arrays_of({"tint": tint}),
        arrays_of({"tint": dot, "dot": tint}),
        arrays_of({"t": tint, "dot": dot}),
    ]
    assert len({both, *map(data.sha256_of, others)}) == 5


def test_sets_that_are_not_in_every_split_or_of_another_length_are_refused() -> None:
    uneven = {**arrays_of({"tint": [0, 1, 0, 1]}), "test": arrays_of()["test"]}
    with pytest.raises(DataError, match=r"split test: expected the label sets \['tint'\] of the first split, not \[\]"):
        data.sha256_of(uneven)
    with pytest.raises(DataError, match=r"split train: expected uint8 images \(n, c, h, w\) and n labels"):
        data.sha256_of(arrays_of({"tint": [0, 1]}))
    empty = {split: (images[:0], labels[:0]) for split, (images, labels) in arrays_of().items()}
    with pytest.raises(DataError, match="split train: expected uint8 images"):
        data.sha256_of(empty)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_stratified_parts_share_out_every_class(labels: list[int], cuts: list[float]) -> None:
    cuts = sorted(cuts)
    values = np.array(labels)
    parts = data.stratified(values, "any", *cuts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part, low, high in zip(parts, [0, *cuts], [*cuts, 1], strict=True):
        assert list(part) == sorted(part)
        for label in set(labels):
            members = labels.count(label)
            assert abs((values[part] == label).sum() - (high - low) * members) <= 1


# -- SVHN --------------------------------------------------------------------------------------------------------------

MAT_FILES = ("train_32x32.mat", "test_32x32.mat")


def house_numbers(count: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays as the published files have them: X (32, 32, 3, n), y (n, 1) of 1 to 10."""
    x = np.zeros((32, 32, 3, count), np.uint8)
    x[3, 7, 1] = 200  # row 3, column 7, green
    x[0, 0, 0], x[0, 0, 2] = np.arange(count) % 251, np.arange(count) // 251
    return {"X": x, "y": np.random.default_rng(seed).integers(1, 11, (count, 1)).astype(np.uint8)}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name, count in zip(MAT_FILES, (5_030, 20), strict=True):
        savemat(folder / name, house_numbers(count, count), do_compression=True)
    return folder


@pytest.mark.parametrize("folder", ["SVHN", "SVHN/raw"])
def test_svhn_is_read_where_torchvision_or_we_put_it(published: Path, tmp_path: Path, folder: str, capsys) -> None:
    shutil.copytree(published, tmp_path / folder)
    found = data.load("svhn", {}, Source(str(tmp_path), offline=True))
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 5000, 20)
    assert found.label_names == ("digit", "parity")
    assert found.image == (3, 32, 32)
    written = house_numbers(20, 20)
    assert torch.equal(found.test.labels, torch.tensor(written["y"].ravel() % 10, dtype=torch.int64)), "10 is digit 0"
    assert (found.test.images[:, 1, 3, 7] == 200).all(), "channels, rows, columns"
    assert (found.test.images[:, 1].flatten(1).sum(1) == 200).all()
    assert found.test.images[:, 0, 0, 0].tolist() == list(range(20))
    labels = house_numbers(5_030, 5_030)["y"].ravel() % 10
    numbers = []
    for split in (found.train, found.validation):
        number = split.images[:, 0, 0, 0].int() + 251 * split.images[:, 2, 0, 0].int()
        assert split.labels.tolist() == labels[number].tolist()
        assert split.images.is_contiguous()
        numbers += number.tolist()
    assert sorted(numbers) == list(range(5_030)), "each training image in one split"
    notes = capsys.readouterr().err.splitlines()
    assert [line.endswith("(other MD5); its content is used as it is") for line in notes] == [True, True]


def test_the_published_files_draw_no_note(published: Path, capsys) -> None:
    path = published / MAT_FILES[1]
    data._mat(path, hashlib.md5(path.read_bytes()).hexdigest())
    assert capsys.readouterr().err == ""


def test_missing_svhn_says_which_file_goes_where(published: Path, tmp_path: Path) -> None:
    source = Source(str(tmp_path), offline=True)
    (tmp_path / "SVHN").mkdir()
    shutil.copy(published / MAT_FILES[1], tmp_path / "SVHN")
    assert source.missing("svhn") == ["train_32x32.mat"]
    for refused in (source.require, lambda name: data.load(name, {}, source)):
        with pytest.raises(DataError) as caught:
            refused("svhn")
        assert str(caught.value) == (
            "data set svhn is not on this machine and --offline forbids a download: put train_32x32.mat into "
            f"{tmp_path}/SVHN/raw, or name another folder with --data-root or URC_SWEEP_DATA"
        )


def test_only_what_is_missing_is_downloaded(published: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from torchvision import datasets

    def download(root: str, split: str, download: bool) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        shutil.copy(published / f"{split}_32x32.mat", root)
        asked.append(split)

    asked: list[str] = []
    monkeypatch.setattr(datasets, "SVHN", download)
    (tmp_path / "SVHN").mkdir()
    shutil.copy(published / MAT_FILES[0], tmp_path / "SVHN")
    assert len(data.svhn(Source(str(tmp_path)))["test"][1]) == 20
    assert asked == ["test"]
    assert f"downloading svhn to {tmp_path}/SVHN/raw" in capsys.readouterr().err

    def fail(**settings) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets, "SVHN", fail)
    with pytest.raises(
        DataError, match=r"svhn could not be downloaded \(no route\): put train_32x32.mat, test_"
    ) as caught:
        data.svhn(Source(str(tmp_path / "elsewhere")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"y": np.zeros((20, 1), np.uint8)}, "not a file of SVHN: expected X"),
        ({"y": np.ones((20, 1))}, "not a file of SVHN: expected X"),
        ({"y": np.ones((19, 1), np.uint8)}, "not a file of SVHN: expected X"),
        ({"X": np.zeros((28, 28, 3, 20), np.uint8)}, "not a file of SVHN: expected X"),
        ({"X": np.zeros((32, 32, 3, 20))}, "not a file of SVHN: expected X"),
        ({"X": None}, "cannot be read: 'X'"),
        (-40, "cannot be read: "),
        (3, "cannot be read: "),
        (0, "cannot be read: "),
    ],
)
def test_a_damaged_or_foreign_mat_file_is_one_line(tmp_path: Path, change, line: str) -> None:
    path = tmp_path / "test_32x32.mat"
    content = house_numbers(20, 0) | (change if isinstance(change, dict) else {})
    savemat(path, {key: value for key, value in content.items() if value is not None}, do_compression=True)
    if isinstance(change, int):
        path.write_bytes(path.read_bytes()[:change])
    with pytest.raises(DataError) as caught:
        data._mat(path, "")
    assert str(caught.value).startswith(f"{path}: {line}")
    assert "\n" not in str(caught.value)


# -- a person's own images ---------------------------------------------------------------------------------------------


def paint(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def tinted(place: Path, colour: bool = True, splits: dict[str, int] | None = None) -> Path:
    """Ten images of each of two classes, or as many as ``splits`` says; two pixels tell an image's number and class."""
    for split, count in (splits or {"": 10}).items():
        for label, name in enumerate(("blue", "red")):
            for number in range(count):
                pixels = np.zeros((4, 5, 3) if colour else (4, 5), np.uint8)
                pixels[0, 0], pixels[0, 1] = number, label
                paint(place / split / name / f"{number:02}.png", pixels)
    return place


def write_csv(place: Path, edit=lambda lines: lines) -> None:
    """A label set of words and one of integers; the second pixel and the number say which belong to an image."""
    files = sorted(path.relative_to(place) for path in place.rglob("*.png"))
    lines = [
        f"{file.as_posix()},{'odd' if int(file.stem) % 2 else 'even'},{10 if int(file.stem) % 4 > 1 else 9}"
        for file in files
    ]
    (place / "labels.csv").write_text("\n".join(edit(["file,parity,size", *lines])) + "\n")


def load(place: Path) -> data.Data:
    data._load.cache_clear()  # these tests change files in place
    return data.load("folder", {"path": place.name}, Source(str(place.parent), offline=True))


def members(split: data.Split) -> list[tuple[int, int]]:
    return [(int(image[0, 0, 1]), int(image[0, 0, 0])) for image in split.images]


@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_of_classes_is_cut_in_stratified_splits(tmp_path: Path, colour: bool) -> None:
    found = load(tinted(tmp_path / "own", colour))
    assert found.image == (3 if colour else 1, 4, 5)
    assert (found.label_names, found.classes) == (("class",), 2)
    every = []
    for split, share in zip(data.SPLITS, (7, 1, 2), strict=True):
        part = getattr(found, split)
        assert part.labels.bincount().tolist() == [share, share]
        assert [label for label, _ in members(part)] == part.labels.tolist(), "labels stay with their images"
        every += members(part)
    assert sorted(every) == [(label, number) for label in (0, 1) for number in range(10)]


def test_further_label_sets_come_from_a_table(tmp_path: Path) -> None:
    place = tinted(tmp_path / "own")
    plain = load(place).sha256
    write_csv(place, lambda lines: [lines[0], *reversed(lines[1:])])
    found = load(place)
    assert found.sha256 != plain
    assert found.label_names == ("class", "parity", "size")
    assert (found.classes_of("parity"), found.classes_of("size")) == (2, 2)
    for split in data.SPLITS:
        part = getattr(found, split)
        numbers = torch.tensor([number for _, number in members(part)])
        assert torch.equal(part.label_sets["parity"], numbers % 2), "even before odd"
        assert torch.equal(part.label_sets["size"], (numbers % 4 > 1).long()), "9 before 10: integers, not words"
    text = (place / "labels.csv").read_text()
    (place / "labels.csv").write_text("\ufeff" + text.replace(",", ", ").replace("\n", "\r\n"), newline="")
    assert load(place).sha256 == found.sha256, "as a spreadsheet saves it"
    rows = [line.split(",") for line in text.splitlines()]
    (place / "labels.csv").write_text("\n".join(f"{file},{size},{parity}" for file, parity, size in rows))
    assert load(place).sha256 == found.sha256, "columns in another order"


def test_given_splits_are_kept_and_validation_is_a_tenth_of_training(tmp_path: Path) -> None:
    found = load(tinted(tmp_path / "two", splits={"train": 20, "test": 3}))
    assert [getattr(found, split).labels.bincount().tolist() for split in data.SPLITS] == [[18, 18], [2, 2], [3, 3]]
    assert sorted(members(found.train) + members(found.validation)) == [(c, n) for c in (0, 1) for n in range(20)]
    place = tinted(tmp_path / "three", splits={"train": 2, "validation": 4, "test": 3})
    write_csv(place)
    found = load(place)
    for split, count in zip(data.SPLITS, (2, 4, 3), strict=True):
        part = getattr(found, split)
        assert members(part) == [(label, number) for label in (0, 1) for number in range(count)]
        assert part.label_sets["parity"].tolist() == [n % 2 for n in range(count)] * 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    place = tinted(tmp_path / "toys")
    (place / "red").rename(place / "train")
    assert load(place).train.labels.bincount().tolist() == [7, 7]


def test_neither_place_nor_order_of_the_directory_is_in_the_hash(tmp_path: Path, monkeypatch) -> None:
    place = tinted(tmp_path / "own")
    write_csv(place)
    first = load(place)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    place = place.rename(tmp_path / "deep" / "er" / "moved")
    for hidden in (place / ".DS_Store", place / "red" / "._00.png", place / "README.txt"):
        hidden.write_bytes(b"no image")
    listing = Path.iterdir

    def shuffled(self: Path):
        entries = list(listing(self))
        random.shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    data._load.cache_clear()
    moved = data.load("folder", {"path": "deep/er/moved"}, Source(str(tmp_path)))
    assert moved.sha256 == first.sha256
    for split in data.SPLITS:
        ours, theirs = getattr(first, split), getattr(moved, split)
        assert torch.equal(ours.images, theirs.images)
        assert all(torch.equal(ours.label_sets[name], theirs.label_sets[name]) for name in first.label_names)
    paint(place / "red" / "03.png", np.full((4, 5, 3), 9))
    assert load(place).sha256 != first.sha256, "a pixel is"


def test_images_of_few_bits_and_palettes_are_converted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, (4, 5, 3)).astype(np.uint8) * 60
    Image.fromarray(pixels).quantize(256).save(tmp_path / "palette.png")
    truth = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB")).transpose(2, 0, 1)
    from urc_sweep.learn import folder

    np.testing.assert_array_equal(folder._png(tmp_path / "palette.png"), truth)
    bits = rng.integers(0, 2, (4, 5)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(folder._png(tmp_path / "bits.png"), bits[None] * 255)


@pytest.mark.parametrize("path", ["", ".", "..", "../own", "own/../own", "/etc", "own/..", "a/../../own"])
def test_a_path_stays_below_the_data_root(tmp_path: Path, path: str) -> None:
    tinted(tmp_path / "own")
    with pytest.raises(DataError) as caught:
        data.load("folder", {"path": path}, Source(str(tmp_path)))
    assert str(caught.value) == (
        f"data set folder: path {path!r}: expected a folder or .npz file below {tmp_path}, without `..`"
    )


@pytest.mark.parametrize("path", ["own", "x" * 300, "a\0b", "two\nlines", "own.npz"])
def test_a_missing_folder_says_where_it_belongs(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError) as caught:
        data.load("folder", {"path": path}, Source(str(tmp_path), offline=True))
    assert str(caught.value) == (
        f"data set folder: there is no {path!r}: put it into {tmp_path}, or name another folder with --data-root or "
        "URC_SWEEP_DATA"
    )
    assert Source(str(tmp_path), offline=True).missing("folder") == []
    Source(str(tmp_path), offline=True).require("folder")


def png(mode: str = "RGB", **settings) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "PNG", **settings)
    return file.getvalue()


def deep_rgb() -> bytes:
    """An RGB image of 16 bits, which pillow reads but does not write: the header of an 8-bit one, changed."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(b"".join(b"\0" + bytes(5 * 6) for _ in range(4)))
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def flipped(raw: bytes) -> bytes:
    """One bit of the checksum of the pixels: what a lenient reader passes over."""
    where = raw.index(b"IEND") - 5
    return raw[:where] + bytes([raw[where] ^ 1]) + raw[where + 1 :]


OPAQUE = "expected opaque grey or RGB of at most 8 bits"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "cannot be read: cannot identify image file"),
        (b"no image", "cannot be read: cannot identify image file"),
        (png()[:-20], "cannot be read: "),
        (flipped(png()), "cannot be read: "),
        (png("RGBA"), f"mode RGBA, depth 8; {OPAQUE}"),
        (png("LA"), f"mode LA, depth 8; {OPAQUE}"),
        (png("I;16"), f"mode I;16, depth 16; {OPAQUE}"),
        (deep_rgb(), f"mode RGB, depth 16; {OPAQUE}"),
        (png("P", transparency=0), f"mode P, depth 1; {OPAQUE}"),
        (png("RGB", transparency=(0, 0, 0)), f"mode RGB, depth 8; {OPAQUE}"),
        (png("L"), "(c, h, w) is (1, 4, 5), but (3, 4, 5) in the first image"),
    ],
)
def test_an_image_that_cannot_be_used_is_one_line_that_names_it(tmp_path: Path, content: bytes, line: str) -> None:
    place = tinted(tmp_path / "own")
    (place / "red" / "05.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(place)
    assert str(caught.value).startswith(f"{place}/red/05.png: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [9, 19])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch, limit: int) -> None:
    """Beyond twice pillow's limit it raises, beyond the limit it only warns: both are refused."""
    place = tinted(tmp_path / "own")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"blue/00.png: cannot be read: .*decompression bomb"):
        load(place)


def test_text_beside_the_pixels_changes_nothing(tmp_path: Path) -> None:
    place = tinted(tmp_path / "own")
    before = load(place).sha256
    info = PngInfo()
    info.add_text("author", "me")
    path = place / "red" / "05.png"
    Image.open(path).save(path, pnginfo=info, compress_level=0)
    assert load(place).sha256 == before


LAYOUT = "expected class/*.png and nothing else, or train/ and test/ (and validation/) with class/*.png in each"


@pytest.mark.parametrize(
    ("splits", "change", "line"),
    [
        (None, lambda place: (place / "green").mkdir(), f"/green: {LAYOUT}"),
        (None, lambda place: (place / "red" / "07.jpg").write_bytes(b""), f"/red: {LAYOUT}"),
        (None, lambda place: (place / "red" / "more").mkdir(), f"/red: {LAYOUT}"),
        (None, shutil.rmtree, f": {LAYOUT}"),
        (None, lambda place: shutil.rmtree(place / "red"), ": label set 'class' has one class only"),
        (None, lambda place: [(place / "red" / f"{n:02}.png").unlink() for n in range(8)],
         ": split test has no image of class red; every split needs every class"),
        ({"train": 10}, lambda place: None, f"/train: {LAYOUT}"),
        ({"train": 10, "test": 2}, lambda place: shutil.rmtree(place / "test" / "red"),
         ": split test has no image of class red; every split needs every class"),
        ({"train": 10, "test": 2}, lambda place: shutil.rmtree(place / "train" / "red"),
         ": split train has no image of class red; every split needs every class"),
        ({"train": 10, "test": 2}, lambda place: (place / "test" / "green").mkdir(), f"/test/green: {LAYOUT}"),
        ({"train": 4, "test": 2}, lambda place: None,
         ": split validation has no image of class blue; every split needs every class"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_data_set_is_one_line(tmp_path: Path, splits, change, line: str) -> None:
    place = tinted(tmp_path / "own", splits=splits)
    change(place)
    place.mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        load(place)
    assert str(caught.value) == f"{place}{line}"


def test_another_kind_of_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"own.zip: cannot be read: .*Not a directory") as caught:
        load(tmp_path / "own.zip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda lines: lines[:-1], "/labels.csv: no line with 2 values for red/09.png"),
        (lambda lines: [*lines[:-1], "red/09.png,odd"], "/labels.csv: no line with 2 values for red/09.png"),
        (lambda lines: [*lines[:-1], "red/09.png,odd,"], "/labels.csv: no line with 2 values for red/09.png"),
        (lambda lines: [*lines[:-1], "red/09.png,odd,9,9"], "/labels.csv: no line with 2 values for red/09.png"),
        (lambda lines: [*lines, lines[-1]], "/labels.csv: {header}"),
        (lambda lines: lines[1:], "/labels.csv: {header}"),
        (lambda lines: [], "/labels.csv: {header}"),
        (lambda lines: ["file", *lines[1:]], "/labels.csv: {header}"),
        (lambda lines: ["file,size,size", *lines[1:]], "/labels.csv: {header}"),
        (lambda lines: [*lines, '"open'], "/labels.csv: cannot be read: unexpected end of data"),
        (lambda lines: ["file,class,size", *lines[1:]], ": label set 'class': {names}"),
        (lambda lines: ["file,a b,size", *lines[1:]], ": label set 'a b': {names}"),
        (lambda lines: [line.replace("odd", "even") for line in lines], ": label set 'parity' has one class only"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path: Path, edit, line: str) -> None:
    place = tinted(tmp_path / "own")
    write_csv(place, edit)
    with pytest.raises(DataError) as caught:
        load(place)
    assert str(caught.value) == str(place) + line.format(
        header="expected a first line file,<set>,<set> and one line for every file",
        names="expected letters, digits and _, and not 'class'",
    )


def test_a_table_of_other_bytes_than_text_is_one_line(tmp_path: Path) -> None:
    place = tinted(tmp_path / "own")
    (place / "labels.csv").write_bytes(b"file,\xff\n")
    with pytest.raises(DataError, match=r"labels.csv: cannot be read: 'utf-8' codec can't decode"):
        load(place)


# -- one .npz file -----------------------------------------------------------------------------------------------------


def content(count: int = 20, channels: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    images = np.zeros((count, 4, 5, *channels), np.uint8)
    images[:, 0, 0] = np.arange(count).reshape(-1, *[1] * len(channels))
    return {"images": images, "labels": np.arange(count) % 2}


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_an_npz_file_is_read_whatever_its_channels(tmp_path: Path, channels: tuple[int, ...]) -> None:
    given = content(20, channels)
    if channels == (3,):
        given["images"][:, 1, 2, 0] = 77  # row 1, column 2, red
    tint = np.array(["warm", "cold"])[np.arange(20) // 10]
    np.savez_compressed(tmp_path / "own.npz", **given, labels_tint=tint)
    found = load(tmp_path / "own.npz")
    assert found.image == (*(channels or (1,)), 4, 5)
    assert found.label_names == ("class", "tint")
    every = []
    for split, share in zip(data.SPLITS, (7, 1, 2), strict=True):
        part = getattr(found, split)
        numbers = part.images[:, 0, 0, 0].long()
        assert part.labels.bincount().tolist() == [share, share]
        assert torch.equal(part.labels, numbers % 2)
        assert torch.equal(part.label_sets["tint"], (numbers < 10).long()), "cold before warm"
        assert channels != (3,) or (part.images[:, 0, 1, 2] == 77).all()
        assert part.images.is_contiguous()
        every += numbers.tolist()
    assert sorted(every) == list(range(20))
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "other.npz", **given, labels_tint=tint)
    assert load(tmp_path / "elsewhere" / "other.npz").sha256 == found.sha256


def test_splits_of_an_npz_file_are_kept(tmp_path: Path) -> None:
    split = np.array([0, 0, 1, 1, 2, 2])
    np.savez(tmp_path / "own.npz", **content(6), split=split)
    found = load(tmp_path / "own.npz")
    for number, name in enumerate(data.SPLITS):
        assert getattr(found, name).images[:, 0, 0, 0].tolist() == [2 * number, 2 * number + 1]
    np.savez(tmp_path / "own.npz", **content(30), split=np.repeat([0, 2], [20, 10]))
    found = load(tmp_path / "own.npz")
    assert [getattr(found, name).labels.bincount().tolist() for name in data.SPLITS] == [[9, 9], [1, 1], [5, 5]]
    assert set(found.test.images[:, 0, 0, 0].tolist()) == set(range(20, 30))


def test_classes_are_numbered_in_the_order_of_their_values(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **content() | {"labels": np.array([-3, 40])[np.arange(20) % 2]})
    found = load(tmp_path / "own.npz")
    assert found.classes == 2
    assert torch.equal(found.train.labels, found.train.images[:, 0, 0, 0].long() % 2)


class Runs:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"images": None}, "images: expected uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3), not float64 (0,)"),
        ({"images": np.zeros((20, 4, 5))}, "images: expected uint8 (n, h, w), {more}, not float64 (20, 4, 5)"),
        (
            {"images": np.zeros((20, 4, 5, 2), np.uint8)},
            "images: expected uint8 (n, h, w), {more}, not uint8 (20, 4, 5, 2)",
        ),
        ({"images": np.zeros((20, 4), np.uint8)}, "images: expected uint8 (n, h, w), {more}, not uint8 (20, 4)"),
        ({"images": np.zeros((20, 0, 5), np.uint8)}, "images: expected uint8 (n, h, w), {more}, not uint8 (20, 0, 5)"),
        ({"images": np.zeros((0, 4, 5), np.uint8)}, "images: expected uint8 (n, h, w), {more}, not uint8 (0, 4, 5)"),
        ({"labels": None}, "labels: {labels}, not float64 (0,)"),
        ({"labels": np.zeros(19, int)}, "labels: {labels}, not int64 (19,)"),
        ({"labels": np.arange(20) / 2}, "labels: {labels}, not float64 (20,)"),
        ({"labels": np.zeros(20, int)}, "label set 'class' has one class only"),
        ({"labels_tint": np.zeros(20, int)}, "label set 'tint' has one class only"),
        ({"labels_tint": np.zeros((20, 2), int)}, "labels_tint: {labels}, not int64 (20, 2)"),
        ({"labels_class": np.arange(20)}, "label set 'class': expected letters, digits and _, and not 'class'"),
        ({"labels_": np.arange(20)}, "label set '': expected letters, digits and _, and not 'class'"),
        ({"label_tint": np.arange(20)}, "label_tint: {labels}, not int64 (20,)"),
        ({"split": np.arange(20)}, "split: expected (n,) of 0, 1, 2 for train, validation, test, not int64 (20,)"),
        (
            {"split": np.array(["0", "2"] * 10)},
            "split: expected (n,) of 0, 1, 2 for train, validation, test, not <U1 (20,)",
        ),
        ({"split": np.zeros(2, int)}, "split: expected (n,) of 0, 1, 2 for train, validation, test, not int64 (2,)"),
        ({"split": np.zeros(20, int)}, "split test has no image of class 0; every split needs every class"),
        ({"split": np.full(20, 2)}, "split train has no image of class 0; every split needs every class"),
        ({"split": np.arange(20) % 2}, "split train has no image of class 1; every split needs every class"),
        (0, "cannot be read: File is not a zip file"),
        (-30, "cannot be read: File is not a zip file"),
        (b"no archive at all", "cannot be read: "),
    ],
)
def test_an_npz_file_that_is_no_data_set_is_one_line(tmp_path: Path, change, line: str) -> None:
    path = tmp_path / "own.npz"
    given = content() | (change if isinstance(change, dict) else {})
    np.savez(path, **{key: value for key, value in given.items() if value is not None})
    if not isinstance(change, dict):
        path.write_bytes(change if isinstance(change, bytes) else path.read_bytes()[:change])
    with pytest.raises(DataError) as caught:
        load(path)
    more, labels = "(n, h, w, 1) or (n, h, w, 3)", "expected labels[_<set>] (n,), integers or words"
    assert str(caught.value).startswith(f"{path}: " + line.format(more=more, labels=labels))
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_npz_file_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    np.savez(tmp_path / "own.npz", **content() | {"labels": np.array([Runs(ran)] * 20)})
    with pytest.raises(DataError, match=r"own.npz: cannot be read: Object arrays cannot be loaded"):
        load(tmp_path / "own.npz")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(DataError, match=r"raw.npz: cannot be read: "):
        load(tmp_path / "raw.npz")
    assert not ran.exists()


def test_a_flipped_byte_in_an_npz_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **content())
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"NUMPY") + 200] ^= 1  # in the pixels; the archive's checksum tells
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"own.npz: cannot be read: Bad CRC-32"):
        load(path)
