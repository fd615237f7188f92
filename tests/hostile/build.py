# ruff: noqa: UP031, E501 (sweep files are full of braces, and attacks are long)
"""Builds every hostile input from small descriptions: files in ``yaml/``, words in ``names.json``, the rest here."""

from __future__ import annotations

import functools
import html
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.cases import Case, Ran
from tests.store.build import Study, reseal

HERE = Path(__file__).parent
WRONG = HERE.parent / "plan" / "wrong"
PLAN = ("plan", "sweep.yaml", "--store", "store", "--data-root", "data")
INLINE = ("launch", "sweep.yaml", "--store", "store", "--data-root", "data", "--executor", "inline")
Build = Callable[[Path], None]


class Canary:
    """What a pickle could do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


PICKLE = pickle.dumps(Canary())


def every() -> Iterator[Case]:
    """Yield all cases; names are unique within their kind."""
    yield from wrong()
    yield from small_yaml()
    yield from large_yaml()
    yield from raw_yaml()
    yield from words()
    yield from checkpoints()
    yield from weights()
    yield from archives()
    yield from images()
    yield from stores()
    yield from records()
    yield from tables()
    yield from pages()


# -- sweep files -------------------------------------------------------------------------------------------------------


def f(**keys: str) -> str:
    """Return a sweep file, a right one unless ``keys`` say otherwise."""
    right = {"name": "tiny", "dataset": "{name: digits}", "rates": "[{dim: 2, levels: 3}]"}
    right["stages"] = "{end_to_end: {objective: {distortion: 1}}}"
    return "".join(f"{key}: {value}\n" for key, value in (right | keys).items())


def st(stages: str) -> str:
    return f(stages=stages)


def obj(objective: str) -> str:
    return st("{end_to_end: {objective: %s}}" % objective)


def clf(classifier: str) -> str:
    return st("{classifier: %s, end_to_end: {objective: {distortion: 1}}}" % classifier)


def beside(text: bytes) -> Build:
    """Return a builder of a sweep file with the traps that some of them name."""

    def build(cwd: Path) -> None:
        (cwd / "data").mkdir()
        (cwd / "secret.npz").write_bytes(b"secret")
        os.mkfifo(cwd / "pipe")
        for name, target in (("loop", "loop"), ("zero", "/dev/zero"), ("pipelink", "pipe")):
            (cwd / name).symlink_to(target)
        (cwd / "sweep.yaml").write_bytes(text)

    return build


def wrong() -> Iterator[Case]:
    """The files that ``tests/plan`` reads in its own process: exactly these lines."""
    for path in sorted(WRONG.glob("*.yaml")):
        says = [
            line.removeprefix("# expect: ") for line in path.read_text().splitlines() if line.startswith("# expect")
        ]
        exact = tuple(f"urc-sweep: {path}:{line}" for line in says)
        yield Case("wrong", path.stem, ("validate", str(path)), exact, exactly=True)


def small_yaml() -> Iterator[Case]:
    for path in sorted((HERE / "yaml").glob("*.yaml")):
        text = path.read_bytes()
        heads = [line.decode() for line in text.split(b"\n") if line.startswith(b"# expect: ")]
        says = tuple(head.removeprefix("# expect: ") for head in heads)
        far = path.stem.startswith("data_path") or path.stem in ("env_in_path", "home_in_path")
        torch = far and "dataset.path" not in says[0]
        yield Case("yaml", path.stem, PLAN, says, 2 if says else 0, beside(text), torch=torch)


def large_yaml() -> Iterator[Case]:
    for name, says, text in _large():
        yield Case("yaml", name, PLAN, tuple(says), 2 if says else 0, beside(f"# large\n{text}".encode()))


def _large() -> Iterator[tuple[str, list[str], str]]:
    n1000 = ", ".join(map(str, range(1, 1001)))
    yield (
        "ampersand_bomb",
        ["2:1: a sweep file is a mapping of keys (name, dataset, rates, stages ...)"],
        "&" * 30000 + "\n",
    )
    yield "colon_bomb", ["1:1: not YAML: maximum recursion depth exceeded"], ": " * 20000 + "\n"
    yield (
        "comment_bomb",
        [
            "1:1: name: missing, but required",
            "1:1: dataset: missing, but required",
            "1:1: rates: missing, but required",
            "1:1: stages: missing, but required",
        ],
        "#" * 60000 + "\n",
    )
    yield (
        "deep_block",
        ["23:22: k0.k1.k2.k3.k4.k5.k6.k7.k8.k9.k10.k11.k12.k13.k14.k15.k16.k17.k18.k19.k20: nested d"],
        "".join(" " * i + f"k{i}:\n" for i in range(250)),
    )
    yield "deep_flow", ["1:1: not YAML: maximum recursion depth exceeded"], f(seeds="[" * 5000)
    yield "deep_keys", ["1:1: not YAML: maximum recursion depth exceeded"], "? " * 3000 + "x\n"
    yield "deep_mapping", ["1:1: not YAML: maximum recursion depth exceeded"], f(model="{a: " * 3000)
    yield "deep_sequence", ["1:1: not YAML: maximum recursion depth exceeded"], "- " * 5000 + "x\n"
    yield "duplicate_many", ["3:1: a: duplicate key"], "a: 1\n" * 5000
    yield (
        "encoders_long",
        ["5:92: stages.universal.encoders: should be all, random, classifier_only, a mapping or a li"],
        st(
            "{end_to_end: {objective: {distortion: 1}}, universal: {objective: {distortion: 1}, encoders: "
            + "e" * 50000
            + "}}"
        ),
    )
    yield (
        "encoders_long_value",
        ["5:103: stages.universal.encoders.distortion: no end-to-end trial has distortion eeeee"],
        st(
            '{end_to_end: {objective: {distortion: 1}}, universal: {objective: {distortion: 1}, encoders: {distortion: "'
            + "e" * 50000
            + '"}}}'
        ),
    )
    yield (
        "folded_bomb",
        [
            "2:1: name: 'x\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\nx\\n",
            "2:1: dataset: missing, but required",
            "2:1: rates: missing, but required",
            "2:1: stages: missing, but required",
        ],
        "name: >\n" + "".join("  x\n\n" for _ in range(12000)),
    )
    yield (
        "grid_chosen_encoders",
        ["5:1: stages: 1,001,000 trials; a sweep may have 100,000"],
        f(
            stages="{end_to_end: {objective: {distortion: [%s]}}, universal: {encoders: {seed: 0}, objective: {distortion: [%s]}}}"
            % (n1000, n1000)
        ),
    )
    yield (
        "grid_controls",
        ["5:1: stages: 2,003,000 trials; a sweep may have 100,000"],
        f(
            seeds="[%s]" % n1000,
            stages="{end_to_end: {objective: {distortion: 1}}, universal: {encoders: [random, classifier_only], objective: {distortion: [%s]}}}"
            % n1000,
        ),
    )
    yield (
        "grid_encoders",
        ["5:1: stages: 1,001,000 trials; a sweep may have 100,000"],
        f(
            stages="{end_to_end: {objective: {distortion: [%s]}}, universal: {encoders: all, objective: {distortion: [%s]}}}"
            % (n1000, n1000)
        ),
    )
    yield (
        "grid_joint",
        ["5:1: stages: 1,000,000 trials; a sweep may have 100,000"],
        f(seeds="[%s]" % n1000, stages="{joint: {objective: {distortion: [%s]}}}" % n1000),
    )
    yield (
        "grid_labels",
        ["5:35: stages.end_to_end.objective.classification.l0: digits has no label set 'l0'; choices"],
        obj("{" + ", ".join(f"classification.l{i}: 1" for i in range(2000)) + "}"),
    )
    yield (
        "grid_random",
        ["5:1: stages: 100,000,000 trials; a sweep may have 100,000"],
        f(seeds="[%s]" % n1000, search="{strategy: random, samples: 100000}"),
    )
    yield (
        "grid_seeds",
        ["5:1: stages: 1,000,000 trials; a sweep may have 100,000"],
        f(seeds="[%s]" % n1000, stages="{end_to_end: {objective: {distortion: [%s]}}}" % n1000),
    )
    yield (
        "grid_weights",
        ["5:1: stages: 1,000,000 trials; a sweep may have 100,000"],
        obj("{distortion: [%s], classification: [%s]}" % (n1000, n1000)),
    )
    yield (
        "label_long",
        ["5:23: stages.classifier.label: digits has no label set 'lllll"],
        clf("{label: " + "l" * 50000 + "}"),
    )
    yield (
        "many_classifiers",
        ["5:24: stages.classifier[0].label: digits has no label set 'l0'; choices: digit, parity"],
        clf("[" + ", ".join("{label: l%d}" % i for i in range(2500)) + "]"),
    )
    yield (
        "many_encoders",
        ["5:8687: stages.universal.encoders[200]: too many values to look for among 1,000 trials; ch"],
        st(
            "{end_to_end: {objective: {distortion: [%s]}}, universal: {objective: {distortion: 1}, encoders: [%s]}}"
            % (n1000, ", ".join("{distortion: %d}" % i for i in range(1, 1001)))
        ),
    )
    yield "many_problems", [""] * 50 + ["problems more"], f(seeds="[" + ", ".join(["x"] * 9000) + "]")
    yield "many_rates_wrong", [""] * 50 + ["problems more"], f(rates="[" + ", ".join(["{dim: 0}"] * 3000) + "]")
    yield "many_unknown_keys", [""] * 50 + ["problems more"], f() + "".join(f"k{i}: 1\n" for i in range(3000))
    yield (
        "multiline_plain",
        [
            "2:1: name: 'a b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b b ",
            "2:1: dataset: missing, but required",
            "2:1: rates: missing, but required",
            "2:1: stages: missing, but required",
        ],
        "name: a\n" + " b\n" * 20000,
    )
    yield "name_very_long", ["2:1: name: 'aaaaa"], f(name="a" * 40000)
    yield (
        "number_digits",
        ["6:9: seeds[0]: cannot read '99999999999999999999...' as a plain number, word or true/false"],
        f(seeds="[" + "9" * 5000 + "]"),
    )
    yield (
        "number_float_digits",
        ["6:24: train.learning_rate: cannot read '0.111111111111111111...' as a plain number, word o"],
        f(train="{learning_rate: 0." + "1" * 2000 + "e400}"),
    )
    yield "percent_bomb", ["2:2: not YAML: expected alphabetic or numeric character, but found '%'"], "%" * 30000 + "\n"
    yield (
        "question_bomb",
        ["2:1: a sweep file is a mapping of keys (name, dataset, rates, stages ...)"],
        "?" * 30000 + "\n",
    )
    yield "size_decay_at", [], f(train="{decay_at: [" + ", ".join(["0.5"] * 9000) + "]}")
    yield (
        "size_milestones",
        ["6:12: protocol.milestones: epochs should grow from pair to pair, not [1.0, 1.0, 1.0, 1.0, "],
        f(protocol="{milestones: [" + ", ".join(["[1, 0.5]"] * 5000) + "]}"),
    )
    yield (
        "value_deep_repr",
        ["6:12: protocol.sigma: should be a number or 2/L, not {'a': {'b': {'c': [1, 2, 3, 'xxxxx"],
        f(protocol='{sigma: {a: {b: {c: [1, 2, 3, "' + "x" * 20000 + '"]}}}}'),
    )
    yield (
        "value_long",
        ["6:10: search.strategy: unknown; choices: grid, random"],
        f() + "search: {strategy: " + "g" * 50000 + "}\n",
    )
    yield (
        "value_long_list",
        ["6:9: train.epochs: should be a valid integer, not a list"],
        f(train="{epochs: [" + ", ".join(["1"] * 9000) + "]}"),
    )
    yield (
        "value_long_network",
        ["5:23: stages.classifier.network: unknown classifier 'ggggg"],
        clf("{network: " + "g" * 50000 + "}"),
    )
    yield (
        "value_long_parameter",
        ["6:22: model.width: should be float, not 'ggggg"],
        f(model="{name: paper, width: " + "g" * 50000 + "}"),
    )
    yield (
        "wide_nodes",
        ["2:40005: seeds[19998]: nested deeper than 20 or more than 20,000 values"],
        "seeds: [" + "1," * 25000 + "]\n",
    )


def raw_yaml() -> Iterator[Case]:
    """Sweep files whose bytes are the attack."""
    right = f()
    for name, text, says in (
        ("utf16", right.encode("utf-16"), "not UTF-8 text"),
        ("utf16_be", right.encode("utf-16-be"), "unacceptable character"),
        ("utf32", right.encode("utf-32"), "not UTF-8 text"),
        ("latin1", right.replace("tiny", "tinÿ").encode("latin-1"), "not UTF-8 text"),
        ("overlong", right.encode().replace(b"tiny", b"\xc0\xaf"), "not UTF-8 text"),
        ("surrogate", right.encode().replace(b"tiny", b"\xed\xa0\x80"), "not UTF-8 text"),
        ("truncated_utf8", right.encode() + b"\xf0\x9f", "not UTF-8 text"),
        ("nul_bytes", b"\0" * 1000, "unacceptable character #x0000"),
        ("bom", right.encode("utf-8-sig"), None),
        ("carriage_returns", right.replace("\n", "\r").encode(), None),
        ("windows_lines", right.replace("\n", "\r\n").encode(), None),
        ("too_large", b"#" * 64_001, "larger than 64,000 bytes"),
        ("too_large_text", "é".encode() * 40_000, "larger than 64,000 bytes"),
        ("pickle", PICKLE, "not UTF-8 text"),
        ("elf", b"\x7fELF\x02\x01\x01" + b"\0" * 64, "unacceptable character"),
        ("gzip", zlib.compress(right.encode(), wbits=31), "not UTF-8 text"),
        ("html", b"<!doctype html><script>alert(1)</script>\n", "a mapping of keys"),
        ("shebang", b"#!/bin/sh\ntouch pwned\n", "a mapping of keys"),
    ):
        yield Case("bytes", name, PLAN, (says,) if says else (), 2 if says else 0, beside(text))
    for name, target, says in (
        ("fifo", None, "cannot read the sweep file"),
        ("folder", ".", "Is a directory"),
        ("zero", "/dev/zero", "larger than 64,000 bytes"),
        ("loop", "sweep.yaml", "symbolic links"),
        ("environment", "/proc/self/environ", "unacceptable character"),
        ("sparse", "", "larger than 64,000 bytes"),
    ):

        def build(cwd: Path, target: str | None = target) -> None:
            if target is None:
                os.mkfifo(cwd / "sweep.yaml")
            elif target:
                (cwd / "sweep.yaml").symlink_to(target)
            else:
                with open(cwd / "sweep.yaml", "wb") as file:
                    file.truncate(2**40)

        yield Case("bytes", name, PLAN, (says,), build=build)


# -- words on the command line -----------------------------------------------------------------------------------------


def words() -> Iterator[Case]:
    """``names.json``: by kind, command lines with the words of their one error line, in a folder with a small store."""
    for kind, entries in json.loads((HERE / "names.json").read_text()).items():
        for entry in entries:
            name, argv, says = entry["name"], [word * entry.get("times", 1) for word in entry["argv"]], entry["says"]
            repeated = [word if "\u0001" not in word else word.replace("\u0001", "a" * 5000) for word in argv]
            code = entry.get("code", 2)
            yield Case(kind, name, tuple(repeated), (says,) if code else (), code, with_store, shows=entry.get("shows"))


@functools.cache
def _study() -> Path:
    """Return a store of one small sweep, all of it done but one failed trial."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    study = Study(folder / "store")
    *done, last = study.trials
    study.finish(*done).fail(last).launch()
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "store"


