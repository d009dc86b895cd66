"""Sample programs: mypy --strict and pyright accept the right one, and find the one mistake of each wrong one.

reportMissingTypeStubs and reportUnknownMemberType are off, for optax has no types and jax.numpy's are partly unknown.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fbackprop.names import PACKAGES, names_of

TYPED = Path(__file__).parent / "typed"
ROOT = TYPED.parent.parent
WRONG = {  # file -> what mypy and pyright call the mistake, what the run raises
    "wrong_option.py": ("call-arg", "reportCallIssue", TypeError, r"Write dense\(8, bias=False\)"),
    "wrong_name.py": ("attr-defined", "reportAttributeAccessIssue", ImportError, "no_such_name"),
    "wrong_list.py": ("arg-type", "reportArgumentType", TypeError, r"chain, part 0: expected a Layer, got \[Layer\]"),
    "wrong_position.py": ("call-arg", "reportCallIssue", TypeError, r"Write dense\(3, bias=True\)"),
    "wrong_type.py": ("arg-type", "reportArgumentType", ValueError, "dense features: expected a whole number .* got 'a lot'"),
}


def run(*command):
    """Returns what a checker writes about all programs at once."""
    env = {**os.environ, "MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", *command]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False).stdout


def test_mypy_finds_what_is_wrong_and_nothing_else():
    pytest.importorskip("mypy")
    said = run("mypy", "--config-file", "tests/typed/mypy.ini", "tests/typed")
    found = re.findall(r"^tests/typed/(\w+\.py):\d+: error: .* \[([\w-]+)\]$", said, re.M)
    assert sorted(found) == sorted((name, code) for name, (code, *_) in WRONG.items()), said
    assert f"checked {len(WRONG) + 1} source files" in said


def test_pyright_finds_what_is_wrong_and_nothing_else():
    pytest.importorskip("pyright")
    said = json.loads(run("pyright", "-p", "tests/typed", "--pythonpath", sys.executable, "--outputjson"))
    found = [(Path(each["file"]).name, each["rule"]) for each in said["generalDiagnostics"]]
    found = [(name, rule) for name, rule in found if name == "right.py" or not rule.startswith("reportUnknown")]  # what follows
    assert sorted(found) == sorted((name, rule) for name, (_, rule, *_) in WRONG.items()), said
    assert said["summary"]["filesAnalyzed"] == len(WRONG) + 1


@pytest.mark.usefixtures("quick_compile")
def test_the_right_program_runs(capsys):
    assert runpy.run_path(str(TYPED / "right.py"))["main"]() < 1
    assert capsys.readouterr().out.startswith("OK ")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_refused_when_it_runs(name):
    _, _, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        runpy.run_path(str(TYPED / name))


# ---- signatures

PUBLIC = {name: module for package in ("", *PACKAGES) for name, module in names_of(package).items()}
FUNCTIONS = {name: found for name, module in PUBLIC.items()
             if inspect.isfunction(found := getattr(import_module(f"fbackprop.{module}"), name))}
BY_POSITION = {  # optional arguments that programs give by position
    "loss": ("objective", "value_and_grad", "auto_value_and_grad", "probe", "activation_gradients"),
    "weight": ("accumulate",), "params": ("check_layer", "first_bad"), "batch": ("first_bad",), "value": ("first_bad",),
    "n": ("devices",),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_names_its_types_and_takes_its_options_by_name(name):
    signature = inspect.signature(FUNCTIONS[name])
    annotations = {each.name: each.annotation for each in signature.parameters.values()}
    annotations["return"] = signature.return_annotation
    assert inspect.Parameter.empty not in annotations.values()
    bare = re.compile(r"\b(Callable|list|dict|tuple|Mapping|Sequence)\b(?!\[)")
    assert not list(filter(bare.search, annotations.values()))
    home = FUNCTIONS[name].__module__.split(".")[1]
    if home in ("layers", "losses", "models"):  # test_calls.py holds these
        return
    for each in signature.parameters.values():
        optional = each.default is not each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        assert not optional or name in BY_POSITION.get(each.name, ()), f"{each.name} goes by position"
