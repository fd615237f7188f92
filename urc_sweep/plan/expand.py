"""Sweep to trials: every configuration filled in, in an order in which whatever a trial needs comes before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from urc_sweep.errors import choices
from urc_sweep.maths.ids import content_id, digest
from urc_sweep.plan import registry, spec
from urc_sweep.plan.document import Path as KeyPath
from urc_sweep.plan.source import read_safetensors
from urc_sweep.plan.spec import COMPRESSORS, MAX_TRIALS, Compressor, Joint, Range, Reduced, Refined, Sweep
from urc_sweep.plan.trials import (
    LOOP_VERSION,
    Trial,
    differing,
    evaluation_inputs,
    settings_of,
    trains_critic,
    trial_id,
)

Needs = dict[str, str]
CRITIC = ("critic_learning_rate", "gradient_penalty", "n_critic", "annealing", "annealing_epochs")
TRAINS_ENCODER = ("end_to_end", "control", "joint", "refined")
FREEZES_ENCODER = ("universal", "refined", "reduced")
MAX_COMPARISONS = 200_000
CLASSIFIERS = ("classifier", "heldout_classifier")
# Without a tradeoff: what an encoder is worth that nothing, or only the labels, trained.
CONTROLS: Mapping[str, tuple[dict[str, float], dict[str, Any]]] = {
    # One epoch at learning rate 0: random weights, but batch norms that know the data.
    "random": ({"distortion": 1.0}, {"epochs": 1, "learning_rate": 0.0}),
    "classifier_only": ({"classification": 1.0}, {}),
}


@dataclass(frozen=True)
class Known:
    """What planning must know of a data set: the registry's facts, or what reading the data showed."""

    sha256: str
    image: tuple[int, int, int] | None = None
    labels: tuple[str, ...] = ()


def pinned_data(sweep: Sweep) -> Known | None:
    """Return what is published of the sweep's data set, ``None`` if only its bytes can tell (folder, a plugin's)."""
    facts = registry.find("dataset", sweep.dataset.name).facts
    return Known(facts["sha256"], facts.get("image"), tuple(facts.get("labels", ()))) if "sha256" in facts else None


def expand(sweep: Sweep, data: Known | None = None) -> list[Trial]:
    """Return the sweep's trials, encoders before those who need them. ``data`` is for data sets without a pin."""
    _check_size(sweep)
    builder = _Builder(sweep, pinned_data(sweep) or data or Known("unknown"))
    builder.classifiers()
    for stage in ("end_to_end", "joint"):
        for path, section in sweep.variants(stage):
            builder.encoders(stage, path, section)
    for stage in ("universal", "refined", "reduced"):
        for path, section in sweep.variants(stage):
            builder.decoders(stage, path, section)
    return list(builder.trials.values())


