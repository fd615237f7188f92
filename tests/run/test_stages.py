"""Every stage for real: one sweep of tiny networks on digits, launched inline, and what its store must then hold."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.run.test_launch import files, results
from urc_sweep.errors import SpecError
from urc_sweep.learn import artifacts, data, models, perception
from urc_sweep.learn.train import rate_factor
from urc_sweep.plan.source import Source
from urc_sweep.plan.trials import Trial
from urc_sweep.run import worker
from urc_sweep.run.launch import Launch, Options, request_stop
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

HEAD = """
name: every
dataset: {name: digits}
model: {name: paper, width: 0.05}
rates: [{dim: 2, levels: 3}]
train: {epochs: 2}
resources: {lanes: 4}
"""
EVERY = (
    HEAD
    + """
stages:
  classifier: [{}, {label: parity, network: mlp}]
  heldout_classifier: [{}, {label: parity, network: paper}]
  end_to_end:
    - objective: {distortion: 1.0, classification: [0, 0.01]}
    - objective: {distortion: 1.0, perception: 0.01, classification.parity: 0.1}
    - {objective: {distortion: 2.0}, init: {classification: 0.01}}
  joint: {objective: {distortion: 1.0, classification: [0, 0.1], perception: 0.01}, protocol: zhang2021}
  universal:
    - encoders: {classification: 0.01}
      objective: {distortion: 1.0, classification: [0, 0.02]}
    - encoders: [random, classifier_only]
      objective: {distortion: 1.0, classification: 0.02}
    - encoders: {perception: 0.01}
      objective: {distortion: 1.0, perception: 0.02}
    - encoders: {perception: 0.01}
      objective: {distortion: 1.0}
      init: parent
      protocol: {frozen_batchnorm: batch}
  refined: {encoders: {classification: 0.01}, objective: {distortion: 1.0}, dim2: 1, levels2: 2}
  reduced: {encoders: {classification: 0.01}, objective: {distortion: 1.0, classification: 0.01}, dims: [1]}
"""
)
COUNTS = {
    "classifier": 4, "end_to_end": 4, "control": 2, "joint": 1, "joint_decoder": 2, "universal": 6, "refined": 1,
    "reduced": 1,
}  # fmt: skip
DIGITS = ("digits", {}, Source())


@pytest.fixture(scope="module", autouse=True)
def short_fresh_critics():
    """A fresh critic of 20 steps: what its gap is worth is no question of stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perception, "FRESH_STEPS", 20)
        perception._floor_critic.cache_clear()
        yield
    perception._floor_critic.cache_clear()


