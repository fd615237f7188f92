"""Stages, variants, protocols, label sets: which trials a sweep has, what is in their ids, who builds on whom."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from urc_sweep.errors import SpecError
from urc_sweep.plan import spec, trials
from urc_sweep.plan.expand import Known, expand
from urc_sweep.plan.trials import Trial, variants
from urc_sweep.run.launch import Options
from urc_sweep.run.launch import plan as plan_of_launch

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "sweeps" / "paper").glob("*.yaml"))
HEAD = """
name: tiny
dataset: {name: digits}
rates: [{dim: 2, levels: 3}]
"""
PLAIN = HEAD + "stages:\n  end_to_end:\n    objective: {distortion: 1.0, classification: [0, 0.01]}\n"
# Every stage, without a critic and with one.
EVERY = (
    HEAD
    + """
stages:
  end_to_end:
    - objective: {distortion: 1.0, classification: [0, 0.01]}
    - objective: {distortion: 1.0, perception: [0, 0.01]}
  joint:
    - objective: {distortion: 1.0, classification: [0, 0.01]}
    - objective: {distortion: 1.0, perception: [0, 0.01]}
  universal:
    - encoders: [{classification: 0.01}, random, classifier_only]
      objective: {distortion: 1.0, classification: 0.02}
    - encoders: {perception: 0.01}
      objective: {distortion: 1.0, perception: 0.02}
  refined:
    - {encoders: {classification: 0.01}, objective: {distortion: 1.0}, dim2: 1, levels2: 4}
    - {encoders: {perception: 0.01}, objective: {distortion: 1.0, perception: 0.02}, dim2: 1, levels2: 4}
  reduced:
    - {encoders: {classification: 0.01}, objective: {distortion: 1.0}, dims: [1]}
    - {encoders: {perception: 0.01}, objective: {distortion: 1.0, perception: 0.02}, dims: [1]}
