"""Measures every work of `fbackprop bench` on an accelerator by one command.

    python experiments/accelerator.py [--minutes 8] [--out FILE] [--small|--full] [--rows NAME ...]

Runs from a checkout with any Python that has jax, optax and chex. Flax and PyTorch are measured
where they are installed. The rows run in the order of their importance until the time is up. The
file is written after every program and names the missing rows; a second call with the same --out
continues. On a CPU every row has small sizes. experiments/accelerator_table.py prints the file.

The exit code is 0 when all rows are done or the time is up, 2 for a wrong option or a file of
another device, 74 for a file that cannot be written.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from accelerator_file import COMMAND, ROWS, Record, begin, read
from accelerator_rows import Session, TimeUp, measure, with_reasons
from bench.worker import Workers

from fbackprop.errors import Interrupted, Problem


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> Any:
        raise Problem(f"accelerator: {message}. --help lists the options")


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Raises Problem."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, metavar="N",
                        help="no program starts after them: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default: runs/accelerator-DEVICE.json")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", default=None,
                      help="small sizes, the default on a CPU")
    size.add_argument("--full", dest="small", action="store_false",
                      help="full sizes, the default on an accelerator")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="NAME",
                        help=f"some of {', '.join(ROWS)}")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        raise Problem(f"--minutes: expected a number above 0, got {options.minutes}")
    for name in options.rows:
        if name not in ROWS:
            raise Problem(f"--rows {name!r}: expected some of {', '.join(ROWS)}")
    return options


def run(options: argparse.Namespace, session: Session) -> Record:
    """Measures into the file. Without --out the first process names the file by its device."""
    old = read(options.out) if options.out and options.out.exists() else None
    session.begin(options.small, options.rows)
    device = re.sub(r"\W+", "-", session.about["device"].lower()).strip("-")
    out = options.out or Path("runs") / f"accelerator-{device}.json"
    if old is None and out.exists():
        old = read(out)
    session.record = begin(out, old, session.about)
    session.record.save()
    try:
        if "matmul_peak" not in session.record.content:
            session.record.content["matmul_peak"] = matmul_peak(session)
        session.settle()
        measure(session, options.rows)
    except TimeUp:
        pass
    return session.record


def matmul_peak(session: Session) -> dict[str, Any]:
    """Returns the FLOPs a second of the device's best matrix product, by dtype. Raises TimeUp."""
    found = session.ask("peak")
    failed = found.get("failed")
    reasons = {"float32": failed, "bfloat16": failed or "a CPU computes bfloat16 by float32"}
    return with_reasons({key: found.get(key) for key in reasons}, reasons)


def main(argv: Sequence[str] | None = None, workers: Workers | None = None) -> int:
    """Returns the exit code."""
    began = time.monotonic()
    workers = workers or Workers({})
    with tempfile.TemporaryDirectory(prefix="fbackprop-") as folder:
        session = Session(workers, began, Path(folder) / "gradients.npz")
        try:
            options = options_of(argv)
            session.deadline = began + 60 * options.minutes
            record = run(options, session)
        except Problem as problem:
            print(problem, file=sys.stderr)
            return problem.exit_code
        finally:
            session.close()
    print(f"{record.path}: {len(ROWS) - len(record.missing)} of {len(ROWS)} rows", end=". ")
    if record.missing:
        print(f"Missing: {', '.join(record.missing)}. "
              f"To continue: {COMMAND} --out {record.path}", end="")
    print()
    return 0


def interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number, "; the file has every finished measurement")


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, interrupt)
    sys.exit(main())
