"""One process of one contender: trains steps of one objective, so many at each word, and says how long they took.

python -m tests.benchmarks.contender KIND OBJECTIVE STAGE [LANES] reads numbers of steps and answers a JSON line each.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from urc_sweep.learn import data, train
from urc_sweep.learn.models import build, fast_layout
from urc_sweep.learn.quantizer import quantize
from urc_sweep.plan import registry, spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.source import Source

WEIGHTS = {"distortion": 1.0, "classification": 0.005, "perception": 0.01}
OBJECTIVES = {
    "RD": ("distortion",),
    "RDC": ("distortion", "classification"),
    "RDP": ("distortion", "perception"),
    "RDPC": ("distortion", "classification", "perception"),
}
SWEEP = """
name: benchmark
dataset: {{name: digits}}
rates: [{{dim: 3, levels: 3}}]
train: {{epochs: 100000, precision: {precision}, threads: {threads}}}
stages:
  classifier: {{train: {{epochs: 100000}}}}
  end_to_end: {{objective: {{{terms}}}}}
  universal: {{encoders: all, objective: {{{terms}}}}}
"""


def networks(device: torch.device) -> dict[str, nn.Module]:
    """Return the paper's networks at full width as ours, with random weights."""
    model = registry.find("model", "paper").load()(3, (1, 28, 28))
    classifier = registry.find("classifier", "paper").load()
    makers = {"encoder": model.encoder, "decoder": model.decoder, "critic": model.critic}
    makers["classifier"] = lambda: classifier((1, 28, 28), 10)
    return {role: fast_layout(build(make, 0, role), device) for role, make in makers.items()}


# -- the loop as people write it -------------------------------------------------------------------------------------


class Images(Dataset):
    """Images as torchvision's data sets hand them out: one at a time, by way of PIL."""

    def __init__(self, split: data.Split) -> None:
        self.images, self.labels = split.images[:, 0].numpy(), split.labels.tolist()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def as_written(layers: nn.Module) -> nn.Module:
    """Return one of our networks as a plain Sequential in the default layout, nothing in place."""
    plain = []
    for layer in layers:
        if type(layer).__name__ == "ConvTransposeToOne":
            new = nn.ConvTranspose2d(layer.in_channels, 1, layer.kernel_size)
            new.load_state_dict(layer.state_dict())
            layer = new
        if isinstance(layer, (nn.LeakyReLU, nn.ReLU)):
            layer.inplace = False
        plain.append(layer)
    return nn.Sequential(*plain).to(memory_format=torch.contiguous_format)


