"""Sweep files, wrong and right. Those in ``wrong/`` end in what a person should see: ``# expect: line:col: ...``"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urc_sweep.errors import SpecError
from urc_sweep.plan import document, spec
from urc_sweep.plan.expand import expand

WRONG = sorted((Path(__file__).parent / "wrong").glob("*.yaml"))
SHORT = """\
name: tiny
dataset: {name: digits}
rates: [{dim: 2, levels: 3}]
stages: {end_to_end: {objective: {distortion: 1}}}
"""


def problems(text: str, *overrides: str, source: str = "f.yaml") -> list[str]:
    """The lines of the error that reading and expanding a sweep file ends with."""
    with pytest.raises(SpecError) as caught:
        expand(spec.parse(text, source, overrides))
    return str(caught.value).splitlines()


def expected(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [f"{path}:{line.removeprefix('# expect: ')}" for line in lines if line.startswith("# expect: ")]


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_a_wrong_file_is_answered_with_place_value_and_choices(path):
    assert expected(path), "say what a person should see"
    assert problems(path.read_text(), source=str(path)) == expected(path)


def test_there_are_enough_wrong_files():
    assert len(WRONG) >= 60


def test_an_empty_file_lacks_all_that_is_required():
    missing = [f"f.yaml:1:1: {key}: missing, but required" for key in ("name", "dataset", "rates", "stages")]
    assert problems("") == problems("# nothing\n") == missing


def test_a_file_that_is_none(tmp_path):
    for path, content, reason in (
        (tmp_path / "no.yaml", None, "No such file or directory"),
        (tmp_path, None, "Is a directory"),
        (tmp_path / "latin.yaml", b"name: caf\xe9", "not UTF-8 text"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SpecError) as caught:
            spec.load(path)
        assert str(caught.value) == f"{path}: cannot read the sweep file: {reason}"


def test_a_grid_of_a_million_million_is_counted_not_expanded():
    rates = ", ".join(f"{{dim: {n}, levels: 2}}" for n in range(1, 1001))
    weights = ", ".join(str(n) for n in range(1000))
    text = (
        f"name: vast\ndataset: {{name: digits}}\nrates: [{rates}]\nseeds: [{weights}]\nstages:\n  end_to_end:\n"
        f"    objective:\n      distortion: [{weights}]\n      classification: [{weights}]\n"
    )
    assert problems(text) == ["f.yaml:5:1: stages: 1,000,000,000,000 trials; a sweep may have 100,000"]


def test_chosen_encoders_count_towards_the_largest_sweep():
    universal = "distortion: 1}}, universal: {encoders: {dim: 2}, objective: {distortion: W}"
    text = SHORT.replace("distortion: 1}", universal)
    weights = f"[{', '.join(str(n) for n in range(1, 1001))}]"
    seeds = f"seeds: [{', '.join(str(n) for n in range(100))}]\n"
    assert problems(text.replace("W", weights) + seeds) == [
        "f.yaml:4:1: stages: 100,100 trials; a sweep may have 100,000"
    ]


def test_encoders_that_are_not_chosen_count_for_nothing():
    """400 end-to-end trials and 400 decoders on one of them: 802 with the classifiers, not 160,402."""
    numbers = f"[{', '.join(str(n) for n in range(1, 401))}]"
    universal = f"distortion: 1}}}}, universal: {{encoders: {{seed: 7}}, objective: {{distortion: {numbers}}}"
    assert len(expand(spec.parse(SHORT.replace("distortion: 1}", universal) + f"seeds: {numbers}\n"))) == 802


def test_a_file_that_is_too_big_is_not_parsed():
    assert problems(SHORT + "#" * document.MAX_BYTES) == ["f.yaml:1:1: larger than 64,000 bytes"]
    assert "maximum recursion depth" in problems("[" * 3000)[0]


@pytest.mark.parametrize("word", ["yes", "on", "y"])
def test_yes_of_an_older_yaml_never_means_false(word):
    try:
        value = document.read(f"%YAML 1.1\n---\nflag: {word}\n", "f.yaml").value["flag"]
    except SpecError:
        return
    assert value is not False


# -- overrides ---------------------------------------------------------------------------------------------------------


TRAIN_KEYS = ", ".join(sorted(spec.Train.model_fields))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epocs=1", f"train.epocs: unknown key; did you mean 'epochs'? choices: {TRAIN_KEYS}"),
        ("train.epochs=many", "train.epochs: should be a valid integer, not 'many'"),
        ("rates.0.levels=1", "rates[0].levels: should be greater than or equal to 2, not 1"),
        ("rates.5.dim=1", "rates[5] is not in the sweep file"),
        ("rates.-1.dim=1", "rates.-1 is not in the sweep file"),
        ("seeds=[]", "seeds: empty; give at least one value"),
        ("stages.universal={encoders: all, objective: {distortoin: 1}}",
         "stages.universal.objective.distortoin: unknown objective term; did you mean 'distortion'? "
         "choices: classification, distortion, perception"),
        ("model={name: vgg}", "model.name: unknown model 'vgg'; choices: conv64, paper"),
        ("name=../../etc", "name: '../../etc' is not a name: a lower-case letter, then up to 63 of a-z 0-9 . _ -"),
        ("train.epochs", "expected KEY.SUBKEY=VALUE"),
        ("=1", "expected KEY.SUBKEY=VALUE"),
        ("rates.².dim=1", "rates.² is not in the sweep file"),
        ("train.0=3", f"train.0: unknown key; choices: {TRAIN_KEYS}"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_with_its_text(override, line):
    assert problems(SHORT, override) == [f"--set {override}: {line}"]


def test_an_override_that_is_not_yaml():
    assert problems(SHORT, "train.epochs=[") == [
        "--set train.epochs=[:1:2: not YAML: expected the node content, but found '<stream end>'"
    ]


def test_overrides_replace_and_add():
    sweep = spec.parse(
        SHORT,
        overrides=(
            "train.epochs=2",
            "rates.0.dim=7",
            "seeds=[3, 4]",
            "stages.end_to_end.objective.classification=[0, 1e-3]",
            "train.epochs=5",
            "stages.classifier.train.epochs=1",
        ),
    )
    assert (sweep.train.epochs, sweep.rates[0].dim, sweep.seeds) == (5, 7, [3, 4])
    assert sweep.stages.end_to_end[0].objective == {"distortion": [1.0], "classification": [0.0, 0.001]}
    assert spec.train_of(sweep, sweep.stages.classifier[0]).epochs == 1
    assert spec.train_of(sweep, sweep.stages.heldout_classifier[0]).epochs == 5


# -- right files -------------------------------------------------------------------------------------------------------


def test_a_short_file_gets_the_defaults():
    sweep = spec.parse(SHORT)
    assert (sweep.name, sweep.seeds, sweep.model.name, sweep.search.strategy) == ("tiny", [0], "paper", "grid")
    assert spec.parameters_of("model", sweep.model) == {"width": 1.0}
    assert (sweep.protocol.preset, sweep.protocol.quantizer_gradient, sweep.protocol.sigma) == ("sound", "soft", 1.0)
    train = spec.train_of(sweep, sweep.stages.end_to_end[0])
    assert (train.epochs, train.batch_size, train.learning_rate, train.betas) == (30, 64, 0.01, [0.5, 0.9])
    assert (train.decay, train.decay_at, train.precision, train.threads) == (0.2, [2 / 3], "fp32", 1)
    judge = spec.train_of(sweep, sweep.stages.classifier[0])
    assert (judge.learning_rate, judge.betas, judge.decay_at) == (1e-3, [0.9, 0.999], [])
    (classifier,), (heldout,) = sweep.stages.classifier, sweep.stages.heldout_classifier
    assert (classifier.network, classifier.seed, heldout.network, heldout.seed) == ("paper", 0, "mlp", 1)
    assert sweep.stages.universal == []
    assert (sweep.resources.cpus, sweep.resources.gpus, sweep.resources.lanes) == (1, "auto", "auto")
    assert sweep.budget.hours is None
    assert sweep.rates[0].bits == pytest.approx(3.169925001442312)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("3.", 3.0), ("-2", -2), ("+7", 7), ("0", 0), ("1.5e+3", 1500.0),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("1:30", "1:30"), ("'012'", "012"), ('"1e5"', "1e5"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("v1.2", "v1.2"), ("|-\n  a", "a"),
        ("[1, {a: no}]", [1, {"a": "no"}]),
    ],
)  # fmt: skip
def test_scalars_mean_what_people_expect(text, value):
    found = document.read(f"key: {text}\n", "f.yaml").value["key"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["012", "0x1F", "0o17", "1_000", "1e999", "-.inf", ".NaN", "2024-01-01"])
def test_scalars_that_may_mean_two_things_are_refused(text):
    assert problems(f"key: {text}\n") == [
        f"f.yaml:1:6: key: cannot read {text!r} as a plain number, word or true/false; quote it if it is a word"
    ]


def test_words_and_small_numbers_in_a_whole_file():
    sweep = spec.parse(SHORT.replace("name: tiny", "name: no").replace("distortion: 1", "distortion: [1e-4, 2]"))
    assert sweep.name == "no"
    assert sweep.stages.end_to_end[0].objective == {"distortion": [1e-4, 2.0]}


def test_a_stages_own_keys_win_over_the_sweeps():
    stages = "stages: {end_to_end: {objective: {distortion: 1}, train: {epochs: 3}, resources: {cpus: 2}}}\n"
    sweep = spec.parse(
        SHORT.replace(SHORT.splitlines()[3] + "\n", stages) + "train: {epochs: 9, decay: 0.5}\nresources: {gpus: 0}\n"
    )
    own, other = spec.train_of(sweep, sweep.stages.end_to_end[0]), spec.train_of(sweep, sweep.stages.classifier[0])
    assert (own.epochs, own.decay, other.epochs, other.decay) == (3, 0.5, 9, 0.5)
    assert (spec.resources_of(sweep, "end_to_end").cpus, spec.resources_of(sweep, "end_to_end").gpus) == (2, 0)
    assert spec.resources_of(sweep, "classifier").cpus == 1


# -- whatever a stranger writes ----------------------------------------------------------------------------------------

WORDS = "&a *a ! !!str !!python/name:os.system - ? : , [ ] { } # | > ' % @ ` --- ... << ~ .nan -1 1e9 012 true null"
NAMES = "name seeds all random low high encoders universal é 💥 9999999999999999999999"
SNIPPETS = st.sampled_from([*WORDS.split(), *NAMES.split(), '"', "\t", "\n", "\n\n", " ", "\0", "\x85", "{}", "[]"])


@given(st.lists(st.tuples(st.integers(0, len(SHORT)), st.integers(0, 12), SNIPPETS), min_size=1, max_size=4))
def test_any_edit_of_a_file_is_a_sweep_or_an_error_with_a_place(edits):
    text = SHORT
    for start, length, snippet in edits:
        text = text[:start] + snippet + text[start + length :]
    try:
        assert expand(spec.parse(text, "f.yaml"))
    except SpecError as error:
        lines = str(error).splitlines()
    else:
        return
    assert lines
    for line in lines:
        assert re.fullmatch(r"f\.yaml:[1-9][0-9]*:[1-9][0-9]*: \S.*", line), line


# -- through the command line ------------------------------------------------------------------------------------------


def run(*words: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "urc_sweep", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


@pytest.mark.parametrize("name", ["unknown_nested_key", "two_problems", "not_yaml"])
def test_validate_answers_a_wrong_file_on_stderr_with_exit_2(name):
    path = next(path for path in WRONG if path.stem == name)
    done = run("validate", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"urc-sweep: {line}" for line in expected(path)]


def test_validate_answers_a_right_file_on_stdout(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    done = run("validate", str(path), "--set", "seeds=[0, 1, 2]")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: ok: sweep tiny, 5 trials\n", "")


@pytest.mark.parametrize("verb", ["validate", "plan", "status", "--help", "refusal"])
def test_quick_commands_import_neither_torch_nor_ray(verb, tmp_path):
    path, store = tmp_path / "short.yaml", tmp_path / "store"
    path.write_text(SHORT)
    if verb == "status":
        from tests.store.build import Study

        Study(store).launch()
    words, code = {
        "validate": (["validate", str(path)], 0),
        "plan": (["plan", str(path), "--store", str(store)], 0),
        "status": (["status", "--store", str(store)], 0),
        "--help": (["--help"], 0),
        "refusal": (["launch", str(path), "--store", str(store), "--set", "train.epochs=0"], 2),
    }[verb]
    done = run(*words, python=("-X", "importtime"))
    assert done.returncode == code, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "urc_sweep.errors" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "ray", "torchvision", "torchmetrics")}
