"""A run's directory: config.toml, metrics.jsonl, checkpoints/. One process at a time; nothing overwritten untold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import FileProblem, Locked, Problem, did_you_mean
from ..task.config import TrainConfig
from ..task.config import read_toml as read_any_toml

PATIENCE = 0.5  # seconds: a report asks for the lock too, for a moment
CONFIG, METRICS, CHECKPOINTS, LOCK = "config.toml", "metrics.jsonl", "checkpoints", "run.lock"
MAY_CHANGE = ("steps", "epochs")  # of a run that goes on


@contextmanager
def open_run(config: TrainConfig, out: str | None = None, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yields the run's locked directory: `out`, or the next `runs/MODEL-001`, or the last.

    Raises Problem when it holds something and neither force nor resume is given, or when the run to go on with had another
    config; Locked when another process is at work in it; FileProblem when it cannot be written. force replaces a run's own
    files and leaves others alone.
    """
    with writing(Path(out or "runs")):
        directory = Path(out) if out else _numbered(Path("runs"), re.sub(r"[^\w.-]+", "-", Path(config.model).name), resume)
        if resume:
            _expect_run(directory)
        if directory.exists() and not directory.is_dir():
            raise Problem(f"{directory}: expected a directory or nothing, got a file. Give `out` another name")
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            if resume:
                expect_config(directory / CONFIG, read_toml(directory / CONFIG), config)
            else:
                _expect_empty(directory, force)
                for file in (directory / CHECKPOINTS).glob("step-*.npz*"):
                    file.unlink()
                # before the other files: a directory that has it can be resumed
                write_config(directory, config)
                (directory / METRICS).write_bytes(b"")
            (directory / CHECKPOINTS).mkdir(exist_ok=True)
            yield directory


def write_config(directory: Path, config: TrainConfig) -> None:
    """Writes a run's config.toml. Raises FileProblem."""
    with writing(directory):
        _write(directory / CONFIG, to_toml(asdict(config)))


def at_work(directory: Path) -> bool:
    """Returns whether a process is at work in the run now; False where that cannot be told."""
    try:
        with _locked(directory) if (directory / LOCK).exists() else _directory_lock(directory):
            return False
    except (Locked, BlockingIOError):
        return True
    except OSError:  # somebody else's directory, which we may only read
        return False


def expect_config(where: Path, had: dict[str, Any], config: TrainConfig) -> None:
    """Raises Problem, naming the first setting that differs, unless `had` is `config` but for its length."""
    now = fixed(config)
    for name in {**now, **had}:
        if name not in MAY_CHANGE and had.get(name) != now.get(name):
            shown = [repr(table[name]) if name in table else "nothing" for table in (had, now)]
            raise Problem(f"{where}: {name}: expected {shown[0]}, as the run began, found {shown[1]}. Give the same, or `out` "
                          "another name for another run")


def fixed(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that may not change when a run goes on."""
    return {name: value for name, value in asdict(config).items() if value is not None and name not in MAY_CHANGE}


def config_hash(config: TrainConfig) -> str:
    """Returns the SHA-256 of `fixed(config)`."""
    return hashlib.sha256(json.dumps(fixed(config), sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Locks the directory, and a file in it. The system frees the locks of a process that dies."""
    with ExitStack() as locks:
        try:
            locks.enter_context(_directory_lock(directory))
            locks.enter_context(FileLock(directory / LOCK).acquire(timeout=PATIENCE))
        except (Timeout, BlockingIOError) as error:
            raise Locked(f"{directory}: expected it free, another run is at work in it. Wait for it, or give `out` another name"
                         ) from error
        yield


@contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    """Locks the directory itself, which stays locked when somebody removes the file. Windows has no such lock."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            except OSError:  # some network file systems lock no directory
                break
        yield
    finally:
        os.close(descriptor)


def _expect_run(directory: Path) -> None:
    """Raises Problem unless there is a run to go on with; names the nearest one beside it."""
    if not (directory / CONFIG).exists():
        near = did_you_mean(directory.name, [path.parent.name for path in directory.parent.glob(f"*/{CONFIG}")])
        raise Problem(f"{directory / CONFIG}: expected it, as every run has one, found none. {near + ' ' * bool(near)}"
                      "Give `out` the directory of a run, or leave out `resume` for a new one")


def _expect_empty(directory: Path, force: bool) -> None:
    if not force and any(file.name not in (LOCK, f"{CONFIG}.tmp") for file in directory.iterdir()):
        raise Problem(f"{directory}: expected an empty or new directory, it holds files. Give `out` another name, `resume` to "
                      "go on with the run in it, or `force` to replace it")


def _numbered(parent: Path, name: str, resume: bool) -> Path:
    if resume:
        taken = [path for path in parent.glob("*") if re.fullmatch(rf"{re.escape(name)}-\d+", path.name)]
        return max(taken, key=lambda path: int(path.name.rpartition("-")[2]), default=parent / f"{name}-001")
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        directory = parent / f"{name}-{number:03d}"
        try:
            directory.mkdir()  # makes it or fails: two runs never get one number
            return directory
        except FileExistsError:
            number += 1


def _write(path: Path, text: str) -> None:
    """Writes all of it or nothing: a full disk or a kill leaves what was there."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a run's config.toml. Raises FileProblem when it cannot be read or is no TOML."""
    try:
        return read_any_toml(path)
    except Problem as error:
        raise FileProblem(f"{error}. It is the configuration of the run") from error


def to_toml(table: dict[str, Any]) -> str:
    """Returns a flat table of strings, numbers and booleans as TOML; None is left out."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items() if value is not None)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a FileProblem that names the path of an OSError."""
    try:
        yield
    except OSError as error:
        raise FileProblem(f"{error.filename or path}: cannot be written: {error.strerror or error}. "
                          "Check the path, its permissions and the space left, or give `out` another place") from error
