"""Sweep to trials: what is in an id, what is not, who needs whom."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urc_sweep.errors import SpecError
from urc_sweep.plan import registry, spec, trials
from urc_sweep.plan.expand import Known, expand
from urc_sweep.plan.trials import Trial

TINY = """
name: tiny
dataset: {name: digits}
rates: [{dim: 2, levels: 3}]
stages:
  end_to_end:
    objective: {distortion: 1.0, classification: [0.01]}
  universal:
    encoders: {classification: 0.01}
    objective: {distortion: 1.0, classification: 0.02}
"""
GRID = """
name: grid
dataset: {name: digits}
rates: [{dim: 2, levels: 3}, {dim: 4, levels: 2}]
seeds: [0, 7]
stages:
  end_to_end:
    objective: {distortion: 1.0, classification: [0, 0.01, 0.02]}
  universal:
    encoders: [{dim: 4, classification: [0.01, 0.02]}, {seed: 7, dim: 2, classification: 0}]
    objective: {distortion: [1, 2]}
"""
RANDOM = """
name: drawn
dataset: {name: digits}
rates: [{dim: 2, levels: 3}]
search: {strategy: random, samples: 4, seed: 5}
stages:
  end_to_end:
    objective: {distortion: [1.0, 2.0], classification: {low: 1e-3, high: 1.0}}