class Done:
    """A finished store: its table, and every training commit."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root, self.store = path, root, Store(root)
        self.frame = pd.read_parquet(root / "trials").set_index("trial_id")
        commits = [self.store.committed(commit_id) for commit_id in self.store.commit_ids()]
        self.commits = {record["id"]: record for record in commits if record["kind"] == "training"}
        self.trials = {trial_id: Trial.from_json(record["trial"]) for trial_id, record in self.commits.items()}

    def rows(self, stage: str) -> pd.DataFrame:
        return self.frame[self.frame["stage"] == stage]

    def of(self, stage: str, **weights: float) -> list[str]:
        """Ids of the trials of a stage with all of these weights."""
        found = {t: trial.weights for t, trial in self.trials.items() if trial.stage == stage}
        return [t for t, own in found.items() if weights.items() <= own.items()]

    def one(self, stage: str, **weights: float) -> str:
        (found,) = self.of(stage, **weights)
        return found

    def network(self, trial_id: str, role: str) -> dict[str, torch.Tensor]:
        sha256 = self.commits[trial_id]["artifacts"][role]
        return safetensors.torch.load(self.store.get(sha256, ".safetensors"))

    def curve(self, trial_id: str) -> dict[tuple[int, str, str], float]:
        return {(e, split, metric): value for e, split, metric, value, _ in self.commits[trial_id]["curve"]}

    def metrics(self, trial_id: str) -> dict[str, float]:
        return dict(self.frame.at[trial_id, "metrics"])


def launch(path: Path, root: Path, **options: Any) -> int:
    return Launch(str(path), Options(store=str(root), executor="inline", **options)).run()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("every")
    path = folder / "every.yaml"
    path.write_text(EVERY)
    assert launch(path, folder / "store") == 0
    return Done(path, folder / "store")


# -- one sweep of all stages -------------------------------------------------------------------------------------------


def test_every_stage_is_done_and_verify_finds_nothing(done) -> None:
    assert done.frame.groupby("stage").size().to_dict() == COUNTS
    assert set(done.frame["status"]) == {"done"}
    assert verify(done.store)[0] == []
    assert not list(done.root.glob("failures/*/*"))
    assert set(done.frame.loc[done.frame["stage"] == "universal", "pack_lanes"]) == {1, 2}, "packs of several lanes"


def test_a_second_launch_writes_nothing(done) -> None:
    before = files(done.root)
    assert launch(done.path, done.root) == 0
    assert files(done.root) == before


def test_decoders_used_the_very_bytes_their_parents_committed(done) -> None:
    for stage in ("universal", "refined", "reduced"):
        for trial_id, row in done.rows(stage).iterrows():
            parent = done.commits[row["parent_id"]]
            used, own = done.commits[trial_id]["used"], done.commits[trial_id]["artifacts"]
            assert row["parent_id"] == done.trials[trial_id].needs["encoder"]
            assert used["encoder"] == row["encoder_sha256"] == parent["artifacts"]["encoder"]
            assert own["decoder"] == row["decoder_sha256"] != parent["artifacts"]["decoder"]
            assert ("encoder2" in own, "encoder" in own) == (stage == "refined", False)
    parents = done.rows("universal")["parent_id"].map(done.frame["stage"]).value_counts().to_dict()
    assert parents == {"control": 2, "end_to_end": 4}
    told = done.rows("universal").query("lambda_c == 0.02")["parent_lambda_c"].tolist()
    assert [c for c in told if c == c] == [0.01, 1.0], "nothing for the random encoder"
    assert done.rows("universal")["parent_lambda_p"].dropna().tolist() == [0.01, 0.01]


def test_rows_of_joint_decoders_are_the_joint_trials_networks_each_its_own(done) -> None:
    (joint,) = done.of("joint")
    stored = done.commits[joint]["artifacts"]
    assert set(stored) == {"encoder", "decoder.0", "decoder.1", "critic.0", "critic.1"}
    assert stored["decoder.0"] != stored["decoder.1"]
    assert stored["critic.0"] != stored["critic.1"]
    for index, weight in enumerate((0, 0.1)):
        row = done.frame.loc[done.one("joint_decoder", classification=weight)]
        used = done.commits[row.name]["used"]
        assert used == {role: stored[name] for role, name in done.trials[row.name].config["artifacts"].items()} | {
            "encoder": stored["encoder"]
        }
        assert (row["encoder_sha256"], row["decoder_sha256"]) == (stored["encoder"], stored[f"decoder.{index}"])
        assert used["critic"] == stored[f"critic.{index}"]
        assert (row["parent_id"], done.commits[row.name]["artifacts"]) == (joint, {})
        assert (row["protocol"], row["epochs"]) == ("zhang2021", 0)
    rows = done.rows("joint_decoder")
    assert rows["mse"].nunique() == rows["cross_entropy"].nunique() == rows["critic_gap"].nunique() == 2
    assert rows["mse_centroid"].nunique() == 1
    assert rows["mse_centroid"].iloc[0] == done.frame.at[joint, "mse_centroid"], "one encoder"


def test_a_critic_is_stored_where_one_was_trained_and_begins_as_its_parents(done) -> None:
    with_critic = {*done.of("end_to_end", perception=0.01), *done.of("universal", perception=0.02)}
    assert len(with_critic) == 2
    assert {t for t, record in done.commits.items() if "critic" in record["artifacts"]} == with_critic
    parent, child = done.one("end_to_end", perception=0.01), done.one("universal", perception=0.02)
    assert done.commits[child]["used"]["init.critic"] == done.commits[parent]["artifacts"]["critic"]
    before, after = done.network(parent, "critic"), done.network(child, "critic")
    fresh = models.blueprint(done.trials[parent], data.load(*DIGITS))["critic"]
    initial = models.build(fresh, 0, "critic").state_dict()
    far, near = (sum(float((start[k] - after[k]).square().sum()) for k in after) for start in (initial, before))
    assert 0 < near < far, "it went on from the parent's weights, not from the seed's"


def test_warm_starts_begin_where_the_named_trial_ended(done) -> None:
    base, warm = done.one("end_to_end", classification=0.01), done.one("end_to_end", distortion=2.0)
    for role in ("encoder", "decoder"):
        assert done.commits[warm]["used"][f"init.{role}"] == done.commits[base]["artifacts"][role]
        assert done.commits[warm]["artifacts"][role] != done.commits[base]["artifacts"][role]
    parent = done.one("end_to_end", perception=0.01)
    (child,) = [t for t in done.of("universal") if "init.decoder" in done.trials[t].needs]
    assert done.commits[child]["used"]["init.decoder"] == done.commits[parent]["artifacts"]["decoder"]
    cold = done.one("end_to_end", classification=0)
    first = {t: done.curve(t)[1, "train", "distortion"] for t in (warm, child, cold)}
    assert max(first[warm], first[child]) < 0.9 * first[cold]


def test_controls_are_what_they_say(done) -> None:
    named = {done.trials[t].config["control"]: t for t in done.of("control")}
    assert set(named) == {"random", "classifier_only"}
    assert done.frame.loc[list(named.values()), "variant"].tolist() == list(named)
    make = models.blueprint(done.trials[named["random"]], data.load(*DIGITS))
    for role in ("encoder", "decoder"):
        initial, found = models.build(make[role], 0, role).state_dict(), done.network(named["random"], role)
        weights = [k for k in initial if "running" not in k and "num_batches" not in k]
        assert all(torch.equal(initial[k], found[k]) for k in weights), "not a weight is trained"
        assert not any(torch.equal(initial[k], found[k]) for k in initial if "running_mean" in k), "norms know the data"
    rows = done.frame.loc[[named["random"], named["classifier_only"]]]
    assert rows["latent_label_entropy"].iloc[1] < rows["latent_label_entropy"].iloc[0], "labels were its only teacher"
    assert rows["epochs"].tolist() == [1, 2]


def test_curves_have_every_epoch_and_the_losses_of_every_decoder(done) -> None:
    for trial_id, trial in done.trials.items():
        points = done.curve(trial_id)
        epochs = trial.setting("train", "epochs")
        for split in ("train", "validation"):
            assert sorted(e for e, s, m in points if (s, m) == (split, "loss")) == list(range(1, epochs + 1))
        assert all(np.isfinite(value) for value in points.values())
        trains = {m for _, s, m in points if s == "train"}
        if trial.stage in ("classifier", "joint_decoder", "joint"):
            continue
        assert trains == {*trial.weights, "loss"} | ({"critic_gap", "gradient_penalty", "critic_loss"} & trains)
        assert ("critic_loss" in trains) == ("perception" in trial.weights)
        for e in range(1, epochs + 1):
            total = sum(weight * points[e, "validation", term] for term, weight in trial.weights.items())
            assert points[e, "validation", "loss"] == pytest.approx(total, rel=1e-5)
    joint = done.curve(done.of("joint")[0])
    for e in (1, 2):
        for split in ("train", "validation"):
            parts = joint[e, split, "loss.0"] + joint[e, split, "loss.1"]
            assert joint[e, split, "loss"] == pytest.approx(parts, rel=1e-5)
        assert {f"critic_gap.{n}" for n in (0, 1)} <= {m for epoch, s, m in joint if (epoch, s) == (e, "train")}
    assert all(not done.curve(t) for t in done.of("joint_decoder"))
    published = pd.read_parquet(done.root / "curves")
    assert len(published) == sum(len(record["curve"]) for record in done.commits.values())


def test_metrics_are_there_by_stage_and_null_where_they_mean_nothing(done) -> None:
    frame = done.frame
    images, critic = ~frame["stage"].isin(["classifier", "joint"]), frame["lambda_p"].notna()
    judged = ["cross_entropy", "accuracy"]
    seen = ["mse", "mse_se", "psnr_db", "ssim", "sliced_w2", "heldout_accuracy", "heldout_cross_entropy"]
    facts = ["mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"]
    expected = dict.fromkeys(judged, images | (frame["stage"] == "classifier"))
    expected |= dict.fromkeys(seen, images) | dict.fromkeys(facts, images | (frame["stage"] == "joint"))
    expected |= dict.fromkeys(["critic_gap", "fresh_critic_gap"], images & critic)
    for name, there in expected.items():
        for column in (name, f"val_{name}"):
            assert frame[column].notna().equals(there), column
    for column in ("samples_sha256", "originals_sha256"):
        assert frame[column].notna().equals(images)
    for trial_id, row in frame[images].iterrows():
        more = done.metrics(trial_id)
        judges = {f"{split}parity_{held}{m}" for split in ("", "val_") for held in ("", "heldout_") for m in judged}
        assert judges <= set(more)
        assert all(0 <= more[name] <= 1 for name in judges if name.endswith("accuracy"))
        assert ("critic_gap_floor" in more) == (row["critic_gap"] == row["critic_gap"])
        assert row["psnr_db"] == pytest.approx(-10 * np.log10(row["mse"]))
        # No decoder beats the centroids of its encoder's cells, up to the sampling error of the cell means.
        assert row["mse"] > row["mse_centroid"] - 0.002
    assert "mse_kmeans" in done.metrics(done.one("end_to_end", classification=0))
    assert "mse_kmeans" not in done.metrics(done.of("universal")[0])


def test_rates_and_facts_of_refined_and_reduced_codes(done) -> None:
    parent = done.frame.loc[done.one("end_to_end", classification=0.01)]
    (refined,), (reduced,) = (done.rows(stage).itertuples() for stage in ("refined", "reduced"))
    assert parent["rate_bits"] == pytest.approx(2 * np.log2(3))
    assert refined.rate_bits == pytest.approx(2 * np.log2(3) + 1)
    assert reduced.rate_bits == pytest.approx(np.log2(3))
    assert (refined.dim, reduced.dim, reduced.levels) == (2, 1, 3)
    assert refined.mse_centroid < parent["mse_centroid"] < reduced.mse_centroid, "more bits know more"
    assert reduced.index_entropy_bits < parent["index_entropy_bits"] < refined.index_entropy_bits
    same = done.rows("universal")
    same = same[same["parent_id"] == parent.name]
    assert same["mse_centroid"].tolist() == [parent["mse_centroid"]] * 2, "a fact of the encoder alone"


def test_label_sets_are_judged_by_their_own_classifiers(done) -> None:
    found = data.load(*DIGITS)
    assert torch.equal(found.test.label_sets["parity"], found.test.labels % 2)
    rows = done.rows("classifier")
    assert [done.trials[t].config.get("label") for t in rows.index] == [None, None, "parity", "parity"]
    assert rows["model"].tolist() == ["paper", "mlp", "mlp", "paper"]
    device = torch.device("cpu")

    def judge(trial_id: str) -> torch.nn.Module:
        stored = done.store.get(done.commits[trial_id]["artifacts"]["classifier"], ".safetensors")
        return artifacts.restore(done.trials[trial_id], "classifier", stored, found, device)

    images = found.test.pixels(slice(None))
    for trial_id, row in rows.iterrows():
        labels = found.test.label_sets[done.trials[trial_id].config.get("label", "digit")]
        with torch.no_grad():
            guessed = judge(trial_id)(images).argmax(1)
        assert int(guessed.max()) == int(labels.max())
        assert row["accuracy"] == pytest.approx(float((guessed == labels).double().mean()), abs=1e-12)
    trained = done.one("end_to_end", perception=0.01)
    assert done.commits[trained]["used"] == {
        "classifier.parity": done.commits[rows.index[2]]["artifacts"]["classifier"]
    }
    (first,), (other,) = ([done.metrics(t)["parity_cross_entropy"] for t in (trial,)]
                          for trial in (trained, done.one("end_to_end", classification=0)))  # fmt: skip
    assert first < other, "who was trained for the parity knows more of it"


def test_rate_factors_are_those_of_the_published_code(done) -> None:
    (joint,) = done.of("joint")
    factors = [rate_factor(done.trials[joint], epoch) for epoch in range(60)]
    assert factors == [1.0] * 20 + [0.2] * 20 + [0.02] * 20  # train.py of uRDP: _lr_factor on MNIST
    end = done.trials[done.one("end_to_end", classification=0)]
    assert [rate_factor(end, epoch) for epoch in range(2)] == [1.0, 0.2]


# -- a classifier that somebody brings along ---------------------------------------------------------------------------

GIVEN = (
    HEAD.replace("every", "given")
    + """
