"""The training loop: bit-identity across packs and resumes, freezing, ends of single lanes, and a numerical golden."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.learn.conftest import CPU, of_stage, plan
from urc_sweep.learn import artifacts
from urc_sweep.learn.objectives import Batch, Objective, Term
from urc_sweep.learn.train import CompressorLane, Interrupted, Outcome, train_pack
from urc_sweep.plan import registry

FIVE = "[0, 0.01, 0.003, 0.03, 0.1]"


def digests(outcome: Outcome) -> dict[str, str]:
    import hashlib

    return {role: hashlib.sha256(artifacts.to_bytes(t)).hexdigest() for role, t in outcome.modules.items()}


def numbers(outcome: Outcome) -> list[tuple]:
    """The curve without its clock."""
    return [point[:4] for point in outcome.curve]


@pytest.mark.parametrize("stage", ["end_to_end", "universal"])
def test_a_trial_gives_the_same_bits_alone_and_in_packs_of_two_and_five(stage, digits, classifier, encoder) -> None:
    frozen = {"classifier": classifier} | ({"encoder": encoder} if stage == "universal" else {})
    trials = of_stage(plan(weights=FIVE), stage)
    alone = [train_pack([trial], digits, frozen, CPU)[0] for trial in trials]
    pair = train_pack([trials[3], trials[1]], digits, frozen, CPU)
    five = train_pack(trials[::-1], digits, frozen, CPU)[::-1]
    for index, outcome in enumerate(five):
        assert digests(outcome) == digests(alone[index])
        assert numbers(outcome) == numbers(alone[index])
    assert digests(pair[1]) == digests(alone[1])
    assert len({digests(outcome)["decoder"] for outcome in alone}) == 5


def test_decoders_of_one_seed_start_from_the_same_weights(digits, classifier, encoder) -> None:
    end_to_end, universal = (of_stage(plan(), stage)[0] for stage in ("end_to_end", "universal"))
    lanes = [CompressorLane(end_to_end, digits, {"classifier": classifier}, CPU)]
    lanes.append(CompressorLane(universal, digits, {"classifier": classifier, "encoder": encoder}, CPU))
    first, second = (lane.modules["decoder"].state_dict() for lane in lanes)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "encoder" not in lanes[1].modules


def test_a_frozen_encoder_stays_bit_for_bit_what_it_was(digits, classifier, encoder) -> None:
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    train_pack(of_stage(plan(), "universal"), digits, {"classifier": classifier, "encoder": encoder}, CPU)
    assert not encoder.training
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("steps", [5, 17, 30])
def test_an_interrupted_pack_goes_on_bit_for_bit(steps, digits, classifier) -> None:
    """17 steps are an epoch: stops in the first epoch, at its last step, and in the second."""
    trials = of_stage(plan(), "end_to_end")
    frozen = {"classifier": classifier}
    straight = train_pack(trials, digits, frozen, CPU)
    kept: dict[str, tuple] = {}
    calls = iter(range(10_000))
    with pytest.raises(Interrupted):
        train_pack(
            trials,
            digits,
            frozen,
            CPU,
            on_checkpoint=lambda trial_id, progress: kept.update({trial_id: artifacts.freeze(progress)}),
            should_stop=lambda: next(calls) == steps - 1,
        )
    resume = {trial_id: artifacts.thaw(*frozen_bytes) for trial_id, frozen_bytes in kept.items()}
    assert {progress.epoch * 17 + progress.step for progress in resume.values()} == {steps}
    resumed = train_pack(trials, digits, frozen, CPU, resume=resume)
    assert [digests(o) for o in resumed] == [digests(o) for o in straight]
    assert [numbers(o) for o in resumed] == [numbers(o) for o in straight]


def test_lanes_from_different_checkpoints_share_a_pack(digits, classifier) -> None:
    trials, frozen, kept = of_stage(plan(), "end_to_end"), {"classifier": classifier}, []
    straight = train_pack(trials, digits, frozen, CPU)
    train_pack(
        trials[:1], digits, frozen, CPU, on_checkpoint=lambda _, progress: kept.append(progress), checkpoint_seconds=0
    )
    assert [progress.epoch for progress in kept] == [1, 2, 3]
    mixed = train_pack(trials, digits, frozen, CPU, resume={trials[0].id: kept[1]})
    assert [digests(o) for o in mixed] == [digests(o) for o in straight]


def test_a_trial_interrupted_again_and_again_ends_with_the_same_bits(digits, classifier) -> None:
    """Every ninth step: optimizer state must survive being saved, loaded and saved once more."""
    trials, frozen = of_stage(plan(), "end_to_end"), {"classifier": classifier}
    straight, kept, rounds = train_pack(trials, digits, frozen, CPU), {}, 0
    while True:
        calls = iter(range(10_000))
        try:
            resumed = train_pack(
                trials,
                digits,
                frozen,
                CPU,
                resume={trial_id: artifacts.thaw(*stored) for trial_id, stored in kept.items()},
                on_checkpoint=lambda trial_id, progress: kept.update({trial_id: artifacts.freeze(progress)}),
                should_stop=lambda calls=calls: next(calls) == 8,
            )
            break
        except Interrupted:
            rounds += 1
    assert rounds == 5
    assert [digests(o) for o in resumed] == [digests(o) for o in straight]


def test_a_lane_that_has_just_diverged_is_checkpointed_with_its_mates(digits, classifier, monkeypatch) -> None:
    import json

    monkeypatch.setattr("urc_sweep.learn.train.CompressorLane", Poison)
    kept: dict[str, tuple] = {}
    trials, calls = of_stage(plan(), "end_to_end"), iter(range(10_000))
    with pytest.raises(Interrupted):
        train_pack(
            trials,
            digits,
            {"classifier": classifier},
            CPU,
            on_checkpoint=lambda trial_id, progress: kept.update({trial_id: artifacts.freeze(progress)}),
            should_stop=lambda: next(calls) == 24,
        )
    states = {trial_id: json.loads(json.dumps(state, allow_nan=False)) for trial_id, (_, state) in kept.items()}
    assert states[trials[1].id]["sums"]["loss"][0] is None
    resume = {trial_id: artifacts.thaw(tensors, states[trial_id]) for trial_id, (tensors, _) in kept.items()}
    ended = train_pack(trials, digits, {"classifier": classifier}, CPU, resume=resume)
    assert [outcome.status for outcome in ended] == ["trained", "diverged"]


class Poison(CompressorLane):
    """A lane whose loss turns NaN, or raises, in its 20th step."""

    how = "nan"

    def losses(self, inputs):
        values = super().losses(inputs)
        if self.epoch * 17 + self.step_index == 20 and self.trial.weights["classification"] == 0.01:
            if self.how != "nan":
                raise {"error": ValueError, "oom": torch.cuda.OutOfMemoryError}[self.how]("the twentieth step")
            values["loss"] = values["loss"] * float("nan")
        return values


@pytest.mark.parametrize(("how", "status"), [("nan", "diverged"), ("error", "failed"), ("oom", "oom")])
def test_one_bad_lane_leaves_its_mates_bit_identical(how, status, digits, classifier, monkeypatch) -> None:
    trials = of_stage(plan(weights=FIVE), "end_to_end")
    straight = train_pack(trials, digits, {"classifier": classifier}, CPU)
    monkeypatch.setattr("urc_sweep.learn.train.CompressorLane", Poison)
    monkeypatch.setattr(Poison, "how", how)
    poisoned = train_pack(trials, digits, {"classifier": classifier}, CPU)
    assert [outcome.status for outcome in poisoned] == ["trained", status, "trained", "trained", "trained"]
    for good in (0, 2, 3, 4):
        assert digests(poisoned[good]) == digests(straight[good])
    if how == "nan":
        assert "not finite in epoch 2 of 3" in poisoned[1].error_message
    else:
        assert "the twentieth step" in poisoned[1].trace


def test_the_objective_is_the_weighted_sum_and_weight_zero_gives_no_gradient(classifier) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((8, 1, 28, 28), generator=generator)
    x_hat = torch.rand((8, 1, 28, 28), generator=generator).requires_grad_()
    s = torch.arange(8)
    logits = classifier(x_hat.detach()).double()
    cross_entropy = float(-(logits.log_softmax(1)[torch.arange(8), s]).mean())
    mse = float((x_hat.detach() - x).double().square().mean())
    both = Objective({"distortion": 2.0, "classification": 0.5}, {"classifier": classifier})(Batch(x, s, x_hat))
    assert float(both["loss"].detach()) == pytest.approx(2.0 * mse + 0.5 * cross_entropy, rel=1e-5)
    none = Objective({"distortion": 1.0, "classification": 0.0}, {"classifier": classifier})(Batch(x, s, x_hat))
    assert float(none["classification"].detach()) == pytest.approx(cross_entropy, rel=1e-5)
    (gradient,) = torch.autograd.grad(none["loss"], x_hat)
    torch.testing.assert_close(gradient, 2 * (x_hat.detach() - x) / x.numel())


@pytest.mark.parametrize("component", registry.of_kind("term"), ids=lambda component: component.name)
def test_every_term_is_a_finite_scalar_that_reaches_the_reconstruction(component, classifier) -> None:
    critic = registry.find("model", "paper").load()(2, (1, 28, 28), width=0.1).critic()
    term: Term = component.load()({"classifier": classifier, "critic": critic})
    x_hat = torch.rand((4, 1, 28, 28), generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = term(Batch(torch.zeros_like(x_hat), torch.arange(4), x_hat))
    assert value.ndim == 0
    (gradient,) = torch.autograd.grad(value, x_hat)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert component.facts["symbol"].startswith("lambda_")


def test_every_model_can_be_built_and_maps_images_to_images(digits) -> None:
    for component in registry.of_kind("model"):
        model = component.load()(3, digits.image)
        code = model.encoder().eval()(digits.test.pixels(slice(0, 5)))
        assert code.shape == (5, 3)
        assert code.abs().max() <= 1
        x_hat = model.decoder().eval()(code)
        assert x_hat.shape == (5, *digits.image)
        assert 0 <= x_hat.min() <= x_hat.max() <= 1


def test_the_paper_networks_have_the_published_sizes() -> None:
    """Multiply-adds per image at width 1, dim 3: encoder 0.58 M, decoder 26.95 M (92 % of it in ConvT 64->128)."""
    model = registry.find("model", "paper").load()(3, (1, 28, 28))
    dense = sum(layer.weight.numel() for layer in model.encoder() if isinstance(layer, torch.nn.Linear))
    assert dense == 784 * 512 + 512 * 256 + 256 * 128 + 128 * 128 + 128 * 3
    work, side = 0, 4
    for layer in model.decoder():
        if isinstance(layer, torch.nn.Linear):
            work += layer.weight.numel()
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            work += layer.weight.numel() * side * side
            side = (side - 1) * layer.stride[0] + layer.kernel_size[0]
    assert side == 28
    assert work == pytest.approx(26.95e6, rel=0.001)


# Regenerate: run this test, copy the printed curve. If these numbers change, raise LOOP_VERSION (plan/trials.py) or the
# version of the component that changed: a trial committed before is then another trial, and is not mixed with new ones.
GOLDEN = {
    "classifier/train/accuracy": 0.620593692022,
    "classifier/train/loss": 1.8543172046,
    "classifier/validation/accuracy": 0.702602230483,
    "classifier/validation/loss": 1.3915101091,
    "end_to_end/train/classification": 2.14606106355,
    "end_to_end/train/distortion": 0.0546857282391,
    "end_to_end/train/loss": 0.0761463388746,
    "end_to_end/validation/classification": 2.18103872187,
    "end_to_end/validation/distortion": 0.0799445426323,
    "end_to_end/validation/loss": 0.101754929851,
    "universal/train/classification": 2.15072187781,
    "universal/train/distortion": 0.0583389499173,
    "universal/train/loss": 0.0583389499173,
    "universal/validation/classification": 2.20292126501,
    "universal/validation/distortion": 0.0774677788393,
    "universal/validation/loss": 0.0774677788393,
}


def test_golden_training_in_float64(digits) -> None:
    """Two epochs of each stage in float64, where other machines agree to many digits."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        planned = plan(epochs=2)
        (judge,) = train_pack([planned[0]], digits, {}, CPU)
        stored = artifacts.to_bytes(judge.modules["classifier"])
        classifier = artifacts.restore(planned[0], "classifier", stored, digits, CPU)
        trial = of_stage(planned, "end_to_end")[1]
        (joint,) = train_pack([trial], digits, {"classifier": classifier}, CPU)
        encoder = artifacts.restore(trial, "encoder", artifacts.to_bytes(joint.modules["encoder"]), digits, CPU)
        frozen = {"classifier": classifier, "encoder": encoder}
        (universal,) = train_pack([of_stage(planned, "universal")[0]], digits, frozen, CPU)
    finally:
        torch.set_default_dtype(previous)
    curve = {
        f"{outcome.trial.stage}/{split}/{metric}": value
        for outcome in (judge, joint, universal)
        for epoch, split, metric, value, _ in outcome.curve
        if epoch == 2
    }
    print({key: float(f"{value:.12g}") for key, value in curve.items()})
    assert curve == pytest.approx(GOLDEN, rel=1e-7)


def test_outcomes_carry_what_the_store_needs(digits) -> None:
    (outcome,) = train_pack(plan()[:1], digits, {}, CPU)
    assert {field.name for field in dataclasses.fields(outcome)} >= {"trial", "status", "modules", "curve", "wall_s"}
    assert [epoch for epoch, split, metric, *_ in outcome.curve if (split, metric) == ("train", "loss")] == [1, 2]


def test_the_last_layer_is_a_transposed_convolution_and_so_are_its_gradients() -> None:
    from urc_sweep.learn.models import ConvTransposeToOne

    torch.manual_seed(0)
    ours = ConvTransposeToOne(6, 4).double()
    x = torch.rand((3, 6, 5, 7), dtype=torch.float64, requires_grad=True)
    reference = torch.nn.functional.conv_transpose2d(x, ours.weight, ours.bias)
    torch.testing.assert_close(ours(x), reference, rtol=0, atol=1e-12)
    pull = torch.rand_like(reference)
    inputs = (x, ours.weight, ours.bias)
    expected = torch.autograd.grad(reference, inputs, pull)
    for one, other in zip(torch.autograd.grad(ours(x), inputs, pull), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
