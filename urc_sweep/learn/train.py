"""The training loop: ONE loop for every stage. Invariant: a trial's numbers do not depend on its lane mates.

A pack is K trials of one pack key side by side: each *lane* has its own plain modules and optimizer, all lanes see
the same batches and dither. Nothing draws from a global generator, so a trial alone, in any pack, or resumed from a
checkpoint gives the same bits on the same device with the same number of threads.
"""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urc_sweep.learn.data import Data, Split
from urc_sweep.learn.engine import Precision, Steps, allow_tf32, exactly, keep_memory, steps_on
from urc_sweep.learn.models import Channel, blueprint, build, channel_of, fast_layout, tensors_of
from urc_sweep.learn.objectives import Batch, Objective, critic_gap, gradient_penalty
from urc_sweep.maths.streams import FIXED_SEED, stream
from urc_sweep.plan.trials import Trial

EVALUATION_BATCH = 500
# At most so many readings of the validation split along a training, so that long ones do not pay for more.
VALIDATIONS = 10

# The optimizers of a lane, and the setting that is their learning rate.
RATES = {"adam": "learning_rate", "adam_critic": "critic_learning_rate"}

CurvePoint = tuple[int, str, str, float, float]  # epoch, split, metric, value, wall_s


class Interrupted(Exception):
    """Training was asked to stop; every lane has been checkpointed."""


@dataclass
class Progress:
    """What a checkpoint holds: weights, buffers and optimizer by name, and where in the training they belong."""

    tensors: dict[str, Tensor]
    epoch: int
    step: int
    sums: dict[str, list[float]]
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


@dataclass(frozen=True)
class Inputs:
    """One batch as every lane of a pack sees it: the same images, labels and draws."""

    x: Tensor
    labels: Mapping[str, Tensor]  # the primary label set first
    u: Tensor | None = None  # dither (n, dim)
    code: Tensor | None = None  # f(x) of a frozen encoder (n, dim)
    epsilon: Tensor | None = None  # where the critic's gradient penalty is taken (n,)

    @property
    def s(self) -> Tensor:
        return next(iter(self.labels.values()))


