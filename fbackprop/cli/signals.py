"""Ctrl-C and termination between steps, never inside one: an exception in the middle of a compiled call is not safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Yields `check()`, which raises Interrupted once SIGINT or SIGTERM came. A second signal ends the process at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)

    def check() -> None:
        if came:
            raise Interrupted(came[0])

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield check
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
