"""What every experiment shares: its options, its claims, and what it leaves behind.

An experiment is a file whose docstring says the question in its first line and then Rows, Command, Expected and Time, with a
function `experiment(lab)` that measures, prints, and states claims by `lab.expect`. It leaves NAME-seed0.json and
NAME-seed0.png in the directory --out (runs/experiments), with -quick in the name of a quick run, and exits with 1 when a
claim does not hold, 2 when the options are wrong or a package is missing, 74 when the directory cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fbackprop.errors import Problem

OUT = Path("runs/experiments")
INCH = 100  # pixels


@dataclass
class Lab:
    """What an experiment is given: a seed, whether to be quick, and where its findings go."""

    name: str
    seed: int = 0
    quick: bool = False
    out: Path = OUT
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    claims: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    drawn: Any = None

    @property
    def stem(self) -> str:
        return f"{self.name}-seed{self.seed}" + "-quick" * self.quick

    def pick(self, full: Any, quick: Any) -> Any:
        """`full`, or `quick` in a quick run."""
        return quick if self.quick else full

    def expect(self, claim: str, got: Any, holds: Any, timed: bool = False) -> bool:
        """States a claim in words with the figure behind it; the experiment fails unless all hold. NaN must not hold.

        timed: a claim about seconds, which in a quick run, beside other work, is told and not judged.
        """
        judged = not (timed and self.quick)
        self.claims.append({"claim": claim, "got": plain(got), "holds": bool(holds), "judged": judged})
        print(f"{'holds' if holds else 'FAILED' if judged else 'not so, not judged'}  {claim}: {show(got)}")
        return bool(holds)

    def keep(self, **numbers: Any) -> None:
        """Numbers for the JSON."""
        self.numbers.update(numbers)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], name: str = "") -> None:
        """Prints rows in columns; kept in the JSON under `name` if it has one."""
        texts = [list(head), *([show(value) for value in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*texts)]
        for text in texts:
            print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                            for i, (cell, width) in enumerate(zip(text, widths))).rstrip())
        print()
        if name:
            self.numbers[name] = [dict(zip(head, map(plain, row))) for row in rows]

    def figure(self, wide: float = 8.0, high: float = 4.5, rows: int = 1, columns: int = 1, **options: Any) -> Any:
        """A matplotlib Figure of rows x columns axes (inches), saved when the experiment ends. None without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print("no figure: pip install 'fbackprop[plot]'", file=sys.stderr)
            return None
        from fbackprop.report.figures import CYCLE

        self.drawn = Figure(figsize=(wide, high), dpi=INCH, layout="constrained")
        axes = self.drawn.subplots(rows, columns, squeeze=False, **options)
        for ax in axes.ravel():
            ax.set_prop_cycle(color=CYCLE)
            ax.grid(True, color="#e5e5e5", linewidth=0.8)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        return self.drawn

    def save(self, seconds: float) -> dict[str, Any]:
        """Writes the JSON and the figure; returns what the JSON holds."""
        figure = self.out / f"{self.stem}.png" if self.drawn is not None else None
        result = {
            "experiment": self.name, "seed": self.seed, "quick": self.quick,
            "passed": bool(self.claims) and all(claim["holds"] or not claim["judged"] for claim in self.claims),
            "seconds": round(seconds, 1), "finished": time.time(), "claims": self.claims,
            "numbers": plain(self.numbers), "figure": figure and figure.name,
            "jax": jax.__version__, "python": platform.python_version(), "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count()}
        self.out.mkdir(parents=True, exist_ok=True)
        if figure:
            self.drawn.savefig(figure)
        (self.out / f"{self.stem}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return result


def run(experiment: Callable[[Lab], None], lab: Lab) -> dict[str, Any]:
    """Runs one experiment and saves what it found."""
    began = time.perf_counter()
    experiment(lab)
    result = lab.save(time.perf_counter() - began)
    print(f"{lab.name}: {'all' if result['passed'] else 'NOT all'} claims hold, seed {lab.seed}, {result['seconds']} s, "
          f"{lab.out / lab.stem}.json")
    return result


def main(experiment: Callable[[Lab], None], argv: Sequence[str] | None = None,
         add_options: Callable[[argparse.ArgumentParser], None] | None = None) -> int:
    """The command line of an experiment's file; returns the exit code."""
    made_in = experiment.__globals__
    parser = argparse.ArgumentParser(description=made_in["__doc__"], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, data and order: %(default)s")
    parser.add_argument("--quick", action="store_true", help="smaller, for the test suite")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="for the JSON and the figure: %(default)s")
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args(argv)
    if options.seed < 0:
        parser.error(f"--seed: expected a whole number of at least 0, got {options.seed}")
    lab = Lab(Path(made_in["__file__"]).stem, options.seed, options.quick, options.out, options)
    try:
        return 0 if run(experiment, lab)["passed"] else 1
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    except OSError as error:
        print(f"{error.filename or options.out}: expected to be able to write there, got: {error.strerror}", file=sys.stderr)
        return 74


def show(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(show, value))
    return str(value)


def plain(value: Any) -> Any:
    """As JSON has it: arrays as lists, what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
