"""The decorator is the only list: what is read from source is what importing finds, and plugins join by path."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

import urc_sweep
from tests.plan.test_trials import TINY
from urc_sweep.errors import SpecError
from urc_sweep.plan import registry, spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.registry import Component
from urc_sweep.plan.trials import Trial, metrics_of

PACKAGE = Path(urc_sweep.__file__).parent
TEMPLATES = sorted((PACKAGE / "plan" / "templates").glob("*.yaml"))
PLUGIN = '''
"""A plugin: one data set, one term, one metric, one model parameter of every type."""
import numpy as np
from urc_sweep.plan.registry import component

FACTS = {"sha256": "cd" * 32, "image": (1, 28, 28), "classes": 2, "train": 8, "validation": 4, "test": 4}

@component("dataset", "stripes", version=3, **FACTS)
def stripes(source, *, gap: int = 2, noise: float = 0.5, soft: bool = True, look: str = "plain"):
    """Stripes: two classes of them."""

@component("term", "total_variation", version=1, symbol="lambda_tv", needs=("classifier",))
class TotalVariation:
    """Sum of absolute differences of neighbouring pixels."""

@component("metric", "brightness", version=1, stages=("universal",))
def brightness(view):
    """Mean pixel."""
    return {"brightness": 0.0}
'''
WITH_PLUGIN = TINY.replace("digits", "stripes").replace("classification: 0.02", "total_variation: [0.1]")


@pytest.fixture
def clean():
    """Leave no plugin behind."""
    before, modules = dict(registry._plugins), set(sys.modules)
    yield
    registry._plugins.clear()
    registry._plugins.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("urc_sweep_plugin_"):
            del sys.modules[name]


def write(folder: Path, text: str = PLUGIN, name: str = "mine.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


# -- built-in components -----------------------------------------------------------------------------------------------


def imported(monkeypatch) -> dict[tuple[str, str], Component]:
    """Every component that the decorator sees when all modules of the package that use it are executed."""
    seen: dict[tuple[str, str], Component] = {}

    def record(kind, name, *, version, **facts):
        def enter(target):
            if not target.__module__.startswith("seen_"):
                return target  # the module itself, imported by one that is being looked at
            parameters = {
                p.name: registry.Parameter(registry.PARAMETER_TYPES[p.annotation], p.default)
                for p in inspect.signature(target).parameters.values()
                if p.kind is inspect.Parameter.KEYWORD_ONLY
            }
            summary = (inspect.getdoc(target) or "").splitlines()[0]
            module = target.__module__.removeprefix("seen_")
            assert (kind, name) not in seen, "entered twice"
            seen[kind, name] = Component(kind, name, version, module, target.__name__, parameters, facts, summary)
            return target

        return enter

    monkeypatch.setattr(registry, "component", record)
    for path in sorted(PACKAGE.rglob("*.py")):
        if "@component(" in path.read_text() or "@registry.component(" in path.read_text():
            name = ".".join(("urc_sweep", *path.relative_to(PACKAGE).with_suffix("").parts))
            found = importlib.util.spec_from_file_location(f"seen_{name}", path)
            module = importlib.util.module_from_spec(found)
            monkeypatch.setitem(sys.modules, f"seen_{name}", module)
            found.loader.exec_module(module)
    return seen


def test_what_is_read_from_source_is_what_importing_finds(monkeypatch):
    assert dict(registry._built_in()) == imported(monkeypatch)
    assert {kind for kind, _ in registry._built_in()} == set(registry.KINDS)


@pytest.mark.parametrize("key", registry._built_in(), ids="-".join)
def test_every_component_says_what_it_is(key):
    entry = registry._built_in()[key]
    assert entry.summary.endswith((".", ")", ":")) or len(entry.summary) > 20
    assert isinstance(entry.version, int)
    assert entry.version >= 1
    assert entry.identity == {"name": key[1], "version": entry.version}, "no source hash: its version speaks for it"
    if entry.kind == "dataset" and "location" not in entry.facts:  # that of a folder only its bytes can tell
        assert {"image", "labels", "train", "sha256"} <= entry.facts.keys()
    if entry.kind == "term":
        assert entry.facts["symbol"].startswith("lambda_")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_names_are_listed_and_others_refused(kind):
    assert registry.names(kind)
    assert [entry.name for entry in registry.of_kind(kind)] == registry.names(kind)
    with pytest.raises(SpecError) as caught:
        registry.find(kind, "nothing")
    assert str(caught.value) == f"unknown {kind} 'nothing'; choices: {', '.join(sorted(registry.names(kind)))}"


def test_planning_reads_names_without_importing_the_learning_room():
    code = (
        "import sys; from urc_sweep.plan import registry, spec; from urc_sweep.plan.expand import expand;"
        f"print(len(expand(spec.parse({TINY!r}))), len(registry.known()), 'urc_sweep.learn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", str(len(registry._built_in())), "False"]


def judged(stage: str, *terms: str) -> list[str]:
    """The names of the metrics of a trial of a stage, with an objective of these terms."""
    config = {"stage": stage, "objective": {term: {"weight": 1.0} for term in terms}}
    return [metric.name for metric in metrics_of(Trial("", stage, config, {}, ""))]


def test_the_metrics_of_a_trial():
    assert judged("classifier") == ["real_classification"]
    assert judged("joint") == ["encoder_facts"]
    assert judged("end_to_end") == sorted(judged("end_to_end"))
    assert set(judged("end_to_end")) - set(judged("universal")) == {"anchors"}
    assert set(judged("universal", "distortion", "perception")) - set(judged("universal", "distortion")) == {
        "critic_gap",
        "fresh_critic_gap",
    }


# -- plugins -----------------------------------------------------------------------------------------------------------


def test_a_plugin_file_registers_its_components(tmp_path, clean):
    registry.load_plugins((write(tmp_path),))
    stripes = registry.find("dataset", "stripes")
    assert (stripes.version, stripes.facts["classes"], stripes.summary) == (3, 2, "Stripes: two classes of them.")
    assert {key: (p.kind, p.default) for key, p in stripes.parameters.items()} == {
        "gap": (int, 2),
        "noise": (float, 0.5),
        "soft": (bool, True),
        "look": (str, "plain"),
    }
    assert stripes.load().__name__ == "stripes"
    assert registry.find("term", "total_variation").load().__name__ == "TotalVariation"
    assert "brightness" in judged("universal")
    assert "brightness" not in judged("end_to_end")
    assert "stripes" in spec.json_schema()["properties"]["dataset"]["properties"]["name"]["enum"]
    registry.load_plugins((str(tmp_path / "mine.py"),))  # once more is no error


def test_reading_and_importing_agree_on_every_type_of_parameter(tmp_path, clean):
    registry.load_plugins((write(tmp_path),))
    nodes = [node for node in ast.parse(PLUGIN).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(nodes) == 3
    for node in nodes:
        read = registry._read(node, node.decorator_list[0], "m")
        found = registry.find(read.kind, read.name)
        assert (read.parameters, read.summary, read.version) == (found.parameters, found.summary, found.version)


def test_a_byte_of_a_plugin_is_in_the_ids_of_those_who_use_it(tmp_path, clean):
    """And only theirs: an unnamed plugin changes no trial, its metric the evaluations of its stage."""

    def planned(text: str, folder: str, source: str):
        path = write(tmp_path / folder, source, f"{folder}.py")
        registry._plugins.clear()
        registry.load_plugins((path,))
        return expand(spec.parse(text))

    plain, commented = planned(WITH_PLUGIN, "a", PLUGIN), planned(WITH_PLUGIN, "b", PLUGIN + "#")
    again = planned(WITH_PLUGIN, "c", PLUGIN)
    assert [trial.id for trial in plain] == [trial.id for trial in again], "the path is not in the id"
    assert not {trial.id for trial in plain} & {trial.id for trial in commented}
    assert plain[0].config["dataset"] == {
        "name": "stripes",
        "version": 3,
        "gap": 2,
        "noise": 0.5,
        "soft": True,
        "look": "plain",
        "sha256": "cd" * 32,
        "source_sha256": registry.digest(PLUGIN.encode()),
    }
    one, other = planned(TINY, "d", PLUGIN), planned(TINY, "e", PLUGIN + "#")
    assert [trial.id for trial in one] == [trial.id for trial in other]
    kept = [trial.stage for trial, twin in zip(one, other, strict=True) if trial.evaluation_id == twin.evaluation_id]
    assert kept == ["classifier", "classifier", "end_to_end"]


def test_parameters_of_a_plugins_data_set_are_checked_and_hashed(tmp_path, clean):
    registry.load_plugins((write(tmp_path),))

    def first(parameters: str) -> str:
        return expand(spec.parse(WITH_PLUGIN.replace("name: stripes", f"name: stripes, {parameters}")))[0].id

    assert first("gap: 2, noise: 0.5") == first("soft: true") != first("gap: 3")
    assert first("noise: 1") == first("noise: 1.0") != first("soft: false")
    for wrong, message in (
        ("gap: 2.5", "dataset.gap: should be int, not 2.5"),
        ("soft: 1", "dataset.soft: should be bool, not 1"),
        ("look: 3", "dataset.look: should be str, not 3"),
        ("gpa: 3", "dataset.gpa: dataset 'stripes' has no such parameter; did you mean 'gap'? choices: gap, look, "
         "name, noise, soft"),
    ):  # fmt: skip
        with pytest.raises(SpecError) as caught:
            first(wrong)
        assert str(caught.value) == f"<string>:3:26: {message}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (PLUGIN.replace('"stripes"', '"mnist"'), "dataset 'mnist' exists already"),
        (PLUGIN + PLUGIN, "dataset 'stripes' exists already"),
        ("import no_such_module", "--plugin {path}: No module named 'no_such_module'"),
        ("def f(:", "--plugin {path}: invalid syntax (bad.py, line 1)"),
        (None, "--plugin {path}: {path} is not a Python file"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(text, line, tmp_path, clean):
    path = str(tmp_path / "bad.py") if text is None else write(tmp_path, text, "bad.py")
    with pytest.raises(SpecError) as caught:
        registry.load_plugins((path,))
    line = line.format(path=path)
    assert str(caught.value).endswith(line)
    assert str(caught.value).startswith(("plugin urc_sweep_plugin_bad", f"--plugin {path}: "))
    assert len(str(caught.value).splitlines()) == 1
    assert not [name for name in sys.modules if name.startswith("urc_sweep_plugin_bad")]


@pytest.mark.parametrize(
    "change",
    [
        ("gap: int = 2", "gap = 2"),  # no type
        ("gap: int = 2", "gap: list = None"),  # a type that a sweep file cannot give
        ('component("dataset"', 'component("datast"'),
        ("gap: int = 2", "gap: int"),  # no default
    ],
    ids=lambda change: change[1],
)
def test_a_plugin_whose_component_cannot_be_described_is_one_line(change, tmp_path, clean):
    def use(path: str) -> None:
        registry.load_plugins((path,))
        expand(spec.parse(WITH_PLUGIN))

    path = write(tmp_path, PLUGIN.replace(*change))
    with pytest.raises(SpecError) as caught:
        use(path)
    assert len(str(caught.value).splitlines()) == 1


def test_two_plugins_may_have_files_of_one_name(tmp_path, clean):
    second = PLUGIN.replace("stripes", "rings").replace("total_variation", "tv2").replace("brightness", "glow")
    registry.load_plugins((write(tmp_path / "a"), write(tmp_path / "b", second)))
    assert registry.find("dataset", "rings").load().__name__ == "rings"
    assert registry.find("dataset", "stripes").load().__name__ == "stripes"


def test_a_plugin_through_the_command_line(tmp_path):
    plugin, sweep = write(tmp_path), tmp_path / "sweep.yaml"
    sweep.write_text(WITH_PLUGIN)

    def validate(*more: str):
        command = [sys.executable, "-m", "urc_sweep", "validate", str(sweep), *more]
        return subprocess.run(command, capture_output=True, text=True)

    done = validate("--plugin", plugin)
    assert (done.returncode, done.stdout) == (0, f"{sweep}: ok: sweep tiny, 4 trials\n")
    without = validate()
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.startswith(f"urc-sweep: {sweep}:3:11: dataset.name: unknown dataset 'stripes'; ")


# -- a stranger's file names no code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["os.system", "urc_sweep.learn.data:mnist", "../evil.py", "/tmp/evil.py", "evil"])
@pytest.mark.parametrize("place", ["dataset.name", "model.name", "search.strategy", "stages.classifier.network"])
def test_yaml_cannot_name_an_import_path(name, place, tmp_path, monkeypatch):
    write(tmp_path, "raise SystemExit('run')", "evil.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def forbidden(*_):
        raise AssertionError("imports what a sweep file names")

    monkeypatch.setattr(importlib, "import_module", forbidden)
    with pytest.raises(SpecError, match="unknown"):
        spec.parse(TINY, overrides=(f"{place}={name}",) if place != "model.name" else (f"model={{name: {name}}}",))
    with pytest.raises(SpecError, match=r"plugins?: unknown key"):
        spec.parse(TINY + f"plugins: ['{name}']\n")


def test_only_load_imports_by_name():
    """``import_module`` is called where a component known by name, or a ``--plugin``, is imported; nowhere else."""
    calls = []
    for path in sorted((PACKAGE / "plan").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls += [(path.stem, node.name) for inner in ast.walk(node)
                          if isinstance(inner, ast.Attribute) and inner.attr == "import_module"]  # fmt: skip
    assert sorted(calls) == [("registry", "_import"), ("registry", "load")]


# -- templates and schema ----------------------------------------------------------------------------------------------


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(spec.json_schema())


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_a_sweep_by_parser_and_schema(path):
    sweep = spec.load(path)
    assert expand(sweep)
    jsonschema.validate(YAML(typ="safe", pure=True).load(path.read_text()), spec.json_schema())
    assert path.read_text().startswith("# yaml-language-server: $schema=")


@pytest.mark.parametrize(
    "edit",
    [("digits", "mnst"), ("distortion: 1.0", "distorsion: 1.0"), ("name: tiny", "name: ../x"), ("dim: 2", "dim: two"),
     ("rates:", "rate:"), ("levels: 3", "levels: 1"), ("encoders:", "encoder:")],
    ids=lambda edit: edit[1],
)  # fmt: skip
def test_the_schema_refuses_what_the_parser_refuses(edit):
    good = YAML(typ="safe", pure=True)
    jsonschema.validate(good.load(TINY), spec.json_schema())
    with pytest.raises(SpecError):
        spec.parse(TINY.replace(*edit))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good.load(TINY.replace(*edit)), spec.json_schema())
