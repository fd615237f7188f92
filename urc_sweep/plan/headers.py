"""What a stranger's checkpoint says of itself, judged before torch is imported and before anything is allocated."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MAX_FILE, MAX_HEADER, MAX_TENSORS = 256 * 2**20, 10**6, 10_000
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_safetensors(path: Path) -> bytes:
    """Return the bytes of a safetensors file; ``OSError`` or ``ValueError`` says why they are none."""
    # A pipe has no writer, a device no end, and what /proc shows as a file has no size.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 8 <= status.st_size <= MAX_FILE:
            raise ValueError(f"not a file of 8 to {MAX_FILE:,} bytes")
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, status.st_size - 8):
            raise ValueError(f"not a safetensors file: a header of {length:,} bytes in {status.st_size:,}")
        try:
            _check(json.loads(file.read(length), object_pairs_hook=_unique), status.st_size - 8 - length)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a safetensors file: its header is damaged ({type(error).__name__})") from None
        file.seek(0)
        return file.read(MAX_FILE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_TENSORS or len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _check(header: dict[str, Any], size: int) -> None:
    """Raise unless the tensors lie one behind the other and fill the file."""
    header.pop("__metadata__", None)
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        (start, stop), shape = entry["data_offsets"], entry["shape"]
        whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, stop)) and len(shape) <= 8
        if not whole or start != end or stop - start != math.prod(shape) * WIDTHS[entry["dtype"]]:
            raise ValueError
        end = stop
    if end != size:
        raise ValueError
