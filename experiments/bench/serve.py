"""A process that measures: `python -m bench.serve` answers JSON lines by JSON lines.

The process ends with its standard input, so a killed parent leaves no process on the device.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Any

from fbackprop.errors import Problem

from .worker import one_line


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
