"""The quantizer's forward and both gradients against float64 and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from urc_sweep.learn.models import Channel
from urc_sweep.learn.quantizer import centres, quantize, soft_gradient


@pytest.mark.parametrize("levels", [2, 3, 4, 8])
def test_forward_is_the_nearest_centre(levels: int) -> None:
    v = torch.from_numpy(np.random.default_rng(0).uniform(-1.6, 1.6, (500, 3)).astype(np.float32))
    c = np.linspace(-1, 1, levels)
    nearest = c[np.abs(v.numpy()[..., None] - c).argmin(-1)]
    np.testing.assert_allclose(quantize(v, levels).numpy(), nearest, atol=1e-6)
    assert set(np.unique(quantize(v, levels).numpy())) <= set(centres(levels, v).numpy())


@pytest.mark.parametrize("levels", [2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [1.0, 0.25, 5.0])
def test_soft_gradient_is_autograd_of_the_published_formula(levels: int, sigma: float) -> None:
    v = torch.linspace(-1.7, 1.7, 211, dtype=torch.float64).requires_grad_()
    c = torch.linspace(-1, 1, levels, dtype=torch.float64)
    soft = (c * torch.softmax(-sigma * (v[:, None] - c).abs(), dim=-1)).sum(-1)
    (expected,) = torch.autograd.grad(soft.sum(), v)
    torch.testing.assert_close(soft_gradient(v.detach(), levels, sigma), expected, rtol=0, atol=1e-12)
    (actual,) = torch.autograd.grad((quantize(v, levels, "soft", sigma) * torch.arange(211)).sum(), v)
    torch.testing.assert_close(actual, expected * torch.arange(211), rtol=0, atol=1e-10)


def test_soft_gradient_vanishes_outside_and_has_the_published_size_inside() -> None:
    outside = torch.tensor([-1.4, -1.01, 1.01, 1.5], dtype=torch.float64)
    assert soft_gradient(outside, 3, 1.0).abs().max() < 1e-15
    inside = soft_gradient(torch.linspace(-0.99, 0.99, 100, dtype=torch.float64), 3, 1.0)
    assert 0.42 < inside.min() < 0.44
    assert 0.61 < inside.max() < 0.64


def test_identity_gradient_passes_everything() -> None:
    v = torch.tensor([-1.5, -0.3, 0.0, 0.9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((quantize(v, 3, "identity") * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), v)
    assert gradient.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_subtractive_dither_makes_the_error_uniform_and_independent_of_the_code() -> None:
    channel = Channel(((1, 4),))
    u = channel.dither(0, "dither", 20_000)
    for value in (-1.0, -0.37, 0.2, 1.0):
        error = quantize(value + u, 4) - u - value
        assert stats.kstest(error.flatten().numpy(), stats.uniform(-1 / 3, 2 / 3).cdf).pvalue > 1e-3
