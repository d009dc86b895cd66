"""Judges files: each is copied, run in its own process, and its numbers are compared with the exercise's."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import jax

from ...errors import FileProblem, Problem
from ...layer import Layer
from ...train.task.task import call, describe
from ...verify.own import input_for
from ..exercises import EXERCISES
from . import contain
from .reference import Judgement, Reference
from .submission import ASKED, FAILURE, FILE, NUMBERS, READY

VERDICTS = ("OK", "WRONG", "KINK", "NOISY", "BLANK", "ERROR", "TIMEOUT", "MEMORY")
PASSED = ("OK", "KINK", "NOISY")
SOURCE = 10**6  # bytes of a file that is looked at
SAID = 300  # characters of what a submission may say
HERE = str(Path(__file__).parents[3])
START = (f"import sys; {HERE!r} in sys.path or sys.path.insert(0, {HERE!r}); "  # it may not be the one that is installed
         "from fbackprop.classroom.grading.submission import main; main()")


@dataclass(frozen=True)
class Grade:
    """What became of one file. worst: the finding that decided, {} where it did not come to findings."""

    file: str
    exercise: str | None
    verdict: str
    reason: str
    hint: str
    worst: dict[str, Any]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.verdict in PASSED

    @property
    def why(self) -> str:
        """What there is to say, in a sentence or two."""
        found = f"{self.worst['leaf']} is off by {self.worst['error']:.2g}" if self.verdict == "WRONG" else ""
        return ". ".join(text for text in (found, self.hint, self.reason) if text)

    @property
    def row(self) -> dict[str, Any]:
        return asdict(self)


def grade(files: Sequence[Path], exercise: str | None = None, function: str = "layer", seed: int = 0,
          limits: contain.Limits | None = None, jobs: int = 1, check: Callable[[], None] = lambda: None) -> Iterator[Grade]:
    """A Grade of every file, in order, `jobs` of them running at a time.

    exercise: which one they all are, by its name or as a teacher's own file.py; None: each says so by EXERCISE = "name".
    check: called while waiting; what it raises ends all of them. Every file is read before the first is run. Raises Problem
    when there is no such exercise.
    """
    if exercise is not None and not exercise.endswith(".py") and exercise not in EXERCISES:
        raise Problem(f"exercise {exercise!r}: expected one of {', '.join(EXERCISES)}, or your own file.py")
    sources = [_read(file) for file in files]
    names = [exercise or _stated(source) for source in sources]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        references = {name: _reference(name, function, seed) for name in dict.fromkeys(names) if name is not None}
        pool, stop = ThreadPoolExecutor(max(1, min(jobs, len(files)))), Event()
        run = partial(_answer, function=function, limits=limits or contain.Limits(), stop=stop)
        try:
            runs = [pool.submit(run, source, references.get(name or "")) for source, name in zip(sources, names)]
            for file, name, future in zip(files, names, runs):
                while not wait([future], timeout=0.2).done:
                    check()
                seconds, answer = future.result()
                judged = answer if isinstance(answer, Judgement) else references[name or ""].judge(answer)
                yield _graded(file, name, judged, seconds)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            return source.read(SOURCE + 1)
    except OSError as error:
        raise FileProblem(f"{file}: expected a readable file, got: {error.strerror}") from error


def _stated(source: bytes) -> str | None:
    """The exercise a file says it is, read and not run: a parser can be made to fail."""
    said = re.search(rb"^EXERCISE\s*=\s*[\"'](\w+)[\"']", source, re.M)
    name = said.group(1).decode("utf-8", "replace") if said else ""
    return name if name in EXERCISES else None


def _reference(name: str, function: str, seed: int) -> Reference:
    own = name.endswith(".py")
    made = call(f"{name}:{function}") if own else import_module(f"fbackprop.classroom.exercises.{name}").layer()
    layer, x = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(layer, Layer):
        raise Problem(f"{name}: expected a Layer or (Layer, x), got {describe(made)}")
    try:
        return Reference(layer, input_for(layer) if x is None else x, seed)
    except (TypeError, ValueError) as error:
        raise Problem(f"{name}: {error}") from error


def _answer(source: bytes, reference: Reference | None, function: str, limits: contain.Limits,
            stop: Event) -> tuple[float, Any]:
    """(seconds, the numbers of a submission, or the judgement of one that gave none)."""
    began = time.monotonic()
    if len(source) > SOURCE:
        return 0.0, Judgement("ERROR", f"longer than {SOURCE} bytes")
    if reference is None:
        return 0.0, Judgement("ERROR", f'which exercise? Expected EXERCISE = "dense" or another of {", ".join(EXERCISES)} '
                                       "in the file, or `exercise`. A layer of your own: FILE.py:function")
    folder = tempfile.TemporaryDirectory(prefix="fbackprop-", ignore_cleanup_errors=True)
    try:
        inside = Path(os.path.realpath(folder.name))
        (inside / FILE).write_bytes(source)
        (inside / ASKED).write_bytes(pickle.dumps((function, limits.seconds + 30, reference.asked)))
        verdict, reason = contain.run(["-P", "-c", START], str(inside), limits, stop, READY)
        answer: Any = Judgement(verdict, reason) if verdict else _result(inside, reference.length)
    finally:
        with suppress(RecursionError, OSError):  # folders as deep as a submission may have made them
            folder.cleanup()
    return time.monotonic() - began, answer


def _result(folder: Path, length: int) -> Any:
    failure = _bytes(folder / FAILURE, 10**6)
    if failure is not None:
        with suppress(ValueError, TypeError, RecursionError):
            verdict, reason = json.loads(failure)
            if verdict in VERDICTS and verdict not in PASSED and isinstance(reason, str):  # else it was not our own
                return Judgement(verdict, reason)
        return Judgement("ERROR", "it left something that cannot be read in the place of its result")
    numbers = _bytes(folder / NUMBERS, length)
    if numbers is None:
        return Judgement("ERROR", "its process ended by itself before its backward was run")
    if len(numbers) != length:
        return Judgement("ERROR", "the forward is not the exercise's: its output has another shape")
    return numbers


def _bytes(file: Path, most: int) -> bytes | None:
    """What is in an ordinary file, no more than one byte beyond `most`; None for none, or for a link, a pipe, a folder."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return None
        with file.open("rb") as source:
            return source.read(most + 1)
    except OSError:
        return None


def _graded(file: Path, exercise: str | None, judged: Judgement, seconds: float) -> Grade:
    worst = judged.worst
    return Grade(
        file=plain(file.name), exercise=exercise, verdict=judged.verdict,
        reason=plain(judged.reason.replace(FILE, file.name)), hint=judged.hint,
        worst={} if worst is None else worst.summary, seconds=round(seconds, 1))


def plain(text: str) -> str:
    """Printable and short: a name or an error message may hold what moves a terminal's cursor."""
    readable = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in readable)[:SAID]
