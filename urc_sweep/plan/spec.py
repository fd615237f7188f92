"""The sweep file: its keys, their defaults and every check that one file can pass or fail."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from urc_sweep.errors import SpecError, choices
from urc_sweep.plan import registry
from urc_sweep.plan.document import MAX_BYTES, Document, dotted, read
from urc_sweep.plan.document import Path as KeyPath

MAX_TRIALS = 100_000
MAX_WIDTH = 16  # a network of 1.5 GB
NAME = r"^[a-z][a-z0-9._-]{0,63}$"
# What DuckDB and polars would not take for a word in the path key ``sweep=``.
RESERVED = ("epoch", "infinity", "inf", "true", "false")
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]


class Section(BaseModel):
    """A mapping of the sweep file: unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Chosen(Section):
    """A component by name; its other keys are that component's own parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Rate(Section):
    """R = dim * log2(levels) bits: ``dim`` latent dimensions of ``levels`` quantizer centres each."""

    dim: int = Field(ge=1, le=1024)
    levels: int = Field(ge=2, le=1024)

    @property
    def bits(self) -> float:
        return self.dim * math.log2(self.levels)


class Range(Section):
    """An interval of weights from which ``search: {strategy: random}`` draws."""

    low: Weight
    high: Weight
    scale: Literal["log", "linear"] = "log"


CONTROLS = ("random", "classifier_only")
Condition = Literal["all", "random", "classifier_only"] | dict[str, Any]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Weights = Annotated[
    Annotated[list[Weight], Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, (dict, Range)) else "list"),
    BeforeValidator(_as_list, json_schema_input_type=float | list[float] | Range),
]


class Train(Section):
    """How a network is trained. Adam; the learning rate is multiplied by ``decay`` at each fraction ``decay_at``."""

    epochs: int = Field(30, ge=1, le=100_000, description="passes over the training split")
    batch_size: int = Field(64, ge=2, le=1_000_000)
    learning_rate: float = Field(1e-2, gt=0, le=10)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.5, 0.9], min_length=2, max_length=2)
    decay: float = Field(0.2, gt=0, le=1)
    decay_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field([2 / 3], description="fractions of the epochs")
    critic_learning_rate: float = Field(2e-4, gt=0, le=10)
    gradient_penalty: float = Field(10.0, ge=0, le=1e6, description="weight of the critic's (WGAN-GP)")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of convolutions and matrix products in training; classifiers are fp32 unless they say so"
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of one trial; part of its id")


class Protocol(Section):
    """The named settings in which published code and text differ. Without a ``preset``, keys change ``sound``."""

    preset: Literal["sound", "zhang2021", "paper"] = "sound"
    quantizer_gradient: Literal["soft", "identity"] = "soft"
    sigma: Annotated[float, Field(gt=0, le=1e6)] | Literal["2/L"] = Field(
        1.0, description="sharpness of the soft quantizer's gradient; 2/L as in the published SVHN code"
    )
    frozen_batchnorm: Literal["eval", "batch"] = Field(
        "eval", description="whether a frozen encoder normalises by its running statistics or by each training batch's"
    )
    generator_every: Literal[1, 2] = Field(1, description="without a critic: train on every batch or on every second")
    n_critic: int = Field(1, ge=1, le=1000, description="batches for the critic per batch for encoder and decoder")
    annealing: Weight = Field(
        0.0, description="of an end-to-end trial at perception 0: its weight at first, falling to 0 linearly"
    )
    annealing_epochs: int = Field(12, ge=1, le=100_000)
    decoder_output_batchnorm: bool = Field(False, description="batch norm before the decoder's sigmoid (Table 1)")
    milestones: list[Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]] = Field(
        [], description="pairs of (epoch, learning-rate factor from there on), instead of train.decay_at"
    )

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"preset"})


# The learning-rate factors of the published code (Zhang et al. 2021, train.py), by data set, at absolute epochs.
MILESTONES = {"fashion_mnist": [[20, 0.2], [35, 0.02]], "svhn": [[25, 0.2]]}


def preset(name: str, dataset: str) -> Protocol:
    """Return a named protocol: ``zhang2021`` is uRDP's code, ``paper`` the text and tables of arXiv 2504.13191.

    ``sound`` is what the project stands for: frozen encoders in evaluation mode, no annealing, every batch used.
    """
    if name == "zhang2021":
        milestones = MILESTONES.get(dataset, [[20, 0.2], [40, 0.02]])
        return Protocol(
            sigma="2/L" if dataset == "svhn" else 1.0,
            frozen_batchnorm="batch",
            generator_every=2,
            annealing=0.0005,
            milestones=milestones,
        )
    return Protocol(decoder_output_batchnorm=name == "paper")


def preset_of(settings: Mapping[str, Any], dataset: str) -> str:
    """Return the first preset that has all of these settings, ``custom`` if none has."""
    for name in ("sound", "zhang2021", "paper"):
        known = preset(name, dataset).settings
        if all(value == known[key] for key, value in settings.items() if key in known):
            return name
    return "custom"


class Resources(Section):
    """What a pack of trials reserves. None of it changes a number."""

    cpus: int = Field(1, ge=1, le=100_000)
    gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=10_000)] = "auto"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    checkpoint_minutes: float = Field(5.0, ge=0, le=1e6)


class Budget(Section):
    """When a launch stops: after so many ``hours``, or with so many ``trials`` handed out. The next one goes on."""

    hours: float | None = Field(None, gt=0, le=1e6)
    trials: int | None = Field(None, ge=1)


class Search(Section):
    """How weights are chosen: every combination of the lists, or ``samples`` random points of lists and ranges."""

    strategy: str = "grid"
    samples: int = Field(8, ge=1, le=MAX_TRIALS)
    seed: Seed = 0


def _preset(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [{} if value is None else value]


Preset = Annotated[
    Protocol, BeforeValidator(_preset, json_schema_input_type=Literal["sound", "zhang2021", "paper"] | Protocol)
]
T = TypeVar("T")
Many = Annotated[list[T], BeforeValidator(_listed), Field(min_length=1)]


class Stage(Section):
    """What every stage may override."""

    train: Train = Train()
    resources: Resources | None = None


class Classifier(Stage):
    """A classifier of the data, trained once for all seeds of the sweep; a list has one entry per label set."""

    network: str = "paper"
    seed: Seed = 0
    label: str | None = Field(None, description="the label set this entry is for; default: all without an own entry")
    checkpoint: str | None = Field(
        None, min_length=1, description="a .safetensors file, relative to the sweep file, not trained on"
    )


class Heldout(Classifier):
    """A classifier of another architecture and seed that no loss ever sees."""

    network: str = "mlp"
    seed: Seed = 1


class Compressor(Stage):
    """A stage with an objective: one trial per combination of its weights."""

    objective: dict[str, Weights] = Field(min_length=1)
    protocol: Preset | None = Field(None, description="keys here override the sweep's")
    init: Literal["random", "parent"] | dict[str, Any] = Field(
        "random", description="initial weights: random, of the frozen encoder's trial, or of the end-to-end trial named"
    )


class EndToEnd(Compressor):
    """Encoder and decoder trained together, once per combination of objective weights."""

    rates: list[Rate] | None = Field(None, min_length=1, description="default: the sweep's")
    seeds: list[Seed] | None = Field(None, min_length=1, description="default: the sweep's")


class Joint(EndToEnd):
    """One encoder trained with one decoder per combination of weights, losses summed: the infimum of eq. 7."""


class Universal(Compressor):
    """New decoders on the frozen encoders of end-to-end trials, or of the controls that no tradeoff trained."""

    encoders: Condition | list[Condition]
    critic_init: Literal["parent", "random"] = Field("parent", description="random where the parent has no critic")


class Refined(Universal):
    """A second encoder of dim2 * log2(levels2) bits, and a decoder of both codes, on a frozen first encoder."""

    dim2: int = Field(ge=1, le=1024)
    levels2: int = Field(ge=2, le=1024)


class Reduced(Universal):
    """New decoders of a subset of a frozen encoder's latent dimensions, counted from 0."""

    dims: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class Stages(Section):
    """The kinds of training a sweep does: each a mapping, or a list of variants."""

    classifier: Many[Classifier] = [Classifier()]
    heldout_classifier: Many[Heldout] = [Heldout()]
    end_to_end: Many[EndToEnd] = []
    joint: Many[Joint] = []
    universal: Many[Universal] = []
    refined: Many[Refined] = []
    reduced: Many[Reduced] = []


