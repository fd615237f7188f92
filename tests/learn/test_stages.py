"""What each stage trains and what it leaves alone: alternation, critics, joint, refined, reduced, controls, starts."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.learn.conftest import CPU, of_stage, plan
from tests.learn.test_train import digests, numbers
from urc_sweep.learn import artifacts
from urc_sweep.learn.models import Channel, blueprint, channel_of
from urc_sweep.learn.objectives import Batch, Objective, gradient_penalty
from urc_sweep.learn.train import CompressorLane, Inputs, Interrupted, encode, rate_factor, train_pack
from urc_sweep.maths.streams import stream
from urc_sweep.plan import registry

STAGES = """
name: stages
dataset: {name: digits}
model: {name: paper, width: 0.05}
rates: [{dim: 2, levels: 3}]
train: {epochs: 2}
"""


def staged(stages: str, top: str = ""):
    return plan(f"{STAGES}{top}\nstages:\n{stages}")


RDP = "  end_to_end: {objective: {distortion: 1.0, perception: [0, 0.01]}}\n"


@pytest.fixture(scope="module")
def rdp(digits):
    """The two end-to-end trials with a critic, and their outcomes."""
    trials = of_stage(staged(RDP), "end_to_end")
    return trials, train_pack(trials, digits, {}, CPU)


def inputs_of(lane: CompressorLane, n: int = 16, seed: int = 0) -> Inputs:
    split = lane.data.train
    u = lane.channel.dither(seed, "dither", n)
    epsilon = torch.from_numpy(stream(seed, "mixing").random(n)).float()
    labels = {name: values[:n] for name, values in split.label_sets.items()}
    return Inputs(split.pixels(slice(0, n)), labels, u, None, epsilon)


def changed_by(lane: CompressorLane, inputs: Inputs) -> set[str]:
    """The roles whose parameters a step changes."""
    before = {role: [p.clone() for p in module.parameters()] for role, module in lane.modules.items()}
    lane.step(inputs)
    lane.step_index += 1
    return {
        role
        for role, module in lane.modules.items()
        if any(not torch.equal(p, q) for p, q in zip(module.parameters(), before[role], strict=True))
    }


# -- alternation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_critic", [1, 2])
def test_of_each_cycle_the_second_batch_trains_encoder_and_decoder_and_the_others_the_critic(n_critic, digits) -> None:
    (_, trial) = of_stage(staged(RDP, f"protocol: {{n_critic: {n_critic}}}"), "end_to_end")
    lane = CompressorLane(trial, digits, {}, CPU)
    lane.begin(0)
    found = [changed_by(lane, inputs_of(lane)) for _ in range(2 * (1 + n_critic))]
    cycle = [{"critic"}, {"encoder", "decoder"}, *[{"critic"}] * (n_critic - 1)]
    assert found == cycle * 2


def test_generator_every_2_trains_on_every_second_batch(digits, classifier) -> None:
    stages = "  end_to_end: {objective: {distortion: 1.0, classification: 0.01}}\n"
    (trial,) = of_stage(staged(stages, "protocol: {generator_every: 2}"), "end_to_end")
    lane = CompressorLane(trial, digits, {"classifier": classifier}, CPU)
    lane.begin(0)
    assert [changed_by(lane, inputs_of(lane)) for _ in range(4)] == [set(), {"encoder", "decoder"}] * 2
    (outcome,) = train_pack([trial], digits, {"classifier": classifier}, CPU)
    steps = {point[2] for point in outcome.curve if point[1] == "train"}
    assert steps == {"loss", "distortion", "classification"}


def test_the_critic_maximises_the_gap_and_is_penalised(digits, rdp) -> None:
    lane = CompressorLane(rdp[0][1], digits, {}, CPU)
    lane.begin(0)
    inputs = inputs_of(lane)
    values = lane.critic_losses(inputs)
    x_hat = lane.reconstruct(inputs)[""].detach()
    critic = lane.modules["critic"]
    gap = critic(inputs.x).mean() - critic(x_hat).mean()
    penalty = gradient_penalty(critic, inputs.x, x_hat, inputs.epsilon)
    assert float(values["critic_loss"].detach()) == pytest.approx(float((10 * penalty - gap).detach()), rel=1e-4)
    before = float(values["critic_gap"].detach())
    for _ in range(20):  # always step 0: the critic's turn
        lane.step(inputs)
    assert float(lane.critic_losses(inputs)["critic_gap"].detach()) > 1.5 * before


def test_annealing_of_an_end_to_end_trial_at_perception_0(digits) -> None:
    top = "protocol: {annealing: 0.0005, annealing_epochs: 4}"
    trials = staged(RDP + "  universal: {encoders: all, objective: {distortion: 1, perception: [0]}}\n", top)
    zero, weighted = of_stage(trials, "end_to_end")
    seen = {}
    for trial in (zero, weighted):
        lane = CompressorLane(trial, digits, {}, CPU)
        seen[trial.id] = []
        for epoch in range(6):
            lane.begin(epoch)
            seen[trial.id].append(lane.objectives[""].weights["perception"])
    assert seen[zero.id] == pytest.approx([0.0005, 0.000375, 0.00025, 0.000125, 0, 0])
    assert set(seen[weighted.id]) == {0.01}
    universal = of_stage(trials, "universal")[0]
    lane = CompressorLane(universal, digits, {}, CPU)
    lane.begin(0)
    assert lane.objectives[""].weights["perception"] == 0


def test_at_perception_0_encoder_and_decoder_are_as_without_a_critic_but_for_the_batches(digits) -> None:
    """The critic neither draws from their streams nor pulls at them; only the batches that it takes are missing."""
    with_critic = CompressorLane(of_stage(staged(RDP), "end_to_end")[0], digits, {}, CPU)
    alone_file = "  end_to_end: {objective: {distortion: 1.0}}\n"
    alone = CompressorLane(of_stage(staged(alone_file), "end_to_end")[0], digits, {}, CPU)
    for lane in (with_critic, alone):
        lane.begin(0)
        lane.step_index = 1
        lane.step(inputs_of(lane))
    for role in ("encoder", "decoder"):
        pairs = zip(with_critic.modules[role].parameters(), alone.modules[role].parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_rdpc_is_the_sum_of_all_three(classifier) -> None:
    critic = registry.find("model", "paper").load()(2, (1, 28, 28), width=0.1).critic()
    x, x_hat = torch.rand((2, 5, 1, 28, 28), generator=torch.Generator().manual_seed(2))
    weights = {"distortion": 0.7, "classification": 0.02, "perception": 0.3}
    values = Objective(weights, {"classifier": classifier, "critic": critic})(Batch(x, torch.arange(5), x_hat))
    assert float(values["perception"]) == pytest.approx(-float(critic(x_hat).mean().detach()), rel=1e-6)
    assert float(values["loss"]) == pytest.approx(sum(w * float(values[term]) for term, w in weights.items()), rel=1e-6)


# -- the gradient penalty ----------------------------------------------------------------------------------------------


def test_the_gradient_penalty_against_finite_differences_in_float64() -> None:
    torch.manual_seed(0)
    critic = registry.find("model", "paper").load()(2, (1, 8, 8), width=0.05).critic().double()
    x, x_hat = torch.rand((2, 3, 1, 8, 8), dtype=torch.float64)
    epsilon = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    between = [e * a + (1 - e) * b for e, a, b in zip(epsilon, x, x_hat, strict=True)]
    norms = []
    for point in between:
        slope = torch.zeros(64, dtype=torch.float64)
        for pixel in range(64):
            step = torch.zeros(64, dtype=torch.float64)
            step[pixel] = 1e-5
            step = step.reshape(1, 1, 8, 8)
            with torch.no_grad():
                slope[pixel] = (critic(point[None] + step) - critic(point[None] - step)).squeeze() / 2e-5
        norms.append(slope.norm())
    expected = (torch.stack(norms) - 1).square().mean()
    penalty = gradient_penalty(critic, x, x_hat, epsilon)
    assert float(penalty.detach()) == pytest.approx(float(expected), rel=1e-6)
    parameters = [p for p in critic.parameters() if p.ndim > 1]  # biases have no part in the gradient
    gradients = torch.autograd.grad(penalty, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        index = int(gradient.abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * 1e-6
            values.append(float(gradient_penalty(critic, x, x_hat, epsilon).detach()))
            with torch.no_grad():
                parameter.view(-1)[index] -= sign * 1e-6
        numerical = (values[0] - values[1]) / 2e-6
        assert float(gradient.reshape(-1)[index]) == pytest.approx(numerical, rel=1e-4)


def test_the_penalty_of_a_critic_of_slope_2_is_1() -> None:
    x, x_hat = torch.rand((2, 4, 1, 3, 3), dtype=torch.float64)
    direction = torch.full((9,), 2 / 3, dtype=torch.float64)
    penalty = gradient_penalty(lambda image: image.flatten(1) @ direction, x, x_hat, torch.full((4,), 0.5))
    assert float(penalty) == pytest.approx(1.0, rel=1e-12)


# -- bits --------------------------------------------------------------------------------------------------------------


def test_trials_with_a_critic_give_the_same_bits_alone_in_a_pack_and_after_interruptions(digits, rdp) -> None:
    trials, outcomes = rdp
    (alone,) = train_pack([trials[1]], digits, {}, CPU)
    assert digests(alone) == digests(outcomes[1])
    assert {"encoder", "decoder", "critic"} == set(alone.modules)
    kept: dict[str, tuple] = {}
    for stop_after in itertools.count(7, 7):
        calls = iter(range(10_000))
        try:
            resumed = train_pack(
                trials,
                digits,
                {},
                CPU,
                resume={trial_id: artifacts.thaw(*stored) for trial_id, stored in kept.items()},
                on_checkpoint=lambda trial_id, progress: kept.update({trial_id: artifacts.freeze(progress)}),
                should_stop=lambda calls=calls: next(calls) == 6,
            )
            break
        except Interrupted:
            assert stop_after < 50
    assert [digests(o) for o in resumed] == [digests(o) for o in outcomes]
    assert [numbers(o) for o in resumed] == [numbers(o) for o in outcomes]


# -- frozen encoders ---------------------------------------------------------------------------------------------------


def universal_of(text: str) -> list:
    objective = "objective: {distortion: 1.0, perception: [0, 0.02]}"
    return of_stage(staged(RDP + f"  universal: {{encoders: {{perception: 0.01}}, {objective}{text}}}\n"), "universal")


@pytest.fixture(scope="module")
def parent(digits, rdp):
    """The frozen networks of the end-to-end trial at 0.01, by role."""
    trial, outcome = rdp[0][1], rdp[1][1]
    return {r: artifacts.restore(trial, r, artifacts.to_bytes(t), digits, CPU) for r, t in outcome.modules.items()}


def test_a_moving_batch_norm_changes_the_training_and_leaves_the_encoder_as_it_was(digits, parent) -> None:
    frozen = {"encoder": parent["encoder"]}
    before = {key: value.clone() for key, value in parent["encoder"].state_dict().items()}
    still, moving = universal_of(""), universal_of(", protocol: {frozen_batchnorm: batch}")
    ours, theirs = (train_pack(trials, digits, frozen, CPU) for trials in (still, moving))
    assert digests(ours[0])["decoder"] != digests(theirs[0])["decoder"]
    assert all(torch.equal(before[key], value) for key, value in parent["encoder"].state_dict().items())
    (alone,) = train_pack(moving[1:], digits, frozen, CPU)
    assert digests(alone) == digests(theirs[1])


def test_a_moving_batch_norm_sends_what_the_batch_normalises_to(digits, parent) -> None:
    import copy

    from urc_sweep.learn.engine import Steps
    from urc_sweep.learn.train import _Run

    (trial, _) = universal_of(", protocol: {frozen_batchnorm: batch}")
    lane = CompressorLane(trial, digits, {"encoder": parent["encoder"]}, CPU)
    run = _Run([lane], digits, Steps(), *[lambda *_: None] * 2, 300.0, lambda: False)
    index = torch.arange(32)
    x = digits.train.pixels(index)
    expected = copy.deepcopy(parent["encoder"]).train()(x)
    assert torch.equal(run.code_of(x, index), expected)
    assert not torch.allclose(expected, encode(parent["encoder"], digits.train)[:32])


def test_a_universal_critic_begins_as_the_parents_or_at_random(digits, rdp, parent) -> None:
    given, fresh = universal_of("")[0], universal_of(", critic_init: random")[0]
    assert "init.critic" in given.needs
    assert "init.critic" not in fresh.needs
    initial = {"critic": rdp[1][1].modules["critic"]}
    frozen = {"encoder": parent["encoder"]}
    one = CompressorLane(given, digits, frozen, CPU, initial).modules["critic"].state_dict()
    other = CompressorLane(fresh, digits, frozen, CPU).modules["critic"].state_dict()
    assert all(torch.equal(one[key], initial["critic"][key]) for key in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_refined_keeps_the_first_encoder_and_its_dither_and_decodes_both_codes(digits, parent) -> None:
    refined = "  refined: {encoders: {perception: 0.01}, dim2: 1, levels2: 4, objective: {distortion: 1.0}}\n"
    (trial,) = of_stage(staged(RDP + refined), "refined")
    channel, first = channel_of(trial), Channel(((2, 3),))
    u = channel.dither(0, "dither", 50)
    assert torch.equal(u[:, :2], first.dither(0, "dither", 50))
    assert 1 / 2 >= float(u[:, :2].abs().max()) > 1 / 3 >= float(u[:, 2].abs().max())
    assert channel.cells == 9 * 4
    before = digests_of(parent["encoder"])
    (outcome,) = train_pack([trial], digits, {"encoder": parent["encoder"]}, CPU)
    assert set(outcome.modules) == {"encoder2", "decoder"}
    assert digests_of(parent["encoder"]) == before
    assert outcome.modules["decoder"]["0.weight"].shape[1] == 3
    lane = CompressorLane(trial, digits, {"encoder": parent["encoder"]}, CPU)
    lane.begin(0)
    code = encode(parent["encoder"], digits.train)[:16]
    inputs = inputs_of(lane)
    with_code = Inputs(inputs.x, inputs.labels, inputs.u, code)
    assert changed_by(lane, with_code) == {"encoder2", "decoder"}


def digests_of(module: torch.nn.Module) -> list:
    return [value.sum().item() for value in module.state_dict().values()]


def test_reduced_decodes_only_the_dimensions_it_keeps(digits, parent) -> None:
    reduced = "  reduced: {encoders: {perception: 0.01}, dims: [1], objective: {distortion: 1.0}}\n"
    (trial,) = of_stage(staged(RDP + reduced), "reduced")
    channel, whole = channel_of(trial), Channel(((2, 3),))
    assert torch.equal(channel.dither(0, "dither", 50), whole.dither(0, "dither", 50)[:, 1:])
    assert channel.cells == 3
    (outcome,) = train_pack([trial], digits, {"encoder": parent["encoder"]}, CPU)
    assert outcome.modules["decoder"]["0.weight"].shape[1] == 1
    losses = [value for _, split, name, value, _ in outcome.curve if (split, name) == ("train", "loss")]
    assert losses[1] < losses[0]


def test_the_cells_number_every_code_once() -> None:
    channel = Channel(((2, 3), (1, 4)))
    codes = torch.cartesian_prod(torch.tensor([-1.0, 0, 1]), torch.tensor([-1.0, 0, 1]), torch.linspace(-1, 1, 4))
    assert sorted(channel.cell(codes).tolist()) == list(range(36))


def test_sigma_2_over_L_is_sharper_where_there_are_more_levels() -> None:
    v = torch.tensor([[0.3]], requires_grad=True)
    for levels in (3, 8):
        published = Channel(((1, levels),), sigma="2/L").quantize(v)
        by_hand = Channel(((1, levels),), sigma=2 / levels).quantize(v)
        assert torch.autograd.grad(published.sum(), v) == torch.autograd.grad(by_hand.sum(), v)


# -- joint -------------------------------------------------------------------------------------------------------------


def test_joint_with_one_decoder_is_end_to_end_bit_for_bit(digits, classifier) -> None:
    objective = "{objective: {distortion: 1.0, classification: 0.01, perception: 0.01}}"
    trials = staged(f"  end_to_end: {objective}\n  joint: {objective}\n")
    frozen = {"classifier": classifier}
    (alone,) = train_pack(of_stage(trials, "end_to_end"), digits, frozen, CPU)
    (joint,) = train_pack(of_stage(trials, "joint"), digits, frozen, CPU)
    assert set(joint.modules) == {"encoder", "decoder.0", "critic.0"}
    for role in ("encoder", "decoder", "critic"):
        theirs = joint.modules[role if role == "encoder" else f"{role}.0"]
        assert all(torch.equal(value, theirs[key]) for key, value in alone.modules[role].items())


def test_a_joint_encoder_feels_the_sum_of_its_decoders_losses(digits, classifier) -> None:
    weights = "objective: {distortion: 1.0, classification: [0, 0.05]}"
    trials = staged(f"  end_to_end: {{{weights}}}\n  joint: {{{weights}}}\n")
    frozen = {"classifier": classifier}
    (joint,) = of_stage(trials, "joint")
    lanes = [CompressorLane(t, digits, frozen, CPU) for t in (joint, *of_stage(trials, "end_to_end"))]
    gradients = []
    for lane in lanes:
        lane.begin(0)
        lane.losses(inputs_of(lane))["loss"].backward()
        gradients.append([p.grad for p in lane.modules["encoder"].parameters()])
    for together, first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(together, first + second, rtol=1e-4, atol=1e-7)
    rows = of_stage(trials, "joint_decoder")
    assert [row.weights["classification"] for row in rows] == [0.0, 0.05]
    (outcome,) = train_pack(rows[:1], digits, {}, CPU)
    assert (outcome.status, outcome.modules, outcome.curve) == ("trained", {}, [])


# -- starts, controls, learning rates ----------------------------------------------------------------------------------


def test_a_random_encoder_keeps_its_first_weights_and_learns_only_the_statistics(digits) -> None:
    (trial,) = of_stage(staged(RDP + "  universal: {encoders: random, objective: {distortion: 1.0}}\n"), "control")
    (outcome,) = train_pack([trial], digits, {}, CPU)
    first = CompressorLane(trial, digits, {}, CPU).modules["encoder"].state_dict()
    for key, value in outcome.modules["encoder"].items():
        assert torch.equal(value, first[key]) != ("running" in key or "num_batches" in key)


def test_a_warm_start_begins_with_the_named_trials_weights(digits, rdp) -> None:
    stages = "  end_to_end:\n    - {objective: {distortion: 1.0, perception: [0, 0.01]}}\n" + (
        "    - {objective: {distortion: 1.0}, init: {perception: 0.01}}\n"
    )
    trial = of_stage(staged(stages), "end_to_end")[2]
    assert dict(trial.needs) == {"init.encoder": rdp[0][1].id, "init.decoder": rdp[0][1].id}
    initial = {role: rdp[1][1].modules[role] for role in ("encoder", "decoder")}
    lane = CompressorLane(trial, digits, {}, CPU, initial)
    for role in initial:
        assert all(torch.equal(v, initial[role][k]) for k, v in lane.modules[role].state_dict().items())


def test_learning_rates_follow_fractions_or_milestones(digits) -> None:
    (trial,) = of_stage(plan(epochs=9, weights="[0.01]"), "end_to_end")
    assert [rate_factor(trial, epoch) for epoch in (0, 5, 6, 8)] == [1, 1, 0.2, 0.2]
    fashion = "protocol: {milestones: [[20, 0.2], [35, 0.02]]}"
    trial = of_stage(staged(RDP, fashion), "end_to_end")[1]
    assert [rate_factor(trial, epoch) for epoch in (0, 19, 20, 34, 35, 49)] == [1, 1, 0.2, 0.2, 0.02, 0.02]
    lane = CompressorLane(trial, digits, {}, CPU)
    lane.begin(35)
    rates = {name: adam.param_groups[0]["lr"] for name, adam in lane.optimizers.items()}
    assert rates == pytest.approx({"adam": 2e-4, "adam_critic": 4e-6})


def test_a_further_label_set_has_its_own_classifier_and_loss(digits, classifier) -> None:
    stages = "  end_to_end: {objective: {distortion: 1.0, classification: 0, classification.parity: 0.01}}\n"
    planned = staged(stages)
    judge = next(t for t in planned if t.config.get("label") == "parity" and t.config["network"]["name"] == "paper")
    (outcome,) = train_pack([judge], digits, {}, CPU)
    assert outcome.modules["classifier"]["9.weight"].shape[0] == 2
    parity = artifacts.restore(judge, "classifier", artifacts.to_bytes(outcome.modules["classifier"]), digits, CPU)
    (trial,) = of_stage(planned, "end_to_end")
    lane = CompressorLane(trial, digits, {"classifier": classifier, "classifier.parity": parity}, CPU)
    inputs = inputs_of(lane)
    lane.mode(training=False)
    with torch.no_grad():
        values, x_hat = lane.losses(inputs), lane.reconstruct(inputs)[""]
        expected = torch.nn.functional.cross_entropy(parity(x_hat), inputs.s % 2)
    assert float(values["classification.parity"]) == pytest.approx(float(expected), rel=1e-6)


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 28, 28), (3, 45, 64), (2, 20, 21)])
def test_conv64_fits_any_image(image) -> None:
    model = registry.find("model", "conv64").load()(5, image, width=0.1)
    x = torch.rand((2, *image))
    code, critic = model.encoder().eval()(x), model.critic()
    assert code.shape == (2, 5)
    assert model.decoder().eval()(code).shape == x.shape
    assert critic(x).shape == (2, 1)


def test_conv64_at_32x32x3_is_the_published_svhn_network() -> None:
    model = registry.find("model", "conv64").load()(10, (3, 32, 32))
    sizes = [tuple(layer.weight.shape) for layer in model.encoder() if hasattr(layer, "weight")]
    assert sizes == [(64, 3, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (10, 4096)]
    up = [tuple(m.weight.shape) for m in model.decoder() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert up == [(32, 64, 5, 5), (64, 108, 5, 5), (108, 128, 5, 5), (128, 3, 4, 4)]
    dense = [tuple(m.weight.shape) for m in model.decoder() if isinstance(m, torch.nn.Linear)]
    assert dense == [(128, 10), (512, 128)]
    critic = [tuple(layer.weight.shape) for layer in model.critic() if hasattr(layer, "weight")]
    assert critic == [(64, 3, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (1, 4096)]


def test_the_papers_decoder_may_have_a_batch_norm_before_its_sigmoid(digits) -> None:
    for top, last in (("", "ConvTransposeToOne"), ("protocol: paper", "BatchNorm2d")):
        trial = of_stage(staged(RDP, top), "end_to_end")[0]
        layers = [type(layer).__name__ for layer in blueprint(trial, digits)["decoder"]()]
        assert layers[-2:] == [last, "Sigmoid"]
