"""Distances of images and reconstructions as distributions, against independent computations and their floors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.learn.conftest import CPU, of_stage, plan
from urc_sweep.learn import artifacts, perception
from urc_sweep.learn.data import Data, Split
from urc_sweep.learn.evaluate import View, evaluate
from urc_sweep.learn.models import channel_of
from urc_sweep.learn.train import train_pack
from urc_sweep.maths.streams import FIXED_SEED, stream

RDP = """
name: rdp
dataset: {name: digits}
model: {name: paper, width: 0.05}
rates: [{dim: 2, levels: 3}]
train: {epochs: 2}
stages:
  end_to_end: {objective: {distortion: 1.0, perception: 0.01}}
"""


@pytest.fixture(scope="module")
def trained(digits, classifier):
    """An end-to-end trial with a critic: its networks and its evaluation."""
    (trial,) = of_stage(plan(RDP), "end_to_end")
    (outcome,) = train_pack([trial], digits, {}, CPU)
    networks = {r: artifacts.restore(trial, r, artifacts.to_bytes(t), digits, CPU) for r, t in outcome.modules.items()}
    networks |= {"classifier": classifier, "heldout_classifier": classifier}
    return trial, networks, evaluate(trial, digits, networks, channel_of(trial), "")


def projections(pixels: int) -> np.ndarray:
    theta = stream(FIXED_SEED, "projections").standard_normal((pixels, 512), dtype=np.float32).astype(np.float64)
    return theta / np.linalg.norm(theta, axis=0)


def exact_w2(a: np.ndarray, b: np.ndarray) -> float:
    """Sliced W2 of equally large small sets by the optimal assignment in each direction."""
    theta = projections(a.shape[1])
    squares = []
    for direction in theta.T:
        cost = (a @ direction)[:, None] - (b @ direction)[None]
        rows, columns = linear_sum_assignment(cost**2)
        squares.append((cost[rows, columns] ** 2).mean())
    return float(np.sqrt(np.mean(squares)))


def small_view(digits: Data, networks, trial, n: int) -> View:
    split = Split(digits.test.images[:n], digits.test.labels[:n])
    return View(digits, "test", split, networks, channel_of(trial))


def test_sliced_w2_is_the_optimal_assignments(trained, digits) -> None:
    trial, networks, _ = trained
    view = small_view(digits, networks, trial, 40)
    with torch.no_grad():
        found = perception.sliced_w2(view)
        x, x_hat = (t.flatten(1).double().numpy() for t in (view.x, view.x_hat))
    assert found["sliced_w2"] == pytest.approx(exact_w2(x, x_hat), rel=1e-5)
    first, second = perception.halves(40)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(40))
    assert found["sliced_w2_floor"] == pytest.approx(exact_w2(x[first], x[second]), rel=1e-5)


def test_the_floor_is_what_real_images_differ_from_real_ones(trained) -> None:
    _, _, found = trained
    for split in ("validation", "test"):
        values = found[split]
        assert 0 < values["sliced_w2_floor"] < values["sliced_w2"]
        assert abs(values["critic_gap_floor"]) < 0.1
        assert abs(values["fresh_critic_gap_floor"]) < 0.2 * values["fresh_critic_gap"]


def test_the_critic_gap_by_hand(trained, digits) -> None:
    trial, networks, found = trained
    view = View(digits, "test", digits.test, networks, channel_of(trial))
    with torch.no_grad():
        h = [networks["critic"](images).squeeze().double().numpy() for images in (view.x, view.x_hat)]
    assert found["test"]["critic_gap"] == pytest.approx(h[0].mean() - h[1].mean(), rel=1e-4, abs=1e-6)


def test_a_fresh_critic_sees_how_far_reconstructions_are(digits) -> None:
    """Its gap is zero-like for the images themselves, and grows with what is done to them."""
    train = digits.train
    gaps = []
    for fade in (1.0, 0.7, 0.3):
        critic = perception._fresh_critic(digits, lambda index, fade=fade: fade * train.pixels(index))
        x = digits.test.pixels(slice(None))
        with torch.no_grad():
            gaps.append(float(critic(x).mean() - critic(fade * x).mean()))
    assert gaps[0] == 0
    assert 0.5 < gaps[1] < gaps[2]
    # W1 of x and fade x is at most the mean distance (1 - fade) |x|, which a 1-Lipschitz critic cannot exceed; the
    # penalty only pulls slopes towards 1.
    bound = float(digits.test.pixels(slice(None)).flatten(1).norm(dim=1).mean())
    assert gaps[1] < 1.5 * 0.3 * bound
    assert gaps[2] < 1.5 * 0.7 * bound


def test_the_same_model_gets_the_same_fresh_critic(trained, digits) -> None:
    trial, networks, found = trained
    again = evaluate(trial, digits, networks, channel_of(trial), "")
    assert again["test"]["fresh_critic_gap"] == found["test"]["fresh_critic_gap"]
    assert again["test"]["fresh_critic_gap"] != found["validation"]["fresh_critic_gap"]
