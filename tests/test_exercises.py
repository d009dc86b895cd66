"""Exercises: the blank says that it is blank, the right solution is OK, and typical wrong ones are WRONG and named."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from answers import RIGHT, WRONG, filled, right

from fbackprop import check_layer
from fbackprop.classroom.exercises import EXERCISES
from fbackprop.cli import main
from fbackprop.train.task.task import call

DOCS = Path(__file__).parent.parent / "docs"
MISTAKES = [(name, what) for name in EXERCISES for what in WRONG[name]]
QUICK = {(name, next(iter(WRONG[name]))) for name in ("relu", "dense", "batch_norm")}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch, quick_compile):
    monkeypatch.chdir(tmp_path)


def test_every_exercise_has_answers():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())
    files = {path.stem for path in next(iter(EXERCISES.values())).file.parent.glob("*.py")} - {"__init__"}
    assert files == set(EXERCISES)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_file_is_what_a_learner_needs_and_no_more(name):
    text = EXERCISES[name].file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == ["import jax", "import jax.numpy as jnp", "from fbackprop import Layer"]
    assert f'EXERCISE = "{name}"' in text
    said = ast.get_docstring(tree)
    assert f"Level {EXERCISES[name].level}, about {EXERCISES[name].minutes} minutes" in said
    assert f"fbackprop verify {name}.py:layer" in said
    pages = [word.strip(",;") for word in said.split() if word.startswith("docs/derivations/")]
    assert pages
    assert all((DOCS.parent / page).is_file() for page in pages)
    assert len(text.splitlines()) <= 85


@pytest.mark.parametrize("name", EXERCISES)
def test_the_blank_says_that_it_is_not_written(name, capsys):
    assert main(["exercise", name]) == 0
    assert main(["verify", f"{name}.py:layer"]) == 1
    said = capsys.readouterr().err
    assert "the backward is not written yet: return" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("dense", "chain")))
                                  for name in EXERCISES])
def test_the_right_solution_is_ok(name, capsys):
    Path("mine.py").write_text(right(name))
    assert main(["verify", "mine.py:layer", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["verdict"], said["ok"]) == ("OK", 1)


@pytest.mark.parametrize(("name", "what"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in QUICK))
                                            for pair in MISTAKES])
def test_a_typical_mistake_is_wrong_and_named(name, what):
    lines, words = WRONG[name][what]
    Path("mine.py").write_text(filled(name, lines))
    report = check_layer(*call("mine.py:layer"))
    assert report.verdict == "WRONG"
    hints = [finding.hint for finding in report.findings]
    assert any(words in hint for hint in hints), hints
    assert words or not any(hints), hints


def test_a_wrong_solution_exits_1_and_the_json_says_why(capsys):
    Path("mine.py").write_text(filled("dense", WRONG["dense"]["db of one row"][0]))
    assert main(["verify", "mine.py:layer", "--json"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["verdict"] == "WRONG"
    assert said["worst"]["leaf"] == "params/b"
    assert said["worst"]["error"] > said["worst"]["bound"]
    assert "the sum over the batch is missing" in said["worst"]["hint"]


def test_a_file_is_never_overwritten_without_force(capsys):
    Path("dense.py").write_text("hours of work")
    assert main(["exercise", "dense"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("dense.py").read_text() == "hours of work"
    assert main(["exercise", "dense", "--out", "again.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"verb": "exercise", "exercise": "dense", "file": "again.py"}
    assert "fbackprop verify again.py:layer" in Path("again.py").read_text()
    assert main(["exercise", "dense", "--force"]) == 0
    assert Path("dense.py").read_text() == EXERCISES["dense"].file.read_text()


def test_the_list(capsys):
    assert main(["exercise", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["exercises"]
    assert [row["name"] for row in listed] == list(EXERCISES)
    assert set(listed[0]) == {"name", "learned", "level", "minutes"}


@pytest.mark.parametrize(("argv", "code", "words"), [
    (["exercise", "desne"], 2, "Did you mean dense?"),
    (["exercise", "--force"], 2, "expected with a name"),
    (["exercise", "dense", "--out", "no/such/folder.py"], 74, "No such file"),
    (["exercise", "dense", "--out", "."], 2, "got a directory"),
])
def test_a_mistake_is_one_clear_line(argv, code, words, capsys):
    assert main(argv) == code
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_writing_one_needs_no_jax():
    program = "import sys; from fbackprop.cli import main; main(['exercise', 'dense']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
