"""Content ids: one meaning, one text, one digest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urc_sweep.maths.ids import canonical, content_id, digest, without

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(st.text(max_size=4), VALUES, max_size=5)


def reordered(value):
    """The same value with every mapping filled in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def meaning(value):
    """A comparable form that, unlike ``==``, tells 1 from 1.0 and from true, but not -0.0 from 0.0."""
    if isinstance(value, dict):
        return "dict", frozenset((key, meaning(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(meaning(item) for item in value)
    return type(value).__name__, value


def test_canonical_text_is_sorted_compact_ascii():
    assert canonical({"b": [1, 2.5, None], "a": {"é": True}}) == '{"a":{"\\u00e9":true},"b":[1,2.5,null]}'
    assert canonical((1, 2)) == canonical([1, 2]) == "[1,2]"
    assert canonical(-0.0) == canonical(0.0) == "0.0"
    assert canonical([0.1, 1e-4, 1e22, 1.0, 1]) == "[0.1,0.0001,1e+22,1.0,1]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], {"a": [{"b": float("nan")}]}])
def test_numbers_without_a_value_are_refused(value):
    with pytest.raises(ValueError, match="no canonical form"):
        canonical(value)


@pytest.mark.parametrize("value", [len, lambda: 0, object(), {1, 2}, b"bytes", bytearray(b"x"), 1j, {"a": [print]}])
def test_what_prints_differently_each_time_is_refused(value):
    with pytest.raises(TypeError, match="no canonical form"):
        canonical(value)


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",)])
def test_keys_are_strings(key):
    with pytest.raises(TypeError, match="keys of canonical JSON are strings"):
        canonical({"ok": {key: 1}})


# Pinned: every id of every store is made by this function. If one of these must change, no committed trial is found
# again: don't. Regenerate: python -c "from urc_sweep.maths.ids import content_id; print(content_id('trial', {}))"
PINNED = [
    ("trial", {}, "67e3060d08f9c0112f5c58a0bec369a08c6d1e026fb1b1ff87f0057a5ba1aefb"),
    ("pack", {}, "24083e67bb7bf7ed1bbde0b6b33bf9995b9777312ecabf55a98f6d8775e80a44"),
    (
        "trial",
        {"seed": 0, "weights": {"classification": 1e-4, "distortion": 1.0}, "name": "é"},
        "aa0ecffa2488a48903a02460b1cb96d6b49acd7d85ba89875a1cb97408c06733",
    ),
    (
        "trial",
        [None, True, False, -0.0, 1, 1.0, "1"],
        "dc147f14d8fab4d18449c97416dd9a4f959c731f2136616a3adcb19edf9f4088",
    ),
]


@pytest.mark.parametrize(("kind", "value", "expected"), PINNED)
def test_pinned_digests(kind, value, expected):
    assert content_id(kind, value) == expected


def test_digest_is_sha256():
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(VALUES)
def test_order_of_keys_never_matters(value):
    assert content_id("x", reordered(value)) == content_id("x", value)


@given(VALUES)
def test_a_json_round_trip_keeps_the_id(value):
    assert content_id("x", json.loads(json.dumps(value))) == content_id("x", value)
    assert content_id("x", json.loads(canonical(value))) == content_id("x", value)


@given(VALUES, VALUES)
def test_different_values_have_different_ids(one, other):
    assert (content_id("x", one) == content_id("x", other)) == (meaning(one) == meaning(other))


@given(VALUES)
def test_kinds_never_collide(value):
    assert len({content_id(kind, value) for kind in ("trial", "pack", "evaluation")}) == 3


def test_without_drops_what_is_at_its_default_at_any_depth():
    defaults = {"width": 1.0, "train": {"epochs": 30, "betas": [0.5, 0.9]}, "protocol": {"preset": "sound"}}
    value = {"seed": 0, "width": 1.0, "train": {"epochs": 31, "betas": (0.5, 0.9)}, "protocol": {"preset": "sound"}}
    assert without(value, defaults) == {"seed": 0, "train": {"epochs": 31}}
    assert without({"width": 1}, {"width": 1.0}) == {"width": 1}  # another type is another value
    assert without({"train": None}, defaults) == {"train": None}
    assert without({"added": {"deep": []}}, {}) == {"added": {"deep": []}}


@given(MAPPINGS, MAPPINGS)
def test_a_new_key_at_its_default_keeps_the_old_id(value, defaults):
    old = {key: item for key, item in value.items() if key not in defaults}
    assert content_id("x", without({**defaults, **old}, defaults)) == content_id("x", old)


def with_keys_of(value, other):
    """``other``'s items where both have them, in the shape of ``value``: an absent key means its default."""
    if isinstance(value, dict):
        other = other if isinstance(other, dict) else {}
        return {key: with_keys_of(item, other.get(key, item)) for key, item in value.items()}
    return value if isinstance(other, dict) else other


@given(MAPPINGS, MAPPINGS)
def test_without_keeps_apart_what_differs(value, other):
    """Two values with the same keys at every depth lose the same defaults, so that they collide only when equal."""
    other = with_keys_of(value, other)
    kept = [content_id("x", without(each, value)) for each in (value, other)]
    assert (kept[0] == kept[1]) == (canonical(value) == canonical(other))
