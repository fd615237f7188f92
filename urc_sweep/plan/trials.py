"""What a trial is. Invariant: a trial's id is the hash of everything that determines its numbers, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from urc_sweep.maths.ids import content_id, without
from urc_sweep.plan import registry, spec

# Raise when the training loop, the networks' initialisation or the quantizer compute other numbers: every id changes.
LOOP_VERSION = 1

WITH_IMAGES = ("end_to_end", "control", "joint_decoder", "universal", "refined", "reduced")

# The defaults of the first release, for ever: a key at its value here is left out of the id, and a key that a
# configuration does not have is at its value here.
FIRST_RELEASE: Mapping[str, Any] = {
    "model": {"width": 1.0},
    "train": {
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "betas": [0.5, 0.9],
        "decay": 0.2,
        "decay_at": [2 / 3],
        "critic_learning_rate": 2e-4,
        "gradient_penalty": 10.0,
        "precision": "fp32",
        "threads": 1,
    },
    "protocol": {
        "preset": "sound",
        "quantizer_gradient": "soft",
        "sigma": 1.0,
        "frozen_batchnorm": "eval",
        "generator_every": 1,
        "n_critic": 1,
        "annealing": 0.0,
        "annealing_epochs": 12,
        "decoder_output_batchnorm": False,
        "milestones": [],
    },
}


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
        """Ids of the trials whose weights this one is trained with, by role.

        ``classifier``, ``encoder`` ...: frozen; ``init.decoder`` ...: where this trial's own decoder begins.
        """
        needs: Mapping[str, str] = self.config["needs"]
        return needs

    @property
    def required(self) -> list[str]:
        """Ids of all trials that must be committed before this one can be trained and evaluated."""
        return list(dict.fromkeys([*self.needs.values(), *self.evaluators.values()]))

    def artifact(self, role: str) -> str:
        """Return under which name the needed trial stores the network that is ``role`` here."""
        name = role.removeprefix("init.")
        return "classifier" if "classifier" in name else str(self.config.get("artifacts", {}).get(name, name))

    @property
    def objectives(self) -> list[Mapping[str, Mapping[str, Any]]]:
        """The objective of each of the trial's decoders: one, several of a joint trial, none of a classifier."""
        own = self.config.get("objectives") or [self.config.get("objective")]
        return [objective for objective in own if objective]

    @property
    def suffixes(self) -> list[str]:
        """What follows ``decoder`` and ``critic`` in the roles of its networks: nothing, or .0 .1 ... if joint."""
        return [f".{i}" for i in range(len(self.objectives))] if self.stage == "joint" else [""]

    @property
    def weights(self) -> dict[str, float]:
        """The objective's weights by term (lambda_d, lambda_c ... of the paper); of a joint trial none."""
        return {term: entry["weight"] for term, entry in self.config.get("objective", {}).items()}

    @property
    def terms(self) -> set[str]:
        """The objective terms that are present, at weight 0 too."""
        return {term for objective in self.objectives for term in objective}

    def setting(self, section: str, key: str) -> Any:
        """Return a setting of ``train`` or ``protocol``; one that is not written down is at its first default."""
        return self.config.get(section, {}).get(key, FIRST_RELEASE[section][key])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def rate(self) -> spec.Rate | None:
        """The rate of the code; of a refined trial that of the frozen first encoder."""
        if "rate" not in self.config:
            return None
        return spec.Rate(
            dim=len(self.config.get("dims") or range(self.config["rate"]["dim"])), levels=self.config["rate"]["levels"]
        )

    @property
    def rate_bits(self) -> float | None:
        """dim * log2(levels), plus that of a second encoder."""
        second = spec.Rate(**self.config["rate2"]).bits if "rate2" in self.config else 0.0
        return None if self.rate is None else self.rate.bits + second

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


def evaluation_inputs(trial: Trial) -> dict[str, Any]:
    """Return what names an evaluation: the trial, the metrics and their versions, and the judging classifiers."""
    metrics = [metric.identity for metric in metrics_of(trial)]
    return {"trial": trial.id, "metrics": metrics, "evaluators": dict(trial.evaluators)}


def metrics_of(trial: Trial) -> list[registry.Component]:
    """Return the metrics that a trial is evaluated with, by name: those of its stage and of its objective's terms."""
    every = sorted(registry.of_kind("metric"), key=lambda metric: metric.name)
    return [
        metric
        for metric in every
        if trial.stage in metric.facts.get("stages", WITH_IMAGES) and set(metric.facts.get("terms", ())) <= trial.terms
    ]


def variants(trials: Sequence[Trial]) -> dict[str, str]:
    """Return by id what sets a trial apart from the first of its stage beside rate, seed, weights and parent."""
    by_id = {trial.id: trial for trial in trials}
    # The rows of a joint trial's decoders were trained as that trial was.
    trained = {t.id: by_id.get(t.needs["encoder"], t) if t.stage == "joint_decoder" else t for t in trials}
    texts = {}
    for stage in dict.fromkeys(trial.stage for trial in trials):
        members = [trial for trial in trials if trial.stage == stage]
        plain, told = settings_of(trained[members[0].id]), differing([trained[t.id] for t in members])
        for trial in members:
            own = settings_of(trained[trial.id])
            texts[trial.id] = trial.config.get("control") or ", ".join(
                f"{key} {own[key]}" for key in told if own[key] != plain[key]
            )
    return texts


def trains_critic(terms: Iterable[str]) -> bool:
    """Return whether an objective of these terms has a critic to train."""
    return any("critic" in registry.find("term", term.partition(".")[0]).facts.get("trains", ()) for term in terms)


def settings_of(trial: Trial) -> dict[str, Any]:
    """Return what beside rate, seed, weights and parent may differ between trials of a stage."""
    sections = {section: FIRST_RELEASE[section] for section in ("train", "protocol")}
    settings = {key: trial.setting(section, key) for section, keys in sections.items() for key in keys}
    second = trial.config.get("rate2", {})
    begun = sorted(role for role in trial.needs if role.startswith("init."))
    return (
        settings
        | {"dim2": second.get("dim"), "levels2": second.get("levels"), "dims": trial.config.get("dims")}
        | {
            "init": "given" if "init.decoder" in begun else "random",
            "critic_init": "parent" if "init.critic" in begun else "random",
        }
    )


def differing(trials: Sequence[Trial]) -> list[str]:
    """Return the settings that are not the same in all trials."""
    every = [settings_of(trial) for trial in trials]
    return [key for key in (every[0] if every else ()) if any(own[key] != every[0][key] for own in every)]
