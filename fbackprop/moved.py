"""Tells the new place of a module that moved, or of a name that left the top level, on import."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from .names import PACKAGE_OF

MOVED = {
    "adjustable": "tuning",
    "bench": "comparison.bench",
    "comparison.bench.arm": "comparison.bench.program",
    "comparison.bench.idiomatic": "experiments/bench/baselines.py",
    "comparison.bench.own": "comparison.bench.work",
    "comparison.bench.plans": "comparison.bench.process",
    "comparison.bench.works": "experiments/bench/works.py",
    "exercises": "classroom.exercises",
    "explain.compare": "comparison.costs",
    "explain.compare_figure": "comparison.figure",
    "explain.figures": "report.figures",
    "explain.first_layer": "report.first_layer",
    "explain.history": "report.history",
    "explain.report": "report.report",
    "explain.summary": "observe.summary",
    "flops": "jaxprs.flops",
    "grading": "classroom.grading",
    "layers.cells": "layers.recurrent.cells",
    "layers.rnn": "layers.recurrent.rnn",
    "layers.segments": "layers.recurrent.segments",
    "layers.windows": "layers.kernels.windows",
    "problem": "errors",
    "rewrite.first_bad": "observe.origin",
    "rewrite.order": "memory.forecast",
    "rewrite.peak": "memory.forecast",
    "rewrite.plan": "memory.planner",
    "rewrite.precision": "precision",
    "rewrite.reading": "observe.reading",
    "rewrite.record": "observe.record",
    "rewrite.schedule": "memory.schedule",
    "rewrite.site": "memory.candidates",
    "rewrite.tap": "observe.taps",
    "rewrite.traced": "memory.forecast",
    "rewrite.watch": "observe.probes",
    "cli.grading": "cli.verify",
    "report.names": "report.history",
    "train.accumulate": "train.step.accumulation",
    "train.evaluate": "train.run.epochs",
    "train.look": "train.run.epochs",
    "train.monitor.symptoms": "train.monitor.monitor",
    "train.parallel": "distributed.mesh",
    "train.run.evaluate": "train.run.epochs",
    "train.symptoms": "train.monitor.monitor",
    "explain": "report, comparison and observe.summary",
    "rewrite": "observe, memory and precision",
}
_TRAIN = {
    "monitor": "alerts",
    "run": "log loop progress step_probe",
    "step": "optimizer scaling training",
    "store": "checkpoint rundir saver",
    "task": "builtin config recipe",
}
MOVED |= {f"train.{name}": f"train.{package}.{name}"
          for package, names in _TRAIN.items() for name in names.split()}


class Moved(MetaPathFinder):
    """Raises an error with the new place of a module or a name that moved. It finds no module.

    `from fbackprop import NAME` looks for a module fbackprop.NAME if the package has no such
    attribute.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package, _, inside = name.partition(".")
        if package != __package__:
            return
        if inside in MOVED:
            place = MOVED[inside] if "/" in MOVED[inside] else f"{package}.{MOVED[inside]}"
            raise ModuleNotFoundError(f"No module named {name!r}: it is in {place} now", name=name)
        if inside in PACKAGE_OF:
            home = f"{package}.{PACKAGE_OF[inside]}"
            raise ImportError(f"cannot import name {inside!r} from {package!r}: it is in {home} now. "
                              f"Write `from {home} import {inside}`", name=package)
