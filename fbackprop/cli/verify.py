"""fbackprop verify: every rule here by every oracle, your own layer or network, or a folder of exercises."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tyro.conf import Positional

from ..errors import Failure, FileProblem, Problem, unknown
from . import as_flags
from .options import parse, screen
from .signals import between_steps


@dataclass(frozen=True)
class Options:
    """Judge reverse rules by jax.vjp, dot products, central differences and the Taylor remainder."""

    model: Positional[str | None] = None
    """mlp or mnist; your own file.py:function returning (net, loss, batches), a Layer, or (Layer, x); a folder of exercises, or
    one file.py, to be graded. None: all rules."""
    layer: str | None = None
    """Only this layer, or this family (a file of fbackprop/layers)."""
    draws: int = 3000
    """Points at which right rules may raise no false alarm."""
    seed: int | None = None
    """Of the values drawn: 0; in grading a new one each time."""
    exercise: str | None = None
    """Grading: which exercise the files are, a name or a teacher's own file.py; else each says it: EXERCISE = "dense"."""
    function: str = "layer"
    """Grading: the function that returns the Layer or (Layer, x)."""
    seconds: float = 60.0
    """Grading: time for a file; the start of Python and JAX is not counted."""
    memory: int = 2000
    """Grading: megabytes for a file's process and all that it starts."""
    jobs: int | None = None
    """Grading: files at a time; None: as many as there are cores."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    options = parse(Options, "verify", argv)
    if options.draws < 0 or (options.seed or 0) < 0:
        raise Problem("draws and seed: expected whole numbers of at least 0")
    if options.model is not None and (Path(options.model).is_dir() or options.model.endswith((".py", "/", "\\"))):
        return grade_files(options)
    for name in ("exercise", "function", "seconds", "memory", "jobs"):
        if getattr(options, name) != getattr(Options, name):
            raise Problem(f"--{name}: expected with a folder or a file.py to grade")
    counts = _verify_all(options) if options.model is None else _verify_one(options)
    if options.json:
        print(json.dumps({"verb": "verify", **counts}))
    bad = counts["wrong"] or counts["caught"] < counts["planted"] or counts["false_alarms"]
    return 1 if bad else 0


def _verify_all(options: Options) -> dict[str, Any]:
    """Prints a table of the built-in rules. Returns how many verdicts there are of each kind."""
    from ..verify.cases import CASES
    from ..verify.table import verify_table

    cases, began = CASES, time.perf_counter()
    if options.layer is not None:
        cases = tuple(case for case in CASES if options.layer in (case.of, case.family))
        if not cases:
            names = {name for case in CASES for name in (case.of, case.family)}
            raise unknown("layer", options.layer, sorted(names))
    table = Table("layer", "verdict", "planted bugs caught", "draws", "false alarms")
    details: list[str] = []

    def show(result: Any) -> None:
        print(f"{result.case.name}: {result.report.verdict}", file=sys.stderr)
        table.add_row(result.case.name, result.report.verdict, f"{result.planted - len(result.missed)} of {result.planted}",
                      str(result.draws), str(len(result.alarms)))
        if not result.as_expected:
            details.append(f"{result.case.name}: {result.report}")
            details.extend(f"missed: {name}" for name in result.missed)
            details.extend(f"false alarm: {finding}" for finding in result.alarms[:3])

    counts = verify_table(cases, options.draws, options.seed or 0, show)
    console = screen()
    console.print(table)
    for line in details:
        console.print(line)
    console.print(f"{counts['cases']} cases of {counts['layers']} layers: {counts['ok']} OK, {counts['wrong']} WRONG, "
                  f"{counts['kink']} at a kink, {counts['noisy']} noisy. Planted bugs caught: {counts['caught']} of "
                  f"{counts['planted']}. False alarms: {counts['false_alarms']} in {counts['draws']} draws. "
                  f"{time.perf_counter() - began:.0f} s")
    return counts


def _verify_one(options: Options) -> dict[str, Any]:
    """Prints the report on one network or layer. Returns its verdict, counted as in a table."""
    if options.layer is not None:
        raise Problem("--layer: expected with the built-in rules alone. Leave it or the model out")
    from ..compose import objective
    from ..layer import Layer
    from ..train.task.builtin import load_task
    from ..train.task.config import PRESETS, TrainConfig
    from ..train.task.task import call
    from ..verify.check import check_layer, check_network
    from ..verify.own import input_for

    assert options.model is not None
    seed = options.seed or 0
    config = TrainConfig.of(model=options.model, seed=seed)
    made = None if options.model in PRESETS else call(options.model)
    try:
        if isinstance(made, Layer):
            report = check_layer(made, input_for(made), seed=seed)
        elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Layer):
            report = check_layer(*made, seed=seed)
        else:
            import jax

            task = load_task(config, made)
            batch = task.batches(seed, 0)
            params = objective(task.net, task.loss).init(jax.random.key(seed), batch)
            report = check_network(task.net, task.loss, params, batch, seed=seed)
    except (TypeError, ValueError) as error:
        raise Problem(f"{options.model}: {error}") from error
    except NotImplementedError as error:
        raise Failure(f"{options.model}: the backward is not written yet: {error}") from error
    print(report)
    counts = {name: int(report.verdict == name.upper()) for name in ("ok", "wrong", "kink", "noisy")}
    worst = {} if report.worst is None else report.worst.summary
    return {"layers": 1, "cases": 1, **counts, "planted": 0, "caught": 0, "false_alarms": 0, "verdict": report.verdict,
            "hint": report.hint, "worst": worst}


def grade_files(options: Options) -> int:
    """Grades files, each in its own process. Returns 0 when none is worse than KINK or NOISY."""
    files = _files(Path(options.model or ""))
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
