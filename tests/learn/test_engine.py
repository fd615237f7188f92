"""Execution: a captured step gives the bits of the same step as it comes; reduced precision the same distribution."""

from __future__ import annotations

import pytest
import torch

from tests.learn.conftest import CPU, of_stage, plan
from tests.learn.replay import Replayed
from tests.learn.test_stages import staged
from tests.learn.test_train import Poison, digests, numbers
from urc_sweep.learn.engine import CapturedSteps, Steps
from urc_sweep.learn.train import train_pack

RDPC = "  end_to_end: {objective: {distortion: 1.0, classification: [0, 0.01], perception: [0, 0.01]}}\n"


def same(first, second) -> None:
    assert [digests(outcome) for outcome in first] == [digests(outcome) for outcome in second]
    assert [numbers(outcome) for outcome in first] == [numbers(outcome) for outcome in second]


def both_ways(trials, digits, frozen):
    steps = Replayed()
    replayed = train_pack(trials, digits, frozen, CPU, steps=steps)
    assert steps.refused is None
    return train_pack(trials, digits, frozen, CPU, steps=Steps()), replayed, steps


@pytest.mark.parametrize("stage", ["classifier", "end_to_end", "universal"])
def test_a_captured_pack_gives_the_same_bits(stage, digits, classifier, encoder) -> None:
    """Three epochs of 17 steps, the last with fewer images: two graphs, one of them again once the rate decays."""
    needed = {"end_to_end": {"classifier": classifier}, "universal": {"classifier": classifier, "encoder": encoder}}
    trials = of_stage(plan(), stage)[: 1 if stage == "classifier" else 2]
    plain, replayed, steps = both_ways(trials, digits, needed.get(stage, {}))
    same(plain, replayed)
    assert steps.replays > 10


def test_a_captured_pack_with_a_critic_and_annealed_weights_gives_the_same_bits(digits, classifier) -> None:
    """Critic and generator are a graph each, and every epoch of the annealing has its own."""
    trials = of_stage(staged(RDPC, "protocol: {annealing: 0.0005, annealing_epochs: 2}"), "end_to_end")
    assert len(trials) == 4
    plain, replayed, steps = both_ways(trials, digits, {"classifier": classifier})
    same(plain, replayed)
    assert steps.captured >= 2
    assert len({digests(outcome)["decoder"] for outcome in plain}) == 4


def test_a_lane_that_turns_nan_in_a_captured_pack_leaves_its_mates_bit_identical(
    digits, classifier, monkeypatch
) -> None:
    trials = of_stage(plan(weights="[0, 0.01, 0.003]", epochs=4), "end_to_end")
    straight = train_pack(trials, digits, {"classifier": classifier}, CPU)

    class Exploding(Poison):
        """Its loss is multiplied by a tensor that becomes NaN: inside a graph only tensors change."""

        def losses(self, inputs):
            values = super(Poison, self).losses(inputs)
            if self.trial.weights["classification"] == 0.01:
                values["loss"] = values["loss"] * self.poison
            return values

        def begin(self, epoch):
            super().begin(epoch)
            if not hasattr(self, "poison"):
                self.poison = torch.ones(())
            if epoch == 2:
                self.poison.fill_(float("nan"))

    monkeypatch.setattr("urc_sweep.learn.train.CompressorLane", Exploding)
    steps = Replayed()
    poisoned = train_pack(trials, digits, {"classifier": classifier}, CPU, steps=steps)
    assert steps.refused is None
    assert steps.replays > 30
    assert [outcome.status for outcome in poisoned] == ["trained", "diverged", "trained"]
    for good in (0, 2):
        assert digests(poisoned[good]) == digests(straight[good])
        assert numbers(poisoned[good]) == numbers(straight[good])


def test_a_step_that_cannot_be_captured_is_executed_as_it_comes(digits, classifier, monkeypatch) -> None:
    """A plugin's term may read a value back to Python, which no graph can do."""
    from urc_sweep.learn.objectives import Distortion

    trials = of_stage(plan(), "end_to_end")
    straight = train_pack(trials, digits, {"classifier": classifier}, CPU)
    plain = Distortion.__call__

    def reading(self, batch):
        value = plain(self, batch)
        assert value.item() >= 0
        return value

    monkeypatch.setattr(Distortion, "__call__", reading)
    steps = Replayed()
    same(straight, train_pack(trials, digits, {"classifier": classifier}, CPU, steps=steps))
    assert "_local_scalar_dense" in steps.refused
    assert steps.replays == 0


def test_the_replaying_test_would_notice_a_number_that_a_graph_baked_in() -> None:
    """The tool of these tests: a Python number stays what it was at the capture, a tensor does not."""
    total, by_tensor, by_number = torch.zeros(()), torch.ones(()), [1.0]

    def body(x) -> None:
        total.add_(x.sum() * by_number[0] * by_tensor)

    steps = Replayed()
    for _ in range(3):
        steps.run("key", (torch.ones(2),), body)
    assert float(total) == 6
    by_tensor.fill_(10.0)
    steps.run("key", (torch.ones(2),), body)
    assert float(total) == 26
    by_number[0] = 0.0
    steps.run("key", (torch.full((2,), 3.0),), body)
    assert float(total) == 86
    assert (steps.captured, steps.replays) == (1, 3)


def test_only_the_latest_graphs_are_kept() -> None:
    class Counting(CapturedSteps):
        def capture(self, body):
            return body

    steps, seen = Counting(), []
    for key in range(40):
        for _ in range(3):
            steps.run(key, (torch.zeros(1),), lambda x, key=key: seen.append(key))
    assert len(steps._steps) <= 16
    assert seen == [key for key in range(40) for _ in range(3)]
