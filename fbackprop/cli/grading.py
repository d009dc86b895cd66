"""fbackprop verify FOLDER: a class's exercises, each file in a process of its own. Not a verb by itself."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import FileProblem, Problem
from . import as_flags
from .options import screen
from .signals import between_steps


def graded(options: Any) -> int:
    """One line of JSON for each file and one for all, or a table. 0 when nothing is worse than KINK or NOISY, else 1."""
    files = _files(Path(options.model))
    if options.layer is not None:
        raise Problem("--layer: expected with the built-in rules alone. Leave it or the folder out")
    jobs = (os.cpu_count() or 1) if options.jobs is None else options.jobs
    if options.memory < 1 or jobs < 1 or not (math.isfinite(options.seconds) and options.seconds > 0):
        raise Problem("seconds, memory and jobs: expected numbers above 0")
    try:
        from ..classroom.grading.contain import Limits
    except ImportError as error:
        raise Problem(f"grading needs {error.name}, which is not installed: pip install 'fbackprop[cli]'") from error
    from ..classroom.grading.grade import VERDICTS, grade

    seed = secrets.randbelow(2**31) if options.seed is None else options.seed  # one nobody knew beforehand
    limits, began = Limits(options.seconds, options.memory * 10**6), time.perf_counter()
    table, counts, passed = Table("file", "exercise", "verdict", "why", "seconds"), Counter[str](), True
    with between_steps() as check:
        for one in grade(files, options.exercise, options.function, seed, limits, min(jobs, os.cpu_count() or 1), check):
            if options.json:
                print(json.dumps(one.row), flush=True)
            else:
                print(f"{one.file}: {one.verdict}", file=sys.stderr)
            table.add_row(one.file, one.exercise or "", one.verdict, as_flags(one.why), f"{one.seconds:.1f}")
            counts[one.verdict] += 1
            passed = passed and one.passed
    seconds = round(time.perf_counter() - began, 1)
    if options.json:
        verdicts = {verdict.lower(): counts[verdict] for verdict in VERDICTS}
        print(json.dumps({"verb": "verify", "files": len(files), **verdicts, "seed": seed, "seconds": seconds}))
    else:
        console = screen()
        console.print(table)
        found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        console.print(f"{len(files)} file{'s' * (len(files) != 1)}: {found}. Seed {seed}. {seconds:.0f} s")
    return 0 if passed else 1


def _files(target: Path) -> list[Path]:
    if target.is_dir():
        files = sorted(path for path in target.glob("*.py") if path.is_file())
        if not files:
            raise Problem(f"{target}: expected a folder with *.py files, found none in it")
        return files
    if not target.is_file():
        raise FileProblem(f"{target}: expected a Python file or a folder of them, found none. "
                          f"The working directory is {Path.cwd()}")
    return [target]
