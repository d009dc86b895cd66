"""fbackprop report: what a run did, from its directory: a summary for the terminal, figures beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from .options import numeric, parse, screen

if TYPE_CHECKING:
    from ..report.report import Report

MOST = 40  # marks that are written out


@dataclass(frozen=True)
class Options:
    """Tell what a run did, from its directory, and draw it. Also of a run that is still going on or came to a halt."""

    run_dir: Positional[str]
    """The run's directory, as fbackprop train printed it."""
    out: str | None = None
    """Where training.png, layers.png and first_layer.png go, replacing those there; RUN_DIR/report by default."""
    text: bool = False
    """No figures."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    options = parse(Options, "report", argv)

    from ..report.history import read_run
    from ..report.report import FIGURES, draw, layer_names, report, task_of
    from ..train.run.log import plain

    directory = Path(options.run_dir)
    history = read_run(directory)
    task, why = task_of(history)
    found = report(history, task, why)
    console = screen()
    show(console, found, layer_names(task))
    figures, notes = ([], []) if options.text else draw(history, task, Path(options.out or directory / FIGURES))
    for note in [*found.notes, *notes]:
        console.print(f"note: {note}")
    for figure in figures:
        console.print(str(figure), soft_wrap=True)
    if options.json:
        result = {"verb": "report", "run_dir": str(directory), **found.as_json, "figures": [str(path) for path in figures]}
        print(json.dumps(plain({**result, "notes": [*found.notes, *notes]}), allow_nan=False))
    return 0


def show(console: Console, found: Report, names: dict[str, str]) -> None:
    """Prints the Report: the run, its scores, what happened, its layers."""
    steps = f"{found.step}" + (f" of {found.steps}" if found.steps else "") + " steps"
    epochs = "" if found.epoch is None else f", {found.epoch} of {found.epochs} epochs"
    seconds = "" if found.seconds is None else f", {found.seconds:.1f} s"
    console.print(f"{found.model}: {found.status}, {steps}{epochs}{seconds}")
    console.print(", ".join(f"{name} {value}" for name, value in found.settings.items()))
    if found.gradient_error is not None:
        console.print(f"largest difference from jax.grad {found.gradient_error:.1e} (bound 1e-05)")
    if found.scores:
        console.print(scores_table(found))
    for line in mark_lines(found.marks):
        console.print(line)
    if found.layers:
        console.print(layers_table(found, names))


def scores_table(found: Report) -> Table:
    """Returns the first, last and best value of every measured quantity."""
    from ..report.history import SCORES

    table = Table("", *numeric("first", "last", "best", "at step"))
    for key, score in found.scores.items():
        best = "-" if score.best is None else f"{score.best:.4f}"
        alone = " (no held-out data)" if key == "train_loss" and "test_loss" not in found.scores else ""
        table.add_row(SCORES[key] + alone, f"{score.first:.4f}", f"{score.last:.4f}", best, str(score.best_step or 0))
    return table


def mark_lines(marks: list) -> list[str]:
    """Returns a line for each event and alert, one for repeated ones, not all of very many."""
    said: list[str] = []
    for _, same in groupby(marks, key=lambda mark: (mark.kind, mark.layer, mark.ended)):
        first, *more = same
        # an event's text begins with its kind
        kind = f"{first.kind}: " if first.alert and not first.ended else ""
        again = f" ({1 + len(more)} times, the last at step {more[-1].step})" if more else ""
        said.append(f"step {first.step}: {kind}{first.text}{again}")
    if len(said) > MOST:
        said[MOST // 2:-MOST // 2] = [f"... {len(said) - MOST} more ..."]
    return said


def layers_table(found: Report, names: dict[str, str]) -> Table:
    """Returns a row per layer of the last look, a column for each quantity that is known of any."""
    from ..report.history import SHARES, label
    from ..report.report import COLUMNS

    columns = [key for key in COLUMNS if any(key in about for about in found.layers.values())]
    table = Table(Column("layer", no_wrap=True), *numeric(*(COLUMNS[key] for key in columns)),
                  title=f"layers at step {found.layers_step}", title_justify="left")
    for path, about in found.layers.items():
        shown = {key: f"{value:.1%}" if key in SHARES else f"{value:.3g}" for key, value in about.items()}
        table.add_row(label(path, names), *(shown.get(key, "") for key in columns))
    return table