STAGES = (EndToEnd, Joint, Universal, Refined, Reduced)
COMPRESSORS = ("end_to_end", "joint", "universal", "refined", "reduced")


def stage_label(stage: str) -> str:
    """Return a stage's name as it is written in text."""
    return stage.replace("end_to_end", "end-to-end").replace("_", " ")


class Sweep(Section):
    """A whole study: one data set, one family of networks, rates, seeds and stages."""

    name: str = Field(pattern=NAME)
    dataset: Chosen
    model: Chosen = Chosen(name="paper")
    rates: list[Rate] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    protocol: Preset = Protocol()
    train: Train = Train()
    stages: Stages
    search: Search = Search()
    resources: Resources = Resources()
    budget: Budget = Budget()
    _document: Document = PrivateAttr(default_factory=lambda: Document("<sweep>"))

    def variants(self, stage: str) -> Iterator[tuple[KeyPath, Any]]:
        """Yield the place and the section of every variant of a stage."""
        written = (self._document.value or {}).get("stages", {}).get(stage)
        for index, section in enumerate(getattr(self.stages, stage)):
            yield ("stages", stage, index) if isinstance(written, list) else ("stages", stage), section

    @property
    def folder(self) -> Path:
        """Where the sweep file lies: what its file names are relative to."""
        return Path(self._document.source).parent

    def problem(self, path: KeyPath, message: str) -> SpecError:
        """Return the error of one key, with the file, line and column where it was written."""
        return SpecError(self._document.problem(path, message))


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """Read, check and return the sweep of a file; every problem found is one line of the ``SpecError``."""
    try:
        if Path(path).is_fifo():
            raise OSError(errno.EINVAL, "a pipe; write it to a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)  # one more than is accepted
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError(f"{path}: cannot read the sweep file: {reason}") from None
    return parse(text, str(path), overrides)


def parse(text: str, source: str = "<string>", overrides: tuple[str, ...] = ()) -> Sweep:
    """As ``load``, from text; ``source`` names it in messages."""
    document = read(text, source)
    if not isinstance(document.value, dict):
        raise SpecError(document.problem((), "a sweep file is a mapping of keys (name, dataset, rates, stages ...)"))
    for assignment in overrides:
        document.override(assignment)
    try:
        sweep = Sweep.model_validate(document.value)
    except ValidationError as error:
        raise SpecError(*_lines(document, error)) from None
    sweep._document = document
    problems = [document.problem(path, message) for path, message in _check(sweep)]
    if problems:
        raise SpecError(*problems)
    return sweep


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the sweep file, with the registry's names filled in."""
    schema = Sweep.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for key, kind in (("dataset", "dataset"), ("model", "model")):
        schema["properties"][key] = {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"enum": registry.names(kind)}},
        }
    definitions = schema["$defs"]
    for stage in STAGES:
        definitions[stage.__name__]["properties"]["objective"]["propertyNames"] = {
            "pattern": rf"^({'|'.join(registry.names('term'))})(\..+)?$"
        }
    for section in ("Classifier", "Heldout"):
        definitions[section]["properties"]["network"]["enum"] = registry.names("classifier")
    for listed in definitions["Stages"]["properties"].values():
        listed["anyOf"] = [listed["items"], {"type": listed.pop("type"), "items": listed.pop("items")}]
    definitions["Search"]["properties"]["strategy"]["enum"] = registry.names("search")
    return schema