stages:
  classifier: {checkpoint: nets/mine.safetensors}
  end_to_end:
    objective: {distortion: 1.0, classification: 0.01}
"""
)


@pytest.fixture
def given(done, tmp_path) -> tuple[Path, Path]:
    """A sweep file beside the trained classifier of the finished store."""
    (tmp_path / "nets").mkdir()
    classifier = done.rows("classifier").index[0]
    sha256 = done.commits[classifier]["artifacts"]["classifier"]
    shutil.copy(done.store.layout.artifact(sha256, ".safetensors"), tmp_path / "nets" / "mine.safetensors")
    path = tmp_path / "given.yaml"
    path.write_text(GIVEN)
    return path, tmp_path / "nets" / "mine.safetensors"


def test_a_classifier_from_a_file_is_not_trained_and_judges_as_where_it_comes_from(given, done, tmp_path) -> None:
    path, _ = given
    assert launch(path, tmp_path / "store") == 0
    other = Done(path, tmp_path / "store")
    original, mine = done.rows("classifier").iloc[0], other.rows("classifier").iloc[0]
    assert mine.name != original.name
    for column in ("accuracy", "val_accuracy", "cross_entropy", "val_cross_entropy"):
        assert mine[column] == original[column]
    assert other.commits[mine.name]["artifacts"] == done.commits[original.name]["artifacts"], "byte for byte"
    assert (mine["epochs"], other.commits[mine.name]["curve"]) == (0, [])
    here, there = other.one("end_to_end"), done.one("end_to_end", classification=0.01)
    assert here != there
    assert other.commits[here]["artifacts"] == done.commits[there]["artifacts"], "trained with it, the same networks"
    assert verify(other.store)[0] == []
    before = files(tmp_path)
    assert launch(path, tmp_path / "store") == 0
    assert files(tmp_path) == before


def wrong_shape(path: Path) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["9.weight"] = torch.zeros(7, 100)
    path.write_bytes(safetensors.torch.save(tensors))


def without_a_layer(path: Path) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save({k: v for k, v in tensors.items() if not k.startswith("7.")}))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("opened-by-pickle", "w"))


@pytest.mark.parametrize(
    ("spoil", "override", "reason"),
    [
        (wrong_shape, "", "size mismatch for 9.weight"),
        (without_a_layer, "", 'Missing key(s) in state_dict: "7.weight", "7.bias"'),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "", "not a safetensors file"),
        (lambda path: path.write_bytes(b"\0" * 100), "", "not a safetensors file"),
        (lambda path: path.write_bytes(b""), "", "not a file of 8 to"),
        (lambda path: path.write_bytes(pickle.dumps(Trap())), "", "not a safetensors file"),
        (lambda path: torch.save({"0.weight": torch.zeros(3)}, path), "", "not a safetensors file"),
        (lambda path: None, "stages.classifier.network=mlp", "Missing key(s) in state_dict"),
        (lambda path: None, "stages.classifier.network=vgg6", "size mismatch for"),
    ],
    ids="shape layer cut zeros empty pickle torch.save mlp vgg6".split(),
)
def test_a_checkpoint_that_does_not_fit_is_one_line_before_anything_is_trained(
    spoil, override, reason, given, tmp_path, monkeypatch
) -> None:
    path, weights = given
    spoil(weights)
    monkeypatch.chdir(tmp_path)
    overrides = (override,) if override else ()
    with pytest.raises(SpecError) as caught:
        Launch(str(path), Options(store=str(tmp_path / "store"), executor="inline", overrides=overrides)).run()
    network = override.partition("=")[2] or "paper"
    (line,) = str(caught.value).splitlines()
    place = f"{path}:10:16: stages.classifier.checkpoint: "
    if reason.startswith("not a "):  # seen when it is planned, without torch
        assert line.startswith(f"{place}cannot read 'nets/mine.safetensors': {reason}")
    else:
        assert line.startswith(f"{place}nets/mine.safetensors does not fit classifier {network!r}: ")
        assert reason in line
        assert line.endswith("; name the network it was made with")
    left = {entry.name for entry in (tmp_path / "store").rglob("*") if entry.is_file()}
    assert left <= {"format.json", "lease.json"}
    assert not (tmp_path / "opened-by-pickle").exists()


def test_a_wrong_checkpoint_through_the_command_line(given, tmp_path) -> None:
    path, weights = given
    weights.write_bytes(b"weights")
    words = ["launch", str(path), "--store", str(tmp_path / "store"), "--executor", "inline"]
    result = subprocess.run([sys.executable, "-m", "urc_sweep", *words], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "stages.classifier.checkpoint: cannot read 'nets/mine.safetensors': not a file of 8 to" in line


# -- a person's own images ---------------------------------------------------------------------------------------------

FOLDER = """
name: own
dataset: {name: folder, path: PLACE}
model: {name: paper, width: 0.05}
rates: [{dim: 2, levels: 2}]
train: {epochs: 1, batch_size: 8}
stages:
  end_to_end:
    objective: {distortion: 1.0, classification: 0.01, classification.big: 0.01}
  reduced: {encoders: all, objective: {distortion: 1.0}, dims: [1]}
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """A data root with a folder of 60 PNG images of three digits, and a label set beside the class."""
    digits = data.load(*DIGITS).train
    root, lines = tmp_path / "data", ["file,big"]
    for label in (1, 4, 7):
        folder = root / "mine" / f"digit-{label}"
        folder.mkdir(parents=True)
        for number in (digits.labels == label).nonzero()[:20, 0].tolist():
            file = folder / f"{number}.png"
            Image.fromarray(digits.images[number, 0].numpy()).save(file)
            lines.append(f"{folder.name}/{file.name},{'yes' if label > 3 else 'no'}")
    (root / "mine" / "labels.csv").write_text("\n".join(lines))
    return root


