"""Imports run one way, and a name is the same function however it is reached."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from make_stubs import stubs

import fbackprop
from fbackprop.names import FAMILIES, PACKAGE_OF, PACKAGES, TOP, names_of

ROOT = Path(fbackprop.__file__).parent
# Lowest first. A module imports from lower ranks, or from its own package without circles.
RANKS = (
    ("errors", "dtypes", "facts", "jaxprs", "names"),
    ("checks", "data", "moved"),
    ("params", "calls"),
    ("layer",),
    ("compose", "transform"),
    ("gradients", "precision", "tuning"),
    ("layers", "distributed"),
    ("losses", "observe", "memory"),
    ("verify", "models"),
    ("train",),
    ("report", "classroom"),
    ("comparison",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def module_of(file):
    """A file's dotted name without fbackprop, "" for the package itself."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports_of(module):
    """The modules of this package that a module imports, in functions too; not those for types alone."""
    here = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for_types = {child for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
                 for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node not in for_types:
            base = [*here[:len(here) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(filter(None, base))
            for name in node.names:
                full = f"{base}.{name.name}".lstrip(".")
                yield full if full in FILES else base


IMPORTS = {module: sorted(set(imports_of(module)) - {"", module}) for module in FILES}


def test_every_module_has_a_rank():
    assert {module.split(".")[0] for module in FILES if module} == set(RANK)


def test_no_import_goes_up():
    top = lambda module: module.split(".")[0]
    wrong = [f"{module} imports {other}" for module, others in IMPORTS.items() for other in others if module
             and top(module) != top(other) and RANK[top(other)] >= RANK[top(module)]]
    assert wrong == []


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module, path):
        if module in path:
            raise AssertionError(" -> ".join([*path[path.index(module):], module]))
        if module not in done:
            for other in IMPORTS[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in FILES:
        visit(module, [])


def test_every_package_says_what_it_holds():
    for module, file in FILES.items():
        if module and file.name == "__init__.py":
            first = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            assert first.splitlines()[:1], f"{module}: expected one line in __init__.py that says what the package holds"


def test_the_documentation_shows_the_ranks():
    text = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    for rank, names in enumerate(RANKS[:-1]):
        assert f"| {rank} | {' '.join(f'`{name}`' for name in names)} |" in text


def test_messages_of_the_library_name_no_flags():
    """An option is named in backquotes; the command line makes a flag of it."""
    wrong = []
    for module, file in FILES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        wrong += [f"{module}:{node.lineno}" for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in docs
                  and isinstance(node.value, str) and re.search(r"(?<![-\w])--[a-z]", node.value)
                  and not node.value.startswith("--xla") and not module.startswith("cli")]
    assert wrong == []


def test_a_module_that_moved_is_named_by_its_new_place():
    with pytest.raises(ModuleNotFoundError, match=r"'fbackprop.train.loop': it is in fbackprop.train.run.loop now"):
        importlib.import_module("fbackprop.train.loop")
    with pytest.raises(ModuleNotFoundError, match=r"it is in experiments/bench/baselines\.py now"):
        importlib.import_module("fbackprop.comparison.bench.idiomatic")
    with pytest.raises(ModuleNotFoundError, match=r"'fbackprop.nothing'$"):
        importlib.import_module("fbackprop.nothing")


def test_a_name_that_left_the_top_level_is_named_by_its_new_place():
    with pytest.raises(AttributeError, match=r"it is fbackprop\.memory\.scheduled now$"):
        fbackprop.scheduled  # noqa: B018
    with pytest.raises(ImportError, match=r"'scheduled' from .*: it is in fbackprop\.memory now"):
        from fbackprop import scheduled  # noqa: F401
    with pytest.raises(AttributeError, match=r"module 'fbackprop' has no attribute 'schedule'$"):
        fbackprop.schedule  # noqa: B018
    with pytest.raises(ImportError, match=r"cannot import name 'schedule' from 'fbackprop' \("):
        from fbackprop import schedule  # noqa: F401
    with pytest.raises(AttributeError, match=r"'fbackprop.train' has no attribute 'scheduled'$"):
        fbackprop.train.scheduled  # noqa: B018


@pytest.mark.parametrize("name", sorted(PACKAGE_OF))
def test_a_name_of_a_family_is_not_at_the_top_level(name):
    assert not hasattr(fbackprop, name)
    assert callable(getattr(getattr(fbackprop, PACKAGE_OF[name]), name))


def test_the_stubs_are_those_of_the_table():
    """Editors and type checkers read the stubs."""
    written = {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.pyi")}
    assert written == stubs(), "run experiments/make_stubs.py"
    assert (ROOT / "py.typed").exists()


OWNERS = sorted({*FAMILIES, *(module.split(".")[0] for module in TOP if "." in module)})


@pytest.mark.parametrize("package", ["", *OWNERS])
def test_a_package_offers_the_names_of_the_table(package):
    offered = importlib.import_module(f"fbackprop.{package}".strip("."))
    assert sorted(offered.__all__) == sorted(names_of(package))
    assert set(offered.__all__) <= set(dir(offered))


def test_a_package_needs_no_import_of_its_own():
    program = ("import fbackprop, types\n"
               f"for name in {PACKAGES}: assert type(getattr(fbackprop, name)) is types.ModuleType")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


PROGRAM = """
import importlib, json, os, sys
import chex, jax, matplotlib.pyplot, numpy, optax, rich, tyro
assert "fbackprop" not in sys.modules

def check(package, modules, names):
    import fbackprop
    for module in modules:
        importlib.import_module(f"fbackprop.{module}" if module else "fbackprop")
    home = importlib.import_module(f"fbackprop.{package}")
    for name, module in names.items():
        found = [getattr(place, name) for place in (fbackprop, home) if name in place.__all__]
        found += [getattr(importlib.import_module(f"fbackprop.{module}"), name)]
        assert type(found[0]) is not type(sys), name
        assert all(other is found[0] for other in found), (name, found)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        check(*json.loads(line))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def fresh():
    """Returns the status of a check of PROGRAM, in a process with others' packages alone."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def ask(*question):
            print(json.dumps(question), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield ask


@pytest.mark.parametrize("order", ["modules first", "modules backwards", "names first"])
@pytest.mark.parametrize("package", OWNERS)
def test_a_name_is_the_public_function_after_any_import_order(package, order, fresh):
    modules = [module for module in FILES if module.split(".")[0] == package and "peer" not in module]
    modules = {"modules first": modules, "modules backwards": modules[::-1], "names first": []}[order]
    assert fresh(package, modules, names_of(package)) == 0
