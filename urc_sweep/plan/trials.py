"""Sweep to trials. Invariant: a trial's id is the hash of everything that determines its numbers, and nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from urc_sweep.errors import choices
from urc_sweep.maths.ids import content_id, without
from urc_sweep.plan import registry, spec
from urc_sweep.plan.spec import MAX_TRIALS, Range, Sweep

# Raise when the training loop, the networks' initialisation or the quantizer compute other numbers: every id changes.
LOOP_VERSION = 1

# The defaults of the first release, for ever: a key at its value here is left out of the id.
FIRST_RELEASE: Mapping[str, Any] = {
    "model": {"width": 1.0},
    "train": {
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "betas": [0.5, 0.9],
        "decay": 0.2,
        "decay_at": [2 / 3],
        "precision": "fp32",
        "threads": 1,
    },
    "protocol": {"preset": "sound", "quantizer_gradient": "soft", "sigma": 1.0},
}

CLASSIFIERS = ("classifier", "heldout_classifier")


@dataclass(frozen=True)
class Trial:
    """One training: its stage, its full configuration, and the trials it needs."""

    id: str
    stage: str
    config: Mapping[str, Any]
    evaluators: Mapping[str, str]
    evaluation_id: str

    @property
    def needs(self) -> Mapping[str, str]:
        """Ids of the trials whose weights this one is trained with, by role (``classifier``, ``encoder``)."""
        needs: Mapping[str, str] = self.config["needs"]
        return needs

    @property
    def required(self) -> list[str]:
        """Ids of all trials that must be committed before this one can be trained and evaluated."""
        return list(dict.fromkeys([*self.needs.values(), *self.evaluators.values()]))

    @property
    def weights(self) -> dict[str, float]:
        """The objective's weights by term (lambda_d, lambda_c ... of the paper)."""
        return {term: entry["weight"] for term, entry in self.config.get("objective", {}).items()}

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def rate(self) -> spec.Rate | None:
        return spec.Rate(**self.config["rate"]) if "rate" in self.config else None

    @functools.cached_property
    def pack_key(self) -> str:
        """What trials must share to be trained side by side: all but the weights."""
        shared = {key: value for key, value in self.config.items() if key != "objective"}
        return content_id("pack", shared | {"terms": sorted(self.weights)})

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "stage": self.stage,
            "config": self.config,
            "evaluators": self.evaluators,
            "evaluation_id": self.evaluation_id,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        return cls(value["id"], value["stage"], value["config"], value["evaluators"], value["evaluation_id"])


def trial_id(config: Mapping[str, Any]) -> str:
    """Return the content id of a resolved configuration."""
    return content_id("trial", without(config, FIRST_RELEASE))


def pinned_data(sweep: Sweep) -> str | None:
    """Return the published hash of the sweep's data set, ``None`` if only its bytes can tell (a plugin's)."""
    pin = registry.find("dataset", sweep.dataset.name).facts.get("sha256")
    return None if pin is None else str(pin)


def expand(sweep: Sweep, data_sha256: str | None = None) -> list[Trial]:
    """Return the sweep's trials, encoders before those who need them. ``data_sha256`` is for data without a pin."""
    _check_size(sweep)
    builder = _Builder(sweep, pinned_data(sweep) or data_sha256 or "unknown")
    trials = [builder.classifier(role) for role in CLASSIFIERS]
    if trials[0].id == trials[1].id:
        message = "is the very classifier that losses see; choose another network or seed"
        raise sweep.problem(("stages", "heldout_classifier"), message)
    encoders = list(builder.end_to_end())
    trials += encoders + list(builder.universal(encoders))
    return list({trial.id: trial for trial in trials}.values())


