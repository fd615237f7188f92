"""The commit protocol: first writer wins, whole or not at all, damage found and named."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.build import TEXT, Study, flip, in_processes, reseal
from urc_sweep.errors import SpecError, StoreError
from urc_sweep.maths.ids import digest
from urc_sweep.store.commits import Store, _seal

A, B = "a" * 64, "b" * 64
RECORD = {"id": A, "kind": "training", "curve": [[1, "train", "loss", 0.1, 1e-05]], "text": "é\n", "none": None}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    return store


def fresh(store: Store) -> Store:
    return Store(store.root)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# -- commits -----------------------------------------------------------------------------------------------------------


def test_a_commit_comes_back_as_it_was_and_stays(store):
    assert store.committed(A) is None
    assert store.commit(A, RECORD) is True
    assert store.commit(A, RECORD | {"text": "late"}) is False
    for reader in (store, fresh(store)):
        assert reader.committed(A) == RECORD
    assert files(store.root) == {"format.json", f"commits/aa/{A}.json"}, "nothing private is left"


def test_a_commit_is_durable_before_it_is_visible_and_its_name_after(store, monkeypatch):
    done, fsync, link = [], os.fsync, os.link

    def synced(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def linked(source, target):
        done.append(("link", str(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    store.commit(A, RECORD)
    path = store.layout.commit(A)
    at = done.index(("link", str(path)))
    assert done[0][1].startswith(str(store.root / "tmp")), "the bytes"
    made = [("fsync", str(store.root)), ("fsync", str(store.root / "commits"))]
    assert done[1:at] == made, "the folders on the way"
    assert done[at + 1 :] == [("fsync", str(path.parent))], "the name"


def test_a_fresh_commit_is_seen_by_a_reader_that_looked_before(store):
    reader = fresh(store)
    assert reader.committed(A) is None
    store.commit(A, RECORD)
    assert reader.committed(A) == RECORD


def test_commit_ids_are_sorted(store):
    for value in (B, A, "ab" + "0" * 62):
        store.commit(value, RECORD | {"id": value})
    assert list(store.commit_ids()) == [A, "ab" + "0" * 62, B]


RACE = """
from urc_sweep.store.commits import Store
def work(number):
    store = Store(sys.argv[1])
    return [store.commit(name * 64, {"id": name * 64, "by": [number] * 9999}) for name in "0123456789"]
