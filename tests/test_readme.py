"""README's promises: its sweep file and its plugin run, its queries answer, and templates are what sweeps/ shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """Return README's one code block of a language that contains some text."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    return found


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """README's sweep file, shortened, launched with README's plugin as README says."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "study.yaml").write_text(block("yaml", "name: study"))
    (folder / "edges.py").write_text(block("python", "class Edges"))
    (words,) = re.findall(r"^    urc-sweep (launch study.yaml --plugin .*)$", README, re.MULTILINE)
    short = "--set train.epochs=1 --set model.width=0.05 --set seeds=[0]".split()
    import shlex

    command = [sys.executable, "-m", "urc_sweep", *shlex.split(words), *short]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_plugin_trains_and_measures(launched) -> None:
    frame = pd.read_parquet(launched / "results" / "trials")
    weights = [dict(pairs).get("edges") for pairs in frame.loc[frame["stage"] == "end_to_end", "weights"]]
    assert sorted(weights) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    measured = [dict(pairs).get("edge_mse") for pairs in frame.loc[frame["stage"] == "universal", "metrics"]]
    assert measured
    assert all(value > 0 for value in measured)


def test_the_queries_answer(launched, monkeypatch, capsys) -> None:
    monkeypatch.chdir(launched)
    exec(compile(block("python", "import polars"), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "end_to_end" in shown
    assert "universal" in shown


def test_plugin_is_twenty_lines() -> None:
    code = [line for line in block("python", "class Edges").splitlines() if line.strip()]
    assert len(code) <= 20


def test_sweeps_show_the_templates_and_the_schema() -> None:
    templates = sorted((ROOT / "urc_sweep" / "plan" / "templates").glob("*.yaml"))
    assert [path.name for path in templates] == ["quickstart.yaml", "rdc.yaml", "rdp.yaml", "rdpc.yaml"]
    for template in templates:
        assert (ROOT / "sweeps" / template.name).read_text() == template.read_text()
    schema = subprocess.run([sys.executable, "-m", "urc_sweep", "schema"], capture_output=True, text=True, check=True)
    assert (ROOT / "sweeps" / "sweep.schema.json").read_text() == schema.stdout


def test_the_whole_recipe_is_a_sweep() -> None:
    from urc_sweep.plan import spec
    from urc_sweep.plan.expand import Known, expand

    text = "name: recipe\nrates: [{dim: 3, levels: 3}]\n" + block("yaml", "name: folder")
    trials = expand(spec.parse(text, "README.md"), Known("0" * 64, (3, 32, 32), ("class",)))
    stages = {stage: sum(trial.stage == stage for trial in trials) for stage in (t.stage for t in trials)}
    expected = {"classifier": 2, "end_to_end": 5, "joint": 1, "joint_decoder": 2, "control": 2}
    assert stages == expected | {"universal": 6, "refined": 5, "reduced": 5}
