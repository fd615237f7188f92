"""Metrics of a finished trial. A metric is one decorated function of a ``View``; it exists as ``val_*`` and plain.

Everything is read in evaluation mode with a fixed dither over all images of the split. Nothing here is stored in a
trial's training commit, so a metric added later is computed for old trials without training them again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urc_sweep.learn.data import Data, Split
from urc_sweep.learn.engine import allow_tf32
from urc_sweep.learn.models import Channel
from urc_sweep.learn.train import EVALUATION_BATCH, encode
from urc_sweep.maths.streams import FIXED_SEED
from urc_sweep.plan.registry import component
from urc_sweep.plan.trials import Trial, metrics_of

Values = Mapping[str, float | None]

DITHERS = 64  # fixed dithers over which facts of an encoder are averaged
MAX_CELLS = 1000  # above it, cell means would be fitted to a handful of images each
MOST_DECODED = 10_000  # training images that are decoded at once
SE_DITHERS, SE_IMAGES = 8, 1000  # what the error over dithers is read from


@dataclass(frozen=True)
class View:
    """One split seen through one trial: images, labels, reconstructions, and classifiers' logits on demand."""

    data: Data
    name: str  # "validation" or "test"
    split: Split
    # All in evaluation mode: encoder, decoder; classifier, heldout_classifier and those of further label sets
    # (classifier.parity ...); encoder2 of a refined trial; critic where there is one.
    networks: Mapping[str, nn.Module]
    channel: Channel | None
    label: str = ""  # the label set of a classifier trial
    code_key: str = ""  # names what determines the code, so that facts of a shared encoder are computed once
    shared: dict[str, Any] = field(default_factory=dict)  # what both splits' views may share

    @functools.cached_property
    def x(self) -> Tensor:
        """Images (n, c, h, w) float32 in [0, 1]."""
        return self.split.pixels(slice(None))

    @property
    def s(self) -> Tensor:
        """Labels (n,)."""
        return self.labels(self.label)

    def labels(self, name: str) -> Tensor:
        """Return the labels (n,) of a label set, by default the primary one."""
        return self.split.label_sets[name] if name else self.split.labels

    def judges(self, role: str) -> dict[str, nn.Module]:
        """Return the classifiers of one role by label set, "" for the primary one."""
        return {key.partition(".")[2]: net for key, net in self.networks.items() if key.partition(".")[0] == role}

    @functools.cached_property
    def code(self) -> Tensor:
        """f(x), (n, dim), before dither and quantizer."""
        return self.code_of(self.split)

    def code_of(self, split: Split) -> Tensor:
        """Return f(x) (n, dim) of any split: all that is sent, by both encoders of a refined trial."""
        assert self.channel is not None
        codes = [encode(self.networks[role], split) for role in ("encoder", "encoder2") if role in self.networks]
        return self.channel.keep(torch.cat(codes, dim=1))

    @functools.cached_property
    def x_hat(self) -> Tensor:
        """Reconstructions (n, c, h, w) under the fixed evaluation dither."""
        return self.reconstruct(f"dither.{self.name}", len(self.split))

    def reconstruct(self, dither: str, n: int, draw: int = 0) -> Tensor:
        """Return reconstructions (n, c, h, w) of the first n images under a fixed dither."""
        assert self.channel is not None
        u = self.channel.dither(FIXED_SEED, dither, n, draw).to(self.code.device)
        return batched(lambda i: self._decode(self.code[:n][i], u[i]), n)

    def reconstruct_train(self, index: Tensor) -> Tensor:
        """Return reconstructions of the training images at ``index`` under a fixed dither."""
        assert self.channel is not None
        n = len(self.data.train)
        if "train" not in self.shared:
            u = self.channel.dither(FIXED_SEED, "dither.train", n)
            self.shared["train"] = self.code_of(self.data.train), u.to(self.code.device)
        code, u = self.shared["train"]
        if n > MOST_DECODED:
            return self._decode(code[index], u[index])
        if "train_x_hat" not in self.shared:  # fewer than a fresh critic asks for: each once
            self.shared["train_x_hat"] = batched(lambda i: self._decode(code[i], u[i]), n)
        reconstructions: Tensor = self.shared["train_x_hat"]
        return reconstructions[index]

    def _decode(self, code: Tensor, u: Tensor) -> Tensor:
        assert self.channel is not None
        return self.channel.decode(self.networks["decoder"], code, u)