"""
)


def plan(text: str = PLAIN, *overrides: str) -> list[Trial]:
    return expand(spec.parse(text, "f.yaml", overrides))


def ids(text: str = PLAIN, *overrides: str) -> list[str]:
    return [trial.id for trial in plan(text, *overrides)]


def stage(name: str, text: str = PLAIN, *overrides: str) -> list[Trial]:
    return [trial for trial in plan(text, *overrides) if trial.stage == name]


def with_stages(**sections: object) -> str:
    """PLAIN with further stages, or other ones."""
    stages = {"end_to_end": {"objective": {"distortion": 1.0, "classification": [0, 0.01]}}} | sections
    return HEAD + f"stages: {json.dumps(stages)}\n"


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        plan(text, *overrides)
    return str(caught.value)


# -- protocols ---------------------------------------------------------------------------------------------------------

# Zhang et al. 2021, train.py: _lr_factor, compute_lambda_anneal(Lambda_init=0.0005, end_epoch=12), i % n_cycles == 1;
# models.py: sigma=2/L on SVHN. Table 1 of arXiv 2504.13191: batch norm before the sigmoid.
SOUND = {
    "quantizer_gradient": "soft",
    "sigma": 1.0,
    "frozen_batchnorm": "eval",
    "generator_every": 1,
    "n_critic": 1,
    "annealing": 0.0,
    "annealing_epochs": 12,
    "decoder_output_batchnorm": False,
    "milestones": [],
}
URDP = SOUND | {"frozen_batchnorm": "batch", "generator_every": 2, "annealing": 0.0005}
PRESETS = [
    ("sound", "mnist", SOUND),
    ("sound", "svhn", SOUND),
    ("paper", "mnist", SOUND | {"decoder_output_batchnorm": True}),
    ("zhang2021", "mnist", URDP | {"milestones": [[20, 0.2], [40, 0.02]]}),
    ("zhang2021", "fashion_mnist", URDP | {"milestones": [[20, 0.2], [35, 0.02]]}),
    ("zhang2021", "svhn", URDP | {"milestones": [[25, 0.2]], "sigma": "2/L"}),
]
NETWORKS = {"svhn": ("model={name: conv64}", "stages.classifier={network: vgg6}")}


@pytest.mark.parametrize(
    ("name", "dataset", "settings"), PRESETS, ids=lambda value: value if type(value) is str else ""
)
def test_a_preset_is_what_science_says_and_written_out_gives_the_same_ids(name, dataset, settings):
    assert spec.preset(name, dataset).settings == settings
    assert spec.preset_of(settings, dataset) == name
    text, networks = EVERY.replace("digits", dataset), NETWORKS.get(dataset, ())
    named = ids(text, f"protocol={name}", *networks)
    assert named == ids(text, f"protocol={{preset: {name}}}", *networks)
    assert named == ids(text, f"protocol={json.dumps(settings)}", *networks)
    written = json.dumps({key: value for key, value in settings.items() if value != SOUND[key]})
    assert named == ids(text, f"protocol={written}", *networks)
    assert named == ids(text, f"protocol={json.dumps({'preset': name, **settings})}", *networks), "no contradiction"
    assert (named == ids(text, *networks)) == (name == "sound")


def test_a_stage_has_its_own_protocol_over_the_sweeps():
    def settings(sweep: str, own: str | None) -> dict[str, object]:
        overrides = [f"protocol={sweep}"] + ([f"stages.end_to_end.protocol={own}"] if own else [])
        parsed = spec.parse(PLAIN, "f.yaml", tuple(overrides))
        return spec.protocol_of(parsed, parsed.stages.end_to_end[0]).settings

    zhang = spec.preset("zhang2021", "digits").settings
    assert settings("zhang2021", None) == zhang
    assert settings("zhang2021", "{annealing: 0}") == zhang | {"annealing": 0.0}, "keys go over the sweep's"
    assert settings("zhang2021", "sound") == SOUND, "a preset is as it is named"
    assert settings("{sigma: 2, n_critic: 3}", "{sigma: 2/L}") == SOUND | {"sigma": "2/L", "n_critic": 3}
    assert settings("{sigma: 2}", "paper") == SOUND | {"decoder_output_batchnorm": True}
    assert settings("{sigma: 2}", "{}") == SOUND | {"sigma": 2}
    variant = with_stages(end_to_end=[{"objective": {"distortion": 1}, "protocol": p} for p in ("sound", "paper")])
    assert [t.config["protocol"]["decoder_output_batchnorm"] for t in stage("end_to_end", variant)] == [False, True]


def test_preset_of_names_the_first_preset_that_has_all_settings():
    assert spec.preset_of({}, "mnist") == "sound"
    assert spec.preset_of({"sigma": 1.0}, "mnist") == "sound"
    assert spec.preset_of({"sigma": "2/L"}, "mnist") == "custom"
    assert spec.preset_of({"sigma": "2/L"}, "svhn") == "zhang2021"
    assert spec.preset_of({"frozen_batchnorm": "batch"}, "mnist") == "zhang2021"
    assert spec.preset_of({"milestones": [[20, 0.2], [40, 0.02]]}, "fashion_mnist") == "custom"
    assert spec.preset_of({"decoder_output_batchnorm": True}, "svhn") == "paper"
    assert spec.preset_of({"decoder_output_batchnorm": True, "generator_every": 2}, "svhn") == "custom"


# -- what is in an id --------------------------------------------------------------------------------------------------

WITHOUT = "end_to_end joint universal refined reduced control:random control:classifier_only".split()
CRITIC = [f"{name}+critic" for name in WITHOUT[:5]]
DECODERS = ["joint_decoder", "joint_decoder+critic"]
ENCODERS = [name for name in WITHOUT + CRITIC if name.partition("+")[0] not in ("universal", "reduced")]
FROZEN = [name for name in WITHOUT + CRITIC if name.partition("+")[0] in ("universal", "refined", "reduced")]


def kind(trial: Trial) -> str:
    if trial.stage == "classifier":
        return trial.config["network"]["name"]
    name = f"control:{trial.config['control']}" if trial.stage == "control" else trial.stage
    return f"{name}+critic" if "perception" in trial.terms else name


def own_settings(*overrides: str) -> dict[str, set[str]]:
    """By kind, all that its trials' ids are made of, without the ids of others."""
    found: dict[str, set[str]] = {}
    for trial in plan(EVERY, *overrides):
        others = dict.fromkeys(trial.needs, "")
        found.setdefault(kind(trial), set()).add(trials.trial_id({**trial.config, "needs": others}))
    return found


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ("protocol={quantizer_gradient: identity}", ENCODERS),
        ("protocol={sigma: 2/L}", ENCODERS),
        ("protocol={frozen_batchnorm: batch}", FROZEN),
        ("protocol={generator_every: 2}", WITHOUT),
        ("protocol={n_critic: 2}", CRITIC),
        ("protocol={annealing: 0.1}", ["end_to_end+critic"]),
        ("protocol={annealing: 0.1, annealing_epochs: 3}", ["end_to_end+critic"]),
        ("protocol={milestones: [[1, 0.5]]}", WITHOUT + CRITIC),
        ("protocol={decoder_output_batchnorm: true}", WITHOUT + CRITIC + DECODERS),
        ("train.critic_learning_rate=1e-3", CRITIC),
        ("train.gradient_penalty=1", CRITIC),
        ("train.learning_rate=1e-3", [name for name in WITHOUT + CRITIC if name != "control:random"]),
        ("train.epochs=3", [n for n in (*WITHOUT, *CRITIC, "paper", "mlp") if n != "control:random"]),
        ("train.threads=2", [*WITHOUT, *CRITIC, *DECODERS, "paper", "mlp"]),
        ("stages.refined.*.levels2=5", ["refined", "refined+critic"]),
        ("stages.refined.*.dim2=5", ["refined", "refined+critic"]),
        ("stages.reduced.*.dims=[0]", ["reduced", "reduced+critic"]),
        ("stages.joint.*.train.epochs=3", ["joint", "joint+critic"]),
        ("stages.universal.*.train.batch_size=3", ["universal", "universal+critic"]),
        ("model={name: conv64}", [*WITHOUT, *CRITIC, *DECODERS]),
    ],
    ids=str,
)  # fmt: skip
def test_only_settings_that_can_change_a_trials_numbers_are_in_its_id(overrides, changed):
    before, after = own_settings(), own_settings(overrides)
    assert {name for name in before if before[name] != after[name]} == set(changed)
    assert all(not before[name] & after[name] for name in changed), "every one of them changes"


def test_the_first_releases_trials_carry_no_key_that_came_later():
    later = {"milestones", "annealing", "annealing_epochs", "frozen_batchnorm", "critic_learning_rate", "n_critic"}
    for trial in plan(with_stages(universal={"encoders": "all", "objective": {"distortion": 1}})):
        written = trials.without(trial.config, trials.FIRST_RELEASE)
        assert not later & {*written.get("train", {}), *written.get("protocol", {})}
        assert not {"objectives", "artifacts", "control", "label", "checkpoint"} & written.keys()


# -- variants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["end_to_end", "joint", "universal", "refined", "reduced", "classifier"])
def test_one_mapping_and_a_list_of_one_are_the_same(name):
    section = {
        "end_to_end": {"objective": {"distortion": 1.0, "classification": [0, 0.01]}, "train": {"epochs": 2}},
        "joint": {"objective": {"distortion": 1.0}},
        "universal": {"encoders": "all", "objective": {"distortion": 1.0}},
        "refined": {"encoders": "all", "objective": {"distortion": 1.0}, "dim2": 1, "levels2": 2},
        "reduced": {"encoders": "all", "objective": {"distortion": 1.0}, "dims": [0]},
        "classifier": {"network": "mlp", "seed": 5},
    }[name]
    assert ids(with_stages(**{name: section})) == ids(with_stages(**{name: [section]}))
    assert ids(with_stages(**{name: section})) != ids()


