"""What a run's directory tells: its numbers in one Report, its figures beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..train.run.epochs import length
from ..train.store.rundir import writing
from ..train.task.builtin import load_task
from ..train.task.task import Task
from ..transform import layers_by_path
from .history import GRADIENT, RATIO, SCORES, SHARES, WEIGHTS, History, Mark, Row, finite, number_of, place, series

FIGURES = "report"  # the directory in a run's own
COLUMNS = {GRADIENT: "gradient norm", WEIGHTS: "weight norm", RATIO: "update / weight", **SHARES, "dy_norm": "norm of dy",
           "y_rms": "rms of output"}


@dataclass(frozen=True)
class Score:
    """One measured quantity over a run: the first, the last and the best finite value, and the step of that."""

    first: float
    last: float
    best: float | None
    best_step: int | None


@dataclass(frozen=True)
class Report:
    """The run in numbers. steps, epochs: how many it was to take, None where that is not known.

    layers: by path, what the last look (at layers_step) says. notes: what is missing, and why.
    """

    model: str
    settings: dict[str, Any]
    status: str
    step: int
    steps: int | None
    epoch: int | None
    epochs: int | None
    seconds: float | None
    gradient_error: float | None
    scores: dict[str, Score]
    marks: list[Mark]
    layers_step: int | None
    layers: dict[str, dict[str, float]]
    notes: list[str]

    @property
    def as_json(self) -> Row:
        """Returns a dict for JSON, flat except for scores, marks and layers."""
        found = asdict(self)
        settings, notes = found.pop("settings"), found.pop("notes")
        return {"model": found.pop("model"), "backward": settings["backward"], **found, "notes": notes}


def task_of(history: History) -> tuple[Task | None, str]:
    """Returns (the run's task, ""), or (None, why): its file or its data may be gone."""
    try:
        return load_task(history.config), ""
    except Problem as problem:
        return None, str(problem)


def layer_names(task: Task | None) -> dict[str, str]:
    """Returns the name of every layer by its path."""
    return {path: layer.name for path, layer in layers_by_path(task.net).items()} if task else {}


def report(history: History, task: Task | None, why: str = "") -> Report:
    """Returns the numbers of a run, however far it came."""
    config, last = history.config, history.epochs[-1] if history.epochs else {}
    errors = series(history.epochs, "gradient_error")[1]
    layers_step, layers = _last_look(history)
    notes = [f"no task, so no names of layers and no gradients: {why}"] * bool(why)
    if history.unread:
        notes.append(f"{history.unread} lines of metrics.jsonl after one that cannot be read are left out")
    settings = {name: value for name, value in asdict(config).items() if value is not None and name != "model"}
    steps = config.steps
    if task is not None:
        with suppress(Problem):
            steps = length(task, config).steps
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=None)
    return Report(config.model, settings, history.status, history.step, steps, last.get("epoch"), last.get("epochs"),
                  history.seconds, worst, _scores(history), history.marks, layers_step, layers, notes)


def _scores(history: History) -> dict[str, Score]:
    found = {}
    for key in SCORES:
        steps, values = series(history.steps if key == "loss" else history.epochs, key)
        better: Callable = max if key == "test_accuracy" else min
        best = better(finite(values), default=None)
        if values:
            found[key] = Score(values[0], values[-1], best, None if best is None else steps[values.index(best)])
    return found


def _last_look(history: History) -> tuple[int | None, dict[str, dict[str, float]]]:
    if not history.layers:
        return None, {}
    step, table = history.layers[-1]
    known = {path: {key: number_of(table[path].get(key)) for key in COLUMNS} for path in sorted(table, key=place)}
    return step, {path: {key: value for key, value in about.items() if value is not None}
                  for path, about in known.items()}


def draw(history: History, task: Task | None, out: Path) -> tuple[list[Path], list[str]]:
    """Draws what there is to draw into `out`; returns the files and notes on what there is not.

    Raises Problem without matplotlib or when `out` is a file, FileProblem when it cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Problem(f"figures need {error.name}, which is not installed: pip install 'fbackprop[plot]', or `text` for none"
                      ) from error
    from .figures import layers, training
    from .first_layer import first_layer

    if out.exists() and not out.is_dir():
        raise Problem(f"{out}: expected a directory or nothing, got a file. Give `out` another name")
    names, notes = layer_names(task), []
    made = {"training.png": training(history), "layers.png": layers(history, names)}
    made["first_layer.png"], note = first_layer(history, task, names)
    notes += [note] * bool(note)
    notes += ["no step yet, so no training.png"] * (made["training.png"] is None)
    notes += ["no look at the layers yet, so no layers.png"] * (made["layers.png"] is None)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            if figure is not None:
                figure.savefig(out / name)
    return [out / name for name, figure in made.items() if figure is not None], notes