@torch.no_grad()
def evaluate(
    trial: Trial, data: Data, networks: Mapping[str, nn.Module], channel: Channel | None, code_key: str = ""
) -> dict[str, dict[str, float | None]]:
    """Return every registered metric of ``trial`` on the validation and the test split, by split and name."""
    torch.set_num_threads(trial.setting("train", "threads"))
    allow_tf32(False)
    for network in networks.values():
        network.eval()
    results: dict[str, dict[str, float | None]] = {}
    shared: dict[str, Any] = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        view = View(data, name, split, networks, channel, trial.config.get("label", ""), code_key, shared)
        results[name] = {}
        for metric in metrics_of(trial):
            results[name].update({key: _finite(value) for key, value in metric.load()(view).items()})
    return results


@torch.no_grad()
def samples(data: Data, networks: Mapping[str, nn.Module], channel: Channel) -> tuple[Tensor, Tensor]:
    """Return originals and reconstructions (k, c, h, w) uint8 of the first test image of every class."""
    first = [int((data.test.labels == label).nonzero()[0]) for label in torch.unique(data.test.labels).tolist()]
    view = View(data, "test", data.test, networks, channel)
    return data.test.images[first].cpu(), (view.x_hat[first] * 255.0).round().to(torch.uint8).cpu()


def batched(read: Any, n: int) -> Tensor:
    """Return ``read`` of every slice of n rows that fits in memory, as one tensor."""
    return torch.cat([read(slice(i, min(i + EVALUATION_BATCH, n))) for i in range(0, n, EVALUATION_BATCH)])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(name: str, each: Tensor) -> dict[str, float | None]:
    """Return the mean of a value per image, and under ``_se`` its standard error over images."""
    each = each.double()
    return {name: float(each.mean()), f"{name}_se": float(each.std() / math.sqrt(len(each)))}


@component("metric", "mse", version=2)
def mse(view: View) -> Values:
    """``mse``: mean squared error per pixel on the 0-1 scale; ``psnr_db``: of that mean.

    ``mse_se``: its standard error over images; ``mse_dither_se``: over dithers, from 8 fixed ones on up to 1,000 images
    (the deviation of their means, scaled to the split's size).
    """
    found = _mean("mse", (view.x_hat - view.x).double().square().flatten(1).mean(1))
    n = min(SE_IMAGES, len(view.split))
    draws = (view.reconstruct("dither.se", n, draw) for draw in range(SE_DITHERS))
    means = torch.stack([(x_hat - view.x[:n]).double().square().mean() for x_hat in draws])
    scale = math.sqrt(n / len(view.split))
    return {
        **found,
        "mse_dither_se": float(means.std()) * scale,
        "psnr_db": -10 * math.log10(max(found["mse"] or 0.0, 1e-12)),
    }


