"""Every experiment gives its expected result in its quick form, and says what it is; the lab fails what does not hold."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import pytest

from fbackprop.cli.experiments import describe

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


# they measure what XLA makes of a program; a quick run of scaling asks for bytes alone, which are
# the same to the last one
OPTIMIZED = ("chen2016", "checkpoints", "memory_growth", "manual_against_auto", "tpu_compile")


@pytest.fixture
def compiled_the_quick_way(path):
    """Most of a quick run is compiling."""
    jax.config.update("jax_disable_most_optimizations", path.stem not in OPTIMIZED)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("compiled_the_quick_way")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_gives_its_expected_result(path, tmp_path, capsys):
    needs = describe(path).needs
    if needs:
        pytest.importorskip(needs, reason=f"{path.stem} compiles with {needs}, which few have")
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


def test_a_package_that_is_missing_is_one_line_and_code_2(monkeypatch, tmp_path, capsys):
    module = load("tpu_compile")

    def missing(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    assert load("lab").main(module.experiment, ["--quick", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "pip install libtpu" in said
    assert said.count("\n") == 1


# the command

SAMPLE = '''"""Is two two?

Rows      C7
Command   python experiments/mine.py
Expected  yes
Time      1 s
"""
import sys
from lab import Lab, main
def experiment(lab: Lab) -> None:
    lab.expect("two is two", 2, lab.seed != 1)
    if lab.seed == 2:
        raise RuntimeError("broken")
if __name__ == "__main__":
    sys.exit(main(experiment))
'''


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """(argv) -> (exit code, stdout, stderr) of `fbackprop experiments` over a checkout with one experiment."""
    from fbackprop.cli import experiments as verb
    from fbackprop.cli import main

    folder = tmp_path / "checkout" / "experiments"
    folder.mkdir(parents=True)
    (folder / "lab.py").write_text((EXPERIMENTS / "lab.py").read_text())
    (folder / "mine.py").write_text(SAMPLE)
    monkeypatch.setenv("PYTHONPATH", str(EXPERIMENTS.parent))
    monkeypatch.setattr(verb, "__file__", str(folder.parent / "fbackprop" / "cli" / "experiments.py"))
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main(["experiments", *argv])
        return code, *capfd.readouterr()

    return run


def test_the_list_tells_what_each_asks_and_what_came_out_last(command):
    assert "not run here" in command()[1]
    assert command("run", "mine")[0] == 0
    code, said, _ = command("--json")
    assert code == 0
    assert "as expected, seed 0" in said
    (row,) = json.loads(said.splitlines()[-1])["experiments"]
    assert (row["question"], row["rows"], row["last"]["passed"]) == ("Is two two?", "C7", True)


def test_all_leaves_out_what_lacks_a_package_and_says_so(command, tmp_path):
    other = SAMPLE.replace("Rows      C7", "Rows      C7\nNeeds     no_such_package")
    (tmp_path / "checkout" / "experiments" / "other.py").write_text(other)
    code, _, said = command("run", "all")
    assert code == 0
    assert "other: left out, no_such_package is not installed" in said


def test_one_seed_that_fails_fails_the_run_and_names_the_claim(command):
    code, said, _ = command("run", "all", "--seed", "0", "1", "2", "--json")
    assert code == 1
    assert "mine, seed 1: does not hold: two is two" in said
    found = json.loads(said.splitlines()[-1])
    assert [(run["passed"], run["exit_code"], run["failed"]) for run in found["runs"]] == [
        (True, 0, []), (False, 1, ["two is two"]), (False, 1, [])]


@pytest.mark.parametrize(("argv", "words"), [
    (["run", "min"], "Did you mean mine?"), (["run"], "expected nothing, or run and names"),
    (["walk", "mine"], "lists the names"), (["run", "mine", "--seed", "-1"], "at least 0"), (["--sed", "1"], "--seed")])
def test_a_mistake_is_one_line_and_code_2(command, argv, words):
    code, _, said = command(*argv)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1


def test_without_a_checkout_it_says_what_to_do(command, tmp_path, monkeypatch):
    (tmp_path / "checkout" / "experiments" / "lab.py").unlink()
    code, _, said = command()
    assert code == 2
    assert "expected a checkout" in said