def test_a_folder_of_images_through_a_launch_and_moved_elsewhere(images, tmp_path) -> None:
    path, root = tmp_path / "own.yaml", tmp_path / "store"
    path.write_text(FOLDER.replace("PLACE", "mine"))
    assert launch(path, root, data_root=str(images)) == 0
    done = Done(path, root)
    assert done.frame.groupby("stage").size().to_dict() == {"classifier": 4, "end_to_end": 1, "reduced": 1}
    assert set(done.frame["status"]) == {"done"}
    assert verify(done.store)[0] == []
    assert {"big_accuracy", "big_heldout_accuracy"} <= set(done.metrics(done.one("end_to_end")))
    seen = {record["data_sha256"] for record in done.commits.values()}
    assert seen == {trial.config["dataset"]["sha256"] for trial in done.trials.values()}
    # Elsewhere, under another name, copied in another order: the same data set.
    elsewhere = tmp_path / "elsewhere" / "pictures" / "renamed"
    shutil.copytree(images / "mine", elsewhere)
    shutil.rmtree(images)
    path.write_text(FOLDER.replace("PLACE", "pictures/renamed"))
    before = files(root)
    again = Launch(str(path), Options(store=str(root), executor="inline", data_root=str(tmp_path / "elsewhere")))
    assert [trial.id for trial in again.trials] == list(done.frame.index)
    assert (again.missing, again.run(), files(root)) == ([], 0, before)