EITHER = {
    "encoders": "should be all, random, classifier_only, a mapping or a list of these, not {!r}",
    "init": "should be random, parent or a mapping that names an end-to-end trial, not {!r}",
    "sigma": "should be a number or 2/L, not {!r}",
    "gpus": "should be auto or a number, not {!r}",
    "lanes": "should be auto or a number, not {!r}",
}


def _path(value: Any, detail: ErrorDetails) -> KeyPath:
    """Return the steps of an error's location that are keys of the file, without pydantic's names of alternatives."""
    path: KeyPath = ()
    step: Any
    for step in detail["loc"]:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            path, value = (*path, step), value[step]
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else path


def _get(value: Any, path: KeyPath) -> Any:
    for step in path:
        value = value[step]
    return value


def _lines(document: Document, error: ValidationError) -> Iterator[str]:
    lines: dict[tuple[KeyPath, str], None] = {}
    for detail in error.errors():
        path = _path(document.value, detail)
        lines[path, document.problem(path, _message(detail, path))] = None
    # A key that may hold this or that has a problem per kind: one line says it.
    for path, group in itertools.groupby(lines, key=lambda line: line[0]):
        found = [line for _, line in group]
        if path and path[-1] in EITHER and any(deeper[: len(path)] == path != deeper for deeper, _ in lines):
            continue  # an item of the list says it better
        yield (
            document.problem(path, EITHER[path[-1]].format(_get(document.value, path)))
            if len(found) > 1 and path and path[-1] in EITHER
            else found[0]
        )