@dataclass
class Lane:
    """One trial in training. Subclasses say which modules they train and what they minimise.

    ``initial`` holds the weights to begin with instead of random ones, by role without number.
    """

    trial: Trial
    data: Data
    frozen: Mapping[str, nn.Module]
    device: torch.device
    initial: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(init=False)
    optimizers: dict[str, torch.optim.Adam] = field(init=False)
    epoch: int = 0
    step_index: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    seconds: float = 0.0
    ended: Outcome | None = None

    def __post_init__(self) -> None:
        self.modules = {}
        for role, make in blueprint(self.trial, self.data).items():
            if role not in self.trial.needs:
                name = role.partition(".")[0]  # the decoders of a joint trial begin alike, as all of one seed do
                module = build(make, self.trial.seed, name)
                if name in self.initial:
                    module.load_state_dict(self.initial[name])
                self.modules[role] = fast_layout(module, self.device)
        self.optimizers = {}
        betas = tuple(self.trial.setting("train", "betas"))
        for name, rate in RATES.items():
            own = [m for role, m in self.modules.items() if role.startswith("critic") == (name == "adam_critic")]
            if parameters := [p for module in own for p in module.parameters()]:
                settings = {"lr": self.trial.setting("train", rate), "betas": betas}
                # Fused: one pass over the parameters instead of one per operation. Capturable: its step count is on
                # the device, where a captured step can raise it.
                on_gpu = self.device.type == "cuda"
                self.optimizers[name] = torch.optim.Adam(parameters, fused=True, capturable=on_gpu, **settings)
        self.precision = Precision(self.trial.setting("train", "precision"), self.device)

    def begin(self, epoch: int) -> None:
        """Make ready for an epoch: training mode, and the learning rates of this epoch."""
        self.mode(training=True)
        for name, adam in self.optimizers.items():
            for group in adam.param_groups:
                group["lr"] = self.trial.setting("train", RATES[name]) * rate_factor(self.trial, epoch)

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the values to record, the one to minimise under ``loss``."""
        raise NotImplementedError

    @property
    def phase(self) -> str:
        """What the next step trains: ``all``; with a critic ``generator`` or ``critic``; ``none`` of them."""
        return "all"

    @property
    def constants(self) -> tuple[float, ...]:
        """Every number that a step holds as a number and not as a tensor, and that may change along a training."""
        return tuple(group["lr"] for adam in self.optimizers.values() for group in adam.param_groups)

    def step(self, inputs: Inputs) -> None:
        """Do one optimizer step and add the batch to the epoch's running sums."""
        with self.precision.casting():
            values = self.losses(inputs)
        self.descend("adam", values, "loss", len(inputs.x))

    def descend(self, optimizer: str, values: Mapping[str, Tensor], loss: str, n: int) -> None:
        self.optimizers[optimizer].zero_grad(set_to_none=True)
        values[loss].backward()  # type: ignore[no-untyped-call]
        self.optimizers[optimizer].step()
        self.add(values, n)

    def add(self, values: Mapping[str, Tensor], n: int) -> None:
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
            self.sums[name][0] += value.detach().double() * n  # in place: a captured step writes there
            self.sums[name][1] += n

    def read(self, epoch: int, split: str) -> None:
        """Turn the running sums, each of the images that it has seen, into points of the curve."""
        for name in sorted(self.sums):
            total, n = self.sums[name].tolist()
            if n:
                self.curve.append((epoch, split, name, total / n, self.seconds))
            self.sums[name].zero_()

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
        for optimizer, adam in self.optimizers.items():
            for index, state in adam.state_dict()["state"].items():
                tensors |= {
                    f"{optimizer}/{index}/{key}": value.detach().to("cpu", copy=True).contiguous()
                    for key, value in state.items()
                }
        sums = {name: value.tolist() for name, value in self.sums.items()}
        return Progress(tensors, self.epoch, self.step_index, sums, list(self.curve), self.seconds)

    def load(self, progress: Progress) -> None:
        """Put a saved state back; the next step is the one the saved training would have done."""
        for role, module in self.modules.items():
            own = {k.removeprefix(f"{role}/"): v for k, v in progress.tensors.items() if k.startswith(f"{role}/")}
            module.load_state_dict(own)
        for key, value in progress.tensors.items():
            adam = self.optimizers.get(key.partition("/")[0])
            if adam is not None:
                _, index, name = key.split("/")
                parameter = adam.param_groups[0]["params"][int(index)]
                empty = torch.empty((), dtype=value.dtype, device=parameter.device)
                like = empty if name == "step" else torch.empty_like(parameter)
                adam.state[parameter][name] = like.copy_(value)
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

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        s = inputs.labels[self.trial.config["label"]] if "label" in self.trial.config else inputs.s
        logits = self.modules["classifier"](inputs.x)
        accuracy = (logits.detach().argmax(1) == s).double().mean()
        return {"loss": F.cross_entropy(logits, s), "accuracy": accuracy}


