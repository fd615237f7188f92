"""The training loop: ONE loop for every stage. Invariant: a trial's numbers do not depend on its lane mates.

A pack is K trials of one pack key side by side: each *lane* has its own plain modules and optimizer, all lanes see
the same batches and dither. Nothing draws from a global generator, so a trial alone, in any pack, or resumed from a
checkpoint gives the same bits on the same device with the same number of threads.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urc_sweep.learn.data import Data, Split
from urc_sweep.learn.models import blueprint, build, channel_of, fast_layout, tensors_of
from urc_sweep.learn.objectives import Batch, Objective
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.plan.trials import Trial

EVALUATION_BATCH = 500
# At most so many readings of the validation split along a training, so that long ones do not pay for more.
VALIDATIONS = 10

CurvePoint = tuple[int, str, str, float, float]  # epoch, split, metric, value, wall_s


class Interrupted(Exception):
    """Training was asked to stop; every lane has been checkpointed."""


@dataclass
class Progress:
    """What a checkpoint holds: weights, buffers and optimizer by name, and where in the training they belong."""

    tensors: dict[str, Tensor]
    epoch: int
    step: int
    sums: dict[str, float]
    curve: list[CurvePoint]
    seconds: float


@dataclass
class Outcome:
    """How one lane ended: ``trained`` with its modules' tensors, or ``diverged``, ``failed``, ``oom``."""

    trial: Trial
    status: str
    modules: dict[str, dict[str, Tensor]]
    curve: list[CurvePoint]
    wall_s: float
    error_type: str | None = None
    error_message: str | None = None
    trace: str | None = None


@dataclass
class Lane:
    """One trial in training. Subclasses say which modules they train and what they minimise."""

    trial: Trial
    data: Data
    frozen: Mapping[str, nn.Module]
    device: torch.device
    modules: dict[str, nn.Module] = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)
    epoch: int = 0
    step_index: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    seconds: float = 0.0
    ended: Outcome | None = None

    def __post_init__(self) -> None:
        networks = blueprint(self.trial, self.data.image, self.data.classes)
        self.modules = {
            role: fast_layout(build(make, self.trial.seed, role), self.device)
            for role, make in networks.items()
            if role not in self.trial.needs
        }
        train = self.trial.config["train"]
        # Fused: one pass over the parameters instead of one per operation.
        self.optimizer = torch.optim.Adam(
            [p for module in self.modules.values() for p in module.parameters()],
            lr=train["learning_rate"],
            betas=tuple(train["betas"]),
            fused=True,
        )

    def losses(self, x: Tensor, s: Tensor, u: Tensor | None, code: Tensor | None) -> dict[str, Tensor]:
        """Return the values to record, the one to minimise under ``loss``."""
        raise NotImplementedError

    def step(self, x: Tensor, s: Tensor, u: Tensor | None, code: Tensor | None) -> None:
        """Do one optimizer step and add the batch to the epoch's running sums."""
        values = self.losses(x, s, u, code)
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.add(values, len(s))

    def add(self, values: Mapping[str, Tensor], n: int) -> None:
        for name, value in values.items():
            term = value.detach().double() * n
            self.sums[name] = self.sums[name] + term if name in self.sums else term

    def read(self, epoch: int, split: str, n: int) -> None:
        """Turn the running sums into points of the curve."""
        for name in sorted(self.sums):
            self.curve.append((epoch, split, name, float(self.sums[name]) / n, self.seconds))
        self.sums = {}

    def mode(self, training: bool) -> None:
        for module in self.modules.values():
            module.train(training)

    def save(self) -> Progress:
        """Return everything a later process needs to go on from here, bit for bit."""
        tensors = {
            f"{role}/{name}": value
            for role, module in self.modules.items()
            for name, value in tensors_of(module).items()
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"adam/{index}/{key}": value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()
            }
        sums = {name: float(value) for name, value in self.sums.items()}
        return Progress(tensors, self.epoch, self.step_index, sums, list(self.curve), self.seconds)

    def load(self, progress: Progress) -> None:
        """Put a saved state back; the next step is the one the saved training would have done."""
        for role, module in self.modules.items():
            own = {k.removeprefix(f"{role}/"): v for k, v in progress.tensors.items() if k.startswith(f"{role}/")}
            module.load_state_dict(own)
        parameters = self.optimizer.param_groups[0]["params"]
        for key, value in progress.tensors.items():
            if key.startswith("adam/"):
                _, index, name = key.split("/")
                parameter = parameters[int(index)]
                empty = torch.empty((), dtype=value.dtype, device=parameter.device)
                like = empty if name == "step" else torch.empty_like(parameter)
                self.optimizer.state[parameter][name] = like.copy_(value)
        self.epoch, self.step_index, self.seconds = progress.epoch, progress.step, progress.seconds
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in progress.sums.items()
        }
        self.curve = [tuple(point) for point in progress.curve]  # type: ignore[misc]

    def end(self, status: str, error: BaseException | None = None, message: str | None = None) -> None:
        trained = {role: tensors_of(module) for role, module in self.modules.items()} if status == "trained" else {}
        self.ended = Outcome(self.trial, status, trained, self.curve, self.seconds)
        if error is not None:
            self.ended.error_type, self.ended.error_message = type(error).__name__, str(error)
            self.ended.trace = "".join(traceback.format_exception(error))
        elif message is not None:
            self.ended.error_type, self.ended.error_message = status, message


