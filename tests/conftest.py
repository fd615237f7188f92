"""What several rooms' tests share: small real data, small real networks."""

from __future__ import annotations

import pytest

SMALL = """
name: small
dataset: {{name: digits}}
model: {{name: paper, width: 0.05}}
rates: [{{dim: 2, levels: 3}}]
seeds: [0]
train: {{epochs: {epochs}}}
resources: {{checkpoint_minutes: 0{lanes}}}
stages:
  classifier: {{train: {{epochs: 2}}}}
  heldout_classifier: {{train: {{epochs: 2}}}}
  end_to_end:
    objective: {{distortion: 1.0, classification: {weights}}}
  universal:
    encoders: {{classification: 0.01}}
    objective: {{distortion: 1.0, classification: {weights}}}
"""


def small_sweep(epochs: int = 3, weights: str = "[0, 0.01]", lanes: int | None = None) -> str:
    """Return a sweep file of real digits and tiny networks: a trial takes well under a second."""
    return SMALL.format(epochs=epochs, weights=weights, lanes="" if lanes is None else f", lanes: {lanes}")


@pytest.fixture
def sweep_file(tmp_path):
    """Return a function that writes a sweep file and returns its path."""

    def write(text: str | None = None, name: str = "sweep.yaml", **settings) -> str:
        path = tmp_path / name
        path.write_text(small_sweep(**settings) if text is None else text)
        return str(path)

    return write
