"""Networks, checkpoints and sample images as bytes, and back. safetensors and PNG only: nothing that can run code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from urc_sweep.errors import StoreError
from urc_sweep.learn.data import Data
from urc_sweep.learn.models import blueprint, fast_layout
from urc_sweep.learn.train import Progress
from urc_sweep.plan.trials import Trial


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors as one safetensors file."""
    return safetensors.torch.save(dict(tensors))


def restore(trial: Trial, role: str, data: bytes, dataset: Data, device: torch.device) -> nn.Module:
    """Return one network of a trial from its bytes: frozen, in evaluation mode, on ``device``."""
    network = blueprint(trial, dataset.image, dataset.classes)[role]()
    try:
        network.load_state_dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise StoreError(
            f"{role} of trial {trial.id[:12]} does not fit its network: {str(error).splitlines()[0]}"
        ) from None
    return fast_layout(network, device).eval().requires_grad_(False)


def freeze(progress: Progress) -> tuple[bytes, dict[str, Any]]:
    """Return a checkpoint's tensors and its small state."""
    state = {key: getattr(progress, key) for key in ("epoch", "step", "sums", "curve", "seconds")}
    return to_bytes(progress.tensors), state


def thaw(tensors: bytes, state: Mapping[str, Any]) -> Progress:
    """Return the checkpoint that ``freeze`` made."""
    points = [(epoch, split, metric, value, wall_s) for epoch, split, metric, value, wall_s in state["curve"]]
    return Progress(
        safetensors.torch.load(tensors), state["epoch"], state["step"], dict(state["sums"]), points, state["seconds"]
    )


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
        return torch.device("cuda"), torch.cuda.get_device_name()
    return torch.device("cpu"), "cpu"


def torch_version() -> str:
    return str(torch.__version__)
