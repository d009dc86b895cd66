"""Runs a program that may hang, grow, multiply or refuse to end: within limits, and with all that it started ended afterwards.

Nothing here is of one system alone: processes are watched and ended by psutil.
"""

from __future__ import annotations

import os
import secrets
import site
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event

import psutil

PROCESSES = 4  # a submission has no use for a second one; a library's helper may be one
STARTING = 300  # seconds to start Python and JAX in: a machine may be busy, which is not the submission's fault
LOOK = 0.1  # seconds between looks: what memory can overshoot in
MARK = "FBACKPROP_GRADED"  # in the environment of everything a submission starts
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG",
        "LC_ALL", "XLA_FLAGS")


@dataclass(frozen=True)
class Limits:
    """Wall time in seconds, once the program is ready, and memory in bytes, of the process and all that it started."""

    seconds: float = 60.0
    memory: int = 2000 * 10**6


def run(arguments: Sequence[str], folder: str, limits: Limits, stop: Event, ready: str = "") -> tuple[str, str]:
    """`(verdict, reason)`: ("", "") when the program ended by itself with 0; what it prints is thrown away.

    Runs `python *arguments` in `folder`, which is its home and place for temporary files too. Of our environment it gets what
    Python needs to start. Its time runs from when there is a file `ready` in the folder. Whatever it started is ended when this
    returns; `stop` makes that now.
    """
    mark = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=_environment(folder, mark), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        verdict, reason = _watch(process, limits, stop, os.path.join(folder, ready))
    finally:
        _end(process, mark)
    if not verdict and process.returncode:
        return "ERROR", f"its process ended by itself, with {process.returncode}, before its backward was run"
    return verdict, reason


def _environment(folder: str, mark: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    if "PYTHONPATH" in kept:  # it may hold paths relative to our own directory
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    home = {name: folder for name in ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP")}
    with suppress(OSError, TypeError):
        home["PYTHONUSERBASE"] = site.getuserbase()
    return {**kept, **home, MARK: mark, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}


def _watch(process: subprocess.Popen, limits: Limits, stop: Event, ready: str) -> tuple[str, str]:
    """Waits for the end or for the first limit that is passed."""
    deadline, started = time.monotonic() + STARTING, False
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        while process.poll() is None:
            if not started and os.path.exists(ready):
                deadline, started = time.monotonic() + limits.seconds, True
            if stop.is_set() or time.monotonic() > deadline:
                return "TIMEOUT", f"still running after {limits.seconds if started else STARTING:g} s"
            family, resident = [root, *root.children(recursive=True)], 0
            for member in family:
                with suppress(psutil.Error):
                    resident += member.memory_info().rss
            if len(family) > PROCESSES:
                return "ERROR", f"started more than {PROCESSES - 1} other processes"
            if resident > limits.memory:
                return "MEMORY", f"more than {limits.memory / 1e6:g} MB"
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
    process.wait()
    return "", ""


def _end(process: subprocess.Popen, mark: str) -> None:
    """Ends the process and everything below it, and what left the tree but carries the mark, until nothing is found."""
    for _ in range(100):
        family = _family(process, mark)
        for member in family:
            with suppress(psutil.Error):
                member.suspend()  # first all of them: what is stopped starts nothing more
        for member in family:
            with suppress(psutil.Error):
                member.kill()
        process.poll()
        if not family:
            break
        psutil.wait_procs(family, timeout=1)
    process.wait()


def _family(process: subprocess.Popen, mark: str) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    with suppress(psutil.Error):
        if process.poll() is None:
            root = psutil.Process(process.pid)
            found = {member.pid: member for member in (root, *root.children(recursive=True))}
    for other in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if other.pid not in found and other.status() != psutil.STATUS_ZOMBIE and other.environ().get(MARK) == mark:
                found[other.pid] = other
    return list(found.values())