"""


def test_of_eight_racing_processes_exactly_one_wins_each_id(store):
    won = in_processes(RACE, 8, str(store.root))
    for index, name in enumerate("0123456789"):
        winners = [number for number, results in enumerate(won) if results[index]]
        assert len(winners) == 1
        assert fresh(store).committed(name * 64)["by"] == winners * 9999
    assert not list((store.root / "tmp").iterdir())


def test_no_number_without_a_value_is_committed(store):
    with pytest.raises(ValueError, match="JSON"):
        store.commit(A, RECORD | {"loss": float("nan")})
    assert files(store.root) == {"format.json"}


@pytest.mark.parametrize("value", ["../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "", "a" * 62 + "/x"])
def test_an_id_is_64_hex_digits(store, value):
    for use in (store.committed, store.load_checkpoint, store.failures, lambda v: store.get(v, ".png")):
        with pytest.raises(StoreError, match="is not an id"):
            use(value)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_commit_is_found_or_means_the_same(store):
    store.commit(A, RECORD)
    path = store.layout.commit(A)
    whole = path.read_bytes()
    chance = random.Random(0)
    for byte in range(len(whole)):
        flip(path, 8 * byte + chance.randrange(8))
        with contextlib.suppress(StoreError):
            assert fresh(store).committed(A) == RECORD, f"byte {byte} was read silently wrong"
        path.write_bytes(whole)
    flip(path)
    with pytest.raises(StoreError) as caught:
        fresh(store).committed(A)
    assert str(caught.value) == f"{path}: damaged: its checksum does not match its content"


def test_a_truncated_commit_is_found_at_every_length(store):
    store.commit(A, RECORD)
    path = store.layout.commit(A)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="damaged"):
            fresh(store).committed(A)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'{"record": {}}', b'{"sha256": 1, "record": {}}', b"[" * 99999]
)
def test_a_file_that_is_no_record_is_damaged(store, content):
    path = store.layout.commit(A)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        store.committed(A)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "-1E400"])
def test_a_number_without_a_value_is_damage_under_a_right_checksum_too(store, value):
    path = store.layout.commit(A)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(RECORD | {"more": [0.5]}).replace("0.5", value)
    path.write_text(f'{{"record": {body}, "sha256": "{digest(body.encode())}"}}')
    with pytest.raises(StoreError, match="damaged"):
        store.committed(A)


def test_a_record_under_another_id_is_refused(store):
    store.commit(A, RECORD)
    moved = store.layout.commit(B)
    moved.parent.mkdir()
    store.layout.commit(A).rename(moved)
    with pytest.raises(StoreError) as caught:
        fresh(store).committed(B)
    assert str(caught.value) == f"{moved} holds the record of {A[:12]}"


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_artifacts_are_named_by_their_bytes_and_stored_once(store):
    data = bytes(range(256)) * 10
    name = store.put(data, ".safetensors")
    path = store.layout.artifact(name, ".safetensors")
    assert (name, path.name, path.parent.name) == (digest(data), f"{name}.safetensors", name[:2])
    inode = path.stat().st_ino
    assert store.put(data, ".safetensors") == name
    assert path.stat().st_ino == inode
    assert store.get(name, ".safetensors") == data


def test_a_damaged_or_missing_artifact_is_named(store):
    name = store.put(b"x" * 100, ".png")
    path = store.layout.artifact(name, ".png")
    flip(path)
    with pytest.raises(StoreError) as caught:
        store.get(name, ".png")
    assert str(caught.value) == f"{path}: damaged: its bytes have SHA-256 {digest(path.read_bytes())[:12]}"
    path.unlink()
    with pytest.raises(StoreError) as caught:
        store.get(name, ".png")
    assert str(caught.value) == f"{path}: the artifact cannot be read: No such file or directory"


# -- checkpoints and failures ------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_and_replaces_the_one_before(store):
    assert store.load_checkpoint(A) is None
    for epoch, tensors in ((1, b"one"), (2, b"two"), (3, b"two")):
        store.save_checkpoint(A, tensors, {"epoch": epoch})
        found, state = fresh(store).load_checkpoint(A)
        assert (found, state["epoch"]) == (tensors, epoch)
    folder = store.layout.checkpoint(A)
    assert {path.name for path in folder.iterdir()} == {"state.json", f"{digest(b'two')}.safetensors"}
    store.drop_checkpoint(A)
    store.drop_checkpoint(A)
    assert not folder.exists()
    assert store.load_checkpoint(A) is None


@pytest.mark.parametrize("which", ["state.json", "*.safetensors"])
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_checkpoint_is_no_checkpoint(store, which, harm):
    store.save_checkpoint(A, b"tensors" * 9, {"epoch": 1})
    harm(next(store.layout.checkpoint(A).glob(which)))
    assert store.load_checkpoint(A) is None
    store.save_checkpoint(A, b"good", {"epoch": 2})
    assert store.load_checkpoint(A)[0] == b"good"


def test_the_checkpoint_of_another_trial_is_no_checkpoint(store):
    store.save_checkpoint(A, b"tensors of a", {"epoch": 1})
    os.rename(store.layout.checkpoint(A), store.layout.checkpoint(B))
    assert store.load_checkpoint(B) is None


def test_a_crash_between_tensors_and_state_leaves_the_checkpoint_before(store, monkeypatch):
    store.save_checkpoint(A, b"one", {"epoch": 1})
    replace = Store.replace

    def crash(self, path, data):
        if path.name == "state.json":
            raise KeyboardInterrupt
        replace(self, path, data)

    monkeypatch.setattr(Store, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.save_checkpoint(A, b"two", {"epoch": 2})
    assert fresh(store).load_checkpoint(A)[0] == b"one"


def test_failures_are_kept_by_attempt_in_numeric_order(store):
    for attempt in (1, 10, 2):
        assert store.fail(A, attempt, {"attempt": attempt, "status": "failed", "final": False})
    assert not store.fail(A, 2, {"attempt": "again"})
    assert [record["attempt"] for record in fresh(store).failures(A)] == [1, 2, 10]
    assert store.failures(B) == []
    path = store.layout.failure(A, 2)
    flip(path)
    with pytest.raises(StoreError, match=str(path)):
        store.failures(A)


def test_an_attempt_that_comes_late_neither_ends_nor_reopens_a_trial(store):
    """A worker of an earlier launch, given up and still at work, records its attempt after the final one."""
    seen, again = [], [("reopened", False), ("oom", False), ("failed", True)]
    for attempt, (status, final) in enumerate([("oom", False), ("oom", True), ("failed", False), *again], start=1):
        store.fail(A, attempt, {"attempt": attempt, "status": status, "final": final})
        ended = fresh(store).final_failure(A)
        seen.append(ended and ended["attempt"])
    assert seen == [None, 2, 2, None, None, 6]


# -- crashes and stores that cannot be ---------------------------------------------------------------------------------

CRASH = """
import os, signal, sys
from urc_sweep.store import commits
os.link = lambda *_: os.kill(os.getpid(), 9)
commits.Store(sys.argv[1]).commit("a" * 64, {"id": "a" * 64})
"""


def test_a_crash_before_the_link_leaves_nothing_visible(store):
    before = files(store.root)
    done = subprocess.run([sys.executable, "-c", CRASH, str(store.root)])
    assert done.returncode == -signal.SIGKILL
    (private,) = files(store.root) - before
    assert private.startswith("tmp/")
    after = fresh(store)
    assert (after.committed(A), list(after.commit_ids())) == (None, [])
    assert after.commit(A, RECORD) is True


def test_a_link_whose_answer_was_lost_is_a_win(store, monkeypatch):
    """NFS: the link was made, the reply got lost, the retry says it exists or fails; the link count tells."""
    link = os.link

    def forgetful(*paths):
        link(*paths)
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "link", forgetful)
    assert store.commit(A, RECORD) is True
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.commit(B, RECORD | {"id": B})
    assert fresh(store).committed(B) is None
    assert not list((store.root / "tmp").iterdir())


def test_a_link_that_was_sent_twice_is_a_win(store, monkeypatch):
    """NFS: the reply got lost, the client sent the request again, and the server says that the name exists: ours."""
    link = os.link

    def again(*paths):
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", again)
    assert store.commit(A, RECORD) is True


def test_create_is_once_and_require_says_how(tmp_path):
    store = Store(tmp_path / "deep" / "store")
    assert store.check() is False
    with pytest.raises(StoreError) as caught:
        store.require()
    assert str(caught.value) == f"{store.root} is not a store; `urc-sweep launch SPEC --store {store.root}` makes one"
    store.create()
    before = store.layout.format.stat().st_mtime_ns
    store.create()
    assert store.layout.format.stat().st_mtime_ns == before
    store.require()


def test_a_file_is_not_a_store(tmp_path):
    (tmp_path / "file").write_text("x")
    for use in (Store(tmp_path / "file").check, Store(tmp_path / "file").create):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(caught.value) == f"{tmp_path / 'file'} is a file, not a store"
    with pytest.raises(StoreError, match="cannot make a store here: File exists"):
        Store(tmp_path / "file" / "below").create()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """Root may write anywhere, so that the kernel's refusal is played."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "store").create()
    assert str(caught.value) == f"{tmp_path / 'store'}: cannot make a store here: Permission denied"
    monkeypatch.undo()
    store = Store(tmp_path / "store")
    store.create()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match="the store cannot be read: Permission denied"):
        store.check()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "{path} is damaged: it should name the store's format"),
        ("[]", "{path} is damaged: it should name the store's format"),
        ("{}", "{path} is damaged: it should name the store's format"),
        ('{"format": 2}', "{path}: format 2 is newer than this urc-sweep reads (1)"),
    ],
)
def test_a_format_that_cannot_be_read(store, content, line):
    store.layout.format.write_text(content)
    with pytest.raises(StoreError) as caught:
        fresh(store).check()
    assert str(caught.value) == line.format(path=store.layout.format)
    assert caught.value.exit_code == 4


