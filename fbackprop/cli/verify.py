"""fbackprop verify: every rule here by every oracle, your own layer or network, or a folder of exercises."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tyro.conf import Positional

from ..errors import Failure, Problem, unknown
from .options import parse, screen


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
        from .grading import graded

        return graded(options)
    for name in ("exercise", "function", "seconds", "memory", "jobs"):
        if getattr(options, name) != getattr(Options, name):
            raise Problem(f"--{name}: expected with a folder or a file.py to grade")
    counts = _table(options) if options.model is None else _own(options)
    if options.json:
        print(json.dumps({"verb": "verify", **counts}))
    bad = counts["wrong"] or counts["caught"] < counts["planted"] or counts["false_alarms"]
    return 1 if bad else 0


def _table(options: Options) -> dict[str, Any]:
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


def _own(options: Options) -> dict[str, Any]:
    """One report on the user's network or layer, counted as the table's are."""
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