def repaint(images: Path) -> None:
    file = sorted((images / "mine" / "digit-4").iterdir())[0]
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    data._load.cache_clear()  # a worker of Ray reads the folder itself


def test_a_folder_that_changed_after_planning_is_refused_and_another_data_set_the_next_time(images, tmp_path) -> None:
    path, root = tmp_path / "own.yaml", tmp_path / "store"
    path.write_text(FOLDER.replace("PLACE", "mine"))
    options = Options(store=str(root), executor="inline", data_root=str(images))
    planned = Launch(str(path), options)
    repaint(images)
    assert planned.run() != 0
    frame = pd.read_parquet(root / "trials")
    told = set(frame["error_message"].dropna()) | {(root / "sweeps" / "own" / "driver.log").read_text()}
    assert any("data set folder: is not here what it was when the sweep was planned" in text for text in told)
    assert not set(frame["status"]) & {"done", "running"}
    assert not list(Store(root).commit_ids()), "nothing was trained on other images"
    again = Launch(str(path), options)
    assert not {t.id for t in again.trials} & {t.id for t in planned.trials}
    assert again.run() == 0


# -- training that cannot train, and training that is stopped ----------------------------------------------------------


@pytest.mark.parametrize("objective", ["{distortion: 1, perception: 0.01}", "{distortion: 1}"])
def test_batches_so_large_that_the_generators_turn_never_comes_are_no_success(objective, tmp_path) -> None:
    """Of each two batches the second trains encoder and decoder; an epoch of one batch would leave them random."""
    path = tmp_path / "large.yaml"
    stages = f"stages: {{end_to_end: {{objective: {objective}, protocol: zhang2021, train: {{batch_size: 2000}}}}}}\n"
    path.write_text(HEAD + stages)
    assert launch(path, tmp_path / "store") == 3
    done = Done(path, tmp_path / "store")
    (row,) = done.rows("end_to_end").itertuples()
    assert row.status == "failed"
    assert "batch" in row.error_message
    assert done.of("end_to_end") == []