def test_variants_of_a_stage_are_trials_side_by_side_and_shared_ones_are_listed_once():
    objective = {"distortion": 1.0, "classification": [0, 0.01]}
    long = {"objective": objective, "train": {"epochs": 60}}
    both = stage("end_to_end", with_stages(end_to_end=[{"objective": objective}, long, {"objective": objective}]))
    assert [t.id for t in both] == [
        t.id for t in (*stage("end_to_end"), *stage("end_to_end", with_stages(end_to_end=long)))
    ]


def test_a_variants_text_says_what_sets_it_apart_from_the_first():
    objective, identity = {"distortion": 1.0, "classification": [0, 0.01]}, {"quantizer_gradient": "identity"}
    arms = [{}, {"protocol": identity}, {"train": {"epochs": 60}}, {"protocol": identity, "train": {"epochs": 60}}]
    universal = {"encoders": {"classification": 0, "epochs": 30, **identity}, "objective": {"distortion": 2}}
    text = with_stages(
        classifier={"network": "vgg6"},
        end_to_end=[{"objective": objective, **arm} for arm in arms],
        joint=[{"objective": objective, **arm} for arm in (arms[0], arms[3])],
        universal=[
            {"encoders": ["random", "classifier_only"], "objective": {"distortion": 1}},
            universal | {"init": "parent"},
            universal | {"protocol": {"frozen_batchnorm": "batch"}},
        ],
        refined=[
            {"encoders": universal["encoders"], "objective": {"distortion": 1}, "dim2": 1, "levels2": n} for n in (2, 3)
        ],
        reduced=[{"encoders": universal["encoders"], "objective": {"distortion": 1}, "dims": d} for d in ([0, 1], [1])],
    )
    planned = plan(text)
    texts = variants(planned)

    def of(name: str) -> list[str]:
        return list(dict.fromkeys(texts[t.id] for t in planned if t.stage == name))

    words = ["", "quantizer_gradient identity", "epochs 60", "epochs 60, quantizer_gradient identity"]
    assert of("end_to_end") == words
    assert of("joint") == of("joint_decoder") == [words[0], words[3]], "a row is trained as its joint trial was"
    assert of("control") == ["random", "classifier_only"]
    assert of("universal") == ["", "init given", "frozen_batchnorm batch"]
    assert of("refined") == ["", "levels2 3"]
    assert of("reduced") == ["", "dims [1]"]
    joints = {t.id: texts[t.id] for t in planned if t.stage == "joint"}
    for row in (t for t in planned if t.stage == "joint_decoder"):
        assert texts[row.id] == joints[row.needs["encoder"]]


def test_seeds_and_rates_of_a_stage_win_over_the_sweeps():
    rates = [{"dim": 3, "levels": 2}, {"dim": 1, "levels": 4}]
    objective = {"distortion": 1.0}
    text = with_stages(
        end_to_end=[{"objective": objective}, {"objective": objective, "seeds": [7, 8], "rates": rates}],
        joint={"objective": objective, "seeds": [9]},
    )
    rows = [(t.rate.dim, t.rate.levels, t.seed) for t in stage("end_to_end", text, "seeds=[0, 1]")]
    assert rows == [(2, 3, 0), (2, 3, 1), (3, 2, 7), (3, 2, 8), (1, 4, 7), (1, 4, 8)]
    assert [(t.rate.dim, t.seed) for t in stage("joint", text, "seeds=[0, 1]")] == [(2, 9)]


# -- which encoders ----------------------------------------------------------------------------------------------------

ARMS = [
    {"objective": {"distortion": 1.0, "classification": [0, 0.01]}, **settings}
    for settings in (
        {},
        {"train": {"epochs": 60, "decay_at": [0.5]}},
        {"protocol": {"quantizer_gradient": "identity"}},
        {"protocol": {"sigma": "2/L"}, "seeds": [3]},
    )
]


@pytest.mark.parametrize(
    ("encoders", "chosen"),
    [
        ({"epochs": 60}, {(1, 0.0), (1, 0.01)}),
        ({"epochs": 60, "classification": 0}, {(1, 0.0)}),
        ({"epochs": [30, 60], "classification": 0.01}, {(0, 0.01), (1, 0.01), (2, 0.01), (3, 0.01)}),
        ({"quantizer_gradient": "identity"}, {(2, 0.0), (2, 0.01)}),
        ({"quantizer_gradient": "soft", "epochs": 30, "seed": 0}, {(0, 0.0), (0, 0.01)}),
        ({"sigma": "2/L"}, {(3, 0.0), (3, 0.01)}),
        ({"sigma": 1}, {(n, w) for n in (0, 1, 2) for w in (0.0, 0.01)}),
        ({"decay_at": [[0.5]]}, {(1, 0.0), (1, 0.01)}),
        ([{"seed": 3}, {"epochs": 60, "classification": 0}], {(1, 0.0), (3, 0.0), (3, 0.01)}),
        ("all", {(n, w) for n in range(4) for w in (0.0, 0.01)}),
        (["all"], {(n, w) for n in range(4) for w in (0.0, 0.01)}),
    ],
    ids=str,
)  # fmt: skip
def test_encoders_are_selected_by_rate_seed_weights_and_settings_that_differ(encoders, chosen):
    planned = plan(with_stages(end_to_end=ARMS, universal={"encoders": encoders, "objective": {"distortion": [1, 2]}}))
    by_id = {t.id: t for t in planned}

    def arm(parent: Trial) -> int:
        if parent.setting("train", "epochs") == 60:
            return 1
        if parent.setting("protocol", "quantizer_gradient") == "identity":
            return 2
        return 3 if parent.setting("protocol", "sigma") == "2/L" else 0

    universal = [t for t in planned if t.stage == "universal"]
    parents = [by_id[t.needs["encoder"]] for t in universal]
    assert {(arm(p), p.weights["classification"]) for p in parents} == chosen
    assert len(universal) == 2 * len(chosen)
    assert all((t.seed, t.rate) == (p.seed, p.rate) for t, p in zip(universal, parents, strict=True))