"""


def plan(text: str = TINY, *overrides: str) -> list[Trial]:
    return expand(spec.parse(text, overrides=overrides))


def ids(text: str = TINY, *overrides: str) -> list[str]:
    return [trial.id for trial in plan(text, *overrides)]


def stage(name: str, text: str = TINY, *overrides: str) -> list[Trial]:
    return [trial for trial in plan(text, *overrides) if trial.stage == name]


# Pinned. Whoever has trained these trials finds them by these names: change one only together with a raised version of
# the component that now computes other numbers, or LOOP_VERSION. Regenerate: print(ids()) here.
PINNED = {
    "classifier": "2bd7a55f634f362c5ba5e8ad4be1d26561e8f6e0d74b4d72f7a8b8e44333cc32",
    "heldout_classifier": "c3a15358aaddb0614a4eb7c288159e9970c81d75c1a94afd1b17ba6e1c1d4436",
    "end_to_end": "afe312f8bf3659ab600da09200b86cfd493d8792d20f60465e98530ed5a240dd",
    "universal": "289128fbcd9343a8b74b7675675c0e59bf19869081832263c72ea0379384e9bd",
}
EVALUATIONS = [
    "dc58a3795e73bab2156cb9b81043850e34b8ca12edbcefa6a7eb4184e9db8891",
    "039f2af47b1e87e50397e8799e8d8c395dee89b6f7db9910f402f9c74ffee498",
    "254ff9e0a55c39a43aca5fe9947baf11450beac5f860e4069b9506cf2151e4be",
    "f32dc5b711ab632c5117c152c494632cdbc3e322b0c79b4397a1b68e996cfca1",
]


def test_ids_are_pinned():
    assert dict(zip(PINNED, ids(), strict=True)) == PINNED


def test_evaluation_ids_are_pinned():
    """Pinned like ids, but a new metric or a raised version of one changes them: everything is evaluated again."""
    assert [trial.evaluation_id for trial in plan()] == EVALUATIONS


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("name=other",),
        ("resources.cpus=4", "resources.gpus=0.5", "resources.lanes=3", "resources.checkpoint_minutes=0"),
        ("stages.universal.resources.cpus=2",),
        ("budget.hours=1",),
        ("search.seed=9", "search.samples=3"),  # a grid draws nothing
        ("model={name: paper}",),
        ("model={name: paper, width: 1}",),  # 1 for 1.0
        ("seeds=[0]", "seeds=[0, 0]"),
        ("protocol=sound",),
        ("protocol={sigma: 1, quantizer_gradient: soft}",),
        ("train={epochs: 30, batch_size: 64, learning_rate: 1e-2, betas: [0.5, 0.9], decay: 0.2, precision: fp32}",),
        ("train.threads=1", "stages.universal.train={threads: 1}"),
        ("stages.classifier={network: paper, seed: 0, train: {learning_rate: 0.001}}",),
        ("stages.heldout_classifier={network: mlp, seed: 1}",),
        ("stages.end_to_end.objective={classification: 0.010, distortion: [1, 1.0]}",),  # order, scalar, twice
        ("stages.universal.encoders=all",),
        ("stages.universal.encoders=[{dim: 2, levels: 3, seed: 0, distortion: 1}, {classification: [0.01]}]",),
    ],
    ids=" ".join,
)
def test_what_changes_no_number_changes_no_id(overrides):
    assert ids(TINY, *overrides) == ids()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("dataset.name=mnist", "ceu h"),
        ("model={name: paper, width: 0.5}", "eu"),
        ("rates.0.dim=3", "eu"),
        ("rates.0.levels=4", "eu"),
        ("seeds=[1]", "eu"),
        ("protocol.sigma=2", "eu"),
        ("protocol.quantizer_gradient=identity", "eu"),
        ("train.epochs=31", "ceu h"),
        ("train.batch_size=65", "ceu h"),
        ("train.threads=2", "ceu h"),
        ("train.decay=0.3", "ceu h"),
        ("train.decay_at=[0.5]", "eu"),  # a classifier has its own default
        ("train.learning_rate=0.02", "eu"),
        ("train.betas=[0.5, 0.99]", "eu"),
        ("stages.end_to_end.objective.classification=0.01", ""),
        ("stages.end_to_end.objective.distortion=2", "eu"),
        ("stages.end_to_end.train.epochs=2", "eu"),
        ("stages.universal.objective.classification=0.03", "u"),
        ("stages.universal.objective={distortion: 1}", "u"),
        ("stages.universal.train.epochs=2", "u"),
        ("stages.classifier.seed=3", "ceu"),
        ("stages.classifier.train.epochs=2", "ceu"),
        ("stages.classifier.network=mlp", "ceu"),
        ("stages.heldout_classifier.seed=3", "h"),
    ],
)
def test_what_changes_numbers_changes_the_ids_that_depend_on_it(override, changed):
    """c: classifier, h: held-out classifier, e: end-to-end, u: universal."""
    pairs = zip("cheu", ids(), ids(TINY, override), strict=True)
    assert {key for key, before, after in pairs if before != after} == set(changed.replace(" ", ""))


def test_versions_change_the_ids_of_those_who_use_the_component(monkeypatch):
    before = ids()

    def raised(kind, name):
        known = dict(registry._built_in())
        known[kind, name] = registry.Component(**{**vars(known[kind, name]), "version": 2})
        monkeypatch.setattr(registry, "_built_in", lambda: known)
        changed = {key for key, one, other in zip("cheu", before, ids(), strict=True) if one != other}
        monkeypatch.undo()
        return changed

    assert raised("term", "distortion") == raised("term", "classification") == raised("model", "paper") == set("eu")
    assert raised("dataset", "digits") == set("cheu")
    assert raised("classifier", "mlp") == {"h"}
    assert raised("classifier", "paper") == set("ceu")
    assert raised("metric", "mse") == set()
    monkeypatch.setattr("urc_sweep.plan.expand.LOOP_VERSION", 2)
    assert not set(before) & set(ids())


def test_an_id_depends_on_every_key_of_a_configuration():
    """Whatever is added to a configuration later, precision modes and parents included, cannot be forgotten."""
    (universal,) = stage("universal")

    def leaves(value, path=()):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from leaves(item, (*path, key))
        else:
            yield path

    def changed(value, path):
        if not path:
            return [*value, 0.25] if isinstance(value, list) else f"{value} or so"
        return {**value, path[0]: changed(value[path[0]], path[1:])}

    paths = list(leaves(universal.config))
    assert ("train", "precision") in paths
    assert ("needs", "encoder") in paths
    others = {trials.trial_id(changed(universal.config, path)) for path in paths}
    assert len(others | {universal.id}) == len(paths) + 1
    assert trials.trial_id({**universal.config, "added": {"later": None}}) != universal.id


def test_an_evaluation_is_named_by_trial_metrics_and_evaluators(monkeypatch):
    before = {trial.id: trial.evaluation_id for trial in plan()}
    judged = {trial.id: trial.evaluation_id for trial in plan(TINY, "stages.heldout_classifier.seed=3")}
    same = [trial_id for trial_id in before if trial_id in judged and before[trial_id] == judged[trial_id]]
    assert same == [PINNED["classifier"]], "compressors have another judge, though their training is the same"
    known = dict(registry._built_in())
    known["metric", "ssim"] = registry.Component(**{**vars(known["metric", "ssim"]), "version": 9})
    monkeypatch.setattr(registry, "_built_in", lambda: known)
    after = {trial.id: trial.evaluation_id for trial in plan()}
    assert after.keys() == before.keys()
    assert [before[t] == after[t] for t in before] == [True, True, False, False]


# -- needs -------------------------------------------------------------------------------------------------------------


def test_presence_of_a_term_decides_what_is_needed():
    (present,) = stage("end_to_end", TINY.replace("[0.01]", "[0]").replace("{classification: 0.01}", "all"))
    assert present.weights == {"classification": 0.0, "distortion": 1.0}
    assert dict(present.needs) == {"classifier": PINNED["classifier"]}
    (absent,) = stage("universal", TINY, "stages.universal.objective={distortion: 1}")
    assert dict(absent.needs) == {"encoder": PINNED["end_to_end"]}
    (both,) = stage("universal")
    assert dict(both.needs) == {"encoder": PINNED["end_to_end"], "classifier": PINNED["classifier"]}
    assert present.id != stage("end_to_end", TINY, "stages.end_to_end.objective={distortion: 1}",
                               "stages.universal.encoders=all")[0].id  # fmt: skip


def test_everything_is_judged_by_both_classifiers_and_they_by_nobody():
    first, second, *compressors = plan()
    assert (first.evaluators, second.evaluators, first.needs, second.needs) == ({}, {}, {}, {})
    for trial in compressors:
        assert trial.evaluators == {"classifier": first.id, "heldout_classifier": second.id}


def test_a_grid_is_every_combination_in_plan_order():
    rows = [(t.rate.dim, t.seed, t.weights["classification"]) for t in stage("end_to_end", GRID)]
    assert rows == [(d, s, w) for d in (2, 4) for s in (0, 7) for w in (0.0, 0.01, 0.02)]


def test_a_universal_trial_takes_seed_rate_and_encoder_from_its_parent():
    by_id = {trial.id: trial for trial in plan(GRID)}
    universal = stage("universal", GRID)
    parents = [by_id[trial.needs["encoder"]] for trial in universal]
    chosen = [(p.rate.dim, p.seed, p.weights["classification"]) for p in parents]
    expected = [(2, 7, 0.0), (4, 0, 0.01), (4, 0, 0.02), (4, 7, 0.01), (4, 7, 0.02)]
    assert chosen == [row for row in expected for _ in (1, 2)]
    assert [(t.seed, t.rate) for t in universal] == [(p.seed, p.rate) for p in parents]
    assert [t.weights for t in universal] == [{"distortion": 1.0}, {"distortion": 2.0}] * 5


def test_sweeps_share_the_trials_that_they_have_in_common():
    shared = set(ids(GRID)) & set(ids(GRID, "name=again", "seeds=[7, 8]", "stages.universal.encoders=[{seed: 7}]"))
    kinds = [trial.stage for trial in plan(GRID) if trial.id in shared]
    assert (kinds.count("classifier"), kinds.count("end_to_end"), kinds.count("universal")) == (2, 6, 6)


def test_a_held_out_judge_that_losses_see_is_refused():
    with pytest.raises(SpecError, match=r"stages\.heldout_classifier: is the very classifier that losses see"):
        plan(TINY, "stages.heldout_classifier={network: paper, seed: 0}")


def test_a_trial_survives_json():
    for trial in plan(GRID):
        again = Trial.from_json(trial.to_json())
        assert again == trial
        assert (again.pack_key, again.rate, again.weights) == (trial.pack_key, trial.rate, trial.weights)
        assert trials.trial_id(again.config) == trial.id


def test_packs_share_all_but_weights():
    keys = {trial.id: trial.pack_key for trial in plan(GRID)}
    groups = [{keys[t.id] for t in plan(GRID) if t.stage == "end_to_end" and (t.rate.dim, t.seed) == group}
              for group in ((2, 0), (2, 7), (4, 0), (4, 7))]  # fmt: skip
    assert [len(group) for group in groups] == [1] * 4
    assert len(set.union(*groups)) == 4
    assert len({keys[t.id] for t in stage("universal", GRID)}) == 5, "one per parent"
    without = stage("end_to_end", TINY, "stages.end_to_end.objective={distortion: 1}", "stages.universal.encoders=all")
    assert without[0].pack_key != stage("end_to_end")[0].pack_key


# -- data and random search --------------------------------------------------------------------------------------------


def test_data_without_a_published_hash_is_named_by_its_bytes(monkeypatch):
    known = dict(registry._built_in())
    digits = known["dataset", "digits"]
    facts = {key: value for key, value in digits.facts.items() if key != "sha256"}
    known["dataset", "digits"] = registry.Component(**{**vars(digits), "facts": facts})
    monkeypatch.setattr(registry, "_built_in", lambda: known)
    sweep = spec.parse(TINY)
    one, other = ([t.id for t in expand(sweep, Known(data))] for data in ("a" * 64, "b" * 64))
    assert not set(one) & set(other)
    assert [t.id for t in expand(sweep, Known(digits.facts["sha256"]))] == list(PINNED.values())


def drawn(*overrides: str) -> list[tuple[float, float]]:
    return [(t.weights["distortion"], t.weights["classification"]) for t in stage("end_to_end", RANDOM, *overrides)]


def test_random_points_are_pinned():
    # Regenerate: print(drawn()); raise the version of search.random with them.
    assert drawn() == [(1.0, 0.82836), (2.0, 0.00595448), (2.0, 0.0243853), (1.0, 0.507153)]


def test_more_samples_and_more_terms_keep_the_points_drawn_before():
    assert drawn("search.samples=9")[:4] == drawn()
    alone = stage("end_to_end", RANDOM, "stages.end_to_end.objective={classification: {low: 1e-3, high: 1.0}}")
    assert [trial.weights["classification"] for trial in alone] == [c for _, c in drawn()]
    assert not set(drawn("search.seed=6")) & set(drawn())


def test_random_points_cover_lists_and_ranges_evenly():
    points = drawn("search.samples=2000")
    assert 900 < sum(d == 1.0 for d, _ in points) < 1100
    assert {d for d, _ in points} == {1.0, 2.0}
    logs = [math.log10(c) for _, c in points]
    assert -3 <= min(logs) <= max(logs) <= 0
    for low in (-3, -2, -1):  # three decades, a third each
        assert 570 < sum(low <= value < low + 1 for value in logs) < 760
    linear = drawn("search.samples=2000", "stages.end_to_end.objective.classification.scale=linear")
    assert 0.45 < sum(c for _, c in linear) / 2000 < 0.55
    assert all(float(f"{c:.6g}") == c for _, c in points + linear)


@st.composite
def sweeps(draw):
    weights = st.lists(st.sampled_from([0.01, 1e-4, 3]), min_size=1, max_size=3)
    terms = draw(st.sampled_from([("distortion",), ("classification",), ("distortion", "classification")]))
    objective = {term: draw(weights) for term in terms}
    rates = draw(st.lists(st.sampled_from([(1, 2), (2, 3), (3, 4)]), min_size=1, max_size=3))
    encoders = draw(st.sampled_from(["all", {terms[0]: objective[terms[0]]}, [{"dim": rates[0][0]}, {}]]))
    return {
        "name": "h",
        "dataset": {"name": "digits"},
        "rates": [{"dim": dim, "levels": levels} for dim, levels in rates],
        "seeds": draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)),
        "stages": {
            "end_to_end": {"objective": objective},
            "universal": {"encoders": encoders, "objective": {"distortion": draw(weights)}},
        },
    }


@given(sweeps(), st.randoms(use_true_random=False))
def test_expanding_is_deterministic_unique_and_in_order_of_needs(tree, shuffler):
    def shuffled(value):
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in sorted(value, key=lambda _: shuffler.random())}

    planned = expand(spec.Sweep.model_validate(tree))
    assert expand(spec.Sweep.model_validate(tree)) == planned
    seen: set[str] = set()
    for trial in planned:
        assert trial.id not in seen
        assert {*trial.needs.values(), *trial.evaluators.values()} <= seen, "who is needed comes first"
        seen.add(trial.id)
    assert {trial.id for trial in expand(spec.Sweep.model_validate(shuffled(tree)))} == seen
