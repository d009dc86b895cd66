"""metrics.jsonl: one JSON object a line as things happen; cut back to a checkpoint before a run goes on from it."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from ..store.rundir import METRICS, writing

EVERY = 1.0  # seconds after which lines are handed to the system, for people who follow the file


class Log:
    """Appends to a run's metrics.jsonl. Raises FileProblem where it cannot be written."""

    def __init__(self, directory: Path, start: int = 0) -> None:
        """Opens the file. start: how many bytes stay; a shorter file keeps its whole lines."""
        self.path = directory / METRICS
        with writing(self.path):
            self.file = open(self.path, "ab")  # noqa: SIM115
            self.file.truncate(self.path.read_bytes()[:start].rfind(b"\n") + 1)
            self.file.seek(0, os.SEEK_END)
        self.handed_on = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        """Writes one line; a number that is not finite becomes the string nan, inf or -inf."""
        with writing(self.path):
            self.file.write((json.dumps(plain(record), allow_nan=False) + "\n").encode())
            if time.monotonic() - self.handed_on > EVERY:
                self.file.flush()
                self.handed_on = time.monotonic()

    def sync(self) -> int:
        """Writes everything to the disk, so that it survives a power cut; returns its bytes."""
        with writing(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.file.tell()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self.path):
            self.file.close()


def records(directory: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, without a last line that was cut off."""
    found = []
    for line in (directory / METRICS).read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def plain(value: Any) -> Any:
    """Returns what JSON can hold: a number that is not finite is the string nan, inf or -inf."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