@dataclass
class _Builder:
    """Fills configurations in; holds what all trials of one sweep share, and the trials so far, in plan order."""

    sweep: Sweep
    data: Known
    trials: dict[str, Trial] = field(default_factory=dict)
    classifier_ids: dict[str, str] = field(default_factory=dict)
    settings: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    comparisons: int = 0
    warm: dict[KeyPath, dict[tuple[str, int], list[Trial]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sweep = self.sweep
        entry = registry.find("dataset", sweep.dataset.name)
        parameters = spec.parameters_of("dataset", sweep.dataset)
        for location in entry.facts.get("location", ()):  # where the bytes lie is not what they are
            del parameters[location]
        self.dataset = entry.identity | parameters | {"sha256": self.data.sha256}
        self.model = registry.find("model", sweep.model.name).identity | spec.parameters_of("model", sweep.model)
        written = "model" in sweep.model_fields_set
        self._fits("model", sweep.model.name, ("model", "name") if written else ("dataset", "name"))

    def _fits(self, kind: str, name: str, path: KeyPath) -> None:
        """Refuse a network that is made for another image size than the data has."""
        facts, image = registry.find(kind, name).facts, self.data.image
        wanted, least = facts.get("image"), facts.get("smallest", 1)
        if image and ((wanted and tuple(wanted) != tuple(image)) or min(image[1:]) < least):
            other = sorted(entry.name for entry in registry.of_kind(kind) if "image" not in entry.facts)
            size = _shape(wanted) if wanted else f"at least {least}x{least}"
            message = f"{kind} {name!r} is made for images of {size}, {self.sweep.dataset.name} has {_shape(image)}"
            raise self.sweep.problem(path, f"{message}; choices: {', '.join(other)}")

    def _add(self, trial: Trial) -> Trial:
        return self.trials.setdefault(trial.id, trial)

    # -- classifiers ---------------------------------------------------------------------------------------------

    def classifiers(self) -> None:
        """Add a classifier and a held-out one of every label set that an objective names, the primary one first."""
        labels: dict[str, KeyPath] = {"": ()}
        for stage in COMPRESSORS:
            for path, section in self.sweep.variants(stage):
                for term in section.objective:
                    labels.setdefault(term.partition(".")[2], (*path, "objective", term))
        for role in CLASSIFIERS:
            entries = [(path, section.label) for path, section in self.sweep.variants(role)]
            for index, (path, label) in enumerate(entries):
                if label in [other for _, other in entries[:index]]:
                    which = f"for label set {label}" if label else "without a label"
                    raise self.sweep.problem(path, f"is a second entry {which}; keep one")
        listed = {s.label: (*path, "label") for role in CLASSIFIERS for path, s in self.sweep.variants(role) if s.label}
        for label, path in (labels | listed).items():
            if label and label not in self.data.labels:
                known = choices(label, self.data.labels)
                raise self.sweep.problem(path, f"{self.sweep.dataset.name} has no label set {label!r}; {known}")
        for label, path in labels.items():
            if label and label == self.data.labels[0]:
                name = str(path[-1]).partition(".")[0]
                raise self.sweep.problem(path, f"{label} is the primary label set; write {name}")
            for role in CLASSIFIERS:
                self._classifier(role, label)

    def _classifier(self, role: str, label: str) -> None:
        entries, wanted = list(self.sweep.variants(role)), label or (self.data.labels or ("",))[0]
        own = [entry for entry in entries if entry[1].label == wanted]
        # A checkpoint without a label judges the primary label set, and no other.
        shared = [entry for entry in entries if not entry[1].label and not (label and entry[1].checkpoint)]
        default = spec.Classifier() if role == "classifier" else spec.Heldout()
        path, settings = [*own, *shared, (("stages", role), default)][0]
        self._fits("classifier", settings.network, (*path, "network"))
        config: dict[str, Any] = {"network": registry.find("classifier", settings.network).identity, "needs": {}}
        train = spec.train_of(self.sweep, settings).model_dump(exclude=set(CRITIC))
        if label:
            config["label"] = label
        if settings.checkpoint:
            file = self.sweep.folder / settings.checkpoint
            try:
                config["checkpoint"] = digest(read_safetensors(file))
            except (OSError, ValueError) as error:
                message = f"cannot read {settings.checkpoint!r}: {getattr(error, 'strerror', None) or error}"
                raise self.sweep.problem((*path, "checkpoint"), message) from None
            train = {"epochs": 0, "threads": train["threads"]}
        trial = self._trial("classifier", 0 if settings.checkpoint else settings.seed, train, config)
        if trial.id in self.classifier_ids.values():
            raise self.sweep.problem(path, "is the very classifier that losses see; choose another network or seed")
        self.classifier_ids[_role(role, label)] = self._add(trial).id

    # -- compressors ---------------------------------------------------------------------------------------------

    def encoders(self, stage: str, path: KeyPath, section: Any) -> None:
        """Add trials that train an encoder: end-to-end ones, or joint ones and a row for each of their decoders."""
        points = self._points(stage, path, section)
        for rate in section.rates or self.sweep.rates:
            for seed in section.seeds or self.sweep.seeds:
                own = {"rate": rate.model_dump()}
                init = self._init(section, (*path, "init"), None, rate, seed)
                if isinstance(section, Joint):
                    self._joint(path, section, seed, points, own, init)
                    continue
                for point in points:
                    self._add(self._compressor(stage, section, seed, [point], own, init))

    def _joint(
        self, path: KeyPath, section: Joint, seed: int, points: list[dict[str, float]], own: dict[str, Any], init: Needs
    ) -> None:
        joint = self._add(self._compressor("joint", section, seed, points, own, init))
        for index, point in enumerate(points):
            roles = ["encoder", "decoder", *(["critic"] if trains_critic(point) else [])]
            names = {role: f"{role}.{index}" for role in roles if role != "encoder"}
            needs = dict.fromkeys(roles, joint.id)
            trial = self._compressor("joint_decoder", section, seed, [point], own | {"artifacts": names}, needs)
            self._add(trial)

    def decoders(self, stage: str, path: KeyPath, section: Any) -> None:
        """Add trials that train decoders on frozen encoders."""
        points, parents = self._points(stage, path, section), self._select(path, section)
        _within_limit(self.sweep, len(self.trials) - len(self.classifier_ids) + len(points) * len(parents))
        for parent in parents:
            own: dict[str, Any] = {"rate": parent.config["rate"]}
            if isinstance(section, Refined):
                own["rate2"] = {"dim": section.dim2, "levels": section.levels2}
            if isinstance(section, Reduced):
                dim = own["rate"]["dim"]
                if max(section.dims) >= dim or len(set(section.dims)) < len(section.dims):
                    message = f"{section.dims} of an encoder of {dim} dimensions; choices: 0 to {dim - 1}, each once"
                    raise self.sweep.problem((*path, "dims"), message)
                own["dims"] = section.dims
            needs = {"encoder": parent.id} | self._init(section, (*path, "init"), parent, parent.rate, parent.seed)
            if section.critic_init == "parent" and trains_critic(parent.terms):
                if trains_critic(section.objective):
                    needs["init.critic"] = parent.id
            elif "critic_init" in section.model_fields_set and section.critic_init == "parent":
                message = "this encoder's trial has no critic; add a perception term to it, or say critic_init: random"
                raise self.sweep.problem((*path, "critic_init"), message)
            for point in points:
                self._add(self._compressor(stage, section, parent.seed, [point], own, needs))

    def _compressor(
        self,
        stage: str,
        section: Any,
        seed: int,
        points: Sequence[Mapping[str, float]],
        own: Mapping[str, Any],
        needs: Mapping[str, str],
        **override: Any,
    ) -> Trial:
        objectives, needs = [], dict(needs)
        for point in points:
            objective = {}
            for term in sorted(point):
                name, _, label = term.partition(".")
                entry = registry.find("term", name)
                objective[term] = entry.identity | {"weight": point[term]}
                if stage != "joint_decoder":  # nothing is trained there
                    needs |= {
                        (role := _role(need, label)): self.classifier_ids[role] for need in entry.facts.get("needs", ())
                    }
            objectives.append(objective)
        train = spec.train_of(self.sweep, section).model_dump() | override
        protocol = spec.protocol_of(self.sweep, section).settings
        for unused in _unused(stage, [term for point in points for term in point]):
            train.pop(unused, None)
            protocol.pop(unused, None)
        if stage == "joint_decoder":
            train = {"epochs": 0, "threads": train["threads"]}
        own = {"model": self.model, "needs": needs, "protocol": protocol, **own}
        own |= {"objectives": objectives} if stage == "joint" else {"objective": objectives[0]}
        return self._trial(stage, seed, train, own)

    def _trial(self, stage: str, seed: int, train: Mapping[str, Any], own: Mapping[str, Any]) -> Trial:
        config = {"stage": stage, "seed": seed, "dataset": self.dataset, "train": train, "loop": LOOP_VERSION, **own}
        evaluators = {} if stage == "classifier" else dict(self.classifier_ids)
        draft = Trial(trial_id(config), stage, config, evaluators, "")
        return Trial(draft.id, stage, config, evaluators, content_id("evaluation", evaluation_inputs(draft)))

    def _points(self, stage: str, path: KeyPath, section: Compressor) -> list[dict[str, float]]:
        """Return the weights to try, from the sweep's search; refuse what trains nothing."""
        search = self.sweep.search
        points: list[dict[str, float]] = registry.find("search", search.strategy).load()(
            section.objective, search, stage, 0
        )
        if not all(any(point.values()) for point in points):
            message = "all weights are 0 in one combination, which would train nothing; give one term a weight"
            raise self.sweep.problem((*path, "objective"), message)
        return list({tuple(sorted(point.items())): point for point in points}.values())

    # -- which trials others build on ----------------------------------------------------------------------------

    def _end_to_end(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.stage == "end_to_end"]

    def _init(self, section: Any, path: KeyPath, parent: Trial | None, rate: Any, seed: int) -> Needs:
        """Return whose weights a trial's networks begin with: those of the trial that ``init`` names."""
        roles = ["decoder"] if parent else ["encoder", "decoder"]
        if section.init == "random":
            return {}
        if isinstance(section, Refined | Reduced):
            raise self.sweep.problem(path, "no end-to-end trial has a decoder of this stage's size; choices: random")
        if section.init == "parent":
            if parent is None:
                raise self.sweep.problem(
                    path, "parent is for universal stages; name an end-to-end trial by its weights"
                )
            return {"init.decoder": parent.id}
        if path not in self.warm:
            self.warm[path] = {}
            for trial in self._matching(section.init, path):
                self.warm[path].setdefault((str(trial.rate), trial.seed), []).append(trial)
        found = self.warm[path].get((str(rate), seed), [])
        if len(found) != 1:
            message = f"{len(found)} end-to-end trials listed before are at {rate} seed {seed} and meet this"
            raise self.sweep.problem(path, f"{message}; name exactly one")
        return {f"init.{role}": found[0].id for role in roles}

    def _select(self, path: KeyPath, section: Any) -> list[Trial]:
        """Return the trials whose encoders ``encoders`` names, in plan order."""
        path = (*path, "encoders")
        listed = isinstance(section.encoders, list)
        chosen: dict[str, Trial] = {}
        for index, condition in enumerate(section.encoders if listed else [section.encoders]):
            here = (*path, index) if listed else path
            if isinstance(condition, str) and condition in CONTROLS:
                matches = list(self._control(str(condition), here))
            else:
                matches = self._end_to_end() if condition == "all" else self._matching(condition, here)
            if not matches:
                raise self.sweep.problem(here, "no end-to-end trial meets all of these conditions")
            chosen |= {trial.id: trial for trial in matches}
        if not chosen:
            raise self.sweep.problem(path, "empty; name at least one encoder, or `all`")
        return [trial for trial in self.trials.values() if trial.id in chosen]

    def _control(self, name: str, path: KeyPath) -> Iterator[Trial]:
        """Add and yield the control encoders, one per rate and seed."""
        point, override = CONTROLS[name]
        plain = spec.EndToEnd(objective={term: [weight] for term, weight in point.items()})  # the sweep's own settings
        for rate in self.sweep.rates:
            for seed in self.sweep.seeds:
                own = {"rate": rate.model_dump(), "control": name}
                yield self._add(self._compressor("control", plain, seed, [point], own, {}, **override))

    def _matching(self, condition: Mapping[str, Any], path: KeyPath) -> list[Trial]:
        """Return the end-to-end trials that meet every condition on rate, seed, weights and differing settings."""
        trials = self._end_to_end()
        if not trials:
            raise self.sweep.problem(path, "no end-to-end trial is listed before this one")
        self.comparisons += len(trials) * sum(len(v) if isinstance(v, list) else 1 for v in condition.values())
        if self.comparisons > MAX_COMPARISONS:
            raise self.sweep.problem(path, f"too many values to look for among {len(trials):,} trials; choices: all")
        if len(self.settings) != len(trials):  # until more are listed
            self.settings, self.told = [settings_of(trial) for trial in trials], differing(trials)
        facts = [
            _facts(trial) | {key: own[key] for key in own if key in self.told or key in condition}
            for trial, own in zip(trials, self.settings, strict=True)
        ]
        for key, wanted in condition.items():
            known = [fact[key] for fact in facts if key in fact]
            if not known:
                raise self.sweep.problem((*path, key), f"unknown key; {choices(key, facts[0] if facts else ())}")
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if value not in known:
                    listed = ", ".join(dict.fromkeys(map(str, sorted(known, key=lambda v: (isinstance(v, str), v)))))
                    raise self.sweep.problem((*path, key), f"no end-to-end trial has {key} {value}; choices: {listed}")
        return [trial for trial, fact in zip(trials, facts, strict=True) if _meets(fact, condition)]


def _check_size(sweep: Sweep) -> None:
    """Refuse a sweep that is too large before it is expanded; chosen encoders are counted when they are known."""
    encoders = sum(_size(sweep, section) for _, section in sweep.variants("end_to_end"))
    total = encoders + sum(_size(sweep, section) for _, section in sweep.variants("joint"))
    every, controls = len(sweep.rates) * len(sweep.seeds), set[str]()
    for stage in FREEZES_ENCODER:
        for _, section in sweep.variants(stage):
            listed = section.encoders if isinstance(section.encoders, list) else [section.encoders]
            words = {condition for condition in listed if isinstance(condition, str)}
            controls |= words & CONTROLS.keys()
            total += _size(sweep, section) * max(1, sum(encoders if word == "all" else every for word in words))
    _within_limit(sweep, total + every * len(controls))


def _size(sweep: Sweep, section: Compressor) -> int:
    points = math.prod(1 if isinstance(weights, Range) else len(weights) for weights in section.objective.values())
    points = points if sweep.search.strategy == "grid" else sweep.search.samples
    if not isinstance(section, spec.EndToEnd):
        return points
    return points * len(section.rates or sweep.rates) * len(section.seeds or sweep.seeds)


def _within_limit(sweep: Sweep, total: int) -> None:
    if total > MAX_TRIALS:
        raise sweep.problem(("stages",), f"{total:,} trials; a sweep may have {MAX_TRIALS:,}")


def _unused(stage: str, terms: Iterable[str]) -> Iterator[str]:
    """Yield the settings that cannot change this trial's numbers, and so are no part of its id."""
    critic = trains_critic(terms)
    yield from ("generator_every",) if critic else CRITIC
    if stage != "end_to_end":
        yield from ("annealing", "annealing_epochs")
    if stage not in TRAINS_ENCODER:
        yield from ("quantizer_gradient", "sigma")
    if stage not in FREEZES_ENCODER:
        yield "frozen_batchnorm"
    if stage == "joint_decoder":
        yield from ("generator_every", "n_critic", "milestones")


def _role(role: str, label: str) -> str:
    return f"{role}.{label}" if label else role


def _shape(image: Sequence[int]) -> str:
    return "x".join(map(str, (*image[1:], image[0])))


def _facts(trial: Trial) -> dict[str, Any]:
    return {**trial.config["rate"], "seed": trial.seed, **trial.weights}


def _meets(fact: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    return all(fact.get(key) in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in condition.items())
