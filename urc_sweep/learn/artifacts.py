"""Networks, checkpoints and sample images as bytes, and back. safetensors and PNG only: nothing that can run code."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from urc_sweep.errors import StoreError
from urc_sweep.learn.data import Data
from urc_sweep.learn.engine import allow_tf32
from urc_sweep.learn.models import blueprint, fast_layout
from urc_sweep.learn.train import Progress
from urc_sweep.plan import registry
from urc_sweep.plan.trials import Trial


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors as one safetensors file."""
    return safetensors.torch.save(dict(tensors))


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name."""
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise StoreError(f"not a safetensors file: {error}") from None


def restore(trial: Trial, role: str, data: bytes, dataset: Data, device: torch.device) -> nn.Module:
    """Return one network of a trial from its bytes: frozen, in evaluation mode, on ``device``."""
    network = blueprint(trial, dataset)[role]()
    try:
        network.load_state_dict(from_bytes(data))
    except (StoreError, RuntimeError) as error:
        raise StoreError(f"{role} of trial {trial.id[:12]} does not fit its network: {one_line(error)}") from None
    return fast_layout(network, device).eval().requires_grad_(False)


def one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines())


def fits(network: str, tensors: Mapping[str, Tensor], data: Data, label: str | None) -> str:
    """Return why tensors are not the weights of a classifier of this data, "" if they are."""
    make = registry.find("classifier", network).load()
    try:
        make(data.image, data.classes_of(label or data.label_names[0])).load_state_dict(dict(tensors))
    except RuntimeError as error:
        return one_line(error)
    return ""


def freeze(progress: Progress) -> tuple[bytes, dict[str, Any]]:
    """Return a checkpoint's tensors and its small state."""
    state = {key: getattr(progress, key) for key in ("epoch", "step", "seconds")}
    # JSON has no NaN; a lane that has just diverged is checkpointed like its mates.
    state["sums"] = {name: [_or_none(total), n] for name, (total, n) in progress.sums.items()}
    state["curve"] = [[e, split, metric, _or_none(value), wall_s] for e, split, metric, value, wall_s in progress.curve]
    return to_bytes(progress.tensors), state


def thaw(tensors: bytes, state: Mapping[str, Any]) -> Progress:
    """Return the checkpoint that ``freeze`` made."""
    points = [(epoch, split, metric, _or_nan(value), wall_s) for epoch, split, metric, value, wall_s in state["curve"]]
    sums = {name: [_or_nan(total), n] for name, (total, n) in state["sums"].items()}
    return Progress(safetensors.torch.load(tensors), state["epoch"], state["step"], sums, points, state["seconds"])


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def strip(images: Tensor) -> bytes:
    """Return images (k, c, h, w) uint8, side by side, as a PNG."""
    k, channels, height, width = images.shape
    row = images.permute(2, 0, 3, 1).reshape(height, k * width, channels).numpy()
    buffer = io.BytesIO()
    Image.fromarray(row[:, :, 0] if channels == 1 else row).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def choose_device(use_gpu: bool) -> tuple[torch.device, str]:
    """Return the device that a pack trains on, and its name for the record."""
    if use_gpu and torch.cuda.is_available():
        allow_tf32(False)
        # The same bits in every pack.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        return torch.device("cuda"), torch.cuda.get_device_name()
    return torch.device("cpu"), "cpu"


def torch_version() -> str:
    return str(torch.__version__)