def with_store(cwd: Path) -> None:
    shutil.copytree(_study(), cwd / "store")
    beside(f().encode())(cwd)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", PICKLE)
    return buffer.getvalue()


def checkpoints() -> Iterator[Case]:
    """A file that a sweep names as its classifier's weights: refused by its header, before torch is imported."""
    many = {f"t{i}": tensor((0,), (0, 0)) for i in range(100_000)}
    damaged = "not a safetensors file: "
    for name, raw, says in (
        ("empty", b"", "not a file of 8 to"),
        ("seven_bytes", b"\0" * 7, "not a file of 8 to"),
        ("length_zero", b"\0" * 8, damaged),
        (
            "length_2_63",
            safetensors({}, length=2**63),
            "not a safetensors file: a header of 9,223,372,036,854,775,808 bytes in 10",
        ),
        (
            "length_2_64",
            safetensors({}, length=2**64 - 1),
            "not a safetensors file: a header of 18,446,744,073,709,551,615 bytes",
        ),
        ("length_beyond", safetensors({}, length=3), "not a safetensors file: a header of 3 bytes in 10"),
        ("length_short", safetensors({"a": tensor()}, b"\0" * 8, length=20), damaged),
        ("header_large", safetensors(b"{}" + b" " * 2_000_000), "not a safetensors file: a header of 2,000,002 bytes"),
        ("header_word", safetensors(b"words"), damaged),
        ("header_list", safetensors([1, 2]), damaged),
        ("header_null", safetensors(None), damaged),
        ("header_number", safetensors(7), damaged),
        ("header_latin", safetensors(b'{"\xe9": 1}'), damaged),
        ("header_deep", safetensors(b"[" * 100_000), damaged),
        ("header_deep_metadata", safetensors(b'{"a":' * 100_000), damaged),
        ("header_digits", safetensors(b'{"a": ' + b"9" * 50_000 + b"}"), damaged),
        ("header_nan", safetensors(b'{"a": {"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"\0" * 8), damaged),
        ("entries_100000", safetensors(many), "not a safetensors file: a header of "),
        ("entries_20000", safetensors({f"t{i}": {} for i in range(20_000)}), damaged),
        ("entry_list", safetensors({"a": [1]}), damaged),
        ("entry_null", safetensors({"a": None}), damaged),
        ("entry_empty", safetensors({"a": {}}), damaged),
        ("dtype_unknown", safetensors({"a": tensor(dtype="F31")}, b"\0" * 8), damaged),
        ("dtype_object", safetensors({"a": tensor(dtype="O")}, b"\0" * 8), damaged),
        ("dtype_mapping", safetensors({"a": tensor(dtype={"F32": 1})}, b"\0" * 8), damaged),
        ("shape_negative", safetensors({"a": tensor([-2])}, b"\0" * 8), damaged),
        ("shape_two_negatives", safetensors({"a": tensor([-2, -1])}, b"\0" * 8), damaged),
        ("shape_huge", safetensors({"a": tensor([2**62, 2**62])}, b"\0" * 8), damaged),
        ("shape_wraps", safetensors({"a": tensor([2**63, 2])}, b""), damaged),
        ("shape_fraction", safetensors({"a": tensor([1.5])}, b"\0" * 8), damaged),
        ("shape_true", safetensors({"a": tensor([True, 2])}, b"\0" * 8), damaged),
        ("shape_words", safetensors({"a": tensor(["2"])}, b"\0" * 8), damaged),
        ("shape_number", safetensors({"a": tensor(2)}, b"\0" * 8), damaged),
        ("offsets_beyond", safetensors({"a": tensor([2**40], (0, 2**42))}, b"\0" * 8), damaged),
        ("offsets_overlap", safetensors({"a": tensor(), "b": tensor()}, b"\0" * 8), damaged),
        ("offsets_partly", safetensors({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12), damaged),
        ("offsets_gap", safetensors({"a": tensor(), "b": tensor(offsets=(16, 24))}, b"\0" * 24), damaged),
        ("offsets_negative", safetensors({"a": tensor(offsets=(-8, 0))}, b"\0" * 8), damaged),
        ("offsets_backwards", safetensors({"a": tensor(offsets=(8, 0))}, b"\0" * 8), damaged),
        ("offsets_three", safetensors({"a": tensor(offsets=(0, 4, 8))}, b"\0" * 8), damaged),
        ("offsets_words", safetensors({"a": tensor(offsets=("0", "8"))}, b"\0" * 8), damaged),
        ("truncated", safetensors({"a": tensor([1000], (0, 4000))}, b"\0" * 3999), damaged),
        ("more_bytes", safetensors({"a": tensor()}, b"\0" * 9), damaged),
        ("metadata_list", safetensors({"__metadata__": [1], "a": tensor()}, b"\0" * 7), damaged),
        ("pickle", PICKLE, "not a safetensors file: a header of"),
        ("torch_zip", _torch_zip(), "not a safetensors file: a header of"),
        ("torch_old", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + PICKLE, "not a safetensors file: a header of"),
        ("gguf", b"GGUF\x03\0\0\0" + b"\0" * 64, "not a safetensors file: a header of"),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "not a safetensors file: a header of"),
        ("page", b"<!doctype html><title>404</title>", "not a safetensors file: a header of"),
        ("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file: a header of"),
        ("sparse_terabyte", 2**40, "not a file of 8 to"),
        ("sparse_in_budget", 200 * 2**20, damaged),
    ):

        def build(cwd: Path, raw: bytes | int = raw) -> None:
            beside(clf("{checkpoint: w.safetensors}").encode())(cwd)
            with open(cwd / "w.safetensors", "wb") as file:
                file.truncate(raw) if isinstance(raw, int) else file.write(raw)

        yield Case(
            "checkpoint",
            name,
            PLAN,
            (f"4:23: stages.classifier.checkpoint: cannot read 'w.safetensors': {says}",),
            build=build,
        )


def weights() -> Iterator[Case]:
    """Files that are safetensors, but not the weights of the network: told before anything is trained."""
    for name, raw in (
        ("other_names", safetensors({"a": tensor()}, b"\0" * 8)),
        ("no_tensors", safetensors({})),
        ("metadata_only", safetensors({"__metadata__": {"format": "pt", "__reduce__": "os.system"}})),
        ("many_tensors", safetensors({f"t{i}": tensor((0,), (0, 0)) for i in range(9_000)})),
        ("long_name", safetensors({"a" * 100_000: tensor()}, b"\0" * 8)),
        ("ansi_name", safetensors({"\x1b[31m\nurc-sweep: ok": tensor()}, b"\0" * 8)),
        ("dotted_names", safetensors({"__class__.__init__": tensor(), "": tensor(offsets=(8, 16))}, b"\0" * 16)),
    ):

        def build(cwd: Path, raw: bytes = raw) -> None:
            beside(clf("{checkpoint: w.safetensors}").encode())(cwd)
            (cwd / "w.safetensors").write_bytes(raw)

        yield Case("weights", name, INLINE, ("does not fit classifier 'paper'",), build=build, torch=True, writes=True)


# -- data sets of strangers --------------------------------------------------------------------------------------------


def npy(array: Any = None, header: str | None = None, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    if header is None:
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in members.items():
            file.writestr(f"{name}.npy", raw)
    return buffer.getvalue()


def _lying_zip() -> bytes:
    """A member that says it is small and unpacks to a hundred megabytes."""
    raw = archive(images=npy(np.zeros((100, 1000, 1000), np.uint8)), labels=npy(np.arange(100) % 2))
    whole = struct.pack("<I", 100 * 1000 * 1000 + 128)
    assert whole in raw
    return raw.replace(whole, struct.pack("<I", 1000))


def archives() -> Iterator[Case]:
    images, labels = npy(np.zeros((20, 28, 28), np.uint8)), npy(np.arange(20) % 2)
    objects = np.array([Canary()] * 20, dtype=object)
    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
    for name, raw, says in (
        ("empty", b"", "cannot be read"),
        ("words", b"hello", "cannot be read"),
        ("pickle", PICKLE, "cannot be read"),
        ("bare_npy", images, "cannot be read"),
        ("bare_object_npy", npy(objects), "cannot be read"),
        ("no_members", archive(), "images: expected"),
        ("no_labels", archive(images=images), "labels: expected"),
        ("object_images", archive(images=npy(objects), labels=labels), "Object arrays cannot be loaded"),
        ("object_labels", archive(images=images, labels=npy(objects)), "Object arrays cannot be loaded"),
        ("object_more", archive(images=images, labels=labels, x=npy(objects)), "Object arrays cannot be loaded"),
        ("pickle_member", archive(images=PICKLE, labels=labels), "images: expected uint8"),
        ("float_images", archive(images=npy(np.zeros((20, 8, 8))), labels=labels), "images: expected uint8"),
        ("nan_labels", archive(images=images, labels=npy(np.full(20, np.nan))), "labels: expected"),
        ("one_class", archive(images=images, labels=npy(np.zeros(20, int))), "has one class only"),
        ("other_length", archive(images=images, labels=npy(np.arange(3))), "labels: expected"),
        ("structured", archive(images=npy(np.zeros(20, [("a", "u1")])), labels=labels), "images: expected uint8"),
        (
            "five_dimensions",
            archive(images=npy(np.zeros((20, 2, 2, 2, 2), np.uint8)), labels=labels),
            "images: expected",
        ),
        ("no_pixels", archive(images=npy(np.zeros((20, 0, 0), np.uint8)), labels=labels), "images: expected"),
        (
            "split_of_words",
            archive(images=images, labels=labels, split=npy(np.array(["train"] * 20))),
            "split: expected",
        ),
        ("split_huge", archive(images=images, labels=labels, split=npy(np.full(20, 2**62))), "split: expected"),
        ("set_not_a_name", archive(images=images, labels=labels, **{"labels_<img>": labels}), "label set '<img>'"),
        ("set_dunder", archive(images=images, labels=labels, labels_class=labels), "label set 'class'"),
        ("set_long", archive(images=images, labels=labels, **{"labels_" + "a" * 3000 + "!": labels}), "label set"),
        ("set_traversal", archive(images=images, labels=labels, **{"../../labels_x": labels}), "expected labels"),
        (
            "shape_terabyte",
            archive(images=npy(header=header % ("|u1", "(1000000, 1000, 1000)")), labels=labels),
            "cannot be read",
        ),
        (
            "shape_ten_gigabytes",
            archive(images=npy(header=header % ("|u1", "(10000, 1000, 1000)")), labels=labels),
            "cannot be read",
        ),
        (
            "shape_negative",
            archive(images=npy(header=header % ("|u1", "(-1, 28, 28)")), labels=labels),
            "cannot be read",
        ),
        (
            "shape_overflow",
            archive(images=npy(header=header % ("|u1", f"({2**62}, {2**62})")), labels=labels),
            "cannot be read",
        ),
        (
            "shape_code",
            archive(images=npy(header=header % ("|u1", "__import__('os').system('touch pwned')")), labels=labels),
            "cannot be read",
        ),
        ("header_deep", archive(images=npy(header="(" * 9000), labels=labels), "cannot be read"),
        (
            "header_long",
            archive(images=npy(header=header % ("|u1", "(1,)" + " " * 60000)), labels=labels),
            "cannot be read",
        ),
        (
            "header_dtype",
            archive(images=npy(header=header % ("O", "(20,)")), labels=labels),
            "Object arrays cannot be loaded",
        ),
        (
            "header_dtype_bomb",
            archive(images=npy(header=header % ("<U1000000000", "(20,)")), labels=labels),
            "cannot be read",
        ),
        ("bomb_gigabytes", 3, "more than any data set"),
        ("bomb_labels", archive(images=images, labels=npy(np.zeros(12_000_000, int))), "more than any data set"),
        ("lying", _lying_zip, "cannot be read"),
        ("truncated", archive(images=images, labels=labels)[:-40], "cannot be read"),
        ("flipped", archive(images=images, labels=labels).replace(b"\x00\x00\x08", b"\x01\x00\x08"), "cannot be read"),
        ("fifo", None, "is no file and no folder"),
        ("device", "/dev/zero", "is no file and no folder"),
        ("process", "/proc/self/mem", "cannot be read"),
        ("sparse_terabyte", 2**40, "not a file of at most"),
    ):

        def build(cwd: Path, raw: Any = raw) -> None:
            beside(f(dataset="{name: folder, path: x.npz}").encode())(cwd)
            place = cwd / "data" / "x.npz"
            if raw is None:
                os.mkfifo(place)
            elif isinstance(raw, str):
                place.symlink_to(raw)
            elif isinstance(raw, int) and raw > 1000:
                with open(place, "wb") as file:
                    file.truncate(raw)
            else:
                place.write_bytes(_bomb(raw) if isinstance(raw, int) else raw() if callable(raw) else raw)

        yield Case("npz", name, PLAN, (says,), build=build, torch=True)


def _bomb(gigabytes: int) -> bytes:
    """A few megabytes that unpack to gigabytes of zeros."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(
            npy(header="{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 1024, 1024), }" % (gigabytes * 1024))
        )
        for _ in range(gigabytes * 64):
            member.write(bytes(2**24))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = 28, height: int = 28, depth: int = 8, colour: int = 0, body: bytes | None = None, extra: bytes = b""
) -> bytes:
    rows = zlib.compress((b"\0" + bytes(28)) * 28) if body is None else body
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def images() -> Iterator[Case]:
    right = png()
    text_bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))
    for name, odd, says in (
        ("empty", b"", "cannot be read"),
        ("words", b"hello", "cannot be read"),
        ("pickle", PICKLE, "cannot be read"),
        ("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF", "cannot be read"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "cannot be read"),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        ("header_60000", png(60_000, 60_000), "cannot be read"),
        ("header_2_31", png(2**31 - 1, 2**31 - 1), "cannot be read"),
        ("header_9000", png(9_000, 9_000), "expected at most 4,194,304 pixels"),
        ("header_zero", png(0, 28), "cannot be read"),
        ("header_strip", png(2**30, 1), "cannot be read"),
        ("other_size", png(27, 28), "in the first image"),
        ("depth_16", png(depth=16), "depth 16"),
        ("depth_3", png(depth=3), "cannot be read"),
        ("colour_alpha", png(colour=6), "mode RGBA"),
        ("palette_missing", png(colour=3), "in the first image"),
        ("truncated", right[:-30], "cannot be read"),
        ("no_end", right[:-12], "cannot be read"),
        ("body_bomb", png(body=zlib.compress(bytes(200_000_000))), None),
        ("body_damaged", png(body=b"\x78\x9c" + b"\xff" * 40), "cannot be read"),
        ("checksum", right.replace(b"IDAT", b"IDAU"), "cannot be read"),
        ("text_bomb", png(extra=text_bomb), "cannot be read"),
        ("text_markup", png(extra=chunk(b"tEXt", b"Title\0</script><img onerror=alert(1)>\x1b[31m")), None),
        ("profile_bomb", png(extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))), "cannot be read"),
        ("chunk_length", right[:33] + b"\xff\xff\xff\xff" + right[37:], "cannot be read"),
        ("sparse", 2**40, "not a file of at most"),
        ("fifo", None, "not a file of at most"),
        ("folder", {}, "not a file of at most"),
        ("link_outside", {"link": "../../../secret.npz"}, "leads out of"),
        ("link_device", {"link": "/dev/zero"}, "leads out of"),
        ("link_process", {"link": "/proc/self/environ"}, "leads out of"),
        ("link_loop", {"link": "odd.png"}, "not a file of at most"),
    ):

        def build(cwd: Path, odd: Any = odd) -> None:
            beside(f(dataset="{name: folder, path: set}").encode())(cwd)
            for label in ("a", "b"):
                folder = cwd / "data" / "set" / label
                folder.mkdir(parents=True)
                for number in range(20):
                    (folder / f"{number}.png").write_bytes(right)
            place = cwd / "data" / "set" / "a" / "odd.png"
            if odd is None:
                os.mkfifo(place)
            elif isinstance(odd, int):
                with open(place, "wb") as file:
                    file.truncate(odd)
            elif isinstance(odd, dict):
                place.symlink_to(odd["link"]) if odd else place.mkdir()
            else:
                place.write_bytes(odd)

        yield Case("png", name, PLAN, (says,) if says else (), 2 if says else 0, build, torch=True)
    more: tuple[tuple[str, Callable[[Path], Any], str], ...] = (
        ("class_link_outside", lambda d: (d / "c").symlink_to("/etc"), "leads out of"),
        ("class_link_root", lambda d: (d / "c").symlink_to("/"), "leads out of"),
        ("class_device", lambda d: (d / "c").symlink_to("/dev"), "leads out of"),
        ("class_empty", lambda d: (d / "c").mkdir(), "expected class/*.png"),
        ("csv_fifo", lambda d: os.mkfifo(d / "labels.csv"), "not a file of at most"),
        ("csv_device", lambda d: (d / "labels.csv").symlink_to("/dev/zero"), "not a file of at most"),
        ("csv_sparse", lambda d: os.truncate(_touch(d / "labels.csv"), 2**40), "not a file of at most"),
        ("csv_binary", lambda d: (d / "labels.csv").write_bytes(b"\xff\xfe\0"), "cannot be read"),
        ("csv_quote", lambda d: (d / "labels.csv").write_text('file,a\n"' + "x" * 200_000), "cannot be read"),
        ("csv_nul", lambda d: (d / "labels.csv").write_bytes(b"file,a\n\0,1\n"), "labels.csv: "),
        ("csv_header", lambda d: (d / "labels.csv").write_text("=cmd|'/C calc'!A0,b\n"), "expected a first line"),
        ("csv_wide", lambda d: (d / "labels.csv").write_text("file" + ",a" * 50_000 + "\n"), "expected a first line"),
        ("csv_missing", lambda d: (d / "labels.csv").write_text("file,a\n../../secret,1\n"), "no line with 1 values"),
        ("csv_markup", lambda d: (d / "labels.csv").write_text("file,<img>\n" + _lines()), "label set '<img>'"),
    )
    for name, prepare, says in more:

        def build_more(cwd: Path, prepare: Callable[[Path], Any] = prepare) -> None:
            beside(f(dataset="{name: folder, path: set}").encode())(cwd)
            for label in ("a", "b"):
                (cwd / "data" / "set" / label).mkdir(parents=True)
                for number in range(20):
                    (cwd / "data" / "set" / label / f"{number}.png").write_bytes(right)
            prepare(cwd / "data" / "set")

        yield Case("png", name, PLAN, (says,), build=build_more, torch=True)


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _lines() -> str:
    return "".join(f"{label}/{number}.png,{number % 2}\n" for label in "ab" for number in range(20))


# -- stores ------------------------------------------------------------------------------------------------------------

# Wrong in ways that counting trials by status does not look at.
TOLD_BY_VERIFY = (
    "rate_huge",
    "rate_word",
    "seed_word",
    "term_unknown",
    "weight_word",
    "dataset_missing",
)
READERS = {
    "status": ("status",),
    "trials": ("trials",),
    "report": ("report",),
    "compare": ("compare", "tiny", "tiny"),
    "query": ("query", "select count(*) from trials"),
    "verify": ("verify",),
    "plan": ("plan", "sweep.yaml"),
    "stop": ("stop",),
    "retry": ("retry",),
    "launch": ("launch", "sweep.yaml", "--executor", "inline"),
    "curves": ("query", "select count(*) from curves"),
}


def on_store(
    kind: str,
    name: str,
    verbs: str,
    says: str,
    change: Build,
    code: int = 4,
    writes: bool = False,
    several: bool = False,
) -> Iterator[Case]:
    """Yield a case per verb on a store that ``change`` has been at."""

    def build(cwd: Path) -> None:
        with_store(cwd)
        change(cwd / "store")

    for verb in verbs.split():
        argv = (*READERS[verb], "--store", "store")
        yield Case(kind, f"{name}_{verb}", argv, (says,) if code else (), code, build, writes=writes, several=several)


def put(path: str, data: bytes | int | str | None) -> Build:
    """Return a change of one file: bytes, a sparse file of so many bytes, a link, or (``None``) a pipe."""

    def change(store: Path) -> None:
        place = next(iter(store.glob(path)), store / path)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            os.mkfifo(place)
        elif isinstance(data, str):
            place.symlink_to(data)
        elif isinstance(data, bytes):
            place.write_bytes(data)
        else:
            with open(place, "wb") as file:
                file.truncate(data)

    return change


JSON_BOMBS: dict[str, bytes | int | str | None] = {
    "empty": b"",
    "deep": b"[" * 1_000_000,
    "wide": b"[" + b"0," * 5_000_000 + b"0]",
    "digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "sparse": 2**40,
    "fifo": None,
    "device": "/dev/zero",
    "folder": "..",
    "pickle": PICKLE,
    "list": b"[]",
    "word": b'"x"',
}


def stores() -> Iterator[Case]:
    """Files of a store that are not what their names say."""
    for name, data in JSON_BOMBS.items():
        yield from on_store("store_json", f"format_{name}", "status", "store", put("format.json", data))
        yield from on_store(
            "store_json", f"plan_{name}", "status", "0.json", put("sweeps/tiny/generations/0.json", data)
        )
        yield from on_store("store_json", f"commit_{name}", "verify", "", put("commits/??/*.json", data), several=True)
        yield from on_store("store_json", f"failure_{name}", "status", "failures", put("failures/*/1.json", data))
        yield from on_store(
            "store_json", f"lease_{name}", "launch", "lease.json: damaged", put("lease.json", data), writes=True
        )
    yield from on_store("store_json", "format_newer", "status", "newer than", put("format.json", b'{"format": 1e300}'))
    yield from on_store("store_json", "format_negative", "status", "", put("format.json", b'{"format": -1}'), code=0)
    yield from on_store("store_json", "format_true", "status", "", put("format.json", b'{"format": true}'), code=0)
    yield from on_store("store_json", "failure_name", "status", "", put("failures/*/x.json", b"{}"), code=0)
    for name, lease in (
        ("no_pid", {}),
        ("pid_word", {"pid": "1; touch pwned"}),
        ("pid_traversal", {"pid": "../../etc"}),
        ("pid_negative", {"pid": -1}),
        ("pid_huge", {"pid": 10**30}),
        ("pid_list", {"pid": [1]}),
        ("pid_nan", {"pid": float("nan")}),
        ("sweep_ansi", {"pid": 1, "sweep": "\x1b[31m\nurc-sweep: ok"}),
    ):
        text = json.dumps(
            {"host": socket.gethostname(), "boot_id": _boot_id(), "token": "t", "started": 1, "sweep": "tiny"} | lease
        )
        change = put("lease.json", text.encode())
        yield from on_store("lease", name, "status", "", change, code=0)
        yield from on_store("lease", name, "stop", "is not running", change, code=2)
    links = {"sweep": "sweeps/tiny", "trials": "trials/sweep=tiny", "curves": "curves/sweep=tiny"}
    for name, path in links.items():
        for verb in ("status", "report") if name == "sweep" else ("report", "curves"):
            yield from on_store("store_link", name, verb, "leads out of the store", _linked(path))
    yield from on_store("store_link", "sweep_name", "status", "", lambda s: (s / "sweeps" / "..tiny").mkdir(), code=0)
    yield from on_store("artifact", "sparse", "verify", "", put("artifacts/??/*.safetensors", 2**40), several=True)
    yield from on_store("artifact", "fifo", "verify", "", put("artifacts/??/*.safetensors", None), several=True)
    yield from on_store(
        "artifact", "device", "verify", "", put("artifacts/??/*.safetensors", "/dev/zero"), several=True
    )
    yield from on_store("artifact", "pickle", "verify", "damaged", put("artifacts/??/*.safetensors", PICKLE))


def _linked(path: str) -> Build:
    def change(store: Path) -> None:
        shutil.move(store / path, store.parent / "elsewhere")
        (store / path).symlink_to(store.parent / "elsewhere")

    return change


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def records() -> Iterator[Case]:
    """Records whose checksum is right and whose content is a forger's."""
    odd: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
        ("trials_missing", lambda r: r.pop("trials")),
        ("trials_word", lambda r: r.update(trials="x")),
        ("trials_numbers", lambda r: r.update(trials=[1, 2])),
        ("trial_empty", lambda r: r.update(trials=[{}])),
        ("trial_id_traversal", lambda r: r["trials"][0].update(id="../../../x")),
        ("trial_id_number", lambda r: r["trials"][0].update(id=7)),
        ("config_empty", lambda r: r["trials"][0].update(config={})),
        ("config_list", lambda r: r["trials"][-1].update(config=[])),
        ("needs_word", lambda r: r["trials"][-1]["config"].update(needs="x")),
        ("evaluators_list", lambda r: r["trials"][-1].update(evaluators=[1])),
        ("rate_huge", lambda r: r["trials"][-1]["config"].update(rate={"dim": 10**9, "levels": 10**9})),
        ("rate_word", lambda r: r["trials"][-1]["config"].update(rate="x")),
        ("seed_word", lambda r: r["trials"][-1]["config"].update(seed="x")),
        ("term_unknown", lambda r: r["trials"][-1]["config"].update(objective={"__import__": {"weight": 1}})),
        ("weight_word", lambda r: r["trials"][-1]["config"].update(objective={"distortion": {"weight": "x"}})),
        ("dataset_missing", lambda r: r["trials"][-1]["config"].pop("dataset")),
        ("launched_at_list", lambda r: r.update(launched_at=[1])),
    )
    for name, change in odd:
        path = "sweeps/tiny/generations/0.json"
        code = 0 if name in ("launched_at_list", *TOLD_BY_VERIFY) else 4
        yield from on_store("record", f"plan_{name}", "status", "", _forged(path, change), code)
        if name != "launched_at_list":
            yield from on_store("record", f"plan_{name}", "verify", "", _forged(path, change), several=True)
    failed: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
        ("final_missing", lambda r: r.pop("final")),
        ("status_list", lambda r: r.update(status=[1])),
        ("status_unknown", lambda r: r.update(status="\x1b[31mwell")),
        ("empty", lambda r: r.clear()),
    )
    for name, change in failed:
        code = 0 if name == "status_unknown" else 4
        yield from on_store(
            "record", f"failure_{name}", "status", "failures", _forged("failures/*/1.json", change), code
        )


def _forged(path: str, change: Callable[[dict[str, Any]], Any]) -> Build:
    return lambda store: reseal(next(iter(sorted(store.glob(path)))), change)


def tables() -> Iterator[Case]:
    """Parquet files that are small on disk, or right to the eye, and nothing that a store writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(table: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        return buffer.getvalue()

    def right() -> bytes:
        return (_study() / "trials/sweep=tiny/trials.parquet").read_bytes()

    def strings() -> bytes:
        """Two megabytes that are twenty gigabytes of text: one word, named by a dictionary."""
        word, count = "x" * 1_000_000, 20_000
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([word]))
        return written(pa.table({"trial_id": column}))

    def nested() -> bytes:
        kind: Any = pa.int64()
        for _ in range(80):
            kind = pa.list_(kind)
        return written(pa.table({"trial_id": pa.array([None], kind)}))

    def groups() -> bytes:
        return written(pa.table({"trial_id": pa.array([""] * 30_000)}), row_group_size=1)

    def footer(length: int) -> bytes:
        return right()[:-8] + struct.pack("<I", length) + b"PAR1"

    odd: dict[str, Callable[[], Any]] = {
        "strings_20_gigabytes": strings,
        "columns": lambda: written(pa.table({f"c{i}": [1] for i in range(20_000)})),
        "nested": nested,
        "groups": groups,
        "rows": lambda: written(pa.table({"trial_id": pa.nulls(50_000_000, pa.string())})),
        "types": lambda: written(pa.table({name: [1] for name in pq.read_schema(io.BytesIO(right())).names})),
        "other_columns": lambda: written(pa.table({"\x1b[31m<img>": [1]})),
        "no_columns": lambda: written(pa.table({})),
        "footer_long": lambda: footer(2**31),
        "footer_zero": lambda: footer(0),
        "footer_damaged": lambda: right()[:-200] + b"\xff" * 192 + right()[-8:],
        "body_damaged": lambda: right()[:4] + bytes(400) + right()[404:],
        "truncated": lambda: right()[:-9],
        "empty": lambda: b"",
        "magic": lambda: b"PAR1PAR1",
        "encrypted": lambda: right()[:-4] + b"PARE",
        "pickle": lambda: PICKLE,
        "csv": lambda: b"trial_id\n=cmd|'/C calc'!A0\n",
        "sparse": lambda: 2**40,
        "fifo": lambda: None,
        "device": lambda: "/dev/zero",
        "folder": lambda: "..",
    }
    for name, make in odd.items():

        def change(store: Path, make: Callable[[], Any] = make) -> None:
            put("trials/sweep=tiny/trials.parquet", make())(store)

        yield from on_store("parquet", name, "query report", "trials.parquet", change)


def pages() -> Iterator[Case]:
    """Reports of forged stores: whatever a name or a message says is text in the page, and in the terminal."""
    for number, (name, text) in enumerate(PAYLOADS.items()):

        def build(cwd: Path, text: str = text) -> None:
            with_store(cwd)
            forge(cwd / "store", text)

        def look(cwd: Path, ran: Ran, text: str = text) -> list[str]:
            path = cwd / "store/sweeps/tiny/report.html"
            return unescaped(path.read_text(encoding="utf-8"), text) if path.exists() else ["no report"]

        yield Case("page", name, ("report", "--store", "store"), (), 0, build, writes=True, look=look)
        verb = ("trials", "status", "frontier", "show")[number % 4]
        argv = (verb, *([_failed_id()[:12]] if verb == "show" else []), "--store", "store")
        yield Case("terminal", name, argv, (), 0, build)
    for name, text in (("word", "x"), ("list", "[1]"), ("deep", "[" * 50_000), ("sections", '{"train": [1]}')):

        def change(store: Path, text: str = text) -> None:
            forge(store, "x", config_json=text)

        yield from on_store("page", f"config_{name}", "compare", "a config_json in the table trials is damaged", change)


def _failed_id() -> str:
    return next(iter((_study() / "failures").iterdir())).name


PAYLOADS = {
    "script": "<script>canary()</script>",
    "script_end": "</script><script>canary()</script>",
    "data_end": '</script ><img src=x onerror="canary()">',
    "comment_script": "<!--<script>canary()//-->",
    "image": "<img src=x onerror=canary()>",
    "svg": "<svg/onload=canary()>",
    "quotes": "\"' autofocus onfocus=canary() x='\"",
    "entity": "&lt;img src=x onerror=canary()&gt;",
    "link": '<a href="javascript:canary()">x</a>',
    "javascript": "javascript:canary()",
    "separators": "\u2028\u2029<script>canary()</script>",
    "template": "{{plotly}}{{data}}${canary()}`${canary()}`",
    "style": "</style><style>*{background:url(javascript:canary())}</style>",
    "title": "</title><script>canary()</script>",
    "textarea": "</pre></textarea><iframe srcdoc='<script>parent.canary()</script>'>",
    "base": '<base href="//evil.invalid/"><meta http-equiv=refresh content="0;url=//evil.invalid">',
    "nul": "\0<script>canary()</script>",
    "ansi": "\x1b[31m\x1b]8;;http://evil.invalid\x07<b>x</b>",
    "markup": "[red][link=http://evil.invalid]<b>x</b>[/link][/red]",
    "formula": "=cmd|'/C calc'!A0",
    "prototype": "__proto__",
    "long": "<b>" * 20_000,
}


def forge(store: Path, text: str, **more: str) -> None:
    """Write ``text`` wherever a store's tables, plan and failures hold words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from urc_sweep.store.tables import TRIALS, to_bytes

    path = store / "trials/sweep=tiny/trials.parquet"
    rows = pq.read_table(path).to_pylist(maps_as_pydicts="lossy")
    words = "dataset model protocol variant precision error_type error_message device host code_version git_sha"
    for row in rows:
        row |= (
            dict.fromkeys([*words.split(), "torch_version", "cached_from"], text)
            | {"weights": [(text, 1.0)], "metrics": [(text, 1.0)]}
            | more
        )
        row["stage"] = text if row["stage"] == "universal" else row["stage"]
    path.write_bytes(to_bytes(pa.Table.from_pylist(rows, TRIALS.with_metadata({"source": text, "sweep": "tiny"}))))
    (store / "sweeps/tiny/spec.yaml").write_text(text, encoding="utf-8")
    reseal(store / "sweeps/tiny/generations/0.json", lambda r: r.update(command=text))
    failure = next(iter((store / "failures").glob("*/1.json")))
    lines = f'Traceback (most recent call last):\n  File "{text}", line 1\n{text}: {text}'
    reseal(failure, lambda r: r.update(error_type=text, error_message=text, host=text, trace=lines))


def unescaped(page: str, text: str) -> list[str]:
    """Return how ``text`` reached the markup of ``page``, if it did."""
    from html.parser import HTMLParser

    from plotly.offline import get_plotlyjs

    from urc_sweep.show.report import SCRIPTS

    page = page.replace(get_plotlyjs(), "").replace('<a class="skip" href="#frontier">', "")
    scripts = 2 + len(SCRIPTS)
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            for key, value in attributes:
                leads = key in ("src", "href", "srcdoc", "action") and value != "data:,"
                if key.startswith("on") or leads:
                    found.append(f"<{tag} {key}={value!r}>")
            if tag in ("iframe", "img", "svg", "base", "object", "embed", "b", "a"):
                found.append(f"<{tag}>")

    Parser().feed(page)
    if page.count("<script") != scripts or page.count("</script") != scripts or page.count("<style") != 1:
        found.append("the page has other scripts or styles than its own")
    if len(text) < 1000 and f"{html.escape(text)}</pre>" not in page:
        found.append("the traceback of the failed trial is not shown")
    if "<" in text and text in page:
        found.append("the payload stands in the page as it is")
    return found