class _Builder:
    """Fills configurations in; holds what all trials of one sweep share."""

    def __init__(self, sweep: Sweep, data_sha256: str) -> None:
        self.sweep = sweep
        dataset = registry.find("dataset", sweep.dataset.name)
        parameters = spec.parameters_of("dataset", sweep.dataset)
        self.dataset = dataset.identity | parameters | {"sha256": data_sha256}
        self.model = registry.find("model", sweep.model.name).identity | spec.parameters_of("model", sweep.model)
        self.classifier_ids: dict[str, str] = {}

    def classifier(self, role: str) -> Trial:
        settings = getattr(self.sweep.stages, role)
        network = registry.find("classifier", settings.network).identity
        trial = self._trial("classifier", settings.seed, role, {"network": network, "needs": {}})
        self.classifier_ids[role] = trial.id
        return trial

    def end_to_end(self) -> Iterator[Trial]:
        if self.sweep.stages.end_to_end is None:
            return
        for rate in self.sweep.rates:
            for seed in self.sweep.seeds:
                for point in self._points("end_to_end"):
                    yield self._compressor("end_to_end", rate.model_dump(), seed, point, {})

    def universal(self, encoders: list[Trial]) -> Iterator[Trial]:
        if self.sweep.stages.universal is None:
            return
        for parent in _select(self.sweep, encoders):
            for point in self._points("universal"):
                yield self._compressor("universal", parent.config["rate"], parent.seed, point, {"encoder": parent.id})

    def _points(self, stage: str) -> list[dict[str, float]]:
        strategy = registry.find("search", self.sweep.search.strategy).load()
        objective = spec.settings_of(self.sweep, stage).objective
        points: list[dict[str, float]] = strategy(objective, self.sweep.search, stage, 0)
        return points

    def _compressor(
        self, stage: str, rate: Mapping[str, int], seed: int, point: Mapping[str, float], needs: Mapping[str, str]
    ) -> Trial:
        terms = {name: registry.find("term", name) for name in sorted(point)}
        for term in terms.values():
            needs = {**needs, **{role: self.classifier_ids[role] for role in term.facts.get("needs", ())}}
        objective = {name: term.identity | {"weight": point[name]} for name, term in terms.items()}
        own = {"model": self.model, "rate": rate, "objective": objective, "needs": dict(needs)}
        return self._trial(stage, seed, stage, own | {"protocol": self.sweep.protocol.model_dump()})

    def _trial(self, stage: str, seed: int, section: str, own: Mapping[str, Any]) -> Trial:
        config = {
            "stage": stage,
            "seed": seed,
            "dataset": self.dataset,
            "train": spec.train_of(self.sweep, section).model_dump(),
            "loop": LOOP_VERSION,
            **own,
        }
        evaluators = {} if stage == "classifier" else dict(self.classifier_ids)
        identity = trial_id(config)
        inputs = evaluation_inputs(identity, stage, evaluators)
        return Trial(identity, stage, config, evaluators, content_id("evaluation", inputs))


def evaluation_inputs(identity: str, stage: str, evaluators: Mapping[str, str]) -> dict[str, Any]:
    """Return what names an evaluation: the trial, the metrics and their versions, and the judging classifiers."""
    metrics = [metric.identity for metric in metrics_of(stage)]
    return {"trial": identity, "metrics": metrics, "evaluators": dict(evaluators)}


def metrics_of(stage: str) -> list[registry.Component]:
    """Return the metrics that a trial of ``stage`` is evaluated with, by name."""
    every = sorted(registry.of_kind("metric"), key=lambda metric: metric.name)
    return [metric for metric in every if stage in metric.facts.get("stages", ("end_to_end", "universal"))]


def _check_size(sweep: Sweep) -> None:
    """Refuse a sweep that is too large before any of it is expanded."""
    end_to_end = len(sweep.rates) * len(sweep.seeds) * _points(sweep, "end_to_end")
    total = end_to_end + end_to_end * _points(sweep, "universal")
    if sweep.stages.universal and sweep.stages.universal.encoders != "all":
        total = end_to_end  # the encoders decide; counted again in _select
    if total > MAX_TRIALS:
        raise sweep.problem(("stages",), f"{total:,} trials; a sweep may have {MAX_TRIALS:,}")


def _points(sweep: Sweep, stage: str) -> int:
    settings = spec.settings_of(sweep, stage)
    if settings is None:
        return 0
    if sweep.search.strategy != "grid":
        return sweep.search.samples
    return math.prod(1 if isinstance(weights, Range) else len(weights) for weights in settings.objective.values())


def _select(sweep: Sweep, encoders: list[Trial]) -> list[Trial]:
    """Return the end-to-end trials that ``stages.universal.encoders`` names, in plan order."""
    universal = sweep.stages.universal
    assert universal is not None
    path = ("stages", "universal", "encoders")
    if universal.encoders == "all":
        return encoders
    listed = isinstance(universal.encoders, list)
    conditions = universal.encoders if isinstance(universal.encoders, list) else [universal.encoders]
    if not conditions:
        raise sweep.problem(path, "empty; name at least one encoder, or `all`")
    chosen: dict[str, Trial] = {}
    for index, condition in enumerate(conditions):
        assert isinstance(condition, dict)
        here = (*path, index) if listed else path
        facts = [_facts(trial) for trial in encoders]
        for key, wanted in condition.items():
            known = sorted({fact[key] for fact in facts if key in fact})
            if not known:
                raise sweep.problem((*here, key), f"unknown key; {choices(key, facts[0])}")
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if value not in known:
                    raise sweep.problem(
                        (*here, key), f"no end-to-end trial has {key} {value}; choices: {', '.join(map(str, known))}"
                    )
        matches = [trial for trial, fact in zip(encoders, facts, strict=True) if _meets(fact, condition)]
        if not matches:
            raise sweep.problem(here, "no end-to-end trial meets all of these conditions")
        chosen |= {trial.id: trial for trial in matches}
    total = len(encoders) + len(chosen) * _points(sweep, "universal")
    if total > MAX_TRIALS:
        raise sweep.problem(("stages",), f"{total:,} trials; a sweep may have {MAX_TRIALS:,}")
    return [trial for trial in encoders if trial.id in chosen]


def _facts(trial: Trial) -> dict[str, float]:
    return {**trial.config["rate"], "seed": trial.seed, **trial.weights}


def _meets(fact: Mapping[str, float], condition: Mapping[str, Any]) -> bool:
    return all(fact[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in condition.items())
