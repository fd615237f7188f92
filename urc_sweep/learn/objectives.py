"""Objective terms and their sum: the whole loss on one screen.

    L = lambda_d * distortion + lambda_c * classification      (Nguyen, arXiv 2504.13191, eq. 10 and 12)

A term is one decorated class. Its presence decides what the trial needs; its weight is just a number, 0 included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urc_sweep.plan import registry
from urc_sweep.plan.registry import component


@dataclass(frozen=True)
class Batch:
    """What a term may look at: images x and x_hat (n, c, h, w) in [0, 1], labels s (n,)."""

    x: Tensor
    s: Tensor
    x_hat: Tensor


class Term:
    """One summand of the objective. ``frozen`` holds the networks it declared as ``needs``, in evaluation mode."""

    def __init__(self, frozen: Mapping[str, nn.Module]) -> None:
        self.frozen = frozen

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
    """Cross-entropy CE(s, c(x_hat)) of the frozen classifier's logits, in nats."""

    def __call__(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.frozen["classifier"](batch.x_hat), batch.s)


class Objective:
    """The weighted sum of a trial's terms."""

    def __init__(self, weights: Mapping[str, float], frozen: Mapping[str, nn.Module]) -> None:
        self.weights = weights
        self.terms = {name: registry.find("term", name).load()(frozen) for name in weights}

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
