"""A run's directory: config.toml and metrics.jsonl. Nothing in it is ever overwritten without being told to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..problem import FileProblem, Problem
from .config import TrainConfig

CONFIG, METRICS = "config.toml", "metrics.jsonl"


def open_run(config: TrainConfig, out: str | None, force: bool) -> Path:
    """Makes the directory (`runs/MODEL-001`, the next free number, unless `out`), writes config.toml, returns its path.

    Raises Problem when `out` holds something and force is False, FileProblem when it cannot be written. force replaces a
    run's own files and leaves others alone.
    """
    with writing(Path(out or "runs")):
        directory = Path(out) if out else _next_free(Path("runs"), re.sub(r"[^\w.-]+", "-", Path(config.model).name))
        if directory.exists() and not directory.is_dir():
            raise Problem(f"{directory}: expected a directory or nothing, got a file. Give --out another name")
        if directory.exists() and out and any(directory.iterdir()) and not force:
            raise Problem(f"{directory}: expected an empty or new directory, it holds files. Give --out another name, "
                          "or --force to replace the run in it")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / METRICS).write_text("", encoding="utf-8")
        (directory / CONFIG).write_text(to_toml(asdict(config)), encoding="utf-8")
    return directory


def _next_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        directory = parent / f"{name}-{number:03d}"
        try:
            directory.mkdir()  # makes it or fails: two runs never get one number
            return directory
        except FileExistsError:
            number += 1


def to_toml(table: dict[str, Any]) -> str:
    """A flat table of strings, numbers and booleans as TOML; None is left out."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items() if value is not None)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError becomes a FileProblem that names the path."""
    try:
        yield
    except OSError as error:
        raise FileProblem(f"{error.filename or path}: cannot be written: {error.strerror}. "
                          "Check the path, its permissions and the space left, or give --out another place") from error


def append(directory: Path, records: list[dict[str, Any]]) -> None:
    """Adds one JSON line per record to metrics.jsonl; a number that is not finite becomes the string nan, inf or -inf."""
    with writing(directory / METRICS), open(directory / METRICS, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(_finite(record), allow_nan=False) + "\n" for record in records)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
