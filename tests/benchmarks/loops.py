"""A training step, stage by stage and objective by objective: the loop as people write it against ours, side by side.

Each contender fills the machine its own way: the naive loop trains one trial after another on every core; "a process
a trial" runs that same loop once per core, as Ray Tune does; ours is one worker per core, one thread each. All are
started, warmed up, and then take turns, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from urc_sweep.learn.engine import allow_tf32

BATCH = 64
GPU = torch.cuda.is_available()
CORES = len(os.sched_getaffinity(0))
CASES = [
    ("classifier", "RD"),
    ("end_to_end", "RDC"),
    ("end_to_end", "RDP"),
    ("end_to_end", "RDPC"),
    ("universal", "RDC"),
    ("universal", "RDP"),
]


@dataclass
class Contender:
    """Processes that train at the same time; ``lanes`` trials each."""

    name: str
    words: list[str]
    count: int = 1
    lanes: int = 1
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # ms per trial-step
    peak_mb: float = 0.0  # of all processes

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.contender", *self.words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(self.count)]

    def turn(self, steps: int, word: str = "") -> list[dict[str, float]]:
        for process in self.processes:
            process.stdin.write(f"{steps} {word}\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def measure(self, steps: int) -> None:
        answers = self.turn(steps)
        seconds = max(answer["seconds"] for answer in answers)
        self.times.append(seconds * 1e3 / (steps * self.count * self.lanes))
        self.peak_mb = sum(answer["peak_mb"] for answer in answers)

    def end(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()

    @property
    def ms(self) -> float:
        return statistics.median(self.times)


def contenders(stage: str, objective: str) -> list[Contender]:
    if GPU:
        ours = [(precision, lanes) for precision in ("fp32", "tf32", "bf16") for lanes in (1, 8)]
        return [Contender("naive loop (torch's own: TF32 convolutions)", ["naive", objective, stage])] + [
            Contender(f"ours, {p}, {k} lanes", [p, objective, stage, str(k)], lanes=k) for p, k in ours
        ]
    return [
        Contender("naive loop", ["naive", objective, stage]),
        Contender("naive, a process a trial", ["naive", objective, stage, "x1"], CORES),
        Contender("ours, fp32", ["fp32", objective, stage], CORES),
        *([Contender("ours, bf16", ["bf16", objective, stage], CORES)] if stage != "classifier" else []),
    ]


def gemm(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product on the whole machine, by whichever library does it faster."""
    n, device = 4096 if GPU else 2048, "cuda" if GPU else "cpu"
    a, b = torch.randn((2, n, n), device=device).to(dtype)
    products = [lambda: a @ b, lambda: F.conv2d(a[None, :, :, None], b[:, :, None, None])]
    rates = []
    for product in products * 6:
        began = time.perf_counter()
        for _ in range(3):
            product()
        if GPU:
            torch.cuda.synchronize()
        rates.append(3 * 2 * n**3 / (time.perf_counter() - began))
    return max(rates)


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield one line per contender: ms per trial-step of the whole machine, images/s, ratio, GEMM share, memory."""
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        allow_tf32(name == "tf32")
        peaks[name] = gemm(dtype)
    yield "GEMM peak", ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items()) + " GFLOP/s"
    steps, rounds, generations = (4, 1, 1) if quick else (10, 2, 3)
    for stage, objective in CASES[1:3] if quick else CASES:
        field_ = contenders(stage, objective)
        for _ in range(generations):  # where a process finds its memory is luck that it keeps
            for one in field_:
                one.start()
            # The work of a step as ours does it, which is the least: what a contender does beyond that is no use.
            ours = next(one for one in field_ if one.words[0] == "fp32")
            flops = sum(answer["flops"] for answer in ours.turn(2, "count")) / (2 * ours.count * ours.lanes)
            for one in field_:
                one.turn(10)
            for _ in range(rounds):
                for one in field_:
                    one.measure(steps)
            for one in field_:
                one.end()
        for one in field_:
            # The median of the ratios pair by pair, since both of a pair met the same machine.
            ratio = statistics.median(a / b for a, b in zip(field_[0].times, one.times, strict=True))
            share = flops / (one.ms / 1e3) / peaks.get(one.words[0], peaks["fp32"])
            value = f"{one.ms:7.1f} ms, {BATCH / one.ms * 1e3:6.0f} images/s, {ratio:.2f}x, "
            name = "classifier" if stage == "classifier" else f"{stage} {objective}"
            yield f"{name}: {one.name}", value + f"{share:.0%} of GEMM, {one.peak_mb:.0f} MB"
