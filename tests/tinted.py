"""Colour stand-in for SVHN, made of MNIST: digits on 32x32, each tinted in two colours of its own.

Run: python -m tests.tinted DATA_ROOT      (reads DATA_ROOT/MNIST/raw, writes DATA_ROOT/tinted.npz, or to --out FILE)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from urc_sweep.learn import data
from urc_sweep.maths.streams import stream
from urc_sweep.plan.source import Source


def tint(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (n, 32, 32, 3) uint8: (n, 28, 28) grey digits on a frame of 2, between a dark and a bright colour."""
    ink = np.pad(grey, ((0, 0), (2, 2), (2, 2)))[..., None] / np.float32(255)
    dark, bright = rng.uniform(0, 0.35, (len(grey), 1, 1, 3)), rng.uniform(0.55, 1, (len(grey), 1, 1, 3))
    return np.round(255 * (dark + ink * (bright - dark))).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_root")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    mnist = data.load("mnist", {}, Source(options.data_root, offline=True))
    images, labels, split = [], [], []
    for number, name in enumerate(data.SPLITS):
        part = getattr(mnist, name)
        images.append(tint(part.images[:, 0].numpy(), stream(0, f"tinted.{name}")))
        labels.append(part.labels.numpy())
        split.append(np.full(len(part), number))
    out = options.out or Path(options.data_root) / "tinted.npz"
    arrays = {"images": np.concatenate(images), "labels": np.concatenate(labels), "split": np.concatenate(split)}
    np.savez_compressed(out, **arrays, labels_parity=arrays["labels"] % 2)
    print(out, arrays["images"].shape)


if __name__ == "__main__":
    main()
