"""The command line itself: what it makes of words that it does not know, and what `init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.show.test_gaps import run
from urc_sweep.plan import spec

TEMPLATES = Path(spec.__file__).parent / "templates"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show", "Missing argument 'trial'. (`urc-sweep show --help` tells more)"),
        ("store", "Missing command. (`urc-sweep store --help` tells more)"),
        ("store frob", "No such command 'frob'. (`urc-sweep store --help` tells more)"),
        ("frontierr", "No such command 'frontierr'. Did you mean 'frontier'? (`urc-sweep --help` tells more)"),
        (
            "query x --format cvs",
            "--format cvs: did you mean 'csv'? choices: csv, json, parquet, table\n",
        ),
        ("export --style paper", "--style paper: choices: print, screen\n"),
        ("export --figre gap", "No such option: --figre (Possible options: --figure) (`urc-sweep export --help` tells"),
        ("dashboard --port a", "Invalid value for '--port': Input should be a valid integer"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_choices_or_its_own_help(words, said, monkeypatch, capsys) -> None:
    assert run(monkeypatch, *words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"urc-sweep: {said}")


def test_no_word_at_all_prints_the_help_once(monkeypatch, capsys) -> None:
    assert run(monkeypatch) == 0
    out, err = capsys.readouterr()
    assert (out.count("Usage:"), err) == (1, "")


@pytest.mark.parametrize(
    ("file", "name"), [("study.yaml", "study"), ("in/a-1.b.yml", "a-1.b"), ("My study.yaml", "rdp"), ("2.yaml", "rdp")]
)
def test_a_new_sweep_is_named_after_its_file_where_that_is_a_name(file, name, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / file
    assert run(monkeypatch, "init", path, "--template", "rdp") == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert spec.load(str(path)).name == name
    template = (TEMPLATES / "rdp.yaml").read_text()
    assert path.read_text() == re.sub("(?m)^name: rdp$", f"name: {name}", template), "nothing else differs"