class ClassifierLane(Lane):
    """Stage ``classifier``: minimise the cross-entropy of c(x) in nats on real images."""

    def losses(self, x: Tensor, s: Tensor, u: Tensor | None, code: Tensor | None) -> dict[str, Tensor]:
        logits = self.modules["classifier"](x)
        accuracy = (logits.detach().argmax(1) == s).double().mean()
        return {"loss": F.cross_entropy(logits, s), "accuracy": accuracy}


class CompressorLane(Lane):
    """Stages ``end_to_end`` (f and g trained together) and ``universal`` (g on a frozen f, eq. 7 of the paper)."""

    def __post_init__(self) -> None:
        self.channel = channel_of(self.trial)
        self.objective = Objective(self.trial.weights, self.frozen)
        super().__post_init__()

    def losses(self, x: Tensor, s: Tensor, u: Tensor | None, code: Tensor | None) -> dict[str, Tensor]:
        assert u is not None
        f_x = self.modules["encoder"](x) if code is None else code
        x_hat = self.channel.decode(self.modules["decoder"], f_x, u)
        return self.objective(Batch(x, s, x_hat))


@torch.no_grad()
def encode(encoder: nn.Module, split: Split) -> Tensor:
    """Return f(x) (n, dim) of a whole split, in evaluation mode."""
    encoder.eval()
    codes = [encoder(split.pixels(slice(i, i + EVALUATION_BATCH))) for i in range(0, len(split), EVALUATION_BATCH)]
    return torch.cat(codes)


