"""YAML text to plain values that remember their place. Refuses whatever YAML can do that a sweep never needs."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from urc_sweep.errors import SpecError

MAX_BYTES, MAX_DEPTH, MAX_NODES = 64_000, 20, 20_000
Path = tuple[str | int, ...]
# What people write for numbers; YAML 1.1 leftovers (012, 1:30, 1_000, 0x1F) are refused instead of guessed.
_INDEX = re.compile(r"0|[1-9][0-9]*")
_INT = re.compile(rf"[-+]?({_INDEX.pattern})")
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in "map seq str null bool int float timestamp merge value".split()}
_MAX_DIGITS = 400
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")


def dotted(path: Path) -> str:
    """Return ``stages.end_to_end.objective`` or ``rates[1].levels`` for a path of keys and indices."""
    text = ""
    for step in path:
        word = str(step) if str(step).isprintable() else repr(step)
        text += f"[{step}]" if isinstance(step, int) else f".{word}" if text else word
    return text


@dataclass
class Document:
    """A sweep file's content, the place of every value and key, and the problems found on the way."""

    source: str
    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)

    def problem(self, path: Path, message: str) -> str:
        """Return ``file:line:col: path: message`` with the nearest place that the file itself holds."""
        outwards = [path[:length] for length in range(len(path), -1, -1)]
        for near in outwards:
            if near in self.overrides:
                return f"--set {self.overrides[near]}: {dotted(path)}: {message}"
        line, column = next((self.places[near] for near in outwards if near in self.places), (1, 1))
        return f"{self.source}:{line}:{column}: {dotted(path) + ': ' if path else ''}{message}"

    def override(self, assignment: str) -> None:
        """Apply one ``--set a.b=value``; the value is YAML, list indices are ``rates.0.dim``, ``*`` means all."""
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise SpecError(f"--set {assignment}: expected KEY.SUBKEY=VALUE")
        parts = key.strip().split(".")
        self._set(
            tuple(int(part) if _INDEX.fullmatch(part) and len(part) < 9 else part for part in parts), text, assignment
        )

    def _set(self, path: Path, text: str, assignment: str) -> None:
        value, target = read(text, f"--set {assignment}").value, self.value
        for depth, step in enumerate(path):
            before, last = path[:depth], depth + 1 == len(path)
            if step == "*":
                if not isinstance(target, list):
                    raise SpecError(f"--set {assignment}: {dotted(before)} is not a list in the sweep file")
                for index in range(len(target)):
                    self._set((*before, index, *path[depth + 1 :]), text, assignment)
                return
            if isinstance(target, dict) and (last or isinstance(step, str)):
                step = str(step)
            elif not (isinstance(target, list) and isinstance(step, int) and step < len(target)):
                raise SpecError(f"--set {assignment}: {dotted((*before, step))} is not in the sweep file")
            if last:
                target[step] = value
                self.overrides[(*before, step)] = assignment
            elif isinstance(target, dict) and not isinstance(target.get(step), (dict, list)):
                target[step] = {}
            target = target[step]


def read(text: str, source: str) -> Document:
    """Parse YAML ``text``; raise ``SpecError`` with the place of the first thing that cannot be accepted."""
    document = Document(source)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpecError(f"{source}:1:1: larger than {MAX_BYTES:,} bytes")
    try:
        with warnings.catch_warnings(action="ignore"):  # an anchor used twice, say
            root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else f"{source}:1:1"
        raise SpecError(f"{place}: not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise SpecError(f"{source}:1:1: not YAML: {str(error).splitlines()[0]}") from None
    document.value = {} if root is None else _plain(root, (), document, set())
    return document


def _plain(node: Node, path: Path, document: Document, seen: set[int]) -> Any:
    if id(node) in seen:  # the node's own place is its anchor's
        raise SpecError(document.problem(path, "aliases (*name) are not accepted; write the value out"))
    seen.add(id(node))
    document.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))

    def refuse(message: str, at: Node = node, where: Path = path) -> SpecError:
        line, column = at.start_mark.line + 1, at.start_mark.column + 1
        prefix = f"{dotted(where)}: " if where else ""
        return SpecError(f"{document.source}:{line}:{column}: {prefix}{message}")

    if str(node.tag) not in _TAGS:
        raise refuse("tags (!...) are not accepted; write plain values")
    if len(path) > MAX_DEPTH or len(seen) > MAX_NODES:
        raise refuse(f"nested deeper than {MAX_DEPTH} or more than {MAX_NODES:,} values")
    if isinstance(node, MappingNode):
        mapping: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode) or id(key) in seen:
                raise refuse("keys are plain words", key)
            name = str(key.value)
            if name in mapping:
                raise refuse("duplicate key", key, (*path, name))
            document.places[(*path, name)] = (key.start_mark.line + 1, key.start_mark.column + 1)
            mapping[name] = _plain(item, (*path, name), document, seen)
        return mapping
    if isinstance(node, SequenceNode):
        return [_plain(item, (*path, index), document, seen) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(node, refuse)


def _scalar(node: ScalarNode, refuse: Any) -> Any:
    text = str(node.value)
    kind = str(node.tag).rsplit(":", 1)[-1]
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):  # not the yes and on of YAML 1.1
        return text.lower() == "true"
    if kind == "int" and _INT.fullmatch(text) and len(text) < _MAX_DIGITS:
        return int(text)
    if kind in ("int", "float") and _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        value = float(text)
        if math.isfinite(value):
            return value
    shown = text if len(text) <= 40 else f"{text[:20]}..."
    raise refuse(f"cannot read {shown!r} as a plain number, word or true/false; quote it if it is a word")
