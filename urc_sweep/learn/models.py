"""Networks as plain modules. A model says how to build its encoder and decoder; a classifier is one module.

Biases before a batch norm are left out: the norm removes them, and their gradient is rounding noise that Adam
would blow up to a random walk.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from urc_sweep.learn.data import Data
from urc_sweep.learn.quantizer import half_step, nearest_index, quantize
from urc_sweep.maths.streams import stream, stream_seed
from urc_sweep.plan import registry
from urc_sweep.plan.registry import component
from urc_sweep.plan.trials import Trial, trains_critic

Shape = tuple[int, int, int]
SLOPE = 0.01  # LeakyReLU


def build(make: Callable[[], nn.Module], seed: int, name: str) -> nn.Module:
    """Return ``make()`` with initial weights that depend on (seed, name) only, never on stage, lane or pack."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, f"init.{name}"))
        return make()


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.LeakyReLU(SLOPE, inplace=True)]


def _up(inputs: int, outputs: int, stride: int = 2) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(inputs, outputs, 5, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE, inplace=True),
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


class Compressor:
    """What every model is: encoder and decoder of ``dim`` latent dimensions, and a critic, of images of one size.

    ``width`` scales the hidden channels of all three.
    """

    def __init__(self, dim: int, image: Shape, *, width: float = 1.0) -> None:
        self.dim, self.image, self.width = dim, image, width

    def _wide(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def encoder(self) -> nn.Module:
        """x (n, c, h, w) -> f(x) (n, dim) in [-1, 1]."""
        raise NotImplementedError

    def decoder(self, output_batchnorm: bool = False) -> nn.Module:
        """z - u (n, dim) -> x_hat (n, c, h, w) in [0, 1]; ``output_batchnorm``: one before the sigmoid."""
        raise NotImplementedError

    def critic(self) -> nn.Module:
        """The critic h: x (n, c, h, w) -> (n, 1), three strided convolutions and no norm (Zhang et al. 2021, code)."""
        channels, height, width = self.image
        hidden, features = _strided(channels, self._wide(64)), math.ceil(height / 8) * math.ceil(width / 8)
        return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(4 * self._wide(64) * features, 1))


def _strided(channels: int, first: int) -> list[nn.Module]:
    """Return three convolutions that halve the image each: channels -> first -> 2 first -> 4 first."""
    sizes = itertools.pairwise((channels, first, 2 * first, 4 * first))
    return [
        layer
        for a, b in sizes
        for layer in (nn.Conv2d(a, b, 5, stride=2, padding=2), nn.LeakyReLU(SLOPE, inplace=True))
    ]


@component("model", "paper", version=1, image=(1, 28, 28))
class Paper(Compressor):
    """The networks of the paper's MNIST experiments (Nguyen, arXiv 2504.13191, Table 1; code of Zhang et al. 2021).

    Encoder 784-512-256-128-128-dim with batch norm and LeakyReLU, tanh at the end. Decoder dim-128-512, then three
    transposed convolutions and a sigmoid, without batch norm in the code and with one in Table 1.
    """

    def __init__(self, dim: int, image: Shape, *, width: float = 1.0) -> None:
        super().__init__(dim, image, width=width)

    def encoder(self) -> nn.Module:
        sizes = [784, *(self._wide(n) for n in (512, 256, 128, 128))]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in _dense(a, b)]
        last = [nn.Linear(sizes[-1], self.dim, bias=False), nn.BatchNorm1d(self.dim), nn.Tanh()]
        return nn.Sequential(nn.Flatten(), *hidden, *last)

    def decoder(self, output_batchnorm: bool = False) -> nn.Module:
        a, b, c = self._wide(32), self._wide(64), self._wide(128)
        head = [*_dense(self.dim, self._wide(128)), *_dense(self._wide(128), 16 * a), nn.Unflatten(1, (a, 4, 4))]
        tail = [ConvTransposeToOne(c, 4), *([nn.BatchNorm2d(1)] if output_batchnorm else []), nn.Sigmoid()]
        return nn.Sequential(*head, *_up(a, b), *_up(b, c), *tail)


