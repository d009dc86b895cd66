"""How far a run is, on stderr: a bar with rate, time left, loss and accuracy on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich import progress
from rich.console import Console

EVERY = 10.0  # seconds from one line to the next where there is no terminal


class Bar:
    """Shows every step and epoch of a run; with `quiet` only the sentences."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.steps, self.quiet, self.accuracy = steps, quiet, ""
        self.first, self.began, self.said = None, 0.0, time.monotonic()
        columns = (progress.TextColumn("step"), progress.BarColumn(), progress.MofNCompleteColumn(),
                   progress.TextColumn("{task.fields[rate]}"), progress.TimeRemainingColumn(),
                   progress.TextColumn("{task.fields[now]}"))
        console = Console(stderr=True)
        self.bar = progress.Progress(*columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty())
        self.job = self.bar.add_task("train", total=steps, rate="", now="")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, record: dict[str, Any]) -> None:
        number, now = record["step"], time.monotonic()
        if self.first is None:
            self.first, self.began = number, now
        rate = (number - self.first) / max(now - self.began, 1e-9)
        words = f"loss {record['loss']:.4g}{self.accuracy}"
        self.bar.update(self.job, completed=number, rate=f"{rate:.3g} steps/s", now=words)
        if not self.quiet and self.bar.disable and now - self.said > EVERY:
            self.said = now
            left = (self.steps - number) / rate if rate else 0
            print(f"step {number}/{self.steps}  {rate:.3g} steps/s  {left:.0f} s left  {words}", file=sys.stderr, flush=True)

    def epoch(self, epoch: Any) -> None:
        if epoch.test_accuracy is not None:
            self.accuracy = f"  test accuracy {epoch.test_accuracy:.4f} at step {epoch.step}"

    def say(self, text: str) -> None:
        """Prints a sentence, whatever `quiet` is."""
        if self.bar.disable:
            print(f"fbackprop: {text}", file=sys.stderr, flush=True)
        else:
            self.bar.console.print(f"fbackprop: {text}", markup=False, highlight=False, soft_wrap=True)
