"""Serves measurements: `python -m fbackprop.bench.serve` reads one JSON request a line and answers each by one JSON line.

The process ends with its standard input, so a killed parent leaves no process behind on the device.
"""

from __future__ import annotations

import json
import os
import sys
from queue import Queue
from threading import Thread
from typing import Any

from ..problem import Problem

LENGTH = 300  # characters of a reason


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
    """Queues every line of the standard input, then ends the process, whatever it computes."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def answer(work: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures; or the reason under `missing` for a Problem, under `failed` for any other exception."""
    try:
        return work(request)
    except Problem as problem:
        return {"missing": one_line(problem)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {one_line(error)}"}


def one_line(error: Exception) -> str:
    """Returns the first line of the error's message, shortened."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:LENGTH]


if __name__ == "__main__":
    main()
