"""The dithered scalar quantizer: hard forward, soft or identity backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def centres(levels: int, like: Tensor) -> Tensor:
    """Return the quantizer centres -1 + 2l/(L-1), l = 0..L-1, shape (L,), of ``like``'s type and device."""
    return torch.arange(levels, dtype=like.dtype, device=like.device) * (2.0 / (levels - 1)) - 1.0


def half_step(levels: int) -> float:
    """Return 1/(L-1): shared dither u is uniform on [-half_step, +half_step]."""
    return 1.0 / (levels - 1)


def nearest_index(v: Tensor, levels: int) -> Tensor:
    """Return the index of the centre nearest to each element of ``v``, as a float so that NaN stays NaN; ties go up."""
    return torch.floor((v + 1.0) * ((levels - 1) / 2.0) + 0.5).clamp_(0, levels - 1)


def soft_gradient(v: Tensor, levels: int, sigma: float) -> Tensor:
    """Return d/dv of sum_l c_l softmax_l(-sigma |v - c_l|), elementwise.

    The published surrogate (Zhang et al. 2021, code). With a_l = -sigma sign(v - c_l) it is
    sum_l c_l p_l (a_l - sum_k p_k a_k): exactly 0 outside [-1, 1], where all signs agree.
    """
    c = centres(levels, v)
    gap = v.unsqueeze(-1) - c
    p = torch.softmax(-sigma * gap.abs(), dim=-1)
    a = -sigma * gap.sign()
    return (c * p * (a - (p * a).sum(-1, keepdim=True))).sum(-1)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: int, gradient: str, sigma: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.levels, ctx.gradient, ctx.sigma = levels, gradient, sigma
        return nearest_index(v, levels) * (2.0 / (levels - 1)) - 1.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        if ctx.gradient == "soft":
            (v,) = ctx.saved_tensors
            grad = grad * soft_gradient(v, ctx.levels, ctx.sigma)
        return grad, None, None, None


def quantize(v: Tensor, levels: int, gradient: str = "soft", sigma: float = 1.0) -> Tensor:
    """Return z, the nearest centre of ``v`` = f(x) + u (any shape); the sender's half of the channel.

    The receiver decodes g(z - u). With f(x) in [-1, 1] and |u| <= 1/(L-1), z - u is f(x) plus uniform noise that is
    independent of x (subtractive dither), so ``identity`` is the exact gradient of that channel; ``soft`` is the
    published surrogate.
    """
    return _Quantize.apply(v, levels, gradient, sigma)  # type: ignore[no-any-return]
