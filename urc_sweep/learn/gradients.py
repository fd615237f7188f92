"""Gradients written by hand, where autograd does more work than the mathematics needs.

Every one is checked against float64 autograd in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


class _Penalty(torch.autograd.Function):
    """mean (|grad h| - 1)^2 of a piecewise linear critic, and its gradient in the weights, in one pass.

    With the masks of LeakyReLU fixed, h is a product of linear maps W_k, and so is its gradient g in the image. For v =
    dP/dg held fixed, d<v, g>/dW_k is the weight gradient of layer k for the input t_(k-1), the tangent of h in
    direction v, and the output gradient delta_k of h. That is a forward pass, a backward pass in the data, a tangent
    pass and one weight gradient: autograd's double backward does half as much again. Biases have no part in it.
    """

    @staticmethod
    def forward(ctx: Any, critic: nn.Sequential, between: Tensor, *weights: Tensor) -> Tensor:
        inputs, deltas, layers = [between], [between.new_ones(len(between), 1)], list(critic)
        for layer in layers[:-1]:  # the last one's value is not needed
            inputs.append(_linear(layer, inputs[-1], biased=True))
        for layer, a, after in zip(reversed(layers), reversed(inputs), [None, *reversed(inputs[1:])], strict=True):
            deltas.append(_transposed(layer, deltas[-1], a, after))
        *outer, slope = deltas
        norm = slope.double().flatten(1).norm(dim=1)
        penalty: Tensor = (norm - 1).square().mean().to(slope.dtype)
        if any(ctx.needs_input_grad[2:]):
            factor = torch.where(norm > 0, 2 * (norm - 1) / (len(norm) * norm), 0).to(slope.dtype)
            tangent, found = slope * factor.reshape(-1, 1, 1, 1), []
            for index, (layer, delta) in enumerate(zip(layers, reversed(outer), strict=True)):
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    found.append(_weight_gradient(layer, tangent, delta))
                if index + 1 < len(layers):
                    tangent = _linear(layer, tangent, biased=False, after=inputs[index + 1])
            ctx.save_for_backward(*found)
        return penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(grads[0] * found for found in ctx.saved_tensors))


def _linear(layer: nn.Module, a: Tensor, *, biased: bool, after: Tensor | None = None) -> Tensor:
    """Return a layer's output; of a tangent (not biased) under the mask of ``after``, the layer's real output."""
    if isinstance(layer, nn.Conv2d):
        return _convolve(layer, a, layer.bias if biased else None)
    if isinstance(layer, nn.LeakyReLU):
        return F.leaky_relu(a, layer.negative_slope) if after is None else _masked(layer, a, after)
    return a.flatten(1)


def _transposed(layer: nn.Module, delta: Tensor, a: Tensor, after: Tensor | None) -> Tensor:
    """Return the gradient in a layer's input ``a`` for the gradient ``delta`` in its output ``after``."""
    if isinstance(layer, nn.Linear):
        return torch.matmul(delta, layer.weight.to(delta.dtype))
    if isinstance(layer, nn.Conv2d):
        return _backward(layer, delta, a, [True, False, False])[0]
    if isinstance(layer, nn.LeakyReLU):
        assert after is not None
        return _masked(layer, delta, after)
    return delta.reshape(a.shape).contiguous(memory_format=torch.channels_last)


def _weight_gradient(layer: nn.Conv2d | nn.Linear, tangent: Tensor, delta: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return (delta.T @ tangent).to(layer.weight.dtype)
    return _backward(layer, delta, tangent, [False, True, False])[1].to(layer.weight.dtype)


def _masked(layer: nn.LeakyReLU, value: Tensor, after: Tensor) -> Tensor:
    masked: Tensor = _aten.leaky_relu_backward(value, after, layer.negative_slope, True)
    return masked


def _convolve(layer: nn.Conv2d, a: Tensor, bias: Tensor | None) -> Tensor:
    own = None if bias is None else bias.to(a.dtype)
    return F.conv2d(a, layer.weight.to(a.dtype), own, layer.stride, layer.padding)


def _backward(layer: nn.Conv2d, delta: Tensor, a: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    how = (None, layer.stride, layer.padding, [1, 1], False, [0, 0], 1)
    found: tuple[Tensor, Tensor, Tensor] = _aten.convolution_backward(delta, a, layer.weight.to(a.dtype), *how, mask)
    return found


def is_piecewise_linear(critic: nn.Module) -> bool:
    """Return whether a critic is only plain convolutions, LeakyReLU, flatten and one dense layer to a number."""
    if not isinstance(critic, nn.Sequential):
        return False
    *hidden, last = critic
    plain = all(
        type(layer) in (nn.LeakyReLU, nn.Flatten)
        or (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        for layer in hidden
    )
    return plain and type(last) is nn.Linear and last.out_features == 1


def piecewise_linear_penalty(critic: nn.Module, between: Tensor) -> Tensor:
    """Return mean (|grad h(x)| - 1)^2 over images x ``between`` (n, c, h, w), under autocast in its precision.

    Differentiable in the critic's weights, once. Gulrajani et al. 2017, eq. 3.
    """
    weights = [layer.weight for layer in critic.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    device = between.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else between.dtype
    with torch.autocast(device, enabled=False):
        penalty: Tensor = _Penalty.apply(critic, between.to(dtype), *weights)
    return penalty.to(between.dtype)
