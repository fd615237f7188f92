"""Content ids. Invariant: equal meaning gives equal bytes, and only plain JSON values have a meaning.

A trial is named by the hash of everything that determines its numbers, so that the same trial is never
trained twice and an edited one never mistaken for the old (compare marin ``execution``, redun ``hashing``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, shortest round-trip floats.

    Refuses (``TypeError``) everything that is not null, bool, int, float, str, list, tuple or a mapping with
    string keys, and (``ValueError``) NaN and infinities: an id must not depend on how an object prints.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys of canonical JSON are strings")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical form")


def content_id(kind: str, value: Any) -> str:
    """Return the SHA-256 hex digest of ``value``'s canonical JSON, tagged so that kinds never collide."""
    return hashlib.sha256(f"urc-sweep/{kind}\n{canonical(value)}".encode()).hexdigest()


def digest(data: bytes) -> str:
    """Return the SHA-256 hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def without(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``value`` without the entries that equal ``defaults``, nested mappings included.

    A field added later, left at the value that describes what was always done, keeps every old id.
    """
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if key not in defaults:
            kept[key] = item
        elif isinstance(item, Mapping) and isinstance(defaults[key], Mapping):
            inner = without(item, defaults[key])
            if inner:
                kept[key] = inner
        elif canonical(item) != canonical(defaults[key]):
            kept[key] = item
    return kept
