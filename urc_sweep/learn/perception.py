"""Metrics of perception: distances between images and reconstructions as distributions, each beside its floor.

A floor is the same distance between two halves of the real images: what a finite sample alone gives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from urc_sweep.learn.data import Data
from urc_sweep.learn.evaluate import Values, View, batched
from urc_sweep.learn.models import Compressor, build, fast_layout
from urc_sweep.learn.objectives import critic_gap, gradient_penalty
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.plan.registry import component

PROJECTIONS = 512
# The fresh critic's budget is fixed, so that its gap may be compared between models: an eighth of the published
# critic's channels, Adam at 1e-3 (0.5, 0.9), gradient penalty 10. A few seconds of one core per evaluation.
FRESH_STEPS, FRESH_BATCH, FRESH_WIDTH, FRESH_RATE = 200, 64, 0.125, 1e-3


def halves(n: int) -> tuple[Tensor, Tensor]:
    """Return the indices of two fixed halves of n images."""
    order = torch.from_numpy(stream(FIXED_SEED, "halves").permutation(n))
    return order[: n // 2], order[n // 2 : 2 * (n // 2)]


@component("metric", "sliced_w2", version=1)
def sliced_w2(view: View) -> Values:
    """``sliced_w2``: sliced Wasserstein-2 distance (not squared) of images and reconstructions, 512 fixed directions.

    ``sliced_w2_floor`` is the same distance between two halves of the real images: what sampling alone gives.
    """
    pixels = view.x[0].numel()
    directions = stream(FIXED_SEED, "projections").standard_normal((pixels, PROJECTIONS), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=0, keepdims=True)
    theta = torch.from_numpy(directions).to(view.x.device)
    real, fake = view.x.flatten(1) @ theta, view.x_hat.flatten(1) @ theta
    first, second = halves(len(real))
    return {"sliced_w2": _w2(real, fake), "sliced_w2_floor": _w2(real[first], real[second])}


def _w2(a: Tensor, b: Tensor) -> float:
    return math.sqrt(float((a.sort(0).values - b.sort(0).values).double().square().mean()))


@component("metric", "critic_gap", version=1, terms=("perception",))
def training_critic_gap(view: View) -> Values:
    """``critic_gap`` = mean h(x) - mean h(x_hat) of the trial's own critic: the published perception number.

    Not W1: it may be negative, depends on lambda_p and on the critic's age, and must not be compared between models.
    ``critic_gap_floor``: mean h on one half of the real images minus mean h on the other.
    """
    critic = view.networks["critic"]
    real, fake = (batched(lambda i, x=x: critic(x[i]), len(x)).double() for x in (view.x, view.x_hat))
    first, second = halves(len(real))
    floor = real[first].mean() - real[second].mean()
    return {"critic_gap": float(real.mean() - fake.mean()), "critic_gap_floor": float(floor)}


@component("metric", "fresh_critic_gap", version=2, terms=("perception",))
def fresh_critic_gap(view: View) -> Values:
    """``fresh_critic_gap``: the gap of a new critic, trained for a fixed budget on this model's training images.

    Same seed, weights and steps for every model. ``fresh_critic_gap_floor``: that of a critic trained to tell one
    half of the real training images from the other, read on two halves of the split.
    """
    if "fresh_critic" not in view.shared:
        view.shared["fresh_critic"] = _fresh_critic(view.data, view.reconstruct_train)
    first, second = halves(len(view.x))
    gap = critic_gap(view.shared["fresh_critic"], view.x, view.x_hat)
    floor = critic_gap(_floor_critic(view.data), view.x[first], view.x[second])
    return {"fresh_critic_gap": float(gap), "fresh_critic_gap_floor": float(floor)}


@functools.lru_cache(maxsize=2)
def _floor_critic(data: Data) -> torch.nn.Module:
    first, second = halves(len(data.train))
    partner = torch.empty(len(data.train), dtype=torch.long)
    partner[first], partner[second] = second, first
    return _fresh_critic(data, lambda index: data.train.pixels(partner[index]), among=first)


def _fresh_critic(data: Data, fake_of: Callable[[Tensor], Tensor], among: Tensor | None = None) -> torch.nn.Module:
    """Return a critic trained to tell training images from ``fake_of(their indices)``."""
    model = Compressor(1, data.image, width=FRESH_WIDTH)
    device = data.train.images.device
    critic = fast_layout(build(model.critic, FIXED_SEED, "fresh_critic"), device)
    adam = torch.optim.Adam(critic.parameters(), lr=FRESH_RATE, betas=(0.5, 0.9), fused=True)
    draw = stream(FIXED_SEED, "fresh_critic")
    for _ in range(FRESH_STEPS):
        index = torch.from_numpy(draw.integers(len(data.train) if among is None else len(among), size=FRESH_BATCH))
        index = index if among is None else among[index]
        epsilon = torch.from_numpy(draw.random(FRESH_BATCH, dtype=np.float32)).to(device, torch.get_default_dtype())
        x, x_hat = data.train.pixels(index), fake_of(index)
        with torch.enable_grad():
            loss = 10 * gradient_penalty(critic, x, x_hat, epsilon) - critic_gap(critic, x, x_hat)
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return critic.requires_grad_(False)
