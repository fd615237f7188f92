"""The notebook runs from top to bottom on a real sweep, and draws what is in its store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import urc_sweep
from tests.conftest import small_sweep
from urc_sweep.show import facts, gaps
from urc_sweep.store.commits import Store

NOTEBOOK = Path(__file__).parents[2] / "sweeps" / "frontier.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one small sweep, trained here."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "sweep.yaml").write_text(small_sweep(epochs=4))
    assert urc_sweep.launch(str(folder / "sweep.yaml"), str(folder / "store"), executor="inline") == 0
    return urc_sweep.open_store(str(folder / "store"))


def test_the_notebook_runs_and_draws_the_store(finished: Store, monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install '.[test]'")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("URC_SWEEP_STORE", str(finished.root))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()  # a cell's error is raised

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("stream", "error")]
    drawn: list[dict[str, Any]] = [output.data[PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    assert len(drawn) == 6
    assert all(figure["config"]["showSendToCloud"] is False for figure in drawn)
    frontier, penalty, gap, surface, images, curves = drawn
    trials = facts.load(finished, "small")
    points = facts.fronts(trials)
    assert len(points) == 4
    assert sum(len(t["text"]) for t in frontier["data"] if t.get("meta")) == len(points)
    told = gaps.penalties(trials)
    assert sum(len(t["text"]) for t in penalty["data"] if t.get("text")) == len(told) > 0
    assert [t["type"] for t in gap["data"]] == ["bar", "bar", "scatter"]
    scattered = [t for t in surface["data"] if t["type"] == "scatter3d"]
    assert sum(len(t["text"]) for t in scattered) == points["on_front"].sum() > 0
    assert len(images["layout"]["images"]) == len(points) + 2  # and the originals above each of two groups
    assert len(curves["data"]) == len(points)
    assert {t["mode"] for t in curves["data"]} == {"lines"}
    assert "cross_entropy" in outputs[-1].data["text/html"]


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