def test_controls_are_one_encoder_per_rate_and_seed_that_no_tradeoff_trained():
    text = with_stages(
        universal=[
            {"encoders": ["random", "classifier_only"], "objective": {"distortion": 1.0}},
            {"encoders": [{"classification": 0}, "random"], "objective": {"distortion": 2.0}},
        ],
        reduced={"encoders": "classifier_only", "objective": {"distortion": 1.0}, "dims": [0]},
    )
    overrides = ("seeds=[4, 5]", "rates=[{dim: 2, levels: 3}, {dim: 1, levels: 5}]", "train.epochs=7")
    planned = plan(text, *overrides)
    controls = [t for t in planned if t.stage == "control"]
    cells = [(2, 4), (2, 5), (1, 4), (1, 5)]
    assert [(t.config["control"], t.rate.dim, t.seed) for t in controls] == [
        (name, *cell) for name in ("random", "classifier_only") for cell in cells
    ]
    random, judged = controls[:4], controls[4:]
    classifier = planned[0].id
    assert all((t.setting("train", "epochs"), t.setting("train", "learning_rate")) == (1, 0.0) for t in random)
    assert all((t.weights, dict(t.needs)) == ({"distortion": 1.0}, {}) for t in random)
    assert all((t.setting("train", "epochs"), t.setting("train", "learning_rate")) == (7, 0.01) for t in judged)
    assert all((t.weights, dict(t.needs)) == ({"classification": 1.0}, {"classifier": classifier}) for t in judged)
    built = [(t.stage, t.weights["distortion"], t.needs["encoder"]) for t in planned if "encoder" in t.needs]
    zero = [t.id for t in planned if t.stage == "end_to_end" and t.weights["classification"] == 0]
    assert sorted(built) == sorted(
        [("universal", 1.0, t.id) for t in controls]
        + [("universal", 2.0, t) for t in (*zero, *(t.id for t in random))]
        + [("reduced", 1.0, t.id) for t in judged]
    )
    assert not any(
        t.stage == "control" for t in plan(with_stages(universal={"encoders": "all", "objective": {"distortion": 1}}))
    )


# -- joint, refined, reduced -------------------------------------------------------------------------------------------


def test_a_joint_trial_has_one_decoder_per_weight_and_a_row_for_each():
    joint = {"objective": {"distortion": 1.0, "classification": [0, 0.01], "perception": [0.5, 0]}, "seeds": [0, 3]}
    planned = plan(with_stages(joint=joint))
    points = [(0, 0.5), (0, 0), (0.01, 0.5), (0.01, 0)]
    rows = [t for t in planned if t.stage in ("joint", "joint_decoder")]
    assert [t.stage for t in rows] == ["joint", *["joint_decoder"] * 4] * 2
    for group, seed in ((rows[:5], 0), (rows[5:], 3)):
        head, *decoders = group
        assert (head.seed, head.suffixes, dict(head.needs)) == (
            seed,
            [".0", ".1", ".2", ".3"],
            {"classifier": planned[0].id},
        )
        assert [(o["classification"]["weight"], o["perception"]["weight"]) for o in head.objectives] == points
        assert head.weights == {}
        for index, (row, point) in enumerate(zip(decoders, points, strict=True)):
            assert (row.seed, row.rate) == (seed, head.rate)
            assert (row.weights["classification"], row.weights["perception"]) == point
            assert dict(row.needs) == dict.fromkeys(("encoder", "decoder", "critic"), head.id)
            assert [row.artifact(r) for r in row.needs] == ["encoder", f"decoder.{index}", f"critic.{index}"]
            assert row.setting("train", "epochs") == 0, "nothing is trained there"
    assert refused(with_stages(universal={"encoders": {"stage": "joint"}, "objective": {"distortion": 1}}))


def test_a_joint_row_has_a_critic_only_where_one_was_trained():
    row = stage("joint_decoder", with_stages(joint={"objective": {"distortion": 1.0}}))[0]
    assert set(row.needs) == {"encoder", "decoder"}
    assert row.artifact("decoder") == "decoder.0"


def test_one_weight_written_twice_is_one_decoder():
    once, twice = ({"objective": {"distortion": 1.0, "classification": w}} for w in ([0, 0.01], [0, 0.01, 0.010, 0.0]))
    assert ids(with_stages(joint=twice)) == ids(with_stages(joint=once))


def test_lanes_of_a_pack_agree_in_all_that_is_loaded_once_for_them():
    """A worker loads what the first lane needs and gives it to all: decoders of a joint trial are not alike."""
    packs: dict[str, list[Trial]] = {}
    for trial in plan(EVERY, "seeds=[0, 1]"):
        packs.setdefault(trial.pack_key, []).append(trial)
    assert max(len(pack) for pack in packs.values()) == 2
    for pack in packs.values():
        assert len({json.dumps([dict(t.needs), [t.artifact(r) for r in t.needs]]) for t in pack}) == 1
        assert len({(t.stage, t.seed, t.setting("train", "epochs"), tuple(sorted(t.terms))) for t in pack}) == 1


