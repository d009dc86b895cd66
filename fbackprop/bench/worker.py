"""Processes that measure: each runs fbackprop.bench.serve, answers requests, and is killed where it takes too long. No jax here."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERVE = (sys.executable, "-m", "fbackprop.bench.serve")
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX would take three quarters of a GPU's memory, and PyTorch share the rest
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from a cache has no seconds to compile
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}


class Worker:
    """A process that answers one request after another."""

    def __init__(self, environment: dict[str, str], command: Sequence[str] = SERVE) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            cwd=ROOT, env={**os.environ, **ENVIRONMENT, **environment, "PYTHONPATH": path}, start_new_session=True)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the answer, or the reason under `failed`: the process ended, or was stopped after `seconds`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                self.end()
                return {"failed": f"stopped after {seconds:.0f} s", "stopped": True}
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it ended before it could read
            line = b""
        return json.loads(line) if line else {"failed": self.last_words()}

    def last_words(self) -> str:
        """Says how the process ended, and the last line of its standard error."""
        code = self.process.wait()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {lines[-1][:300]}" if lines else how

    def end(self) -> None:
        """Kills the process and those that it has started."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            try:
                file.close()  # type: ignore[union-attr]
            except BrokenPipeError:  # of what it never read
                pass


class Workers:
    """Hands every request to a process. By default that is a fresh one, which has no other's memory in its peak.

    reuse: one process for all requests, as long as it lives. ahead: the next process starts while one measures.
    """

    def __init__(self, environment: dict[str, str], reuse: bool = False, ahead: bool = False) -> None:
        self.environment, self.reuse, self.ahead = environment, reuse, ahead
        self.next: Worker | None = None
        self.now: Worker | None = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Returns what `Worker.ask` returns, with the seconds that it took."""
        began = time.monotonic()
        self.now, self.next = self.next or Worker(self.environment), None
        if self.ahead:
            self.next = Worker(self.environment)
        found = self.now.ask(request, seconds)
        if self.reuse and self.now.alive:
            self.next, self.now = self.now, None
        else:
            self.now.end()
        return {**found, "seconds": round(time.monotonic() - began, 1)}

    def close(self) -> None:
        for worker in (self.now, self.next):
            if worker is not None:
                worker.end()
        self.now = self.next = None
