"""A run read back from its directory: the lines of metrics.jsonl by kind, in order, and how the run stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileProblem, Problem
from ..train.run.log import records
from ..train.store.rundir import CONFIG, METRICS, at_work, read_toml
from ..train.task.config import TrainConfig

Row = dict[str, Any]

# what the lines call things: a line's kind is the first of these keys it has
LOOK, ALERT, EVENT, EPOCH, LOSS = KINDS = ("look", "alert", "event", "epoch", "loss")
HALTED, WENT_BACK = "halted", "went back"
GRADIENT, WEIGHTS, UPDATE, RATIO = "grad_norm", "param_norm", "update_norm", "update_ratio"
SHARES = {"dead": "dead", "saturated": "saturated"}  # of a layer's units, 0 to 1
SCORES = {"loss": "loss of a step", "train_loss": "train loss of an epoch",
          "test_loss": "test loss", "test_accuracy": "test accuracy", "test_rmse": "test rmse"}


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: an event of the run, or an alert of what watches it. text: says it in a sentence;
    number: what was measured.
    """

    step: int
    kind: str
    layer: str
    text: str
    alert: bool = False
    ended: bool = False
    number: float | None = None


@dataclass
class History:
    """The rows of each kind. What was undone (the steps after the one a run went back to) is left out; its marks stay."""

    directory: Path
    config: TrainConfig
    steps: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    looks: list[Row] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    unread: int = 0
    at_work: bool = False
    halted: bool = False

    @property
    def step(self) -> int:
        """Returns the last step known."""
        return max((row["step"] for rows in (self.steps, self.epochs, self.looks) for row in rows), default=0)

    @property
    def status(self) -> str:
        """Returns how the run stands, in a few words."""
        last = self.epochs[-1] if self.epochs else {}
        if self.at_work:
            return "still going on"
        if self.halted:
            return "halted"
        if last.get("step") and last.get("epoch") == last.get("epochs"):
            return "finished"
        return "ended before its last step" if self.step else "ended before its first step"

    @property
    def layers(self) -> list[tuple[int, dict[str, Row]]]:
        """Returns (step, numbers by layer) of the looks, else of the epochs' gradient norms."""
        if self.looks:
            return [(row["step"], row[LOOK]) for row in self.looks]
        norms = [(row["step"], row.get("gradient_norms")) for row in self.epochs]
        return [(step, {path: {GRADIENT: norm} for path, norm in table.items()})
                for step, table in norms if isinstance(table, dict)]

    @property
    def seconds(self) -> float | None:
        """Returns the seconds of training, of all its parts; None before the first epoch."""
        _, clock = series(self.epochs, "seconds")
        later = [*clock[1:], 0.0]
        return sum(now for now, then in zip(clock, later) if then < now) if clock else None


def read_run(directory: Path) -> History:
    """Raises FileProblem when it is no run's directory, Problem when it is a file."""
    if directory.is_file():
        raise Problem(f"{directory}: expected a run's directory, got a file. Name the directory it is in")
    if not (directory / CONFIG).exists():
        raise FileProblem(f"{directory}: expected a run's directory with {CONFIG} and {METRICS}, found "
                          f"{'none' if directory.is_dir() else 'nothing'}. fbackprop train says where it puts a run")
    table = read_toml(directory / CONFIG)
    try:
        history = History(directory, TrainConfig(**table), at_work=at_work(directory))
    except (TypeError, ValueError, AttributeError, Problem) as error:
        raise FileProblem(f"{directory / CONFIG}: expected the configuration of a run, got: {error}") from error
    try:
        rows = records(directory)
        lines = (directory / METRICS).read_bytes().splitlines()
    except OSError as error:
        raise FileProblem(f"{directory / METRICS}: expected a readable file, got: {error.strerror or error}") from error
    history.unread = max(0, len(lines) - len(rows) - 1)  # the last may be half written
    for row in map(numbers, rows):
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            _sort_in(history, row)
    return history


def _sort_in(history: History, row: Row) -> None:
    kind = next((kind for kind in KINDS if kind in row), None)
    if kind == LOSS:
        history.steps.append(row)
        history.halted = False
    elif kind == EPOCH:
        history.epochs.append(row)
    elif kind == LOOK and isinstance(row[LOOK], dict):
        layers = {path: about for path, about in row[LOOK].items() if isinstance(about, dict)}
        history.looks.append({**row, LOOK: layers})
    elif kind == ALERT:
        history.marks.append(Mark(row["step"], str(row[ALERT]), str(row.get("layer") or ""), str(row.get("text") or row[ALERT]),
                                  True, bool(row.get("ended")), number_of(row.get("number"))))
    elif kind == EVENT:
        history.marks.append(Mark(row["step"], str(row[EVENT]), str(row.get("layer") or ""), _words(row)))
        history.halted = row[EVENT] == HALTED
        if row[EVENT] == WENT_BACK:
            for rows in (history.steps, history.epochs, history.looks):
                rows[:] = [kept for kept in rows if kept["step"] <= (number_of(row.get("to")) or 0)]


def _words(event: Row) -> str:
    loss = number_of(event.get("loss"))
    text = str(event[EVENT]) + (f" to step {event['to']}" if "to" in event else "")
    text += f", the loss was {loss:.4g}" if loss is not None else ""
    text += f", it began in {event['origin']}" if event.get("origin") else ""
    scale = number_of(event.get("scale"))
    return text + (f", the loss is scaled by {scale:g} from here" if scale is not None else "")


def numbers(value: Any) -> Any:
    """Returns a value with "nan", "inf" and "-inf" as numbers again."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


def number_of(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def series(rows: Iterable[Row], key: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of the rows that have a number there, NaN and inf included."""
    have = [(row["step"], number_of(row.get(key))) for row in rows]
    return [step for step, value in have if value is not None], [value for _, value in have if value is not None]


def layer_series(history: History, key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns the series of each layer from the looks, else gradient norms of the epochs."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, table in history.layers:
        for path, about in table.items():
            value = number_of(about.get(key))
            if value is not None:
                steps, values = found.setdefault(path, ([], []))
                steps.append(step)
                values.append(value)
    return found


def label(path: str, names: dict[str, str]) -> str:
    """Returns a layer's path and name, without the insides of a combinator."""
    name = names.get(re.sub(r"\[\d+\]", "", path), "")  # a repeat's block has a number of its own: 2/0[3]/1
    return f"{path or 'net'} {name if len(name) <= 40 else name.partition('(')[0]}".rstrip()


def place(path: str) -> tuple[list[int], list[int]]:
    """Sorts paths as the net is written: 2 before 10, all blocks of a layer together."""
    return ([int(part) for part in re.sub(r"\[\d+\]", "", path).split("/") if part.isdigit()],
            [int(number) for number in re.findall(r"\[(\d+)\]", path)])


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