def test_a_refined_code_costs_both_rates_and_a_reduced_one_what_is_kept():
    encoders = {"encoders": {"classification": 0}, "objective": {"distortion": 1.0}}
    text = with_stages(refined=encoders | {"dim2": 3, "levels2": 4}, reduced=encoders | {"dims": [2, 0]})
    planned = plan(text, "rates=[{dim: 3, levels: 3}]")
    by_stage = {t.stage: t for t in planned}
    refined, reduced, parent = by_stage["refined"], by_stage["reduced"], by_stage["end_to_end"]
    assert parent.rate_bits == pytest.approx(3 * np.log2(3))
    assert (refined.rate, refined.rate_bits) == (parent.rate, pytest.approx(3 * np.log2(3) + 3 * 2))
    assert (reduced.rate, reduced.rate_bits) == (spec.Rate(dim=2, levels=3), pytest.approx(2 * np.log2(3)))
    assert reduced.config["dims"] == [2, 0]
    assert [t.rate_bits for t in planned[:2]] == [None, None], "classifiers"


# -- where weights begin -----------------------------------------------------------------------------------------------


def test_init_names_the_trial_whose_networks_a_trial_begins_with():
    objective = {"distortion": 1.0, "classification": [0, 0.01]}
    text = with_stages(
        end_to_end=[{"objective": objective}, {"objective": {"distortion": 2.0}, "init": {"classification": 0.01}}],
        joint={"objective": objective, "init": {"classification": 0}},
        universal=[
            {"encoders": {"classification": 0}, "objective": {"distortion": 3.0}, "init": "parent"},
            {"encoders": {"classification": 0}, "objective": {"distortion": 4.0}, "init": {"classification": 0.01}},
        ],
    )
    planned = plan(text, "seeds=[0, 1]")
    base = {
        (t.seed, t.weights["classification"]): t.id
        for t in planned
        if "classification" in t.weights and t.stage == "end_to_end"
    }
    begun = {
        (t.stage, t.weights.get("distortion"), t.seed): {r: n for r, n in t.needs.items() if r.startswith("init.")}
        for t in planned
        if any(role.startswith("init.") for role in t.needs)
    }
    both, decoder = ("init.encoder", "init.decoder"), ("init.decoder",)
    expected = [("end_to_end", 2.0, both, 0.01), ("joint", None, both, 0)]
    expected += [("universal", 3.0, decoder, 0), ("universal", 4.0, decoder, 0.01)]
    assert begun == {
        (name, distortion, seed): dict.fromkeys(roles, base[seed, weight])
        for name, distortion, roles, weight in expected
        for seed in (0, 1)
    }
    assert {t.artifact(role) for t in planned for role in t.needs if role.startswith("init.")} == {"encoder", "decoder"}
    again = plan(text.replace('"init": "parent"', '"init": "random"'), "seeds=[0, 1]")
    assert len({t.id for t in planned} ^ {t.id for t in again}) == 4, "of both seeds, with and without"


@pytest.mark.parametrize(("wanted", "parent", "own"), [*itertools.product(("parent", "random", None), (0, 1), (0, 1))])
def test_a_critic_begins_as_the_parents_where_there_is_one(wanted, parent, own):
    objectives = {"distortion": 1.0}, {"distortion": 1.0, "perception": 0.01}
    universal = {"encoders": "all", "objective": objectives[own]} | ({"critic_init": wanted} if wanted else {})
    text = with_stages(end_to_end={"objective": objectives[parent]}, universal=universal)
    if wanted == "parent" and not parent:
        assert "this encoder's trial has no critic" in refused(text)
        return
    (trial,), (base,) = stage("universal", text), stage("end_to_end", text)
    begins = {"init.critic": base.id} if wanted != "random" and parent and own else {}
    assert dict(trial.needs) == {"encoder": base.id} | begins


# -- label sets --------------------------------------------------------------------------------------------------------

LABELS = with_stages(
    end_to_end=[{"objective": {"distortion": 1, term: 0.01}} for term in ("classification", "classification.parity")],
    universal={
        "encoders": {"classification": 0.01},
        "objective": {"distortion": 1, "classification": 0, "classification.parity": 1},
    },
)


def test_a_label_set_that_an_objective_names_has_two_classifiers_that_judge_everything():
    planned = plan(LABELS)
    judges, compressors = planned[:4], planned[4:]
    assert [(t.stage, t.config["network"]["name"], t.seed, t.config.get("label")) for t in judges] == [
        ("classifier", "paper", 0, None),
        ("classifier", "mlp", 1, None),
        ("classifier", "paper", 0, "parity"),
        ("classifier", "mlp", 1, "parity"),
    ]
    roles = ["classifier", "heldout_classifier", "classifier.parity", "heldout_classifier.parity"]
    by_role = dict(zip(roles, (t.id for t in judges), strict=True))
    assert all(t.evaluators == by_role for t in compressors)
    assert all(t.evaluators == {} for t in judges)
    first, second, universal = compressors
    assert dict(first.needs) == {"classifier": by_role["classifier"]}
    assert dict(second.needs) == {"classifier.parity": by_role["classifier.parity"]}
    assert dict(universal.needs) == {
        "encoder": first.id, "classifier": by_role["classifier"], "classifier.parity": by_role["classifier.parity"],
    }  # fmt: skip
    assert universal.weights == {"classification": 0.0, "classification.parity": 1.0, "distortion": 1.0}
    assert universal.artifact("classifier.parity") == "classifier"
    assert [t.id for t in plan()[:2]] == [t.id for t in judges[:2]], "another label set does not change the first's"


