"""Objective terms and their sum: the whole loss on one screen.

    L = lambda_d * distortion + lambda_c * classification + lambda_p * perception

(Nguyen, arXiv 2504.13191, eq. 10 to 13; all three: RDPC, Wang et al., arXiv 2405.04144, eq. 4 as a Lagrangian.)
A term is one decorated class. Its presence decides what the trial needs; its weight is just a number, 0 included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urc_sweep.learn.gradients import is_piecewise_linear, piecewise_linear_penalty
from urc_sweep.plan import registry
from urc_sweep.plan.registry import component


@dataclass(frozen=True)
class Batch:
    """What a term may look at: images x and x_hat (n, c, h, w) in [0, 1], labels s (n,), all label sets by name."""

    x: Tensor
    s: Tensor
    x_hat: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)


class Term:
    """One summand of the objective, known as ``name`` or, for one of several label sets, as ``name.label``.

    ``networks`` holds the networks it declared: as ``needs``, frozen in evaluation mode, and as ``trains``.
    """

    def __init__(self, networks: Mapping[str, nn.Module], label: str = "") -> None:
        self.networks, self.label = networks, label

    def __call__(self, batch: Batch) -> Tensor:
        """Return the term's value, a scalar, before its weight."""
        raise NotImplementedError


@component("term", "distortion", version=1, symbol="lambda_d")
class Distortion(Term):
    """Mean squared error per pixel on the 0-1 scale (the published code's convention; the paper writes a norm)."""

    def __call__(self, batch: Batch) -> Tensor:
        return F.mse_loss(batch.x_hat, batch.x)


@component("term", "classification", version=1, symbol="lambda_c", needs=("classifier",))
class Classification(Term):
    """Cross-entropy CE(s, c(x_hat)) of the frozen classifier's logits, in nats; of the label set S_k with its c_k."""

    def __call__(self, batch: Batch) -> Tensor:
        if not self.label:
            return F.cross_entropy(self.networks["classifier"](batch.x_hat), batch.s)
        return F.cross_entropy(self.networks[f"classifier.{self.label}"](batch.x_hat), batch.labels[self.label])


@component("term", "perception", version=2, symbol="lambda_p", trains=("critic",))
class Perception(Term):
    """-mean h(x_hat): what encoder and decoder see of W1(p_X, p_Xhat) through the WGAN-GP critic h."""

    def __call__(self, batch: Batch) -> Tensor:
        h: Tensor = self.networks["critic"](batch.x_hat)
        return -h.to(batch.x_hat.dtype).mean()


class Objective:
    """The weighted sum of a trial's terms."""

    def __init__(self, weights: Mapping[str, float], networks: Mapping[str, nn.Module]) -> None:
        self.weights = dict(weights)
        self.terms = {}
        for key in weights:
            name, _, label = key.partition(".")
            self.terms[key] = registry.find("term", name).load()(networks, *([label] if label else []))

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return every term's value by name, and under ``loss`` the weighted sum that is minimised."""
        values: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch.x.device)
        for name, term in self.terms.items():
            # At weight 0 the value is only read: skipping its backward pass changes no number.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                values[name] = term(batch)
            if self.weights[name] != 0:
                loss = loss + self.weights[name] * values[name]
        return values | {"loss": loss}


def critic_gap(critic: nn.Module, x: Tensor, x_hat: Tensor) -> Tensor:
    """Return mean h(x) - mean h(x_hat), which the critic maximises (a lower bound of W1 for a 1-Lipschitz h)."""
    gap: Tensor = critic(x).to(x.dtype).mean() - critic(x_hat).to(x.dtype).mean()
    return gap


def gradient_penalty(critic: nn.Module, x: Tensor, x_hat: Tensor, epsilon: Tensor) -> Tensor:
    """Return mean (|grad h(x~)| - 1)^2 at x~ = epsilon x + (1 - epsilon) x_hat, epsilon (n,) in [0, 1].

    Gulrajani et al. 2017, eq. 3; differentiable in the critic's parameters.
    """
    mix = epsilon.reshape(-1, 1, 1, 1)
    between = (mix * x + (1 - mix) * x_hat).detach()
    if is_piecewise_linear(critic):
        return piecewise_linear_penalty(critic, between)
    between.requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
