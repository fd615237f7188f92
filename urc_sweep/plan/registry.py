"""What a sweep file may name. Invariant: the decorator on a component is the only list there is.

Built-in components are found by reading the decorators out of the source text of the rooms that hold them, so
that ``validate`` and ``plan`` know every name, version and parameter without importing torch. A plugin's are
registered when the plugin is imported, and carry the hash of its source into the ids of its trials.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from urc_sweep.errors import SpecError, choices
from urc_sweep.maths.ids import digest

KINDS = ("dataset", "model", "classifier", "term", "metric", "search")
BUILT_IN = ("plan.search", "learn.data", "learn.models", "learn.objectives", "learn.evaluate", "learn.perception")
PLUGIN_GROUP = "urc_sweep.plugins"
PARAMETER_TYPES: Mapping[str, type] = MappingProxyType({"int": int, "float": float, "str": str, "bool": bool})

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter of a component: what a sweep file may set beside its name."""

    kind: type
    default: Any


@dataclass(frozen=True)
class Component:
    """A data set, network, classifier, objective term, metric or search strategy, known by name."""

    kind: str
    name: str
    version: int
    module: str
    attribute: str
    parameters: Mapping[str, Parameter]
    facts: Mapping[str, Any]
    summary: str = ""
    source_sha256: str | None = None

    def load(self) -> Any:
        """Import and return the component itself (this is where torch comes in)."""
        return getattr(importlib.import_module(self.module), self.attribute)

    @property
    def identity(self) -> dict[str, Any]:
        """What of this component belongs in a content id."""
        own = {"name": self.name, "version": self.version}
        return own if self.source_sha256 is None else own | {"source_sha256": self.source_sha256}


_plugins: dict[tuple[str, str], Component] = {}


def component(kind: str, name: str, *, version: int, **facts: Any) -> Callable[[T], T]:
    """Enter the decorated function or class under ``name``.

    ``version`` is part of the id of every trial that uses the component: raise it when its numbers change.
    ``facts`` are literals that planning needs before anything is imported (a data set's sizes, a term's needs).
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}; {choices(kind, KINDS)}")

    def enter(target: T) -> T:
        if target.__module__.startswith("urc_sweep."):
            return target  # read from the source text, see _built_in
        if (kind, name) in known():
            raise SpecError(f"plugin {target.__module__}: {kind} {name!r} exists already")
        source_sha256 = digest(Path(inspect.getsourcefile(target) or "").read_bytes())
        summary = _summary(inspect.getdoc(target))
        parameters = {
            p.name: _parameter(kind, name, p)
            for p in inspect.signature(target).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        }
        _plugins[kind, name] = Component(
            kind, name, version, target.__module__, target.__name__, parameters, facts, summary, source_sha256
        )
        return target

    return enter


def known() -> Mapping[tuple[str, str], Component]:
    """Return every component by (kind, name), built-in and plugged in."""
    return {**_built_in(), **_plugins}


def names(kind: str) -> list[str]:
    return [name for other, name in known() if other == kind]


def find(kind: str, name: str) -> Component:
    """Return one component or raise a ``SpecError`` that lists the choices."""
    try:
        return known()[kind, name]
    except KeyError:
        raise SpecError(f"unknown {kind} {name!r}; {choices(name, names(kind))}") from None


def of_kind(kind: str) -> list[Component]:
    return [entry for (other, _), entry in known().items() if other == kind]


def load_plugins(plugins: tuple[str, ...] = ()) -> None:
    """Import installed plugins (entry-point group ``urc_sweep.plugins``) and those named, modules or files."""
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            raise SpecError(f"installed plugin {entry_point.name} ({entry_point.value}): {error}") from error
    for plugin in plugins:
        try:
            _import(plugin)
        except (ImportError, OSError, SyntaxError, ValueError, TypeError) as error:
            raise SpecError(f"--plugin {plugin}: {error}") from error


def _import(plugin: str) -> None:
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    path = Path(plugin).resolve()
    name = f"urc_sweep_plugin_{path.stem}_{digest(str(path).encode())[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@functools.cache
def _built_in() -> dict[tuple[str, str], Component]:
    package = Path(__file__).resolve().parent.parent
    found: dict[tuple[str, str], Component] = {}
    for room in BUILT_IN:
        tree = ast.parse((package / (room.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "component":
                    entry = _read(node, call, f"urc_sweep.{room}")
                    found[entry.kind, entry.name] = entry
    return found


def _read(node: ast.FunctionDef | ast.ClassDef, call: ast.Call, module: str) -> Component:
    kind, name = (ast.literal_eval(argument) for argument in call.args)
    facts = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    inits = (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
    signature = next(inits, None) if isinstance(node, ast.ClassDef) else node
    parameters = {}
    if signature is not None:
        for argument, default in zip(signature.args.kwonlyargs, signature.args.kw_defaults, strict=True):
            if argument.annotation is not None and default is not None:
                kind_of = PARAMETER_TYPES[ast.unparse(argument.annotation)]
                parameters[argument.arg] = Parameter(kind_of, ast.literal_eval(default))
    version = facts.pop("version")
    return Component(kind, name, version, module, node.name, parameters, facts, _summary(ast.get_docstring(node)))


def _parameter(kind: str, name: str, parameter: inspect.Parameter) -> Parameter:
    written = parameter.annotation
    declared = PARAMETER_TYPES.get(written if isinstance(written, str) else getattr(written, "__name__", "str"))
    if declared is None or parameter.default is inspect.Parameter.empty:
        wanted = f"a default and a type of {', '.join(PARAMETER_TYPES)}"
        raise ValueError(f"{kind} {name!r}: {parameter.name} needs {wanted}")
    return Parameter(declared, parameter.default)


def _summary(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]