@pytest.mark.parametrize(
    ("entries", "networks"),
    [
        ([{"network": "vgg6"}], ("vgg6", "vgg6")),
        ([{"network": "vgg6"}, {"network": "mlp", "label": "parity"}], ("vgg6", "mlp")),
        ([{"network": "mlp", "label": "parity"}, {"network": "vgg6"}], ("vgg6", "mlp")),
        ([{"network": "mlp", "label": "digit"}, {"network": "vgg6"}], ("mlp", "vgg6")),
        ([{"network": "vgg6", "label": "parity"}, {"network": "mlp", "label": "digit"}], ("mlp", "vgg6")),
        ([{"network": "vgg6", "label": "parity"}], ("paper", "vgg6")),
        ([{"network": "vgg6", "label": "digit"}], ("vgg6", "paper")),
    ],
)
def test_an_entry_with_a_label_is_for_that_label_set_only(entries, networks):
    """The default stays the classifier of a label set that no entry is for."""
    by_id = {t.id: t for t in plan(LABELS, f"stages.classifier={json.dumps(entries)}")}
    judge = next(iter(t.evaluators for t in by_id.values() if t.stage == "universal"))
    found = tuple(by_id[judge[role]].config["network"]["name"] for role in ("classifier", "classifier.parity"))
    assert found == networks
    assert by_id[judge["classifier.parity"]].config["label"] == "parity"
    assert "label" not in by_id[judge["classifier"]].config


def test_a_checkpoint_without_a_label_is_for_the_primary_label_set_only(tmp_path):
    (tmp_path / "c.safetensors").write_bytes(save({"w": np.zeros(1)}))
    (tmp_path / "sweep.yaml").write_text(LABELS)
    sweep = spec.load(tmp_path / "sweep.yaml", ("stages.classifier={checkpoint: c.safetensors, network: vgg6}",))
    first, _, parity, _ = expand(sweep)[:4]
    assert ("checkpoint" in first.config, first.config["network"]["name"]) == (True, "vgg6")
    assert ("checkpoint" in parity.config, parity.config["label"], parity.setting("train", "epochs")) == (
        False, "parity", 30,
    )  # fmt: skip


def test_labels_of_data_without_a_pin_are_those_that_reading_it_showed():
    text = HEAD.replace("digits", "folder, path: x") + LABELS.partition("stages")[1] + LABELS.partition("stages")[2]
    text = text.replace("classification.parity", "classification.colour")
    sweep = spec.parse(text, "f.yaml")
    planned = expand(sweep, Known("a" * 64, (1, 28, 28), ("class", "colour")))
    assert [t.config.get("label") for t in planned[:4]] == [None, None, "colour", "colour"]
    assert planned[0].config["dataset"] == {"name": "folder", "version": 1, "sha256": "a" * 64}, "without its place"
    for known, message in (
        (Known("a" * 64, (1, 28, 28), ("class",)), "folder has no label set 'colour'; choices: class"),
        (Known("a" * 64, (1, 28, 28), ("colour",)), "colour is the primary label set; write classification"),
        (
            Known("a" * 64, (3, 32, 32), ("class", "colour")),
            "model 'paper' is made for images of 28x28x1, folder has 32x32x3; choices: conv64",
        ),
    ):
        with pytest.raises(SpecError) as caught:
            expand(sweep, known)
        assert message in str(caught.value)


def test_a_classifier_from_a_file_is_named_by_its_bytes(tmp_path):
    (tmp_path / "c.safetensors").write_bytes(save({"w": np.zeros(2)}))
    path = tmp_path / "sweep.yaml"
    path.write_text(PLAIN)

    def first(*overrides: str) -> Trial:
        return expand(spec.load(path, ("stages.classifier.checkpoint=c.safetensors", *overrides)))[0]

    given = first()
    assert (given.stage, given.setting("train", "epochs")) == ("classifier", 0)
    assert given.id != plan()[0].id
    assert given.id == first("stages.classifier.train={epochs: 9, learning_rate: 1}", "train.epochs=3").id
    assert given.id == first("stages.classifier.seed=9").id, "nothing is drawn"
    assert given.id != first("stages.classifier.network=vgg6").id
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "sweep.yaml")
    (tmp_path / "c.safetensors").rename(moved / "other.safetensors")
    path = moved / "sweep.yaml"
    assert given.id == first("stages.classifier.checkpoint=other.safetensors").id, "relative to the sweep file"
    same = "stages.heldout_classifier={network: paper, checkpoint: other.safetensors}"
    with pytest.raises(SpecError, match="is the very classifier that losses see"):
        first("stages.classifier.checkpoint=other.safetensors", same)
    (moved / "other.safetensors").write_bytes(save({"w": np.ones(2)}))
    assert given.id != first("stages.classifier.checkpoint=other.safetensors").id


# -- --set with * ------------------------------------------------------------------------------------------------------


def test_a_star_is_every_item_of_a_list():
    text = with_stages(end_to_end=ARMS, joint={"objective": {"distortion": 1}})
    sweep = spec.parse(text, overrides=("stages.end_to_end.*.train.epochs=5", "stages.end_to_end.1.train.epochs=6"))
    assert [section.train.epochs for section in sweep.stages.end_to_end] == [5, 6, 5, 5]
    assert sweep.stages.end_to_end[1].train.decay_at == [0.5], "the keys beside it stay"
    assert spec.parse(text, overrides=("rates.*.dim=7",)).rates[0].dim == 7
    sweep = spec.parse(
        text, overrides=("stages.end_to_end.*.objective.classification=[0]", "seeds=[1, 2]", "seeds.*=4")
    )
    assert [section.objective["classification"] for section in sweep.stages.end_to_end] == [[0.0]] * 4
    assert sweep.seeds == [4, 4]


