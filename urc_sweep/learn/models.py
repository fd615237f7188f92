"""Networks as plain modules. A model says how to build its encoder and decoder; a classifier is one module.

Biases before a batch norm are left out: the norm removes them, and their gradient is rounding noise that Adam
would blow up to a random walk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from urc_sweep.learn.quantizer import half_step, quantize
from urc_sweep.maths.streams import stream, stream_seed
from urc_sweep.plan import registry
from urc_sweep.plan.registry import component
from urc_sweep.plan.trials import Trial

Shape = tuple[int, int, int]
SLOPE = 0.01  # LeakyReLU


def build(make: Callable[[], nn.Module], seed: int, name: str) -> nn.Module:
    """Return ``make()`` with initial weights that depend on (seed, name) only, never on stage, lane or pack."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, f"init.{name}"))
        return make()


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.LeakyReLU(SLOPE)]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(inputs, outputs, 5, stride=2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE),
    ]


class ConvTransposeToOne(nn.ConvTranspose2d):
    """A stride-1 transposed convolution (n, c, h, w) -> (n, 1, h + k - 1, w + k - 1), on the CPU as GEMM and fold.

    The CPU library pads one output channel to a vector of them; this way a whole training step is 1.1 times as fast.
    """

    def __init__(self, inputs: int, kernel: int) -> None:
        super().__init__(inputs, 1, kernel)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        assert self.bias is not None
        n, c, h, w = x.shape
        k = self.kernel_size[0]
        taps = x.permute(0, 2, 3, 1).reshape(-1, c) @ self.weight.reshape(c, k * k)
        columns = taps.reshape(n, h * w, k * k).transpose(1, 2)
        return nn.functional.fold(columns, (h + k - 1, w + k - 1), k) + self.bias


@component("model", "paper", version=1, image=(1, 28, 28))
class Paper:
    """The networks of the paper's MNIST experiments (Nguyen, arXiv 2504.13191, Table 1; code of Zhang et al. 2021).

    Encoder 784-512-256-128-128-dim with batch norm and LeakyReLU, tanh at the end: x (n, 1, 28, 28) -> f(x) (n, dim)
    in [-1, 1]. Decoder dim-128-512, then three transposed convolutions and a sigmoid without batch norm (as in the
    code; Table 1 has one): z - u (n, dim) -> x_hat (n, 1, 28, 28) in [0, 1]. ``width`` scales the hidden channels.
    """

    def __init__(self, dim: int, image: Shape, *, width: float = 1.0) -> None:
        self.dim, self.image, self.width = dim, image, width

    def _wide(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def encoder(self) -> nn.Module:
        sizes = [784, *(self._wide(n) for n in (512, 256, 128, 128))]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in _dense(a, b)]
        last = [nn.Linear(sizes[-1], self.dim, bias=False), nn.BatchNorm1d(self.dim), nn.Tanh()]
        return nn.Sequential(nn.Flatten(), *hidden, *last)

    def decoder(self) -> nn.Module:
        a, b, c = self._wide(32), self._wide(64), self._wide(128)
        head = [*_dense(self.dim, self._wide(128)), *_dense(self._wide(128), 16 * a), nn.Unflatten(1, (a, 4, 4))]
        tail = [ConvTransposeToOne(c, 4), nn.Sigmoid()]
        return nn.Sequential(*head, *_up(a, b), *_up(b, c), *tail)


@component("classifier", "paper", version=1, image=(1, 28, 28))
def paper_classifier(image: Shape, classes: int) -> nn.Module:
    """The paper's classifier c: x (n, 1, 28, 28) -> logits (n, classes)."""
    return nn.Sequential(
        *(nn.Conv2d(image[0], 10, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(10, 10, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(160, 100), nn.ReLU(), nn.Linear(100, classes)),
    )


@component("classifier", "mlp", version=1)
def mlp_classifier(image: Shape, classes: int) -> nn.Module:
    """A dense classifier for any image size, unlike the convolutional one: the held-out judge."""
    pixels = image[0] * image[1] * image[2]
    return nn.Sequential(nn.Flatten(), *_dense(pixels, 256), *_dense(256, 128), nn.Linear(128, classes))


def fast_layout(module: nn.Module, device: torch.device) -> nn.Module:
    """Return ``module`` on ``device`` in the memory layout that its convolutions run fastest in.

    channels_last makes a training step 1.3 (width 0.25) to 1.5 times (width 1) as fast on one core.
    """
    return module.to(device).to(memory_format=torch.channels_last)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's parameters and buffers on the CPU, contiguous, by name: what is stored."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}


def blueprint(trial: Trial, image: Shape, classes: int) -> dict[str, Callable[[], nn.Module]]:
    """Return how to build every network of a trial, by role: ``classifier``, or ``encoder`` and ``decoder``."""
    if trial.stage == "classifier":
        make = registry.find("classifier", trial.config["network"]["name"]).load()
        return {"classifier": lambda: make(image, classes)}
    chosen = trial.config["model"]
    entry = registry.find("model", chosen["name"])
    model = entry.load()(trial.config["rate"]["dim"], image, **{key: chosen[key] for key in entry.parameters})
    return {"encoder": model.encoder, "decoder": model.decoder}


class Channel:
    """The path from a code to an image: x -> f(x) -> z = Q(f(x) + u) -> x_hat = g(z - u), R = dim log2 L bits.

    Holds the quantizer's settings; the networks are arguments, so that one channel serves frozen and trained ones.
    """

    def __init__(self, dim: int, levels: int, gradient: str = "soft", sigma: float = 1.0) -> None:
        self.dim, self.levels, self.gradient, self.sigma = dim, levels, gradient, sigma

    def decode(self, decoder: nn.Module, code: Tensor, u: Tensor) -> Tensor:
        """Return x_hat (n, c, h, w) for code f(x) and dither u, both (n, dim)."""
        z = quantize(code + u, self.levels, self.gradient, self.sigma)
        x_hat: Tensor = decoder(z - u)
        return x_hat

    def dither(self, seed: int, name: str, n: int, epoch: int = 0) -> Tensor:
        """Return u (n, dim), uniform on [-1/(L-1), 1/(L-1)], of one epoch; drawn on the CPU."""
        uniform = stream(seed, name, epoch).random((n, self.dim), dtype=np.float32)
        u = torch.from_numpy((uniform * 2.0 - 1.0) * np.float32(half_step(self.levels)))
        return u.to(torch.get_default_dtype())


def channel_of(trial: Trial) -> Channel:
    """Return the dithered channel of a compressor trial."""
    rate, protocol = trial.config["rate"], trial.config["protocol"]
    return Channel(rate["dim"], rate["levels"], protocol["quantizer_gradient"], protocol["sigma"])