def test_a_perception_trial_that_is_stopped_and_resumed_ends_with_the_same_bits(tmp_path, monkeypatch) -> None:
    """The critic has its own optimizer: both must come back from the checkpoint, in the middle of an epoch."""
    text = HEAD.replace("every", "gan").replace("lanes: 4", "lanes: 2, checkpoint_minutes: 0")
    text += "stages:\n  end_to_end:\n    objective: {distortion: 1.0, perception: [0, 0.02]}\n    protocol: zhang2021\n"
    text += "    train: {epochs: 6}\n"
    path = tmp_path / "gan.yaml"
    path.write_text(text)
    assert launch(path, tmp_path / "straight") == 0
    monkeypatch.setattr(worker, "STOP_POLL_S", 0.0)  # looks at the stop file after every step
    stopped = tmp_path / "stopped"
    ready = Launch(str(path), Options(store=str(stopped), executor="inline"))
    pack = [trial.id for trial in ready.trials if trial.stage == "end_to_end"]
    states = [stopped / "checkpoints" / trial_id / "state.json" for trial_id in pack]

    def stop() -> None:
        while not all(state.exists() for state in states):
            time.sleep(0.005)
        request_stop(ready.store, "gan")

    watcher = threading.Thread(target=stop, daemon=True)
    watcher.start()
    assert ready.run() == 130
    watcher.join()
    assert set(pd.read_parquet(stopped / "trials").query("stage == 'end_to_end'")["status"]) == {"stopped"}
    for trial_id in pack:
        tensors, state = Store(stopped).load_checkpoint(trial_id)
        assert 0 < 100 * state["epoch"] + state["step"] < 600
        kept = {name.partition("/")[0] for name in safetensors.torch.load(tensors)}
        assert kept == {"encoder", "decoder", "critic", "adam", "adam_critic"}
    assert launch(path, stopped) == 0
    assert results(stopped) == results(tmp_path / "straight")
    assert verify(Store(stopped))[0] == []
    assert not list(stopped.glob("checkpoints/*/*"))
    final = Done(path, stopped)
    assert json.loads(final.frame.loc[pack[0], "config_json"])["protocol"]["annealing"] == 0.0005
    assert final.commits[pack[0]]["artifacts"]["critic"] != final.commits[pack[1]]["artifacts"]["critic"]
