"""How a training step is executed: as it comes, or captured once and replayed. What it computes is ``train``'s affair.

On a GPU a step of small networks is bound by the hundreds of kernels that Python launches one by one. There the step of
a whole pack is captured as ONE graph, each lane a parallel branch of it, and replayed; its numbers are those of the
same step as it comes, bit for bit, because the same kernels run on the same memory.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

Drawn = tuple[Tensor | None, ...]
Body = Callable[..., None]
Branch = Callable[[int], AbstractContextManager[object]]

# A step is captured at its third time: by then every buffer that it keeps exists (sums, optimizer state).
WARM = 2
MOST = 16  # graphs kept at once; annealed weights make a new one every epoch
AHEAD = 8  # steps that may be waiting on a GPU: more would make a stop late


class Steps:
    """Executes every step as it comes."""

    capturing = False
    refused: str | None = None  # why steps that should be captured are not

    def run(self, key: Hashable, drawn: Drawn, body: Body) -> None:
        """Execute ``body(*drawn)``. Steps of one key differ in ``drawn`` and in what tensors hold, in nothing else."""
        body(*drawn)

    @contextmanager
    def branches(self) -> Iterator[Branch]:
        """Give lanes a place of their own each, by number; they may run side by side until this ends."""
        yield lambda number: nullcontext()

    def wait(self) -> None:
        """Return once everything that was started has ended."""

    def fitting(self, lanes: int, share: float) -> int | None:
        """Return how many lanes like the ``lanes`` just trained have room in a share of the device, if known."""
        return None


@dataclass
class _Step:
    seen: int = 0
    drawn: Drawn = ()
    replay: Callable[[], None] | None = None


class CapturedSteps(Steps):
    """Captures a step that comes again and again, and replays it. Subclasses say how to capture.

    A step that cannot be captured (a plugin's term that reads a value back, memory) is executed as it comes.
    """

    def __init__(self) -> None:
        self._steps: dict[Hashable, _Step] = {}

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Return what executes ``body`` again on the very tensors that it uses now; ``body`` itself has no effect."""
        raise NotImplementedError

    def run(self, key: Hashable, drawn: Drawn, body: Body) -> None:
        step = self._steps.setdefault(key, _Step())
        step.seen += 1
        if self.refused is None and step.replay is None and step.seen > WARM:
            self._record(step, drawn, body)
        if step.replay is None:
            body(*drawn)
            return
        for mine, new in zip(step.drawn, drawn, strict=True):
            if mine is not None and new is not None:
                mine.copy_(new)
        step.replay()

    def _record(self, step: _Step, drawn: Drawn, body: Body) -> None:
        step.drawn = tuple(None if value is None else value.clone() for value in drawn)
        self.capturing = True
        try:
            step.replay = self.capture(lambda: body(*step.drawn))
        except Exception as error:  # whatever a driver, an allocator or a plugin raises here, the step still runs
            cause = error.__context__ or error  # the end of a capture that broke raises as well
            self.refused = f"{type(cause).__name__}: {cause}"
        finally:
            self.capturing = False
        while len(self._steps) > MOST:
            del self._steps[next(iter(self._steps))]


class CudaSteps(CapturedSteps):
    """CUDA graphs; each lane is a stream of its own, as the step comes and in the graph."""

    _broken: str | None = None  # of the whole process: after a capture that broke, older releases of torch take none

    def __init__(self) -> None:
        super().__init__()
        self.refused = CudaSteps._broken
        self._started: deque[torch.cuda.Event] = deque()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._streams: list[torch.cuda.Stream] = []
        self._pool = torch.cuda.graph_pool_handle()  # graphs never run side by side: they share their memory

    def run(self, key: Hashable, drawn: Drawn, body: Body) -> None:
        super().run(key, drawn, body)
        CudaSteps._broken = self.refused
        self._started.append(torch.cuda.current_stream().record_event())
        if len(self._started) > AHEAD:
            self._started.popleft().synchronize()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads (Ray's) may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            body()
        return graph.replay

    @contextmanager
    def branches(self) -> Iterator[Branch]:
        main, used = torch.cuda.current_stream(), set[int]()
        start = main.record_event()

        def branch(number: int) -> AbstractContextManager[object]:
            while len(self._streams) <= number:
                self._streams.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]
            used.add(number)
            self._streams[number].wait_event(start)
            return torch.cuda.stream(self._streams[number])

        yield branch
        for number in used:
            main.wait_stream(self._streams[number])

    def wait(self) -> None:
        torch.cuda.synchronize()

    def fitting(self, lanes: int, share: float) -> int | None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory * min(1.0, share)
        return max(1, int(0.9 * total * max(1, lanes) / torch.cuda.max_memory_reserved()))


def steps_on(device: torch.device) -> Steps:
    """Return how steps are executed on a device."""
    return CudaSteps() if device.type == "cuda" else Steps()


@dataclass(frozen=True)
class Precision:
    """What the heavy layers of a training compute in: ``fp32``, ``tf32`` (fp32 where there is none) or ``bf16``.

    Weights, batch statistics, losses, codes and the optimizer are fp32 in each, and metrics are always read in fp32.
    """

    name: str
    device: torch.device

    def casting(self) -> AbstractContextManager[object]:
        """Compute convolutions and matrix products within in this precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.name == "bf16" else nullcontext()


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute within in fp32 whatever the precision: a rounded code would fall into other cells."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    allow_tf32(False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        allow_tf32(allowed)


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of convolutions and matrix products to 10 bits, in this process, or not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@functools.cache
def keep_memory() -> None:
    """Have the C library keep freed memory: otherwise each step asks the system for the same pages again."""
    with suppress(AttributeError, OSError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large tensor
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back