class CompressorLane(Lane):
    """Every other stage: whichever of encoder, decoders and critics are not frozen, on one dithered channel.

    ``end_to_end`` (f and g together), ``universal`` and ``reduced`` (g on a frozen f, eq. 7 of the paper), ``refined``
    (f2 and g beside a frozen f), ``joint`` (one f, several g, losses summed). With a critic, batches alternate as in
    Zhang et al. 2021: of each 1 + n_critic, the second trains f and g, the others the critic.
    """

    def __post_init__(self) -> None:
        self.channel = channel_of(self.trial)
        super().__post_init__()
        self.objectives = {}
        for suffix, terms in zip(self.trial.suffixes, self.trial.objectives, strict=True):
            own = {role: self.modules[role + suffix] for role in ("critic",) if role + suffix in self.modules}
            weights = {term: entry["weight"] for term, entry in terms.items()}
            self.objectives[suffix] = Objective(weights, {**self.frozen, **own})

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        start, end = (self.trial.setting("protocol", key) for key in ("annealing", "annealing_epochs"))
        if start and self.trial.stage == "end_to_end" and self.trial.weights.get("perception") == 0:
            self.objectives[""].weights["perception"] = start * max(0, end - epoch) / end

    def reconstruct(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return x_hat of every decoder, by its suffix."""
        assert inputs.u is not None
        with exactly(self.device):
            own = [self.modules[role](inputs.x) for role in ("encoder", "encoder2") if role in self.modules]
        code = torch.cat([*([] if inputs.code is None else [inputs.code]), *own], dim=1)
        return {
            suffix: self.channel.decode(self.modules["decoder" + suffix], code, inputs.u).to(inputs.x.dtype)
            for suffix in self.objectives
        }

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for suffix, x_hat in self.reconstruct(inputs).items():
            found = self.objectives[suffix](Batch(inputs.x, inputs.s, x_hat, inputs.labels))
            values |= {name + suffix: value for name, value in found.items()}
        return values if "loss" in values else values | {"loss": sum_of(values[f"loss{s}"] for s in self.objectives)}

    @property
    def phase(self) -> str:
        if "adam_critic" in self.optimizers:
            generator = self.step_index % (1 + self.trial.setting("protocol", "n_critic")) == 1
            return "generator" if generator else "critic"
        every = self.trial.setting("protocol", "generator_every")
        return "all" if self.step_index % every == every - 1 else "none"

    @property
    def constants(self) -> tuple[float, ...]:
        weights = (weight for objective in self.objectives.values() for weight in objective.weights.values())
        return (*super().constants, *weights)

    def step(self, inputs: Inputs) -> None:
        for role in self.modules:
            if role.startswith("critic"):
                self.modules[role].requires_grad_(self.phase == "critic")
        if self.phase == "critic":
            with self.precision.casting():
                values = self.critic_losses(inputs)
            self.descend("adam_critic", values, "critic_loss", len(inputs.x))
        elif self.phase != "none":
            super().step(inputs)

    def critic_losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return what the critics minimise, under ``critic_loss``: 10 * gradient penalty - gap, summed over critics."""
        assert inputs.epsilon is not None
        with torch.no_grad():
            reconstructions = self.reconstruct(inputs)
        values: dict[str, Tensor] = {}
        for suffix, x_hat in reconstructions.items():
            critic = self.modules["critic" + suffix]
            values["critic_gap" + suffix] = critic_gap(critic, inputs.x, x_hat)
            values["gradient_penalty" + suffix] = gradient_penalty(critic, inputs.x, x_hat, inputs.epsilon)
        weight = self.trial.setting("train", "gradient_penalty")
        signed = ((weight if "penalty" in name else -1) * value for name, value in values.items())
        return values | {"critic_loss": sum_of(signed)}


def sum_of(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def rate_factor(trial: Trial, epoch: int) -> float:
    """Return by what the learning rates are multiplied in an epoch, counted from 0."""
    if milestones := trial.setting("protocol", "milestones"):
        return float([1.0, *(factor for start, factor in milestones if epoch >= start)][-1])
    passed = sum(epoch >= round(at * trial.setting("train", "epochs")) for at in trial.setting("train", "decay_at"))
    return float(trial.setting("train", "decay") ** passed)


@torch.no_grad()
def encode(encoder: nn.Module, split: Split) -> Tensor:
    """Return f(x) (n, dim) of a whole split, in evaluation mode."""
    encoder.eval()
    with exactly(split.images.device):
        codes = [encoder(split.pixels(slice(i, i + EVALUATION_BATCH))) for i in range(0, len(split), EVALUATION_BATCH)]
    return torch.cat(codes)


def train_pack(
    trials: Sequence[Trial],
    data: Data,
    frozen: Mapping[str, nn.Module],
    device: torch.device,
    *,
    initial: Mapping[str, Mapping[str, Tensor]] | None = None,
    resume: Mapping[str, Progress] | None = None,
    on_epoch: Callable[[Lane], None] = lambda lane: None,
    on_checkpoint: Callable[[str, Progress], None] = lambda trial_id, progress: None,
    checkpoint_seconds: float = 300.0,
    should_stop: Callable[[], bool] = lambda: False,
    steps: Steps | None = None,
) -> list[Outcome]:
    """Train a pack and return one outcome per trial, in order.

    ``frozen`` holds networks in evaluation mode by role: ``classifier``, and ``encoder`` where that is not trained;
    ``initial`` the weights that a role begins with, where they are not random.
    Checkpoints are taken at the first epoch boundary ``checkpoint_seconds`` after the last, and after the current
    step once ``should_stop`` says so; then ``Interrupted`` is raised. ``steps`` executes them, by default as suits the
    device.
    """
    keep_memory()
    torch.set_num_threads(trials[0].setting("train", "threads"))
    allow_tf32(trials[0].setting("train", "precision") == "tf32")
    kind = ClassifierLane if trials[0].stage == "classifier" else CompressorLane
    lanes: list[Lane] = [kind(trial, data, frozen, device, initial or {}) for trial in trials]
    for lane in lanes:
        if resume and lane.trial.id in resume:
            lane.load(resume[lane.trial.id])
    run = _Run(lanes, data, steps or steps_on(device), on_epoch, on_checkpoint, checkpoint_seconds, should_stop)
    first = min(lane.epoch for lane in lanes)
    for epoch in range(first, trials[0].setting("train", "epochs")):
        run.epoch(epoch)
    for lane in lanes:
        if lane.ended is None:
            lane.end("trained")
    return [lane.ended for lane in lanes if lane.ended is not None]


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, which torch often tells in a plain RuntimeError."""
    words = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


@contextmanager
def _ending(lane: Lane) -> Iterator[None]:
    """End one lane by what it raises (out of memory, a plugin's error): the worst lane never stops the others."""
    try:
        yield
    except Exception as error:
        lane.end("oom" if out_of_memory(error) else "failed", error)


@dataclass
class _Run:
    lanes: list[Lane]
    data: Data
    steps: Steps
    on_epoch: Callable[[Lane], None]
    on_checkpoint: Callable[[str, Progress], None]
    checkpoint_seconds: float
    should_stop: Callable[[], bool]
    checkpointed: float = field(default_factory=time.monotonic)
    codes: Tensor | None = None
    validation_codes: Tensor | None = None
    moving: nn.Module | None = None

    def __post_init__(self) -> None:
        lead = self.lanes[0]
        self.channel: Channel | None = lead.channel if isinstance(lead, CompressorLane) else None
        if "encoder" in lead.frozen and lead.modules:
            if lead.trial.setting("protocol", "frozen_batchnorm") == "batch":
                # The published code: each batch normalises itself. On a copy, whose running statistics nobody reads.
                self.moving = copy.deepcopy(lead.frozen["encoder"]).train()
            else:
                assert self.channel is not None
                self.codes = self.channel.keep(encode(lead.frozen["encoder"], self.data.train))

    def epoch(self, epoch: int) -> None:
        """Train every lane that has come no further than this epoch through it."""
        lead = self.lanes[0]
        seed, n, size = lead.trial.seed, len(self.data.train), lead.trial.setting("train", "batch_size")
        order = torch.from_numpy(stream(seed, "order", epoch).permutation(n)).to(lead.device)
        u, epsilon = self.dither(seed, "dither", n, epoch), None
        if "adam_critic" in lead.optimizers:
            mixing = torch.from_numpy(stream(seed, "mixing", epoch).random(n, dtype=np.float32))
            epsilon = mixing.to(lead.device, torch.get_default_dtype())
        members = [lane for lane in self.lanes if lane.ended is None and lane.epoch == epoch]
        for lane in members:
            lane.begin(epoch)
        # A last batch of one image has no batch statistics; it is dropped.
        for step, i in enumerate(i for i in range(0, n, size) if n - i > 1):
            active = [lane for lane in members if lane.ended is None and lane.step_index == step]
            if active:
                part = slice(i, i + size)
                self.step(
                    active, order[part], None if u is None else u[part], None if epsilon is None else epsilon[part]
                )
        began = time.perf_counter()
        self.steps.wait()
        self.spend(members, began)
        for lane in members:
            if lane.ended is None:
                self.finish_epoch(lane, epoch)
        if time.monotonic() - self.checkpointed >= self.checkpoint_seconds:
            self.checkpoint()

    def step(self, active: list[Lane], index: Tensor, u: Tensor | None, epsilon: Tensor | None) -> None:
        began = time.perf_counter()
        if active[0].phase != "none":
            key = (len(index), active[0].phase, *((lane.trial.id, lane.constants) for lane in active))
            self.steps.run(key, (index, u, epsilon), lambda *drawn: self.body(active, *drawn))
        for lane in active:
            lane.step_index += 1
        self.spend(active, began)
        if self.should_stop():
            self.checkpoint()
            raise Interrupted

    def body(self, active: list[Lane], index: Tensor, u: Tensor | None, epsilon: Tensor | None) -> None:
        """Do the step of every lane on the same batch."""
        x = self.data.train.pixels(index)
        labels = {name: values[index] for name, values in self.data.train.label_sets.items()}
        inputs = Inputs(x, labels, u, self.code_of(x, index), epsilon)
        with self.steps.branches() as branch:
            for number, lane in enumerate(active):
                # Nothing is executed while a step is captured, so nothing that happens then is the lane's end.
                with branch(number), nullcontext() if self.steps.capturing else _ending(lane):
                    lane.step(inputs)

    def spend(self, lanes: list[Lane], began: float) -> None:
        spent = time.perf_counter() - began
        for lane in lanes:
            lane.seconds += spent / len(lanes)

    @torch.no_grad()
    def code_of(self, x: Tensor, index: Tensor) -> Tensor | None:
        """Return what a frozen encoder sends of a training batch, ``None`` where the encoder is trained."""
        if self.channel is None or (self.moving is None and self.codes is None):
            return None
        if self.codes is not None:
            return self.codes[index]
        assert self.moving is not None
        with exactly(x.device):
            return self.channel.keep(self.moving(x))

    def finish_epoch(self, lane: Lane, epoch: int) -> None:
        finite = all(bool(value.isfinite().all()) for value in lane.sums.values())
        trained = "loss" in lane.sums and bool(lane.sums["loss"][1] > 0)
        lane.read(epoch + 1, "train")
        lane.epoch, lane.step_index = epoch + 1, 0
        epochs = lane.trial.setting("train", "epochs")
        if not finite:
            lane.end("diverged", message=f"the loss is not finite in epoch {epoch + 1} of {epochs}")
        elif not trained:
            lane.end("failed", message="no batch of an epoch is the encoder's and decoder's; lower train.batch_size")
        elif (epoch + 1) % math.ceil(epochs / VALIDATIONS) == 0 or epoch + 1 == epochs:
            with _ending(lane):
                self.validate(lane, epoch + 1)
        self.on_epoch(lane)

    @torch.no_grad()
    def validate(self, lane: Lane, epoch: int) -> None:
        split = self.data.validation
        u = self.dither(FIXED_SEED, "dither.validation", len(split), 0)
        code = None
        if self.channel is not None and "encoder" in lane.frozen:
            if self.validation_codes is None:
                self.validation_codes = self.channel.keep(encode(lane.frozen["encoder"], split))
            code = self.validation_codes
        lane.mode(training=False)
        for i in range(0, len(split), EVALUATION_BATCH):
            part = slice(i, i + EVALUATION_BATCH)
            labels = {name: values[part] for name, values in split.label_sets.items()}
            own = (None if drawn is None else drawn[part] for drawn in (u, code))
            inputs = Inputs(split.pixels(part), labels, *own)
            with exactly(lane.device):
                lane.add(lane.losses(inputs), len(inputs.x))
        lane.read(epoch, "validation")

    def dither(self, seed: int, name: str, n: int, epoch: int) -> Tensor | None:
        return None if self.channel is None else self.channel.dither(seed, name, n, epoch).to(self.lanes[0].device)

    def checkpoint(self) -> None:
        for lane in self.lanes:
            if lane.ended is None:
                self.on_checkpoint(lane.trial.id, lane.save())
        self.checkpointed = time.monotonic()
