"""What the tricks of a CPU training step gain: each against the plain way, pair by pair, as ratios.

Run on an idle machine: python -m tests.benchmarks
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from urc_sweep.learn import data, models, train
from urc_sweep.plan import registry, spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.source import Source
from urc_sweep.plan.trials import Trial

ROUNDS, STEPS = 7, 10
SWEEP = """
name: benchmark
dataset: {{name: digits}}
model: {{name: paper, width: {width}}}
rates: [{{dim: 3, levels: 3}}]
stages: {{end_to_end: {{objective: {{distortion: 1.0, classification: 0.005}}}}}}
"""


def lane(width: float) -> train.CompressorLane:
    """Return a training lane with both terms, as a sweep would run it."""
    digits = data.load("digits", {}, Source(offline=True))
    trial: Trial = expand(spec.parse(SWEEP.format(width=width)))[-1]
    judge = registry.find("classifier", "paper").load()(digits.image, 10).eval().requires_grad_(False)
    judge = models.fast_layout(judge, torch.device("cpu"))
    return train.CompressorLane(trial, digits, {"classifier": judge}, torch.device("cpu"))


def plain_layout(one: train.CompressorLane) -> None:
    one.modules["decoder"].to(memory_format=torch.contiguous_format)


def plain_last_layer(one: train.CompressorLane) -> None:
    decoder = one.modules["decoder"]
    ours = decoder[-2]
    decoder[-2] = nn.ConvTranspose2d(ours.in_channels, 1, ours.kernel_size[0]).to(memory_format=torch.channels_last)
    unfused(one, fused=True)


def unfused(one: train.CompressorLane, fused: bool = False) -> None:
    parameters = [p for module in one.modules.values() for p in module.parameters()]
    one.optimizers["adam"] = torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.9), fused=fused)


def step_ms(one: train.CompressorLane) -> float:
    """Return milliseconds per training step of 64 images."""
    labels = {"digit": one.data.train.labels[:64]}
    inputs = train.Inputs(one.data.train.pixels(slice(0, 64)), labels, u=torch.zeros(64, 3))
    began = time.perf_counter()
    for _ in range(STEPS):
        one.step(inputs)
    return (time.perf_counter() - began) / STEPS * 1e3


def compare(name: str, width: float, undo: Callable[[train.CompressorLane], None]) -> None:
    """Print the plain way's time over ours, the median of interleaved pairs."""
    ours, plain = lane(width), lane(width)
    plain.modules = copy.deepcopy(plain.modules)
    unfused(plain, fused=True)
    undo(plain)
    for one in (ours, plain):
        step_ms(one)
    pairs = [(step_ms(plain), step_ms(ours)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name:34} width {width:<5g} {before:7.1f} ms -> {after:6.1f} ms   {ratio:.2f}x")


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    for width in (0.25, 1.0):
        compare("channels_last decoder", width, plain_layout)
        compare("last layer as GEMM and fold", width, plain_last_layer)
        compare("fused Adam", width, unfused)


if __name__ == "__main__":
    main()
