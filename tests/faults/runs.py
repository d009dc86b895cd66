"""Runs as processes of their own, so that they can be killed, and what has to be true of the directory they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fbackprop.train.run.log import records
from fbackprop.train.store import checkpoint
from fbackprop.train.store.saver import files

HERE = Path(__file__).parent
VICTIM = f"{HERE / 'victim.py'}:function"
LONG = os.environ.get("FAULTS") == "long"  # make faults
STEPS, EVERY = 400, 10


def count(quick: int, long: int) -> int:
    return long if LONG else quick


def command(out: Path, *more: str, program: tuple[str, ...] = ("-m", "fbackprop")) -> list[str]:
    settings = ("--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--quiet")
    return [sys.executable, *program, "train", VICTIM, "--out", str(out), *settings, *more]


def again(out: Path) -> tuple[str, ...]:
    """The flag of a run that goes on, where there is one to go on with."""
    return ("--resume",) if (out / "config.toml").exists() else ()


def environment(cache: Path) -> dict[str, str]:
    """Processes share what they compile, so that most of a process's life is steps and saves, not compiling."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "JAX_PLATFORMS": "cpu"}


def limited(what: str, amount: int, arguments: list[str]) -> list[str]:
    """The command in a process with so many cores, so much memory, or files so large at most."""
    return [sys.executable, str(HERE / "limited.py"), what, str(amount), *arguments]


def run(arguments: list[str], cache: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(cache), timeout=300, **options)


def finish(out: Path, cache: Path, *more: str) -> None:
    """Runs to the end, which must be a good one."""
    done = run(command(out, *more), cache)
    assert done.returncode == 0, done.stderr


def leaves(path: Path) -> dict[str, bytes]:
    """Every leaf of a checkpoint, with shape and dtype, as bytes."""
    _, stored = checkpoint.read(path)
    return {name: str(leaf).encode() + leaf.array.tobytes() for name, leaf in stored.items()}


def metrics(out: Path) -> list[dict]:
    """All but times."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records(out)]


def assert_same_run(out: Path, unbroken: Path) -> None:
    """Params, State, optimizer state and guard bit for bit; metrics number for number; nothing left over."""
    mine, theirs = files(out / "checkpoints")[-1], files(unbroken / "checkpoints")[-1]
    assert mine.name == theirs.name == f"step-{STEPS:08d}.npz"
    assert leaves(mine) == leaves(theirs)
    assert metrics(out) == metrics(unbroken)
    assert not list(out.rglob("*.tmp"))


def newest_good(out: Path) -> int:
    """The step of the newest checkpoint that reads whole; -1 when there is none."""
    good = -1
    for path in files(out / "checkpoints"):
        try:
            header, _ = checkpoint.read(path)
        except checkpoint.Damaged:
            continue
        good = max(good, header["step"])
    return good


def newest_step(out: Path) -> int:
    """By name alone; 0 when there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in files(out / "checkpoints")), default=0)


def report(what: str, counted: int, **more: object) -> None:
    """Shown by pytest -s, and at the end of `make faults`."""
    print(json.dumps({"fault": what, "count": counted, **more}), flush=True)


def generator(what: str) -> np.random.Generator:
    """The same draws on every run."""
    return np.random.default_rng([len(what), *what.encode()])