def penalty_as_written(critic: nn.Module, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
    epsilon = torch.rand(len(x), 1, 1, 1, device=x.device)
    between = (epsilon * x + (1 - epsilon) * x_hat).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def naive(terms: tuple[str, ...], stage: str, device: torch.device) -> Iterator[None]:
    """Yield after each step of the naive loop, in which critic and generator take turns batch by batch."""
    torch.manual_seed(0)
    found = {role: as_written(network) for role, network in networks(device).items()}
    encoder, decoder, critic, judge = (found[role] for role in ("encoder", "decoder", "critic", "classifier"))
    judge.eval().requires_grad_(False)
    encoder.requires_grad_(stage != "universal").train(stage != "universal")
    adam = torch.optim.Adam(
        [p for m in (encoder, decoder) for p in m.parameters() if p.requires_grad], 1e-2, (0.5, 0.9)
    )
    adam_critic = torch.optim.Adam(critic.parameters(), 2e-4, (0.5, 0.9))
    digits = data.load("digits", {}, Source(offline=True))
    loader = DataLoader(Images(digits.train), batch_size=64, shuffle=True)
    while True:
        for i, (x, s) in enumerate(loader):
            x, s = x.to(device), s.to(device)
            u = (torch.rand(len(x), 3, device=device) - 0.5) * 1.0
            if "perception" in terms and i % 2 != 1:
                critic.requires_grad_(True)
                adam_critic.zero_grad()
                with torch.no_grad():
                    x_hat = decoder(quantize(encoder(x) + u, 3) - u)
                loss = -critic(x).mean() + critic(x_hat).mean() + 10 * penalty_as_written(critic, x, x_hat)
                loss.backward()
                adam_critic.step()
            else:
                critic.requires_grad_(False)
                adam.zero_grad()
                x_hat = decoder(quantize(encoder(x) + u, 3) - u)
                loss = WEIGHTS["distortion"] * F.mse_loss(x_hat, x)
                if "classification" in terms:
                    loss = loss + WEIGHTS["classification"] * F.cross_entropy(judge(x_hat), s)
                if "perception" in terms:
                    loss = loss - WEIGHTS["perception"] * critic(x_hat).mean()
                loss.backward()
                adam.step()
            yield


def naive_classifier(device: torch.device) -> Iterator[None]:
    network = as_written(networks(device)["classifier"])
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    loader = DataLoader(Images(data.load("digits", {}, Source(offline=True)).train), batch_size=64, shuffle=True)
    while True:
        for x, s in loader:
            adam.zero_grad()
            F.cross_entropy(network(x.to(device)), s.to(device)).backward()
            adam.step()
            yield


# -- ours ------------------------------------------------------------------------------------------------------------


def ours(terms: tuple[str, ...], stage: str, device: torch.device, precision: str, lanes: int, each: Callable) -> None:
    """Train through the training room itself; ``each`` is called after every step and says whether to stop."""
    threads = torch.get_num_threads() if precision == "threaded" else 1
    if precision == "forgetful":
        train.keep_memory = lambda: None
    precision = precision if precision in ("tf32", "bf16") else "fp32"
    objective = ", ".join(f"{term}: {WEIGHTS[term]}" for term in terms)
    planned = expand(spec.parse(SWEEP.format(terms=objective, precision=precision, threads=threads)))
    trial = next(trial for trial in planned if trial.stage == stage)
    frozen = {role: network.eval().requires_grad_(False) for role, network in networks(device).items()}
    needed = {role: frozen[role] for role in ("classifier", "encoder") if role in trial.needs}
    initial = {role: frozen[role].state_dict() for role in ("decoder", "critic")}
    digits = data.load("digits", {}, Source(offline=True), str(device))
    with contextlib.suppress(train.Interrupted):
        train.train_pack([trial] * lanes, digits, needed, device, initial=initial, should_stop=each)


def main(kind: str, objective: str, stage: str, lanes: str = "1") -> None:
    terms, device = OBJECTIVES[objective], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random.seed(0)
    np.random.seed(0)
    state = {"left": 0, "began": 0.0, "counter": None}

    def each() -> bool:
        """Count one step; when those that were asked for are done, answer and wait for the next word."""
        state["left"] -= 1
        if state["left"] > 0:
            return False
        if state["left"] == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            answer = {"seconds": time.perf_counter() - state["began"]}
            if state["counter"] is not None:
                state["counter"].__exit__(None, None, None)
                answer["flops"] = state["counter"].get_total_flops()
                state["counter"] = None
            answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if device.type == "cuda":
                answer["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
            print(json.dumps(answer), flush=True)
        words = sys.stdin.readline().split()
        if not words:
            return True
        if "count" in words:
            state["counter"] = FlopCounterMode(display=False)
            state["counter"].__enter__()
        state["left"], state["began"] = int(words[0]), time.perf_counter()
        return False

    if kind == "naive":
        steps = naive_classifier(device) if stage == "classifier" else naive(terms, stage, device)
        if len(lanes) > 1:  # one thread each, as Ray gives its processes
            torch.set_num_threads(int(lanes[1:]))
        state["left"] = 0
        for _ in steps:
            if each():
                return
    else:
        ours(terms, stage, device, kind, int(lanes), each)


if __name__ == "__main__":
    main(*sys.argv[1:])