# -- sweeps and names --------------------------------------------------------------------------------------------------


def test_the_newest_sweep_is_last(tmp_path):
    for name, at in (("b", "2025-01-02"), ("a", "2025-01-03"), ("c", "2025-01-01")):
        study = Study(tmp_path, TEXT.replace("name: tiny", f"name: {name}", 1))
        study.launch()
        path = study.store.layout.generation(name, 0)
        reseal(path, lambda record, at=at: record.update(launched_at=at))
    assert study.fresh().store.sweeps() == ["c", "b", "a"]
    with pytest.raises(StoreError) as caught:
        study.store.generation("d")
    assert str(caught.value) == f"{tmp_path} holds no sweep 'd'; it has: c, b, a"


@pytest.mark.parametrize("name", ["../x", "X", "", "a/b", "a\n", ".hidden", "a" * 65, "7up", "a\0"])
def test_a_name_cannot_lead_out_of_the_store(store, name):
    for path in (store.layout.sweep, store.layout.trials_table, store.layout.curves, store.layout.report):
        with pytest.raises(SpecError, match="is not a sweep name"):
            path(name)


def test_a_link_out_of_the_store_is_refused(store, tmp_path):
    (store.root / "sweeps").mkdir()
    (tmp_path / "outside").mkdir()
    (store.root / "sweeps" / "mine").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.layout.spec("mine")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.layout.trials_table("mine")


def test_seals_do_not_depend_on_the_order_of_keys():
    keys = list(RECORD)
    random.Random(0).shuffle(keys)
    assert _seal({key: RECORD[key] for key in keys}) == _seal(RECORD)
    assert json.loads(_seal(RECORD))["record"] == RECORD
