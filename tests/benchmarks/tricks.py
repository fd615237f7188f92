"""What each trick of a CPU training step gains: the plain way against ours, pair by pair, as ratios.

One that gains less than 3 % where it matters does not belong in the training room.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn

from tests.benchmarks.contender import networks
from tests.benchmarks.loops import CORES, Contender
from urc_sweep.learn import data, engine, models, objectives, train
from urc_sweep.plan import registry, spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.source import Source

SWEEP = """
name: benchmark
dataset: {{name: digits}}
model: {{name: paper, width: {width}}}
rates: [{{dim: 3, levels: 3}}]
stages: {{end_to_end: {{objective: {{distortion: 1.0, classification: 0.005, perception: 0.01}}}}}}
"""
CPU = torch.device("cpu")
Change = Callable[[train.CompressorLane], contextlib.AbstractContextManager[object] | None]


def lane(width: float) -> train.CompressorLane:
    """Return a training lane with all three terms, as a sweep would run it."""
    digits = data.load("digits", {}, Source(offline=True))
    trial = expand(spec.parse(SWEEP.format(width=width)))[-1]
    judge = registry.find("classifier", "paper").load()(digits.image, 10).eval().requires_grad_(False)
    return train.CompressorLane(trial, digits, {"classifier": models.fast_layout(judge, CPU)}, CPU)


def plain_layout(one: train.CompressorLane) -> None:
    for module in one.modules.values():
        module.to(memory_format=torch.contiguous_format)


def plain_last_layer(one: train.CompressorLane) -> None:
    decoder = one.modules["decoder"]
    ours = decoder[-2]
    decoder[-2] = nn.ConvTranspose2d(ours.in_channels, 1, ours.kernel_size[0]).to(memory_format=torch.channels_last)
    adams(one, fused=True)


def plain_adam(one: train.CompressorLane) -> None:
    adams(one, fused=False)


def not_in_place(one: train.CompressorLane) -> None:
    for module in one.modules.values():
        for layer in module.modules():
            if isinstance(layer, nn.LeakyReLU):
                layer.inplace = False


def autograd_penalty(one: train.CompressorLane) -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(objectives, "is_piecewise_linear", return_value=False)


def adams(one: train.CompressorLane, fused: bool) -> None:
    for name in one.optimizers:
        own = [m for role, m in one.modules.items() if role.startswith("critic") == (name == "adam_critic")]
        one.optimizers[name] = torch.optim.Adam([p for m in own for p in m.parameters()], lr=1e-3, fused=fused)


def step_ms(one: train.CompressorLane, phase: int, steps: int = 4) -> float:
    """Return milliseconds per step of 64 images of the critic (phase 0) or of encoder and decoder (1)."""
    labels = {"digit": one.data.train.labels[:64]}
    epsilon = torch.linspace(0, 1, 64)
    inputs = train.Inputs(one.data.train.pixels(slice(0, 64)), labels, u=torch.zeros(64, 3), epsilon=epsilon)
    one.step_index = phase
    began = time.perf_counter()
    for _ in range(steps):
        one.step(inputs)
    return (time.perf_counter() - began) / steps * 1e3


def compare(name: str, width: float, undo: Change, phase: int, rounds: int) -> tuple[str, str]:
    """Return the plain way's time over ours, the median of interleaved pairs."""
    ours, plain = lane(width), lane(width)
    plain.modules = copy.deepcopy(plain.modules)
    adams(plain, fused=True)
    around = undo(plain)

    def plainly() -> float:
        with around if around is not None else contextlib.nullcontext():
            return step_ms(plain, phase)

    plainly(), step_ms(ours, phase)
    pairs = [(plainly(), step_ms(ours, phase)) for _ in range(rounds)]
    what = ("critic", "encoder and decoder")[phase]
    return f"{name}, width {width:g}, step of {what}", told(pairs)


def told(pairs: list[tuple[float, float]]) -> str:
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{before:7.1f} ms -> {after:6.1f} ms, {statistics.median(a / b for a, b in pairs):.2f}x"


def processes(name: str, plain: Contender, ours: Contender, rounds: int) -> tuple[str, str]:
    """Return the same for what a whole process does its own way."""
    for one in (plain, ours):
        one.start()
        one.turn(6)
    for _ in range(rounds):
        for one in (plain, ours):
            one.measure(6)
    for one in (plain, ours):
        one.end()
    return name, told(list(zip(plain.times, ours.times, strict=True)))


def reading(batch: int) -> float:
    """Return milliseconds to read 1,000 images through encoder and decoder."""
    found = {role: network.eval() for role, network in networks(CPU).items()}
    x = torch.rand(1000, 1, 28, 28)
    began = time.perf_counter()
    with torch.no_grad():
        for i in range(0, 1000, batch):
            found["decoder"](found["encoder"](x[i : i + batch]))
    return (time.perf_counter() - began) * 1e3


def encoding(model: str, image: tuple[int, int, int]) -> float:
    """Return milliseconds to encode one batch of 64, which a universal trial saves in each step."""
    encoder = models.fast_layout(registry.find("model", model).load()(3, image).encoder().eval(), CPU)
    x = torch.rand(64, *image)
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(5):
            encoder(x)
    return (time.perf_counter() - began) / 5 * 1e3


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield one line per trick."""
    engine.keep_memory()
    torch.set_num_threads(1)
    rounds = 3 if quick else 9
    for width in (1.0,) if quick else (0.25, 1.0):
        for phase in (0, 1):
            yield compare("channels_last", width, plain_layout, phase, rounds)
        yield compare("hand-written gradient penalty", width, autograd_penalty, 0, rounds)
        yield compare("last layer as GEMM and fold", width, plain_last_layer, 1, rounds)
        yield compare("LeakyReLU in place", width, not_in_place, 1, rounds)
        yield compare("fused Adam", width, plain_adam, 1, rounds)
    case = ["RDPC", "end_to_end"]
    forgetful, ours = Contender("", ["forgetful", *case], CORES), Contender("", ["fp32", *case], CORES)
    yield processes("freed memory kept", forgetful, ours, rounds)
    threads, ours = Contender("", ["threaded", *case]), Contender("", ["fp32", *case], CORES)
    yield processes(f"a worker per core, not one of {CORES} threads", threads, ours, rounds)
    pairs = [(reading(64), reading(500)) for _ in range(rounds)]
    yield "evaluation in batches of 500, not 64 (1,000 images)", told(pairs)
    one = lane(1.0)
    for model, image in (("paper", (1, 28, 28)), ("conv64", (3, 32, 32))):
        step = statistics.median(step_ms(one, 1) for _ in range(3))
        spent = statistics.median(encoding(model, image) for _ in range(rounds))
        value = f"{spent:.1f} ms beside a step of {step:.0f} ms, {1 + spent / step:.2f}x"
        yield f"frozen code kept, encoder {model}", value