def train_pack(
    trials: Sequence[Trial],
    data: Data,
    frozen: Mapping[str, nn.Module],
    device: torch.device,
    *,
    resume: Mapping[str, Progress] | None = None,
    on_epoch: Callable[[Lane], None] = lambda lane: None,
    on_checkpoint: Callable[[str, Progress], None] = lambda trial_id, progress: None,
    checkpoint_seconds: float = 300.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Train a pack and return one outcome per trial, in order.

    ``frozen`` holds networks in evaluation mode by role: ``classifier``, and ``encoder`` for a universal pack.
    Checkpoints are taken at the first epoch boundary ``checkpoint_seconds`` after the last, and after the current
    step once ``should_stop`` says so; then ``Interrupted`` is raised.
    """
    config = trials[0].config
    torch.set_num_threads(config["train"]["threads"])
    kind = ClassifierLane if trials[0].stage == "classifier" else CompressorLane
    lanes: list[Lane] = [kind(trial, data, frozen, device) for trial in trials]
    for lane in lanes:
        if resume and lane.trial.id in resume:
            lane.load(resume[lane.trial.id])
    codes = encode(frozen["encoder"], data.train) if "encoder" in frozen else None
    run = _Run(lanes, data, codes, on_epoch, on_checkpoint, checkpoint_seconds, should_stop)
    first = min(lane.epoch for lane in lanes)
    for epoch in range(first, config["train"]["epochs"]):
        run.epoch(epoch)
    for lane in lanes:
        if lane.ended is None:
            lane.end("trained")
    return [lane.ended for lane in lanes if lane.ended is not None]


@contextmanager
def _ending(lane: Lane) -> Iterator[None]:
    """End one lane by what it raises (out of memory, a plugin's error): the worst lane never stops the others."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        lane.end("oom", error)
    except Exception as error:
        lane.end("failed", error)


@dataclass
class _Run:
    lanes: list[Lane]
    data: Data
    codes: Tensor | None
    on_epoch: Callable[[Lane], None]
    on_checkpoint: Callable[[str, Progress], None]
    checkpoint_seconds: float
    should_stop: Callable[[], bool]
    checkpointed: float = field(default_factory=time.monotonic)

    def epoch(self, epoch: int) -> None:
        """Train every lane that has come no further than this epoch through it."""
        lead = self.lanes[0]
        train, seed = lead.trial.config["train"], lead.trial.seed
        n, size = len(self.data.train), train["batch_size"]
        order = torch.from_numpy(stream(seed, "order", epoch).permutation(n)).to(lead.device)
        u = self.dither(seed, "dither", n, epoch)
        rate = train["learning_rate"] * train["decay"] ** sum(
            epoch >= round(f * train["epochs"]) for f in train["decay_at"]
        )
        members = [lane for lane in self.lanes if lane.ended is None and lane.epoch == epoch]
        for lane in members:
            lane.mode(training=True)
            for group in lane.optimizer.param_groups:
                group["lr"] = rate
        # A last batch of one image has no batch statistics; it is dropped.
        starts = [i for i in range(0, n, size) if n - i > 1]
        seen = sum(min(size, n - i) for i in starts)
        for step, i in enumerate(starts):
            active = [lane for lane in members if lane.ended is None and lane.step_index == step]
            if active:
                self.step(active, order[i : i + size], None if u is None else u[i : i + size])
        for lane in members:
            if lane.ended is None:
                self.finish_epoch(lane, epoch, seen)
        if time.monotonic() - self.checkpointed >= self.checkpoint_seconds:
            self.checkpoint()

    def step(self, active: list[Lane], index: Tensor, u: Tensor | None) -> None:
        began = time.perf_counter()
        x, s = self.data.train.pixels(index), self.data.train.labels[index]
        code = None if self.codes is None else self.codes[index]
        for lane in active:
            with _ending(lane):
                lane.step(x, s, u, code)
            lane.step_index += 1
        spent = time.perf_counter() - began
        for lane in active:
            lane.seconds += spent / len(active)
        if self.should_stop():
            self.checkpoint()
            raise Interrupted

    def finish_epoch(self, lane: Lane, epoch: int, seen: int) -> None:
        finite = all(math.isfinite(float(value)) for value in lane.sums.values())
        lane.read(epoch + 1, "train", seen)
        lane.epoch, lane.step_index = epoch + 1, 0
        epochs = lane.trial.config["train"]["epochs"]
        if not finite:
            lane.end("diverged", message=f"the loss is not finite in epoch {epoch + 1} of {epochs}")
        elif (epoch + 1) % math.ceil(epochs / VALIDATIONS) == 0 or epoch + 1 == epochs:
            with _ending(lane):
                self.validate(lane, epoch + 1)
        self.on_epoch(lane)

    @torch.no_grad()
    def validate(self, lane: Lane, epoch: int) -> None:
        split = self.data.validation
        u = self.dither(FIXED_SEED, "dither.validation", len(split), 0)
        code = encode(lane.frozen["encoder"], split) if "encoder" in lane.frozen else None
        lane.mode(training=False)
        for i in range(0, len(split), EVALUATION_BATCH):
            part = slice(i, i + EVALUATION_BATCH)
            batch = split.pixels(part), split.labels[part]
            values = lane.losses(*batch, None if u is None else u[part], None if code is None else code[part])
            lane.add(values, len(batch[1]))
        lane.read(epoch, "validation", len(split))

    def dither(self, seed: int, name: str, n: int, epoch: int) -> Tensor | None:
        lead = self.lanes[0]
        return lead.channel.dither(seed, name, n, epoch).to(lead.device) if isinstance(lead, CompressorLane) else None

    def checkpoint(self) -> None:
        for lane in self.lanes:
            if lane.ended is None:
                self.on_checkpoint(lane.trial.id, lane.save())
        self.checkpointed = time.monotonic()
