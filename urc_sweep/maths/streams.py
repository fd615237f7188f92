"""Common random numbers. Invariant: a stream depends on (seed, name, epoch) and nothing else.

Trials of one seed that differ only in their weights draw the same data order, initial weights and dither, so
differences along a frontier are due to the weights. Streams are counter-based (Philox), hence a resumed epoch
needs no saved generator state, and they are drawn on the CPU for every device.
"""

from __future__ import annotations

import hashlib

import numpy as np

# Streams that must be the same for every trial of every seed (evaluation dither, fixed projections).
FIXED_SEED = 0


def stream(seed: int, name: str, epoch: int = 0) -> np.random.Generator:
    """Return the generator of stream ``name`` for one epoch of one seed.

    >>> stream(0, "order").integers(100) == stream(0, "order").integers(100)
    True
    """
    return np.random.Generator(np.random.Philox(key=np.frombuffer(_key(seed, name, epoch)[:16], dtype=np.uint64)))


def stream_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for libraries that own their generator (initial weights in torch)."""
    return int.from_bytes(_key(seed, name, 0)[:8], "little") >> 1


def _key(seed: int, name: str, epoch: int) -> bytes:
    return hashlib.sha256(f"urc-sweep/stream/{seed}/{name}/{epoch}".encode()).digest()
