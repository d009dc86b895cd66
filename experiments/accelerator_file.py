"""The file of experiments/accelerator.py: read, refused, continued, written as a whole."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.worker import ROOT

from fbackprop.errors import FileProblem, Problem

# the most important first
ROWS = ("gpt2-124m", "gpt", "gpt50k", "resnet", "cnn", "lstm", "mlp", "layers", "devices")
PACKAGES = ("jax", "jaxlib", "optax", "chex", "numpy", "flax", "torch")
SAME = ("device", "backend", "count", "small", "driver", "versions")  # in all calls of one file
COMMAND = "python experiments/accelerator.py"


@dataclass
class Record:
    """A file's path and its content."""

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
        """Adds or replaces a row, and writes the file. Raises FileProblem."""
        rows = {**self.rows, row["name"]: row}
        self.content["rows"] = [rows[name] for name in ROWS if name in rows]
        self.save()

    def save(self) -> None:
        """Replaces the file in one step: a kill leaves the old or the new. Raises FileProblem."""
        self.content["missing"] = self.missing
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            raise FileProblem(f"{self.path}: expected to be able to write there, got: "
                              f"{error.strerror}. Give --out another name") from error


def read(path: Path) -> dict[str, Any]:
    """Returns the content. Raises FileProblem for an unreadable file, Problem for another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path}: expected a file of `{COMMAND}`, got: {error.strerror}. "
                          "Give the name of one") from error
    except ValueError as error:
        raise Problem(f"{path}: expected JSON of `{COMMAND}`, got: {error}. "
                      "Give another name") from error
    if not is_record(content):
        raise Problem(f"{path}: expected JSON of `{COMMAND}`, got other JSON. Give another name")
    return content


def is_record(content: Any) -> bool:
    """Returns whether `content` has the keys of a record, and rows with known names."""
    keys = {*SAME, "date", "why", "rows", "missing"}
    if not isinstance(content, dict) or not keys <= content.keys():
        return False
    return isinstance(content["rows"], list) and all(
        isinstance(row, dict) and row.get("name") in ROWS and {"state", "arms"} <= row.keys()
        for row in content["rows"])


def begin(path: Path, old: dict[str, Any] | None, about: dict[str, Any]) -> Record:
    """Continues the file's content `old`, or starts one. Raises Problem for another device's."""
    new = described(about)
    if old is None:
        return Record(path, new)
    for key in SAME:
        if old[key] != new[key]:
            raise Problem(f"{path}: expected a file of this device and these versions, got "
                          f"{difference(key, old[key], new[key])}. Give --out another name")
    return Record(path, old)


def difference(key: str, old: Any, new: Any) -> str:
    """Says where two unequal values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(each for each in {**old, **new} if old.get(each) != new.get(each))
        old, new = old.get(key), new.get(key)
    return f"{key} {old!r} in the file and {new!r} here"


def described(about: dict[str, Any]) -> dict[str, Any]:
    """Returns a record without rows: the device, the versions and the date."""
    driver = first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    why = {} if driver else {"driver": "nvidia-smi reports none"}
    return {"device": about["device"], "backend": about["backend"], "count": about["count"],
            "small": about["small"], "date": now(), "driver": driver, "versions": versions(),
            "why": why, "rows": [], "missing": list(ROWS)}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages; nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit_name() -> str:
    """Returns the checkout's commit, with -dirty where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return first_line(command) or "unknown: not a git checkout"


def first_line(command: list[str]) -> str | None:
    """Returns the first line that a command prints, None where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None