def test_a_star_works_below_items_and_below_another_star():
    rates = [{"dim": 1, "levels": 2}, {"dim": 2, "levels": 2}]
    text = with_stages(end_to_end=[{"objective": {"distortion": w}, "rates": rates} for w in (1, 2)])
    for overrides, dims in (
        (["stages.end_to_end.1.rates.*.dim=5"], [[1, 2], [5, 5]]),
        (["stages.end_to_end.*.rates.*.dim=5"], [[5, 5], [5, 5]]),
        (["stages.end_to_end.*.rates.0.dim=5"], [[5, 2], [5, 2]]),
    ):
        sweep = spec.parse(text, overrides=tuple(overrides))
        assert [[rate.dim for rate in section.rates] for section in sweep.stages.end_to_end] == dims


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.end_to_end.*.train.epochs=1", "stages.end_to_end is not a list in the sweep file"),
        ("stages.joint.*.train.epochs=1", "stages.joint is not a list in the sweep file"),
        ("seeds.*.x=1", "seeds is not a list in the sweep file"),
        ("rates.*.dims=1", "rates[0].dims: unknown key; did you mean 'dim'? choices: dim, levels"),
        ("rates.*.dim=0", "rates[0].dim: should be greater than or equal to 1, not 0"),
    ],
)
def test_a_star_that_cannot_be_followed_is_one_line(override, message):
    assert refused(PLAIN, override) == f"--set {override}: {message}"


# -- sizes -------------------------------------------------------------------------------------------------------------

COUNT = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))  # expanding any of them would need far more
from urc_sweep.errors import SpecError
from urc_sweep.plan import spec
from urc_sweep.plan.expand import expand
for text in json.load(sys.stdin):
    try:
        print(len(expand(spec.parse(text, "f.yaml"))))
    except SpecError as error:
        print(error, flush=True)
"""


def test_a_sweep_that_is_too_large_is_counted_in_any_stage_and_never_expanded():
    vast = {
        term: list(range(1, 301)) for term in ("distortion", "classification", "perception", "classification.parity")
    }
    points = 300**4
    cases = {
        "end_to_end": ({"objective": vast}, points),
        "joint": ({"objective": vast}, points + 2),
        "universal": ({"objective": vast, "encoders": "all"}, 2 * points + 2),
        "universal of one": ({"objective": vast, "encoders": {"classification": 0}}, points + 2),
        "universal of a list": ({"objective": vast, "encoders": [{"classification": 0}]}, points + 2),
        "universal of all and a control": ({"objective": vast, "encoders": ["all", "random"]}, 3 * points + 3),
        "refined": ({"objective": vast, "encoders": {"dim": 2}, "dim2": 1, "levels2": 2}, points + 2),
        "reduced": ({"objective": vast, "encoders": {"dim": 2}, "dims": [0]}, points + 2),
    }
    texts = [with_stages(**{name.partition(" ")[0]: section}) for name, (section, _) in cases.items()]
    # A million control encoders, though the stages' own rates and seeds are few.
    few = {"objective": {"distortion": 1}, "rates": [{"dim": 1, "levels": 2}], "seeds": [0]}
    controls = with_stages(end_to_end=few, universal={"encoders": "random", "objective": {"distortion": 1}})
    many = "".join(f"{{dim: {n}, levels: 2}}, " for n in range(1, 1001))
    controls = controls.replace("[{dim: 2, levels: 3}]", f"[{many}]\nseeds: {list(range(1000))}")
    done = subprocess.run(
        [sys.executable, "-c", COUNT], input=json.dumps([*texts, controls]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    message = re.compile(r"f.yaml:[0-9:]+ stages: ([0-9,]+) trials; a sweep may have 100,000")
    counts = [int(message.fullmatch(line)[1].replace(",", "")) for line in done.stdout.splitlines()]
    # Chosen encoders count once here, and in full as soon as they are known.
    expected = {name: count for name, (_, count) in cases.items()} | {"controls": 2_000_001}
    assert dict(zip(expected, counts, strict=True)) == expected


def test_many_trials_that_begin_with_others_are_planned_in_linear_time():
    """300 warm starts are not looked up one by one among all trials: 50,000 of them would take hours."""
    objective = {"objective": {"distortion": 1.0}}
    text = with_stages(end_to_end=[objective, {"objective": {"distortion": 2.0}, "init": {"distortion": 1}}])
    calls = []
    tracer = sys.getprofile()
    sys.setprofile(
        lambda frame, event, _: calls.extend([1] * (event == "call" and frame.f_code.co_name == "settings_of"))
    )
    try:
        planned = plan(text, f"seeds={list(range(300))}")
    finally:
        sys.setprofile(tracer)
    assert sum("init.encoder" in t.needs for t in planned) == 300
    assert len(calls) < 40 * len(planned)


# -- any combination of stages -----------------------------------------------------------------------------------------

TERMS = {"distortion": [1.0], "classification": [0, 0.01], "classification.parity": [0.1], "perception": [0, 0.5]}


@st.composite
def objectives(draw):
    extra = draw(st.sets(st.sampled_from([term for term in TERMS if term != "distortion"]), max_size=2))
    return {term: TERMS[term] for term in ("distortion", *sorted(extra))}


@st.composite
def studies(draw):
    protocols = st.sampled_from([None, "sound", "zhang2021", "paper", {"quantizer_gradient": "identity"}])

    def section(**more):
        own = {"objective": draw(objectives())} | more
        protocol, epochs = draw(protocols), draw(st.sampled_from([None, 2]))
        return own | ({"protocol": protocol} if protocol else {}) | ({"train": {"epochs": epochs}} if epochs else {})

    def many(make, least=0):
        made = [make() for _ in range(draw(st.integers(least, 2)))]
        return made[0] if len(made) == 1 and draw(st.booleans()) else made

    def encoders():
        return draw(st.sampled_from(["all", "random", ["classifier_only", "all"], {"seed": 0}, [{"dim": 2}, "random"]]))

    def decoder():
        return {"encoders": encoders(), "init": draw(st.sampled_from(["random", "parent"]))}

    stages = {
        "end_to_end": many(section, 1),
        "joint": many(section),
        "universal": many(lambda: section(**decoder())),
        "refined": many(lambda: section(encoders=encoders(), dim2=1, levels2=2)),
        "reduced": many(lambda: section(encoders=encoders(), dims=draw(st.sampled_from([[0], [1, 0]])))),
    }
    return {
        "name": "h",
        "dataset": {"name": "digits"},
        "rates": [{"dim": dim, "levels": 3} for dim in draw(st.sampled_from([(2,), (2, 3)]))],
        "seeds": draw(st.sampled_from([[0], [0, 4]])),
        "protocol": draw(protocols) or "sound",
        "stages": {name: sections for name, sections in stages.items() if sections},
    }


@given(studies())
def test_whatever_stages_are_combined_who_is_needed_comes_first(tree):
    planned = expand(spec.Sweep.model_validate(tree))
    assert expand(spec.Sweep.model_validate(tree)) == planned
    by_id: dict[str, Trial] = {}
    packs: dict[str, set[str]] = {}
    listed = [sections if isinstance(sections, list) else [sections] for sections in tree["stages"].values()]
    named = {term for section in itertools.chain(*listed) for term in section["objective"]}
    labels = [""] + [".parity"] * ("classification.parity" in named)
    for trial in planned:
        assert trial.id not in by_id
        assert trials.trial_id(trial.config) == trial.id
        assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
        assert set(trial.required) <= by_id.keys(), "who is needed comes first"
        by_id[trial.id] = trial
        if trial.stage == "classifier":
            continue
        assert set(trial.evaluators) == {
            role + label for role in ("classifier", "heldout_classifier") for label in labels
        }
        packs.setdefault(trial.pack_key, set()).add(json.dumps([dict(trial.needs), trial.config.get("artifacts")]))
        parents = {role: by_id[need] for role, need in trial.needs.items()}
        frozen = {role for role in parents if not role.startswith("init.")}
        expected = {
            "classifier" + t.removeprefix("classification") for t in trial.terms if t.startswith("classification")
        }
        critic = "perception" in trial.terms
        if trial.stage == "joint_decoder":
            expected = {"encoder", "decoder"} | ({"critic"} if critic else set())
            assert {parent.stage for parent in parents.values()} == {"joint"}
        elif trial.stage in ("universal", "refined", "reduced"):
            expected |= {"encoder"}
            parent = parents["encoder"]
            assert parent.stage in ("end_to_end", "control")
            assert (parent.seed, parent.config["rate"]) == (trial.seed, trial.config["rate"])
            begins = {"init.critic"} if critic and "perception" in parent.terms else set()
            assert {role for role in parents if role.startswith("init.")} - {"init.decoder"} == begins
        assert frozen == expected
    assert all(len(loaded) == 1 for loaded in packs.values()), "lanes of a pack share what is loaded"


# -- the sweeps of the paper -------------------------------------------------------------------------------------------


def reduced_command(path: Path) -> list[str]:
    """The command that the file's header gives for small machines."""
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    (start,) = [number for number, line in enumerate(lines) if line.startswith("urc-sweep launch")]
    command = list(itertools.takewhile(lambda line: line.endswith("\\"), lines[start:]))
    command.append(lines[start + len(command)])
    return shlex.split(" ".join(line.removesuffix("\\") for line in command))