def _message(detail: ErrorDetails, path: KeyPath) -> str:
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {choices(path[-1], _keys(path[:-1]))}"
    if kind == "missing":
        return "missing, but required"
    if kind in ("model_type", "dict_type"):
        return f"should be a mapping of keys, not {given!r}"[:120]
    if kind == "too_short":
        wanted = detail["ctx"]["min_length"]
        return "empty; give at least one value" if wanted == 1 else f"should have {wanted} values, not {len(given)}"
    if kind == "too_long":
        return f"should have {detail['ctx']['max_length']} values, not {len(given)}"
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{given!r} is not known; {choices(given, expected)}"
    if kind == "string_pattern_mismatch":
        return f"{given!r} is not a name: a lower-case letter, then up to 63 of a-z 0-9 . _ -"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    shown = repr(given) if isinstance(given, (str, int, float, bool, type(None))) else f"a {type(given).__name__}"
    return f"{message.replace('input should', 'should')}, not {shown[:80]}"


def _keys(path: KeyPath) -> list[str]:
    """Return the keys that the mapping at ``path`` may hold, by walking the section classes."""
    section: Any = Sweep
    for step in path:
        if not isinstance(step, int):
            field = section.model_fields.get(step)
            section = next(_sections(field.annotation if field else None), Range)
    return list(section.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section classes that a key's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _check(sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    """Yield what the section classes cannot see: names of the registry, and keys that contradict each other."""
    if sweep.name in RESERVED:
        yield ("name",), f"{sweep.name!r} would be read as a date, number or truth value; choose another name"
    yield from _check_component("dataset", sweep.dataset, ("dataset",))
    yield from _check_component("model", sweep.model, ("model",))
    if sweep.search.strategy not in registry.names("search"):
        yield ("search", "strategy"), f"unknown; {choices(sweep.search.strategy, registry.names('search'))}"
    for role in ("classifier", "heldout_classifier"):
        for path, settings in sweep.variants(role):
            if settings.network not in registry.names("classifier"):
                known = choices(settings.network, registry.names("classifier"))
                yield (*path, "network"), f"unknown classifier {settings.network!r}; {known}"
    yield from _check_protocol(sweep, sweep.protocol, ("protocol",))
    for stage in COMPRESSORS:
        for path, settings in sweep.variants(stage):
            if isinstance(settings, Universal) and not sweep.stages.end_to_end:
                yield path, "needs the stage end_to_end, whose encoders it freezes"
            yield from _check_protocol(sweep, settings.protocol, (*path, "protocol"))
            for term, weights in settings.objective.items():
                place = (*path, "objective", term)
                name, dot, label = term.partition(".")
                if name not in registry.names("term"):
                    yield place, f"unknown objective term; {choices(name, registry.names('term'))}"
                elif dot and not registry.find("term", name).facts.get("needs"):
                    yield place, f"{name} looks at no label set; write {name}"
                elif dot and not label:
                    yield place, f"names no label set after the dot; write {name}"
                if isinstance(weights, Range):
                    yield from _check_range(sweep, weights, place)
                elif not weights:
                    yield place, "empty; give at least one weight"


def _check_protocol(sweep: Sweep, protocol: Protocol | None, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield the keys that contradict the preset they are written beside."""
    if protocol is None:
        return
    starts = [start for start, _ in protocol.milestones]
    if starts != sorted(set(starts)):
        yield (*path, "milestones"), f"epochs should grow from pair to pair, not {starts}"
    if "preset" not in protocol.model_fields_set:
        return
    named = preset(protocol.preset, sweep.dataset.name)
    for key in sorted(protocol.model_fields_set - {"preset"}):
        if getattr(protocol, key) != getattr(named, key):
            message = f"contradicts preset {protocol.preset}, which has {getattr(named, key)}"
            yield (*path, key), f"{message}; leave the preset out and write down the keys that differ from sound"


def _check_component(kind: str, chosen: Chosen, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if chosen.name not in registry.names(kind):
        yield (*path, "name"), f"unknown {kind} {chosen.name!r}; {choices(chosen.name, registry.names(kind))}"
        return
    parameters = registry.find(kind, chosen.name).parameters
    for key, value in chosen.parameters.items():
        if key not in parameters:
            yield (*path, key), f"{kind} {chosen.name!r} has no such parameter; {choices(key, ['name', *parameters])}"
            continue
        try:
            number: Any = TypeAdapter(parameters[key].kind).validate_python(value, strict=True)
        except ValidationError:
            yield (*path, key), f"should be {parameters[key].kind.__name__}, not {value!r}"
            continue
        if parameters[key].kind in (int, float) and number <= 0:
            yield (*path, key), f"should be greater than 0, not {value!r}"
        elif (kind, key) == ("model", "width") and not 0.001 <= number <= MAX_WIDTH:
            yield (*path, key), f"should be 0.001 to {MAX_WIDTH}, not {value!r}"


def _check_range(sweep: Sweep, weights: Range, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if sweep.search.strategy == "grid":
        yield path, "a range needs search: {strategy: random}; a grid needs a list of weights"
    if weights.low >= weights.high or (weights.scale == "log" and weights.low <= 0):
        yield path, "a range needs low < high, and low > 0 on a log scale"


def resources_of(sweep: Sweep, stage: str) -> Resources:
    """Return what a pack of ``stage`` reserves: the sweep's resources under the stage's own keys (first variant)."""
    own = next((section.resources for section in getattr(sweep.stages, stage, []) if section.resources), None)
    return sweep.resources if own is None else _overlay(sweep.resources, own)


def train_of(sweep: Sweep, settings: Stage) -> Train:
    """Return the training settings of a stage: defaults, the sweep's keys, then the stage's own keys.

    A classifier has its own defaults: Adam at 1e-3 (0.9, 0.999), no decay.
    """
    base = sweep.train
    if isinstance(settings, Classifier):
        base = base.model_copy(
            update={"learning_rate": 1e-3, "betas": [0.9, 0.999], "decay_at": [], "precision": "fp32"}
        )
    train: Train = _overlay(base, settings.train)
    return train


def protocol_of(sweep: Sweep, settings: Compressor | None = None) -> Protocol:
    """Return the expanded protocol of a stage: a preset as it is, other keys over the sweep's, over ``sound``."""
    protocol = preset("sound", sweep.dataset.name)
    for own in (sweep.protocol, settings.protocol if settings else None):
        if own is not None and "preset" in own.model_fields_set:
            protocol = preset(own.preset, sweep.dataset.name)
        elif own is not None:
            protocol = _overlay(protocol, own)
    return protocol


def _overlay(base: Any, own: Any) -> Any:
    return base.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def parameters_of(kind: str, chosen: Chosen) -> dict[str, Any]:
    """Return a component's parameters with their defaults filled in and numbers of the declared type."""
    declared: Mapping[str, registry.Parameter] = registry.find(kind, chosen.name).parameters
    return {key: p.kind(chosen.parameters.get(key, p.default)) for key, p in declared.items()}


__all__ = ["MAX_TRIALS", "Rate", "Sweep", "dotted", "json_schema", "load", "parse"]
