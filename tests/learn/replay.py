"""Capture and replay on the CPU, operator by operator: what a CUDA graph does, with its rules, where there is no GPU.

Every operator that runs while a step is captured is noted with the very tensors it read and wrote; replaying runs them
again on these tensors. Like a graph, it refuses to read a value back to Python and to bring one from Python, and a
captured step leaves no trace of itself in any tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from urc_sweep.learn.engine import CapturedSteps

FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal")
RUNNING = ("running_mean", "running_var")


class Recorder(TorchDispatchMode):
    """Notes operators as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            # Batch norm's schema does not say that it writes its running statistics.
            if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in RUNNING:
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor) and id(tensor) not in self.before:
                        self.before[id(tensor)] = (tensor, tensor.detach().clone())
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


class Replayed(CapturedSteps):
    """Steps captured and replayed on the CPU."""

    captured = replays = 0

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        recorder = Recorder()
        try:
            with recorder:
                body()
        finally:  # as if it had never run; the latest first, since views of one memory may follow each other
            for tensor, value in reversed(list(recorder.before.values())):
                tensor.data.copy_(value)
        self.captured += 1

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, out in recorder.calls:
                    again = func(*args, **kwargs)
                    for mine, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(mine, torch.Tensor) and mine.data_ptr() != new.data_ptr():
                            mine.data.copy_(new)

        return replay
