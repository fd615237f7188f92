"""Data sets: pinned bytes, splits, IDX files in every wrapping, and errors that say what to put where."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from urc_sweep.errors import DataError
from urc_sweep.learn import data
from urc_sweep.plan import registry
from urc_sweep.plan.source import IDX_FILES, Source


def test_digits_are_the_pinned_bytes_and_the_splits_are_stratified(digits: data.Data) -> None:
    assert digits.sha256 == registry.find("dataset", "digits").facts["sha256"]
    facts = registry.find("dataset", "digits").facts
    for split in data.SPLITS:
        part = getattr(digits, split)
        assert len(part) == facts[split]
        share = np.bincount(part.labels.numpy(), minlength=10) / len(part)
        assert np.abs(share - 0.1).max() < 0.01
    assert digits.train.images.max() == 255


def test_digits_are_a_bilinear_enlargement(digits: data.Data) -> None:
    import torch
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
