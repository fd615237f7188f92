"""Metrics and encoder facts against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.learn.conftest import CPU, of_stage, plan
from urc_sweep.learn import artifacts
from urc_sweep.learn.evaluate import DITHERS, View, encoder_facts, evaluate, kmeans_mse, miller_madow_bits, samples
from urc_sweep.learn.models import Channel, channel_of
from urc_sweep.learn.train import train_pack
from urc_sweep.maths.streams import FIXED_SEED
from urc_sweep.plan.trials import metrics_of


@pytest.fixture(scope="module")
def trained(digits, classifier):
    """An end-to-end trial with its networks and its evaluation."""
    trial = of_stage(plan(), "end_to_end")[1]
    (outcome,) = train_pack([trial], digits, {"classifier": classifier}, CPU)
    networks = {
        role: artifacts.restore(trial, role, artifacts.to_bytes(tensors), digits, CPU)
        for role, tensors in outcome.modules.items()
    }
    networks |= {"classifier": classifier, "heldout_classifier": classifier}
    return trial, networks, evaluate(trial, digits, networks, channel_of(trial), "")


def reconstruct(digits, networks, trial) -> np.ndarray:
    """x_hat of the test split, step by step in numpy."""
    channel = channel_of(trial)
    with torch.no_grad():
        f_x = networks["encoder"](digits.test.images.float() / 255).numpy()
        u = channel.dither(FIXED_SEED, "dither.test", len(digits.test)).numpy()
        c = np.linspace(-1, 1, trial.rate.levels).astype(np.float32)
        z = c[np.abs((f_x + u)[..., None] - c).argmin(-1)]
        return networks["decoder"](torch.from_numpy(z - u)).numpy()


def test_pixel_metrics(trained, digits) -> None:
    trial, networks, found = trained
    x, x_hat = digits.test.images.numpy() / 255, reconstruct(digits, networks, trial)
    each = ((x - x_hat.astype(np.float64)) ** 2).reshape(len(x), -1).mean(1)
    assert found["test"]["mse"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["test"]["mse_se"] == pytest.approx(stats.sem(each), rel=1e-5)
    assert found["test"]["psnr_db"] == pytest.approx(10 * math.log10(1 / each.mean()), rel=1e-5)


def test_classification_metrics(trained, digits) -> None:
    trial, networks, found = trained
    with torch.no_grad():
        logits = networks["classifier"](torch.from_numpy(reconstruct(digits, networks, trial))).double().numpy()
    s = digits.test.labels.numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["test"]["cross_entropy"] == pytest.approx(-log_p[np.arange(len(s)), s].mean(), rel=1e-4)
    assert found["test"]["accuracy"] == pytest.approx((logits.argmax(1) == s).mean())


def test_standard_errors_over_images_and_over_dithers(trained, digits) -> None:
    trial, networks, found = trained
    with torch.no_grad():
        logits = networks["classifier"](torch.from_numpy(reconstruct(digits, networks, trial))).double()
    s = digits.test.labels
    losses = torch.nn.functional.cross_entropy(logits, s, reduction="none").numpy()
    assert found["test"]["cross_entropy_se"] == pytest.approx(stats.sem(losses), rel=1e-3)
    assert found["test"]["accuracy_se"] == pytest.approx(stats.sem((logits.argmax(1) == s).numpy()), rel=1e-6)
    # The mean over the same 450 images under eight other dithers, and under two hundred: what the error estimates.
    view = View(digits, "test", digits.test, networks, channel_of(trial))
    with torch.no_grad():
        n = len(digits.test)
        draws = [float((view.reconstruct("dither.se", n, k) - view.x).double().square().mean()) for k in range(60)]
    assert found["test"]["mse_dither_se"] == pytest.approx(np.std(draws[:8], ddof=1), rel=1e-4)
    assert 0.4 < found["test"]["mse_dither_se"] / np.std(draws, ddof=1) < 2
    assert found["test"]["mse_dither_se"] < found["test"]["mse_se"]


def test_ssim_by_hand(trained, digits) -> None:
    """Wang et al. 2004, equation 13, in float64 with an 11x11 Gaussian window, mirrored at the edges."""
    from scipy.ndimage import correlate

    trial, networks, found = trained
    x, y = digits.test.images.numpy()[:, 0] / 255.0, reconstruct(digits, networks, trial)[:, 0].astype(np.float64)
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(g, g)[None] / np.outer(g, g).sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate(image, window, mode="mirror")

    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    each = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    assert found["test"]["ssim"] == pytest.approx(each.mean(), rel=1e-3)
    assert found["test"]["ssim_se"] == pytest.approx(stats.sem(each.mean((1, 2))), rel=1e-2)


def test_encoder_facts_against_brute_force(trained, digits) -> None:
    """Cells by dictionary, means and majorities by loops, in float64."""
    trial, networks, found = trained
    channel = channel_of(trial)
    with torch.no_grad():
        f_train = networks["encoder"](digits.train.pixels(slice(None))).numpy()
        f_test = networks["encoder"](digits.test.pixels(slice(None))).numpy()
    x_train = digits.train.images.numpy().reshape(len(f_train), -1) / 255
    x = digits.test.images.numpy().reshape(len(f_test), -1) / 255
    s_train, s = digits.train.labels.numpy(), digits.test.labels.numpy()
    c = np.linspace(-1, 1, trial.rate.levels)
    squares, surprise, right, bits = [], [], [], []
    for u in channel.dither(FIXED_SEED, "dither.facts", DITHERS).numpy()[:DITHERS]:
        cell_train = [tuple(np.abs((f + u)[:, None] - c).argmin(1)) for f in f_train]
        cell_test = [tuple(np.abs((f + u)[:, None] - c).argmin(1)) for f in f_test]
        members: dict[tuple, list[int]] = {}
        for index, cell in enumerate(cell_train):
            members.setdefault(cell, []).append(index)
        for cell in set(cell_test):
            here = [i for i, other in enumerate(cell_test) if other == cell]
            inside = members.get(cell, [])
            centroid = x_train[inside].mean(0) if inside else x_train.mean(0)
            counts = np.bincount(s_train[inside], minlength=10)
            p = (counts + 0.5) / (counts.sum() + 5)
            squares += list(((x[here] - centroid) ** 2).mean(1))
            surprise += list(-np.log(p[s[here]]))
            right += list(counts.argmax() == s[here])
        _, n = np.unique(cell_test, axis=0, return_counts=True)
        bits.append(stats.entropy(n, base=2) + (len(n) - 1) / (2 * n.sum() * math.log(2)))
    assert found["test"]["mse_centroid"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert found["test"]["latent_label_entropy"] == pytest.approx(np.mean(surprise), rel=1e-5)
    assert found["test"]["latent_accuracy"] == pytest.approx(np.mean(right), rel=1e-9)
    assert found["test"]["index_entropy_bits"] == pytest.approx(np.mean(bits), rel=1e-6)
    assert found["test"]["index_entropy_bits"] <= trial.rate.bits + 0.05


def test_facts_are_null_where_cells_outnumber_the_images(trained, digits) -> None:
    _, networks, _ = trained
    channel = Channel(((2, 40),))  # 1,600 cells
    values = encoder_facts(View(digits, "test", digits.test, networks, channel))
    assert set(values.values()) == {None}


def test_miller_madow_on_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    estimates = [miller_madow_bits(torch.from_numpy(rng.multinomial(60, p))) for _ in range(3000)]
    assert np.mean(estimates) == pytest.approx(1.75, abs=0.01)


def test_kmeans_near_floor_is_the_published_anchor(digits) -> None:
    """Digits, 8 codewords: .0262 on the project's own test split (in-sample, a local optimum)."""
    assert kmeans_mse(digits, "test", 8) == pytest.approx(0.0262, abs=0.0015)
    assert kmeans_mse(digits, "test", 16) < kmeans_mse(digits, "test", 8)
    assert kmeans_mse(digits, "test", 100) is None


def test_every_metric_of_a_stage_has_a_value_on_both_splits(trained) -> None:
    trial, _, found = trained
    assert found["test"].keys() == found["validation"].keys()
    assert {"mse", "cross_entropy", "accuracy", "heldout_accuracy", "ssim", "sliced_w2"} <= found["test"].keys()
    assert all(math.isfinite(value) for split in found.values() for value in split.values())
    assert len(metrics_of(trial)) >= 7
    assert found["test"] != found["validation"]


def test_samples_are_the_first_test_image_of_every_class(trained, digits) -> None:
    trial, networks, _ = trained
    originals, reconstructions = samples(digits, networks, channel_of(trial))
    x_hat = reconstruct(digits, networks, trial)
    for label in range(10):
        index = int((digits.test.labels == label).nonzero()[0])
        assert torch.equal(originals[label], digits.test.images[index])
        np.testing.assert_allclose(reconstructions[label].numpy(), np.round(x_hat[index] * 255), atol=1)
    import io

    from PIL import Image

    strip = np.asarray(Image.open(io.BytesIO(artifacts.strip(originals))))
    np.testing.assert_array_equal(strip[:, 28:56], originals[1, 0].numpy())
