"""Mistakes of users, each in one sentence: what, where, expected, got, next step. Never a traceback. No jax here.

A message names an option in backquotes, as `clip`; the command line shows it as its flag.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class Problem(Exception):
    """Something wrong in what the user gave: exit code 2."""

    exit_code = 2


class FileProblem(Problem):
    """A file is missing, corrupt or cannot be written: exit code 74."""

    exit_code = 74


class Failure(Problem):
    """The command ran and its result is bad: a wrong rule, a training that is no longer finite: exit code 1."""

    exit_code = 1


class Locked(Problem):
    """Another process is at work there: exit code 73."""

    exit_code = 73


class Interrupted(Problem):
    """A signal asked the run to end: exit code 128 + its number."""

    def __init__(self, number: int, after: str = "") -> None:
        super().__init__(f"ended by {signal.Signals(number).name}{after}")
        self.number, self.exit_code = number, 128 + number


@contextmanager
def as_problem(where: str = "") -> Iterator[None]:
    """Makes a Problem of a TypeError or ValueError, with `where` in front of its text."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Problem(f"{where}{error}") from error


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns a question that names the nearest choice, "" where none is near."""
    nearest = get_close_matches(word, list(choices), 1)
    return f"Did you mean {nearest[0]}?" if nearest else ""


def unknown(what: str, word: str, choices: Iterable[str], also: str = "",
            hint: str = "") -> Problem:
    """Returns the Problem of a word that is no choice. hint: for a word that is near none."""
    choices = list(choices)
    expected = f"{what} {word!r}: expected one of {', '.join(choices)}{also}."
    return Problem(f"{expected} {did_you_mean(word, choices) or hint}".rstrip())
