"""Real digits and small trials for the learning room."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import small_sweep
from urc_sweep.learn import artifacts, data
from urc_sweep.learn.train import train_pack
from urc_sweep.plan import spec, trials
from urc_sweep.plan.expand import expand
from urc_sweep.plan.source import Source

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digits() -> data.Data:
    return data.load("digits", {}, Source(offline=True))


def plan(text: str | None = None, **settings) -> list[trials.Trial]:
    return expand(spec.parse(small_sweep(**settings) if text is None else text))


def of_stage(planned: list[trials.Trial], stage: str) -> list[trials.Trial]:
    return [trial for trial in planned if trial.stage == stage]


@pytest.fixture(scope="session")
def classifier(digits: data.Data) -> torch.nn.Module:
    """The small sweep's classifier, trained."""
    trial = plan()[0]
    (outcome,) = train_pack([trial], digits, {}, CPU)
    return artifacts.restore(trial, "classifier", artifacts.to_bytes(outcome.modules["classifier"]), digits, CPU)


@pytest.fixture(scope="session")
def encoder(digits: data.Data, classifier: torch.nn.Module) -> torch.nn.Module:
    """The small sweep's encoder at lambda_c = 0.01, trained end to end and frozen."""
    trial = of_stage(plan(), "end_to_end")[1]
    (outcome,) = train_pack([trial], digits, {"classifier": classifier}, CPU)
    return artifacts.restore(trial, "encoder", artifacts.to_bytes(outcome.modules["encoder"]), digits, CPU)
