"""Measures every work of `fbackprop bench` on this machine's accelerator, the most important first, until the time is up.

    python experiments/accelerator.py [--minutes 8] [--out FILE] [--small | --full] [--rows NAME ...]

Runs from a checkout with any Python that has jax, optax and chex; Flax and PyTorch are measured where they are installed. The
file is written after every arm and names the missing rows; a second call with the same --out continues. On a CPU every row has
a small version. experiments/accelerator_table.py prints the file. Exit code 2 for wrong options or a file of another device, 74
for a file that cannot be written.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from accelerator_file import COMMAND, ROWS, Record, begin, read

from fbackprop.bench.worker import Workers
from fbackprop.problem import Failure, Interrupted, Problem

ARMS = (("by hand", "manual", "all kept"), ("jax", "jax", "idiomatic"), ("torch", "torch", "eager"),
        ("torch-compile", "torch-compile", "compiled"), ("flax", "flax", "idiomatic"))
LEAST, PLAIN = "jax-tuned, least bytes", "jax-tuned, recomputes nothing"
SHARED = "resnet"  # the work on all devices: its batch norm needs the statistics of the whole batch
LIMITS = {"arm": (90.0, 30.0), "tuned": (75.0, 30.0), "layers": (80.0, 100.0)}  # seconds of a request, full and small
INSIDE = {"arm": (0.5, 0.02), "tuned": (50.0, 6.0), "layers": (65.0, 90.0), "peak": (0.5, 0.1)}  # seconds it has for its work
FIRST = 4  # rows that one call should finish
GRACE = 5.0  # seconds of the running arm after the time is up


class TimeUp(Exception):
    """Ends a row that the time does not suffice for."""


class Session:
    """One call: its record, its processes, and the time that it has."""

    def __init__(self, workers: Workers, deadline: float, gradients: Path) -> None:
        self.workers, self.deadline, self.gradients = workers, deadline, gradients
        self.about: dict[str, Any] = {}
        self.divided: Workers | None = None  # processes with two CPU devices
        self.row_ends = deadline  # when the running row should end, so that the first rows all get their turn
        self.record: Record

    @property
    def small(self) -> bool:
        return self.about["small"]

    def ask(self, kind: str, workers: Workers | None = None, **request: Any) -> dict[str, Any]:
        """Returns what a process answers to a request of this kind. Raises TimeUp."""
        left, limit = self.deadline - time.monotonic(), LIMITS.get(kind, LIMITS["arm"])[self.small]
        if left <= 0:
            raise TimeUp
        request = {"ask": kind, "small": self.small, "seconds": INSIDE[kind][self.small], **request}
        found = (workers or self.workers).ask(request, min(limit, left + GRACE))
        if found.pop("stopped", False) and left + GRACE < limit:
            raise TimeUp
        return found

    def plan_row(self, rows_left: int) -> None:
        """Gives the next row an equal share of the time left."""
        now = time.monotonic()
        self.row_ends = now + (self.deadline - now) / rows_left

    def for_tuning(self, jax_arm: dict[str, Any]) -> float:
        """Returns the seconds for compiling settings: the row's time left after two more arms, but at least a third of the most."""
        most = INSIDE["tuned"][self.small]
        left = self.row_ends - time.monotonic() - 2 * jax_arm.get("seconds", 0.0)
        return min(most, max(most / 3, left))

    def begin(self, small: bool | None, names: Sequence[str]) -> None:
        """Asks a first process for the device, and decides how the others run."""
        self.workers.reuse = True
        works = [name for name in names if name not in ("layers", "devices")]
        found = self.workers.ask({"ask": "about", "small": small, "works": [*works, SHARED]}, 120)
        if "device" not in found:
            raise Failure(f"accelerator: expected jax to start its backend, got: {found.get('failed', found.get('missing'))}")
        self.about = found

    def settle(self) -> None:
        """On a CPU one process serves a small run; else every arm has its own, whose peak of memory is its alone."""
        self.workers.reuse = self.small and self.about["backend"] == "cpu"
        self.workers.ahead = self.about["backend"] == "gpu"  # a TPU has room for one process
        if not self.workers.reuse:
            self.workers.close()

    def arm(self, row: dict[str, Any], name: str, peer: str, setting: str, workers: Workers | None = None,
            all_devices: bool = False) -> None:
        """Measures one arm into a row, and writes the file."""
        library = peer.removesuffix("-compile")
        if library in ("flax", "torch") and find_spec(library) is None:
            found = {"missing": f"{library} is not installed"}
        else:
            compiler = "aot_eager" if self.small else "inductor"  # inductor takes ten seconds for the smallest work
            found = self.ask("arm", workers, work=row.get("work", row["name"]), peer=peer, point=setting, compiler=compiler,
                             all_devices=all_devices, first=not row["arms"], gradients=str(self.gradients))
        note = {"setting": f"{setting} by {compiler}" if peer == "torch-compile" and "ms" in found else setting}
        row["arms"][name] = {**note, **self.figures(row, name, found)}
        self.record.put(row)
        said = f"{found['ms']:.3g} ms" if "ms" in found else found.get("failed", found.get("missing"))
        print(f"{row['name']}, {name} ({setting}): {said}", file=sys.stderr, flush=True)

    def figures(self, row: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
        """Returns the columns of an arm; `why` has the reason of every null."""
        if "ms" not in found:
            return found
        peaks = self.record.content["matmul_peak"]
        peak = peaks[row["dtype"]] or peaks["float32"]
        share = row["flops"] / (found["ms"] / 1e3) / peak if peak else None
        columns = {"ms": found["ms"], "per_s": row["batch"] / found["ms"] * 1e3, "peak_mb": found.get("peak_mb"),
                   "temp_mb": found["temp_mb"], "compile_s": found["compile_s"], "peak_share": share,
                   "gradient_difference": found.get("gradient_difference"), "value": found["value"],
                   "seconds": found["seconds"]}
        reasons = {"peak_mb": "the device keeps no memory statistics", "peak_share": "the matmul peak was not measured",
                   "temp_mb": "PyTorch reports no temporary bytes" if "torch" in name else "XLA reports no memory analysis",
                   "gradient_difference": "the others are compared with it" if not row["arms"] else "nothing to compare with"}
        return with_reasons(columns, reasons)


def with_reasons(columns: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    """Returns `columns` with null for every number that is not finite, and `why` with the reason of every null."""
    odd = {key: f"{value}, not finite" for key, value in columns.items() if isinstance(value, float) and not math.isfinite(value)}
    columns = {key: None if key in odd else value for key, value in columns.items()}
    why = {key: odd.get(key) or reasons.get(key, "not measured") for key, value in columns.items() if value is None}
    return {**columns, **({"why": why} if why else {})}


def work_row(session: Session, row: dict[str, Any]) -> None:
    """Measures a work by hand, by jax.grad as written and at two tuned settings, and by other libraries."""
    for arm in ARMS:
        session.arm(row, *arm)
    share_difference(row["arms"]["by hand"], row["arms"]["jax"])
    row["tuning"] = session.ask("tuned", work=row["name"], seconds=session.for_tuning(row["arms"]["jax"]))
    for arm, without in without_run(row["tuning"]).items():
        if without is None:
            session.arm(row, arm, "jax-tuned", row["tuning"]["least" if arm == LEAST else "plain"])
        else:
            row["arms"][arm] = without


def share_difference(mine: dict[str, Any], plain: dict[str, Any]) -> None:
    """Gives the arm by hand the difference between its gradients and those of jax.grad."""
    difference = plain.get("gradient_difference")
    if "ms" in mine and difference is not None:
        why = {key: reason for key, reason in mine.pop("why", {}).items() if key != "gradient_difference"}
        mine.update(gradient_difference=difference, **({"why": why} if why else {}))


def without_run(tuning: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Returns for both tuned arms what is known of them without a run; None for one that has to run."""
    if not tuning.get("compiled"):
        failed = {"failed": tuning.get("failed", "no setting was compiled in time")}
        return {LEAST: failed, PLAIN: failed}
    found: dict[str, dict[str, Any] | None] = {LEAST: None, PLAIN: None}
    if tuning["least"] == "idiomatic":
        found[LEAST] = {"same_as": "jax", "why": "no compiled setting has fewer bytes than the idiomatic one"}
    if tuning["plain"] is None:
        found[PLAIN] = {"same_as": "jax", "why": "no compiled setting but the idiomatic one recomputes nothing"}
    elif tuning["plain"] == tuning["least"]:
        found[PLAIN] = {"same_as": LEAST, "why": "the setting with the least bytes recomputes nothing"}
    return found


def layers_row(session: Session, row: dict[str, Any]) -> None:
    """Compares the gradients of every layer in float32, under the highest precision, with a reference."""
    found = session.ask("layers")
    if "differences" not in found:
        row["arms"]["layers"] = found
        return
    worst = max(found["differences"], key=found["differences"].__getitem__, default=None)
    finite = {name: value for name, value in found["differences"].items() if math.isfinite(value)}
    odd = {name: f"difference {value}" for name, value in found["differences"].items() if name not in finite}
    skipped = found["layers"] - len(found["differences"]) - len(found["failed_layers"])
    row.update(dtype="float32", against=found["against"], compared=len(found["differences"]), layers=found["layers"],
               out_of_time=skipped, failed_layers={**found["failed_layers"], **odd}, differences=finite)
    row["arms"]["layers"] = {"difference": max(finite.values(), default=0.0), "layer": worst, "seconds": found["seconds"]}


def devices_row(session: Session, row: dict[str, Any]) -> None:
    """Compares loss and gradients on one device with those of the batch shared by all devices."""
    workers = None
    if session.about["backend"] == "cpu":  # divided in two, in processes of their own
        workers = session.divided = Workers({"JAX_NUM_CPU_DEVICES": "2"}, session.workers.reuse)
    row["devices"] = 2 if workers else session.about["count"]
    session.arm(row, "one device", "manual", "all kept", workers)
    if row["devices"] > 1:
        session.arm(row, "all devices", "manual", "all kept", workers, all_devices=True)
    else:
        row["arms"]["all devices"] = {"missing": "there is only one device"}


def measure(session: Session, names: Sequence[str]) -> None:
    """Measures the missing rows among `names` in order. Raises TimeUp."""
    for name in (name for name in session.record.missing if name in names):
        session.plan_row(max(1, sum(each in names for each in session.record.missing if each in ROWS[:FIRST])))
        facts = session.about["works"].get(SHARED if name == "devices" else name, {})
        row: dict[str, Any] = {"name": name, "state": "missing", "why": "it was not finished", **facts, "arms": {}}
        if name == "devices":
            row["work"] = SHARED
        try:
            MAKERS.get(name, work_row)(session, row)
        except TimeUp:
            row["why"] = f"the time was up after {len(row['arms'])} arms"
            session.record.put(row)
            raise
        reasons = [arm.get("failed") or arm.get("missing") for arm in row["arms"].values()]
        state = "failed" if all(reasons) else "done"
        session.record.put({**{key: value for key, value in row.items() if key != "why"}, "state": state,
                            **({"why": reasons[0]} if state == "failed" else {})})


MAKERS: dict[str, Callable[[Session, dict[str, Any]], None]] = {"layers": layers_row, "devices": devices_row}


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> Any:
        raise Problem(f"accelerator: {message}. --help lists the options")


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Raises Problem."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, metavar="N", help="no arm starts after them: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: runs/accelerator-DEVICE.json")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", default=None, help="small sizes, as by default on a CPU")
    size.add_argument("--full", dest="small", action="store_false", help="full sizes, as by default on an accelerator")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="NAME", help=f"some of {', '.join(ROWS)}")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        raise Problem(f"--minutes: expected a number above 0, got {options.minutes}")
    for name in options.rows:
        if name not in ROWS:
            raise Problem(f"--rows {name!r}: expected some of {', '.join(ROWS)}")
    return options


def run(options: argparse.Namespace, session: Session) -> Record:
    """Measures into the file, which a first process names where no option does."""
    old = read(options.out) if options.out and options.out.exists() else None
    session.begin(options.small, options.rows)
    device = re.sub(r"\W+", "-", session.about["device"].lower()).strip("-")
    out = options.out or Path("runs") / f"accelerator-{device}.json"
    session.record = begin(out, old or (read(out) if out.exists() else None), session.about)
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
    """Returns the FLOPs a second of the device's best matrix product, by dtype."""
    found = session.ask("peak")
    failed = found.get("failed")
    reasons = {"float32": failed, "bfloat16": failed or "a CPU computes bfloat16 by float32"}
    return with_reasons({key: found.get(key) for key in reasons}, reasons)


def interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)


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
            for each in filter(None, (workers, session.divided)):
                each.close()
    if record.missing:
        print(f"{record.path}: {len(ROWS) - len(record.missing)} of {len(ROWS)} rows. Missing: {', '.join(record.missing)}. "
              f"To continue: {COMMAND} --out {record.path}")
    else:
        print(f"{record.path}: all {len(ROWS)} rows")
    return 0


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, interrupt)
    sys.exit(main())
