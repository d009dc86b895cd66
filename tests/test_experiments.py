"""Every experiment gives its expected result in its quick form, and says what it is; the lab fails what does not hold."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
FILES = sorted(path for path in EXPERIMENTS.glob("*.py") if "\ndef experiment(" in path.read_text(encoding="utf-8"))


def load(name):
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        spec = importlib.util.spec_from_file_location(f"experiments_{name}", EXPERIMENTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXPERIMENTS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_gives_its_expected_result(path, tmp_path, capsys):
    module, lab = load(path.stem), load("lab")
    code = module.main(module.experiment, ["--quick", "--out", str(tmp_path)], getattr(module, "add_options", None))
    said = capsys.readouterr().out
    assert code == 0, said
    result = json.loads((tmp_path / f"{path.stem}-seed0-quick.json").read_text())
    assert result["passed"]
    assert result["claims"]
    assert lab.show(result["claims"][0]["got"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_says_what_it_asks_and_how_to_run_it(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    first, _, rest = text.partition("\n")
    assert first.endswith("?"), first
    for word in ("Rows", "Command", "Expected", "Time"):
        assert re.search(rf"^{word} +\S", rest, re.M), word
    assert f"python experiments/{path.name}" in rest


@pytest.fixture
def lab(tmp_path):
    return load("lab").Lab("mine", out=tmp_path)


def test_one_claim_that_does_not_hold_fails_an_experiment(lab, capsys):
    lab.expect("two is two", 2, True)
    assert lab.save(0.0)["passed"]
    lab.expect("one is two", 1, False)
    assert not lab.save(0.0)["passed"]
    assert "FAILED  one is two: 1" in capsys.readouterr().out


def test_an_experiment_without_a_claim_has_shown_nothing(lab):
    assert not lab.save(0.0)["passed"]


def test_a_claim_about_time_is_judged_in_a_full_run_alone(lab):
    lab.quick = True
    lab.expect("fast", 2.0, False, timed=True)
    assert lab.save(0.0)["passed"]
    lab.claims.clear()
    lab.quick = False
    lab.expect("fast", 2.0, False, timed=True)
    assert not lab.save(0.0)["passed"]


def test_what_is_not_finite_is_null_in_the_json(lab):
    lab.keep(loss=[0.5, float("nan"), float("inf")])
    lab.expect("any", float("nan"), True)
    lab.save(0.0)
    assert json.loads((lab.out / "mine-seed0.json").read_text())["numbers"] == {"loss": [0.5, None, None]}


def test_a_directory_that_cannot_be_written_is_one_line_and_code_74(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    tool = load("lab")

    def experiment(lab):
        lab.expect("any", 1, True)

    experiment.__globals__["__file__"] = __file__
    assert tool.main(experiment, ["--out", str(tmp_path / "file" / "below")]) == 74
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "expected to be able to write" in said