def test_every_figure_has_its_sweep():
    assert {path.stem for path in PAPER} >= {"fig4", "fig5", "fig6", "fig7", "gap", "rdp", "refined", "svhn"}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_sweeps_plan_in_full_and_reduced_as_their_headers_say(path, tmp_path):
    full, trials_of_all = plan_of_launch(str(path), Options())
    program, verb, name, *words = reduced_command(path)
    assert (program, verb, ROOT / name) == ("urc-sweep", "launch", path)
    assert set(words[::2]) == {"--set"}
    if "tinted.npz" in words[1]:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / "tinted.npz", images=images, labels=np.arange(100) % 10)
    small, few = plan_of_launch(str(path), Options(overrides=tuple(words[1::2]), data_root=str(tmp_path)))
    assert {t.stage for t in few} == {t.stage for t in trials_of_all}, "every stage is still there"
    assert len(few) < len(trials_of_all)
    assert max(t.setting("train", "epochs") for t in few if t.stage not in ("classifier",)) <= 2
    assert {t.config["model"]["width"] for t in few if "model" in t.config} <= {0.25, 0.125}
    assert full.name == small.name == path.stem
    for name in spec.COMPRESSORS:
        arms, kept = (
            [spec.protocol_of(sweep, section).settings for section in getattr(sweep.stages, name)]
            for sweep in (full, small)
        )
        assert kept == arms, "no arm is lost"


def test_the_decisive_study_pairs_every_arm():
    """Section 8 of science.md: in each arm end-to-end at 5 weights, universal decoders on two encoders, by seed."""
    _, planned = plan_of_launch(str(ROOT / "sweeps" / "paper" / "gap.yaml"), Options())
    by_id = {t.id: t for t in planned}
    texts = variants(planned)
    ends: dict[str, set[tuple[int, float]]] = {}
    for t in planned:
        if t.stage == "end_to_end":
            ends.setdefault(texts[t.id], set()).add((t.seed, t.weights["classification"]))
    arms = ["", "quantizer_gradient identity", "epochs 90", "epochs 90, quantizer_gradient identity"]
    cells = {(seed, weight) for seed in range(5) for weight in (0, 0.0025, 0.005, 0.008, 0.015)}
    assert ends == dict.fromkeys(arms, cells)
    parents = {(texts[t.needs["encoder"]], by_id[t.needs["encoder"]].weights["classification"],
                t.setting("protocol", "frozen_batchnorm"), t.setting("train", "epochs"))
               for t in planned if t.stage == "universal"}  # fmt: skip
    assert parents == {
        (arm, weight, norm, 90 if "90" in arm else 30)
        for arm in arms
        for weight in (0, 0.015)
        for norm in ("eval", "batch")
    }
    rows = {(texts[t.id], t.seed, t.weights["classification"]) for t in planned if t.stage == "joint_decoder"}
    assert rows == {(arm, *cell) for arm in ("", arms[3]) for cell in cells}
