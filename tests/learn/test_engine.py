"""Execution: a captured step gives the bits of the same step as it comes; reduced precision the same distribution."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.learn.conftest import CPU, of_stage, plan
from tests.learn.replay import Replayed
from tests.learn.test_stages import STAGES, inputs_of, staged
from tests.learn.test_train import Poison, digests, numbers
from urc_sweep.learn.engine import CapturedSteps, Steps
from urc_sweep.learn.gradients import is_piecewise_linear, piecewise_linear_penalty
from urc_sweep.learn.objectives import gradient_penalty
from urc_sweep.learn.train import CompressorLane, _Run, train_pack
from urc_sweep.plan import registry

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


OTHERS = {
    "joint": "  joint: {objective: {distortion: 1.0, perception: [0, 0.01]}}\n",
    "refined": "  refined: {encoders: all, dim2: 1, levels2: 2, objective: {distortion: [1.0, 2.0]}}\n",
    "reduced": "  reduced: {encoders: all, dims: [1], objective: {distortion: [1.0, 2.0]}}\n",
    "universal": "  universal: {encoders: all, objective: {distortion: [1, 2]}, protocol: {frozen_batchnorm: batch}}\n",
}


@pytest.mark.parametrize("stage", OTHERS)
def test_every_other_stage_gives_the_same_bits_captured(stage, digits, encoder) -> None:
    first = "  end_to_end: {objective: {distortion: 1.0}}\n"
    trials = of_stage(staged(first + OTHERS[stage]), stage)
    plain, replayed, steps = both_ways(trials, digits, {} if stage == "joint" else {"encoder": encoder})
    same(plain, replayed)
    assert steps.replays > 10


def test_a_captured_step_in_bf16_gives_the_same_bits(digits, classifier) -> None:
    plain, replayed, _ = both_ways(of_stage(precise("bf16"), "end_to_end"), digits, {"classifier": classifier})
    same(plain, replayed)


def test_a_captured_pack_with_a_critic_and_annealed_weights_gives_the_same_bits(digits, classifier) -> None:
    """Critic and generator are a graph each, and every epoch of the annealing has its own."""
    # Between the second and the third epoch only the annealed weight changes, not the learning rate.
    text = STAGES.replace("epochs: 2", "epochs: 4") + "protocol: {annealing: 0.0005, annealing_epochs: 4}\n"
    trials = of_stage(plan(f"{text}stages:\n{RDPC}"), "end_to_end")
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


# -- gradients written by hand ---------------------------------------------------------------------------------------


def autograd_penalty(critic, between):
    """The penalty by autograd's double backward."""
    between = between.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def critics() -> dict[str, tuple[nn.Module, tuple[int, int, int]]]:
    paper, conv64 = (registry.find("model", name).load() for name in ("paper", "conv64"))
    conv, leaky, flatten, dense = nn.Conv2d, nn.LeakyReLU, nn.Flatten(), nn.Linear
    uneven = conv(2, 3, (3, 2), stride=(2, 1), padding=(1, 0))
    return {
        "paper": (paper(2, (1, 28, 28), width=0.1).critic(), (1, 28, 28)),
        "conv64": (conv64(2, (3, 32, 24), width=0.05).critic(), (3, 32, 24)),
        "dense": (nn.Sequential(flatten, dense(12, 1)), (3, 2, 2)),
        "no activation": (nn.Sequential(conv(1, 2, 3), conv(2, 3, 2, bias=False), flatten, dense(48, 1)), (1, 7, 7)),
        "uneven": (nn.Sequential(uneven, leaky(0.3), flatten, dense(54, 1)), (2, 5, 7)),
        "flat": (nn.Sequential(conv(1, 2, 3), leaky(0.0), flatten, dense(2, 1)), (1, 3, 3)),
    }


@pytest.mark.parametrize("name", critics())
def test_the_hand_written_penalty_and_its_gradient_are_autograds(name) -> None:
    torch.manual_seed(0)
    critic, image = critics()[name]
    critic = critic.double().to(memory_format=torch.channels_last)
    assert is_piecewise_linear(critic)
    between = torch.rand((5, *image), dtype=torch.float64)
    if name == "flat":
        critic[0].bias.data -= 10.0  # every unit is off: the gradient in the image is 0
    expected = autograd_penalty(critic, between)
    weights = [parameter for parameter in critic.parameters() if parameter.ndim > 1]
    wanted = torch.autograd.grad(7 * expected, weights, allow_unused=True)
    found = piecewise_linear_penalty(critic, between)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for weight, one, other in zip(weights, torch.autograd.grad(7 * found, weights), wanted, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(weight) if other is None else other, rtol=1e-9, atol=1e-13)


