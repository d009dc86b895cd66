"""The file that experiments/accelerator.py writes: read, refused, continued, and written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fbackprop.bench.worker import ROOT
from fbackprop.problem import FileProblem, Problem

ROWS = ("gpt2-124m", "gpt", "gpt50k", "resnet", "cnn", "lstm", "mlp", "layers", "devices")  # the most important first
PACKAGES = ("jax", "jaxlib", "optax", "chex", "numpy", "flax", "torch")
SAME = ("device", "backend", "count", "small", "versions", "driver", "commit")  # in every call that continues a file
COMMAND = "python experiments/accelerator.py"


@dataclass
class Record:
    """The file's path and its content."""

    path: Path
    content: dict[str, Any]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by name."""
        return {row["name"]: row for row in self.content["rows"]}

    @property
    def missing(self) -> list[str]:
        """The names of the rows that are neither done nor failed."""
        rows = self.rows
        return [name for name in ROWS if name not in rows or rows[name]["state"] == "missing"]

    def put(self, row: dict[str, Any]) -> None:
        """Adds or replaces a row, and writes the file."""
        rows = {**self.rows, row["name"]: row}
        self.content["rows"] = [rows[name] for name in ROWS if name in rows]
        self.save()

    def save(self) -> None:
        """Replaces the file by one step, so that a kill leaves the old file or the new one. Raises FileProblem."""
        self.content["missing"] = self.missing
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            message = f"{self.path}: expected to be able to write there, got: {error.strerror}. Give --out another name"
            raise FileProblem(message) from error


def read(path: Path) -> dict[str, Any]:
    """Returns a file's content. Raises FileProblem where it cannot be read, Problem where it is not of this command."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path}: expected a file of `{COMMAND}`, got: {error.strerror}") from error
    except ValueError as error:
        raise Problem(f"{path}: expected JSON of `{COMMAND}`, got: {error}. Give another file") from error
    if not is_record(content):
        raise Problem(f"{path}: expected JSON of `{COMMAND}`, got other JSON. Give another file")
    return content


def is_record(content: Any) -> bool:
    """Whether `content` has the keys of a record, and rows of known names."""
    if not isinstance(content, dict) or not {*SAME, "date", "why", "rows", "missing"} <= content.keys():
        return False
    rows = content["rows"]
    return isinstance(rows, list) and all(isinstance(row, dict) and row.get("name") in ROWS and "state" in row for row in rows)


def begin(path: Path, old: dict[str, Any] | None, about: dict[str, Any]) -> Record:
    """Continues the content `old` of the file at `path`, or starts one. Raises Problem where `old` was measured elsewhere."""
    new = described(about)
    if old is None:
        return Record(path, new)
    for key in SAME:
        if old[key] != new[key]:
            raise Problem(f"{path}: expected a file of this device and these versions, {differing(key, old[key], new[key])}. "
                          "Give --out another name")
    return Record(path, old)


def differing(key: str, old: Any, new: Any) -> str:
    """Says which part of two unequal values differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(each for each in {**old, **new} if old.get(each) != new.get(each))
        old, new = old.get(key), new.get(key)
    return f"got {key} {old!r} in the file and {new!r} here"


def described(about: dict[str, Any]) -> dict[str, Any]:
    """Returns a record without rows: the device, the versions and the date. why: the reason of every null."""
    driver, commit = driver_version(), commit_name()
    why = {"driver": "nvidia-smi reports none", "commit": "this is not a git checkout"}
    content = {"device": about["device"], "backend": about["backend"], "count": about["count"], "small": about["small"],
               "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "versions": versions(), "driver": driver,
               "commit": commit, "rows": [], "missing": list(ROWS)}
    return {**content, "why": {key: reason for key, reason in why.items() if content[key] is None}}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages; nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def driver_version() -> str | None:
    return first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def commit_name() -> str | None:
    return first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"])


def first_line(command: list[str]) -> str | None:
    """Returns the first line that a command prints, None where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None
