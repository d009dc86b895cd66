"""Where modules have gone: an import by the old name says the new one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

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
    "train.accumulate": "train.step.accumulation",
    "train.alerts": "train.monitor.alerts",
    "train.builtin": "train.task.builtin",
    "train.checkpoint": "train.store.checkpoint",
    "train.config": "train.task.config",
    "train.evaluate": "train.run.evaluate",
    "train.log": "train.run.log",
    "train.look": "train.run.epochs",
    "train.loop": "train.run.loop",
    "train.optimizer": "train.step.optimizer",
    "train.parallel": "distributed.mesh",
    "train.progress": "train.run.progress",
    "train.recipe": "train.task.recipe",
    "train.rundir": "train.store.rundir",
    "train.saver": "train.store.saver",
    "train.scaling": "train.step.scaling",
    "train.step_probe": "train.run.step_probe",
    "train.symptoms": "train.monitor.symptoms",
    "train.training": "train.step.training",
    "explain": "report, comparison and observe.summary",
    "rewrite": "observe, memory and precision",
}


class Moved(MetaPathFinder):
    """Finds no module; for one that moved it raises an error with the new name. Asked last."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package, _, module = name.partition(".")
        if package == __package__ and module in MOVED:
            place = MOVED[module] if "/" in MOVED[module] else f"{package}.{MOVED[module]}"
            raise ModuleNotFoundError(f"No module named {name!r}: it is in {place} now", name=name)