def test_a_critic_of_another_kind_keeps_autograds_penalty() -> None:
    others = [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)),
        nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 1)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.LeakyReLU(), nn.Flatten(), nn.Linear(32, 1)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 1)),
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 2, 1, groups=1), nn.Flatten(), nn.Linear(8, 2), nn.Linear(2, 1)),
    ]
    x, x_hat = torch.rand((2, 3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    for critic in others:
        assert not is_piecewise_linear(critic)
        penalty = gradient_penalty(critic.eval(), x, x_hat, torch.full((3,), 0.5))
        torch.testing.assert_close(penalty, autograd_penalty(critic, (x + x_hat) / 2))
    assert not is_piecewise_linear(nn.Linear(4, 1))


# -- precision -------------------------------------------------------------------------------------------------------


def precise(precision: str, seeds: str = "[0]", objective: str = "distortion: 1.0, classification: 0.01"):
    stages = f"  end_to_end: {{objective: {{{objective}}}, seeds: {seeds}}}\n"
    return plan(f"{STAGES.replace('epochs: 2', f'epochs: 4, precision: {precision}')}stages:\n{stages}")


def test_a_precision_is_part_of_a_trial_and_classifiers_keep_theirs() -> None:
    fp32, tf32, bf16 = (precise(name) for name in ("fp32", "tf32", "bf16"))
    assert len({of_stage(trials, "end_to_end")[0].id for trials in (fp32, tf32, bf16)}) == 3
    assert fp32[:2] == tf32[:2] == bf16[:2]


def test_tf32_is_fp32_where_there_is_none(digits, classifier) -> None:
    fp32, tf32 = (of_stage(precise(name), "end_to_end") for name in ("fp32", "tf32"))
    first, second = (train_pack(trials, digits, {"classifier": classifier}, CPU) for trials in (fp32, tf32))
    same(first, second)
    assert torch.backends.cuda.matmul.allow_tf32
    train_pack(fp32, digits, {"classifier": classifier}, CPU, steps=Steps())
    assert not torch.backends.cuda.matmul.allow_tf32


def test_bf16_rounds_convolutions_and_neither_codes_nor_weights_nor_validation(digits, classifier) -> None:
    (trial,) = of_stage(precise("bf16"), "end_to_end")
    lane = CompressorLane(trial, digits, {"classifier": classifier}, CPU)
    inputs = inputs_of(lane)
    lane.mode(training=False)
    seen = {}
    lane.channel = SimpleNamespace(decode=lambda decoder, code, u: seen.setdefault(len(seen), (code, decoder(code)))[1])
    with torch.no_grad():
        x_hat = lane.reconstruct(inputs)[""]
        with lane.precision.casting():
            rounded = lane.reconstruct(inputs)[""]
    assert torch.equal(seen[0][0], seen[1][0])  # the codes
    assert rounded.dtype is torch.float32
    assert 0 < float((rounded - x_hat).abs().max()) < 0.05
    (outcome,) = train_pack([trial], digits, {"classifier": classifier}, CPU)
    (exact,) = train_pack(of_stage(precise("fp32"), "end_to_end"), digits, {"classifier": classifier}, CPU)
    assert digests(outcome)["decoder"] != digests(exact)["decoder"]
    assert {tensor.dtype for tensors in outcome.modules.values() for tensor in tensors.values()} == {
        torch.float32,
        torch.int64,
    }
    trained = CompressorLane(trial, digits, {"classifier": classifier}, CPU)
    for role, tensors in outcome.modules.items():
        trained.modules[role].load_state_dict(tensors)
    run = _Run([trained], digits, Steps(), *[lambda *_: None] * 2, 300.0, lambda: False)
    run.validate(trained, 4)
    last = [point[:4] for point in outcome.curve if point[0] == 4 and point[1] == "validation"]
    assert [point[:4] for point in trained.curve] == last


def test_bf16_has_the_distribution_of_fp32_over_five_seeds(digits, classifier) -> None:
    """Paired by seed, rounding moves the validation loss by no more than another seed does, and to no side."""
    ends, frozen = {}, {"classifier": classifier}
    for name in ("fp32", "bf16"):
        trials = precise(name, "[0, 1, 2, 3, 4]", "distortion: 1.0, classification: 0.01, perception: 0.01")
        outcomes = [train_pack([trial], digits, frozen, CPU)[0] for trial in of_stage(trials, "end_to_end")]
        ends[name] = torch.tensor([points_of(outcome)["validation", "distortion"] for outcome in outcomes])
    fp32, bf16 = ends["fp32"], ends["bf16"]
    assert not torch.equal(fp32, bf16)
    assert float((bf16 - fp32).mean().abs()) < 3 * float(((fp32.var() + bf16.var()) / 5).sqrt())
    assert float(bf16.mean()) == pytest.approx(float(fp32.mean()), rel=0.05)


def points_of(outcome) -> dict[tuple[str, str], float]:
    return {(split, metric): value for epoch, split, metric, value, _ in outcome.curve}
