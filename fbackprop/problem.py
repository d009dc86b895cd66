"""Mistakes a user can make, told in one sentence: what, where, expected, got, next step. Never a traceback. No jax here."""


class Problem(Exception):
    """Something wrong in what the user gave: exit code 2."""

    exit_code = 2


class FileProblem(Problem):
    """A file is missing, corrupt or cannot be written: exit code 74."""

    exit_code = 74


class Failure(Problem):
    """The command ran and its result is bad: a wrong rule, a training that is no longer finite: exit code 1."""

    exit_code = 1
