"""Processes that measure, and the process that asks them. A request that takes too long is killed.

`python -m bench.worker` answers JSON lines by JSON lines. It ends with its standard input, so a
killed parent leaves no process on the device. The parent imports no jax, so starts no backend.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from fbackprop.errors import Problem

ROOT = Path(__file__).resolve().parents[2]
SERVE = (sys.executable, "-m", "bench.worker")
LENGTH = 300  # characters of a reason
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # or JAX takes most of a GPU's memory at its start
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program has no seconds to compile
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}


def quick_environment() -> dict[str, str]:
    """Returns an environment in which XLA compiles for a CPU in half the time."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):  # later ones have no choice
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return {"XLA_FLAGS": " ".join(flags).strip()}


def one_line(error: BaseException) -> str:
    """Returns the first line of the error's message, shortened."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:LENGTH]


class Worker:
    """A process that answers one request after another."""

    def __init__(self, environment: dict[str, str], command: Sequence[str] = SERVE) -> None:
        places = (str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH"))
        path = os.pathsep.join(filter(None, places))
        environment = {**os.environ, **ENVIRONMENT, **environment, "PYTHONPATH": path}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by end)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=ROOT,
            env=environment, start_new_session=True)  # Ctrl-C reaches only the parent

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the answer. `failed`: why there is none; `stopped`: after `seconds`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"failed": self.last_words()}
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return {"failed": f"stopped after {seconds:.0f} s", "stopped": True}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": self.last_words()}

    def last_words(self) -> str:
        """Says how the process ended, with the last line of its standard error."""
        code = self.process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended by {how}" + (f": {lines[-1][:LENGTH]}" if lines else "")

    def end(self) -> None:
        """Kills the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):  # a request that was never read
                file.close()  # type: ignore[union-attr]


class Workers:
    """Gives every request to a process: a fresh one, so that no peak of memory is another's.

    reuse: one process for all requests while it lives. ahead: the next process starts during a
    measurement.
    """

    def __init__(self, environment: dict[str, str], reuse: bool = False, ahead: bool = False,
                 command: Sequence[str] = SERVE) -> None:
        self.environment, self.reuse, self.ahead = environment, reuse, ahead
        self.command = command
        self.now: Worker | None = None
        self.next: Worker | None = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Returns what `Worker.ask` returns, with the seconds that it took."""
        began = time.monotonic()
        worker = self.now = self.next or Worker(self.environment, self.command)
        self.next = Worker(self.environment, self.command) if self.ahead else None
        found = worker.ask(request, seconds)
        if self.reuse and worker.alive and not found.get("stopped"):
            self.next = worker
        else:
            worker.end()
        self.now = None
        return {**found, "seconds": round(time.monotonic() - began, 1)}

    def close(self) -> None:
        """Ends all processes."""
        for worker in (self.now, self.next):
            if worker is not None:
                worker.end()
        self.now = self.next = None


def main() -> None:
    """Answers requests until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers that print do not disturb the answers
    requests: Queue[dict[str, Any]] = Queue()
    Thread(target=listen, args=(requests,), daemon=True).start()

    import jax

    from . import accelerator

    jax.devices()  # starts the backend before the first request
    while True:
        print(json.dumps(answer(accelerator.main, requests.get())), file=answers, flush=True)


def listen(requests: Queue[dict[str, Any]]) -> None:
    """Queues every line of the standard input, then ends the process at once."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def answer(work: Callable[..., dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures; or the reason, under `missing` for a Problem, else under `failed`."""
    try:
        return work(request)
    except Problem as problem:
        return {"missing": one_line(problem)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {one_line(error)}"}


if __name__ == "__main__":
    main()