class CenterCrop(nn.Module):
    """The middle ``size`` (height, width) of an image."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]]


@component("model", "conv64", version=1, smallest=20)
class Conv64(Compressor):
    """The networks of the SVHN experiments (Zhang et al. 2021, code), for any channels and sizes from 20x20 on.

    Encoder: three strided convolutions c-64-128-256 and a dense layer with tanh, no norm. Decoder dim-128-32*s*s,
    four transposed convolutions 32-64-108-128-c and a sigmoid; from s = 4 they lead to the 32x32 of SVHN, other
    sizes take the next larger s and are cropped in the middle.
    """

    def __init__(self, dim: int, image: Shape, *, width: float = 1.0) -> None:
        super().__init__(dim, image, width=width)

    def encoder(self) -> nn.Module:
        hidden, features = _strided(self.image[0], self._wide(64)), math.prod(math.ceil(n / 8) for n in self.image[1:])
        return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(4 * self._wide(64) * features, self.dim), nn.Tanh())

    def decoder(self, output_batchnorm: bool = False) -> nn.Module:
        channels, *size = self.image
        rows, columns = (math.ceil((n - 16) / 4) for n in size)
        a, b, c, d = (self._wide(n) for n in (32, 64, 108, 128))
        head = [*_dense(self.dim, self._wide(128)), *_dense(self._wide(128), rows * columns * a)]
        up = [*_up(a, b), *_up(b, c), *_up(c, d, stride=1), nn.ConvTranspose2d(d, channels, 4)]
        norm = [nn.BatchNorm2d(channels)] if output_batchnorm else []
        crop = [CenterCrop(size)] if (4 * rows + 16, 4 * columns + 16) != tuple(size) else []
        return nn.Sequential(*head, nn.Unflatten(1, (a, rows, columns)), *up, *crop, *norm, nn.Sigmoid())


@component("classifier", "paper", version=1, image=(1, 28, 28))
def paper_classifier(image: Shape, classes: int) -> nn.Module:
    """The paper's classifier c: x (n, 1, 28, 28) -> logits (n, classes)."""
    return nn.Sequential(
        *(nn.Conv2d(image[0], 10, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(10, 10, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(160, 100), nn.ReLU(inplace=True), nn.Linear(100, classes)),
    )


@component("classifier", "vgg6", version=1, smallest=8)
def vgg6_classifier(image: Shape, classes: int) -> nn.Module:
    """Six convolutions in three blocks, VGG style, for colour and any image size from 8x8 on (Wang et al., RDPC)."""
    sizes, layers = (image[0], 32, 64, 128), list[nn.Module]()
    for a, b in itertools.pairwise(sizes):
        convolutions = (
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, b, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        layers += [*convolutions, nn.MaxPool2d(2)]
    features = sizes[-1] * (image[1] // 8) * (image[2] // 8)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, 128), nn.ReLU(inplace=True), nn.Linear(128, classes)
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


def blueprint(trial: Trial, data: Data) -> dict[str, Callable[[], nn.Module]]:
    """Return how to build every network of a trial, by role.

    ``classifier``; or ``encoder``, ``decoder`` and, if a term needs it, ``critic``, the last two numbered in a joint
    trial (``decoder.0`` ...); a refined trial has an ``encoder2``, and a decoder of both codes.
    """
    if trial.stage == "classifier":
        network = registry.find("classifier", trial.config["network"]["name"]).load()
        classes = data.classes_of(trial.config.get("label", data.label_names[0]))
        return {"classifier": lambda: network(data.image, classes)}
    chosen, rate, dim2 = trial.config["model"], trial.rate, trial.config.get("rate2", {}).get("dim", 0)
    assert rate is not None
    entry = registry.find("model", chosen["name"])

    def make(dim: int) -> Any:
        return entry.load()(dim, data.image, **{key: chosen[key] for key in entry.parameters})

    norm = {"output_batchnorm": True} if trial.setting("protocol", "decoder_output_batchnorm") else {}
    networks = {"encoder": make(trial.config["rate"]["dim"]).encoder}
    if dim2:
        networks["encoder2"] = make(dim2).encoder
    for suffix in trial.suffixes:
        networks["decoder" + suffix] = functools.partial(make(rate.dim + dim2).decoder, **norm)
        if trains_critic(trial.terms):
            networks["critic" + suffix] = make(rate.dim).critic
    return networks


@dataclass(frozen=True)
class Channel:
    """The path from a code to an image: x -> f(x) -> z = Q(f(x) + u) -> x_hat = g(z - u), R = dim log2 L bits.

    Holds the quantizer's settings; the networks are arguments, so that one channel serves frozen and trained ones.
    ``parts`` are the (dim, levels) of the code, one per encoder; ``kept`` the dimensions of a reduced code.
    """

    parts: tuple[tuple[int, int], ...]
    gradient: str = "soft"
    sigma: float | str = 1.0
    kept: tuple[int, ...] | None = None

    @property
    def cells(self) -> int:
        """How many different z there are."""
        return math.prod(levels**dim for dim, levels in self._sent)

    @property
    def _sent(self) -> tuple[tuple[int, int], ...]:
        return self.parts if self.kept is None else ((len(self.kept), self.parts[0][1]),)

    def quantize(self, v: Tensor) -> Tensor:
        """Return z, the nearest centres of v = f(x) + u (n, dim)."""
        parts = torch.split(v, [dim for dim, _ in self._sent], dim=1)
        z = [
            quantize(part, levels, self.gradient, 2 / levels if self.sigma == "2/L" else float(self.sigma))
            for part, (_, levels) in zip(parts, self._sent, strict=True)
        ]
        return z[0] if len(z) == 1 else torch.cat(z, dim=1)

    def decode(self, decoder: nn.Module, code: Tensor, u: Tensor) -> Tensor:
        """Return x_hat (n, c, h, w) for code f(x) and dither u, both (n, dim)."""
        x_hat: Tensor = decoder(self.quantize(code + u) - u)
        return x_hat

    def cell(self, v: Tensor) -> Tensor:
        """Return the number (n,) of the z that v = f(x) + u (n, dim) is sent as, 0 .. cells - 1."""
        number = torch.zeros(len(v), dtype=torch.long, device=v.device)
        columns = iter(v.unbind(1))
        for dim, levels in self._sent:
            for column in itertools.islice(columns, dim):
                number = number * levels + nearest_index(column, levels).long()
        return number

    def keep(self, code: Tensor) -> Tensor:
        """Return the dimensions of a code or dither (n, dim) that are sent."""
        # Not by a list of indices: a graph could not bring it to the device.
        return code if self.kept is None else torch.stack([code[:, i] for i in self.kept], dim=1)

    def dither(self, seed: int, name: str, n: int, epoch: int = 0) -> Tensor:
        """Return u (n, dim), uniform on [-1/(L-1), 1/(L-1)], of one epoch; drawn on the CPU.

        A second encoder draws from a stream of its own and a reduced code keeps its columns, so that the first
        encoder's dither is the same under every decoder.
        """
        parts = []
        for number, (dim, levels) in enumerate(self.parts):
            uniform = stream(seed, f"{name}.refined" if number else name, epoch).random((n, dim), dtype=np.float32)
            parts.append(torch.from_numpy((uniform * 2.0 - 1.0) * np.float32(half_step(levels))))
        return self.keep(torch.cat(parts, dim=1)).to(torch.get_default_dtype())


def channel_of(trial: Trial) -> Channel:
    """Return the dithered channel of a compressor trial."""
    rates = [trial.config[key] for key in ("rate", "rate2") if key in trial.config]
    kept = trial.config.get("dims")
    return Channel(
        tuple((rate["dim"], rate["levels"]) for rate in rates),
        trial.setting("protocol", "quantizer_gradient"),
        trial.setting("protocol", "sigma"),
        None if kept is None else tuple(kept),
    )
