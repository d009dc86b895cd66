"""The command line: `fbackprop VERB ...`. One thin file per verb; a verb's module is imported when it is asked for.

Results on stdout, progress and errors on stderr. Exit codes: 0 ok; 1 the result is bad; 2 something wrong in what was given;
73 another run is at work there; 74 a file is missing, corrupt or cannot be written; 130 and 143 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import Problem, unknown

VERBS = {
    "train": "train a model by the hand-written chain, checked against jax.grad as it goes",
    "verify": "prove every rule by independent oracles, or check your own layer or network",
    "compare": "manual against automatic gradients, layer by layer: error, bytes, FLOPs, time",
    "bench": "time, memory and seconds to compile against jax.grad, its best settings and other libraries",
    "exercise": "a layer whose backward is yours to write; verify judges it",
    "report": "what a run did, from its directory: a summary and figures",
    "experiments": "every claim of the project as a program that can fail: list them, run them",
    "info": "versions, devices, data, layers",
}
USAGE = f"""usage: fbackprop VERB [options]        fbackprop {__version__}: backpropagation you can read, check and change

{chr(10).join(f"  {verb:11} {what}" for verb, what in VERBS.items())}

fbackprop VERB --help tells the options. Start with: fbackprop train mnist"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. A mistake of the user's is one line on stderr, never a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _expect_utf8(argv)
        code = _run(argv)
        sys.stdout.flush()
        return code
    except Problem as problem:
        print(f"fbackprop: {as_flags(str(problem))}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("fbackprop: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _expect_utf8(argv: list[str]) -> None:
    """Raises Problem for a word whose bytes are no UTF-8: a run's files could not hold it."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise Problem(f"{shown}: expected a name in UTF-8, got other bytes. Rename the file") from None


def as_flags(text: str) -> str:
    """Returns a message of the library with its options as flags: `clip` becomes --clip."""
    return re.sub(r"`([a-z][a-z_]*)`", lambda option: "--" + option[1].replace("_", "-"), text)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"fbackprop {__version__}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS, hint="fbackprop --help lists them")
    try:
        import filelock  # noqa: F401
        import rich  # noqa: F401
        import tyro  # noqa: F401
    except ImportError as error:
        raise Problem(f"the command line needs {error.name}, which is not installed: pip install 'fbackprop[cli]'") from error
    return import_module(f"fbackprop.cli.{verb}").run(rest)