@component("metric", "ssim", version=2)
def ssim(view: View) -> Values:
    """``ssim``: structural similarity, 11x11 Gaussian window (sigma 1.5), data range 1 (Wang et al. 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    each = batched(
        lambda i: structural_similarity_index_measure(view.x_hat[i], view.x[i], data_range=1.0, reduction="none"),
        len(view.x),
    )
    return _mean("ssim", each)


@component("metric", "classification", version=2)
def classification(view: View) -> Values:
    """``cross_entropy`` (nats) and ``accuracy`` of c(x_hat) by the classifier that losses see, with errors over images.

    Those of further label sets have their name in front: ``parity_accuracy``.
    """
    return _judge(view, "classifier", view.x_hat, "")


@component("metric", "heldout", version=2)
def heldout(view: View) -> Values:
    """``heldout_cross_entropy`` (nats) and ``heldout_accuracy`` by a classifier that no loss ever saw."""
    return _judge(view, "heldout_classifier", view.x_hat, "heldout_")


@component("metric", "real_classification", version=2, stages=("classifier",))
def real_classification(view: View) -> Values:
    """``cross_entropy`` (nats) and ``accuracy`` of a classifier trial on real images."""
    return _judge(view, "classifier", view.x, "")


def _judge(view: View, role: str, images: Tensor, prefix: str) -> Values:
    values: dict[str, float | None] = {}
    for label, network in view.judges(role).items():
        logits = batched(lambda i, network=network: network(images[i]), len(images))
        s, name = view.labels(label or view.label), f"{label}_{prefix}" if label else prefix
        values |= _mean(f"{name}cross_entropy", F.cross_entropy(logits.double(), s, reduction="none"))
        values |= _mean(f"{name}accuracy", logits.argmax(1) == s)
    return values


@component(
    "metric",
    "encoder_facts",
    version=1,
    stages=("end_to_end", "control", "joint", "joint_decoder", "universal", "refined", "reduced"),
)
def encoder_facts(view: View) -> Values:
    """Facts of an encoder that no decoder can change, over 64 fixed dithers u; null where cells are too many.

    ``mse_centroid`` = E|X - E[X|Z,U]|^2 per pixel, the MSE that no decoder on this encoder beats (up to the sampling
    error of the cell means); ``latent_label_entropy``: H(S|Z,U) in nats, as the cross-entropy of the labels under the
    cells' label frequencies (add-half smoothed); ``latent_accuracy``: of the cells' majority labels. Cells are fitted
    on training images and read on the split. ``index_entropy_bits``: Miller-Madow estimate of H(Z|U), the rate of a
    coder that knows u.
    """
    assert view.channel is not None
    cells = view.channel.cells
    if cells > min(MAX_CELLS, len(view.split)):
        return dict.fromkeys(("mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"))
    key = (view.code_key, view.data.sha256, view.name, view.channel)
    if key not in _facts or not view.code_key:
        while len(_facts) >= 64:
            _facts.pop(next(iter(_facts)))
        _facts[key] = _cell_facts(view, cells)
    return _facts[key]


# Universal trials of one encoder share its facts; a process keeps the last ones.
_facts: dict[tuple[Any, ...], dict[str, float]] = {}


def _cell_facts(view: View, cells: int) -> dict[str, float]:
    assert view.channel is not None
    train, classes = view.data.train, view.data.classes
    train_code = view.code_of(train)
    dithers = view.channel.dither(FIXED_SEED, "dither.facts", DITHERS).to(train_code.device)
    train_x, x = train.pixels(slice(None)).flatten(1), view.x.flatten(1)
    power = float(x.double().square().sum())
    total_mean = train_x.mean(0)
    totals = dict.fromkeys(("mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"), 0.0)
    for u in dithers:
        train_cell, cell = view.channel.cell(train_code + u), view.channel.cell(view.code + u)
        fitted, counts = _cell_sums(train_x, train_cell, cells)
        means = torch.where(counts[:, None] > 0, fitted / counts.clamp(min=1)[:, None], total_mean)
        sums, read = _cell_sums(x, cell, cells)
        residual = power - 2 * (sums * means).double().sum() + (read * means.double().square().sum(1)).sum()
        labels = torch.bincount(train_cell * classes + train.labels, minlength=cells * classes).reshape(cells, classes)
        frequency = (labels + 0.5) / (labels.sum(1, keepdim=True) + 0.5 * classes)
        totals["mse_centroid"] += float(residual) / x.numel()
        totals["latent_label_entropy"] -= float(frequency[cell, view.s].double().log().mean())
        totals["latent_accuracy"] += float((labels.argmax(1)[cell] == view.s).double().mean())
        totals["index_entropy_bits"] += miller_madow_bits(read)
    return {name: value / DITHERS for name, value in totals.items()}


def _cell_sums(values: Tensor, cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return per cell the sum of ``values`` (n, k) and the number of rows, shapes (cells, k) and (cells,)."""
    sums = torch.zeros(cells, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add_(0, cell, values), torch.bincount(cell, minlength=cells)


def miller_madow_bits(counts: Tensor) -> float:
    """Return the Miller-Madow estimate of a distribution's entropy in bits from its counts."""
    counts = counts[counts > 0].double()
    p = counts / counts.sum()
    return float(-(p * p.log2()).sum() + (len(counts) - 1) / (2 * counts.sum()) / math.log(2))


@component("metric", "anchors", version=1, stages=("end_to_end",))
def anchors(view: View) -> Values:
    """Numbers to check a rate against, from the data alone.

    ``mse_rate0``: MSE of the best constant image; ``label_entropy``: H(S) in nats; ``mse_kmeans``: MSE of k-means
    with 2^R codewords fitted on the very images it is read on: a near-floor at this rate (a local optimum, one fixed
    dither's codebook), not a bound; null where codewords outnumber a tenth of the images.
    """
    assert view.channel is not None
    frequency = torch.bincount(view.s).double() / len(view.s)
    frequency = frequency[frequency > 0]
    constant = (view.x - view.data.train.pixels(slice(None)).mean(0)).double().square().mean()
    return {
        "mse_rate0": float(constant),
        "label_entropy": float(-(frequency * frequency.log()).sum()),
        "mse_kmeans": kmeans_mse(view.data, view.name, view.channel.cells),
    }


@functools.lru_cache(maxsize=32)
def kmeans_mse(data: Data, split_name: str, codewords: int) -> float | None:
    """Return the in-sample MSE per pixel of k-means on one split; ``None`` where images are too few."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    split: Split = getattr(data, split_name)
    if codewords * 10 > len(split):
        return None
    x = split.pixels(slice(None)).flatten(1).cpu().numpy()
    with threadpool_limits(1):
        fit = KMeans(codewords, n_init=4, random_state=0).fit(x)
    return float(fit.inertia_) / x.size
