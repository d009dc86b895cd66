"""fbackprop experiments: the questions this project asks of itself, and what came out; they live in a checkout."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table
from tyro.conf import Positional

from ..errors import Problem, unknown
from .options import parse, screen

RESULTS = Path("runs/experiments")


@dataclass(frozen=True)
class Options:
    """List the experiments with their last result, or run some: fbackprop experiments run NAME ... (or all)."""

    words: Positional[tuple[str, ...]] = ()
    """Nothing for the list, or run NAME ..., or run all."""
    seed: tuple[int, ...] = (0,)
    """Of weights, data and order; several are run one after the other."""
    quick: bool = False
    """The short form that the test suite runs."""
    out: str = str(RESULTS)
    """Where the JSON and the figure of each go."""
    json: bool = False
    """The last line of stdout is one JSON object."""


@dataclass(frozen=True)
class Experiment:
    """An experiment, as its docstring describes it."""

    name: str
    question: str
    rows: str
    time: str
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Returns whether it needs a package that is not installed."""
        return bool(self.needs) and find_spec(self.needs) is None


def run(argv: list[str]) -> int:
    """Lists or runs. Exit code 1 when an expected result does not come out."""
    options = parse(Options, "experiments", argv)
    folder = find_folder()
    found = {path.stem: describe(path) for path in sorted(folder.glob("*.py")) if is_experiment(path)}
    if any(seed < 0 for seed in options.seed) or not options.seed:
        raise Problem("--seed: expected whole numbers of at least 0")
    if not options.words:
        return list_all(found, options)
    if options.words[0] != "run" or len(options.words) == 1:
        raise Problem(f"experiments: expected nothing, or run and names, got {' '.join(options.words)!r}. "
                      "fbackprop experiments lists the names")
    names = list(options.words[1:])
    if names == ["all"]:
        names = [name for name, each in found.items() if not each.missing]
        for name in found.keys() - set(names):
            print(f"{name}: left out, {found[name].needs} is not installed", file=sys.stderr)
    for name in names:
        if name not in found:
            raise unknown("experiment", name, found)
    return run_all(folder, names, options)


def find_folder() -> Path:
    """Returns experiments/ beside the package, or here. Raises Problem without a checkout."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if (root / "experiments" / "lab.py").exists():
            return root / "experiments"
    raise Problem("experiments: expected a checkout, an installed package holds none. Clone the repository, or go to its root")


def is_experiment(path: Path) -> bool:
    return "\ndef experiment(" in path.read_text(encoding="utf-8")


def describe(path: Path) -> Experiment:
    """Returns the Experiment that a file's docstring describes. Nothing is imported."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    question, _, rest = text.partition("\n")
    heads = dict(line.split(maxsplit=1) for line in rest.splitlines() if line.split()[1:])
    return Experiment(path.stem, question, heads.get("Rows", ""), heads.get("Time", ""), heads.get("Needs", ""))


def last_results(name: str, out: Path) -> list[dict[str, Any]]:
    """Returns the results of an experiment in `out`, the newest last."""
    found = []
    for path in sorted(out.glob(f"{name}-seed*.json"), key=lambda path: path.stat().st_mtime):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(result, dict) and result.get("experiment") == name:
            found.append(result)
    return found


def list_all(found: dict[str, Experiment], options: Options) -> int:
    """Prints the experiments as a table, and as JSON."""
    table, rows = Table("experiment", "rows", "question", "last result"), []
    for each in found.values():
        results = last_results(each.name, Path(options.out))
        last = results[-1] if results else None
        table.add_row(each.name, each.rows, each.question, in_words(last))
        rows.append({**each.__dict__, "last": last and {key: last[key] for key in ("passed", "seed", "quick", "seconds")}})
    screen().print(table)
    if options.json:
        print(json.dumps({"verb": "experiments", "experiments": rows}))
    return 0


def in_words(last: dict[str, Any] | None) -> str:
    if last is None:
        return "not run here"
    fate = "as expected" if last["passed"] else "NOT as expected"
    return f"{fate}, seed {last['seed']}" + ", quick" * last["quick"] + f", {last['seconds']:.0f} s"


def run_all(folder: Path, names: list[str], options: Options) -> int:
    """Runs each experiment in its own process; what it prints passes through."""
    console, table = screen(), Table("experiment", "seed", "claims that hold", "result", "s")
    rows: list[dict[str, Any]] = []
    path = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    for name in names:
        for seed in options.seed:
            print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
            command = [sys.executable, str(folder / f"{name}.py"), "--seed", str(seed), "--out", options.out]
            earlier = last_results(name, Path(options.out))[-1:]
            command += ["--quick"] * options.quick
            sys.stdout.flush()  # what an experiment prints comes after
            out = sys.stderr if options.json else None  # with --json stdout is for machines
            code = subprocess.run(command, env=environment, stdout=out).returncode
            result = last_results(name, Path(options.out))[-1:]  # the earlier one still, where this run broke down
            claims, seconds = ([], None) if result == earlier else (result[0]["claims"], result[0]["seconds"])
            rows.append({"experiment": name, "seed": seed, "exit_code": code, "passed": code == 0, "seconds": seconds,
                         "failed": [claim["claim"] for claim in claims if not claim["holds"]]})
            table.add_row(name, str(seed), f"{sum(claim['holds'] for claim in claims)} of {len(claims)}",
                          "as expected" if code == 0 else f"NOT as expected, exit code {code}", str(seconds))
    console.print(table)
    passed = all(row["passed"] for row in rows)
    for row in rows:
        for claim in row["failed"]:
            console.print(f"{row['experiment']}, seed {row['seed']}: does not hold: {claim}")
    if options.json:
        print(json.dumps({"verb": "experiments", "passed": passed, "runs": rows}))
    return 0 if passed else 1
