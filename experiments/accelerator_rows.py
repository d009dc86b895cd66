"""The rows of experiments/accelerator.py: the programs of each, and what the file says of one."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerator_file import ROWS, Record, commit_name, now
from bench.worker import Workers, quick_environment

from fbackprop.errors import Failure

PROGRAMS = (  # name, peer, setting
    ("by hand", "manual", "all kept"), ("jax", "jax", "idiomatic"), ("torch", "torch", "eager"),
    ("torch-compile", "torch-compile", "compiled"), ("flax", "flax", "idiomatic"))
LEAST, PLAIN = "jax-tuned, least bytes", "jax-tuned, recomputes nothing"
SHARED = "resnet"  # is run on all devices: batch norm needs the statistics of the whole batch
FIRST = 4  # rows that one call should finish
# seconds, at full and at small sizes: until a process is killed, and what it is given for its work
LIMITS = {"peak": (60.0, 30.0), "run": (90.0, 30.0), "tuned": (75.0, 30.0), "layers": (80.0, 100.0)}
WORK = {"peak": (0.5, 0.1), "run": (0.5, 0.02), "tuned": (50.0, 4.5), "layers": (65.0, 90.0)}
START = 120.0  # seconds for the first process
GRACE = 5.0  # seconds that the running program has after the time is up


class TimeUp(Exception):
    """Ends a call whose time is up."""


class Session:
    """One call: its record, its processes, and its time."""

    def __init__(self, workers: Workers, deadline: float, gradients: Path) -> None:
        self.workers, self.deadline, self.gradients = workers, deadline, gradients
        self.divided: Workers | None = None  # processes with two CPU devices
        self.row_ends = deadline
        self.about: dict[str, Any] = {}
        self.record: Record

    @property
    def small(self) -> bool:
        return self.about["small"]

    def begin(self, small: bool | None, names: Sequence[str]) -> None:
        """Asks a first process for the device and the works. Raises Failure."""
        self.workers.reuse = True
        self.workers.environment = {} if small is False else quick_environment()
        works = {SHARED, *names} - {"layers", "devices"}
        found = self.workers.ask({"ask": "about", "small": small, "works": sorted(works)}, START)
        if "device" not in found:
            raise Failure("accelerator: expected jax to start its backend, "
                          f"got: {found.get('failed', found.get('missing'))}")
        self.about = found

    def settle(self) -> None:
        """Decides how the processes run: a small run on a CPU needs only one.

        Elsewhere every program has a fresh process, because a peak of memory is never reset. On a
        GPU the next process starts during a measurement; a TPU has room for one process.
        """
        self.workers.reuse = self.small and self.about["backend"] == "cpu"
        self.workers.ahead = self.about["backend"] == "gpu"
        if not self.workers.reuse:
            self.workers.close()
            self.workers.environment = {}

    def close(self) -> None:
        for workers in (self.workers, self.divided):
            if workers is not None:
                workers.close()

    def ask(self, kind: str, workers: Workers | None = None, **request: Any) -> dict[str, Any]:
        """Returns the answer of a process to a request of this kind. Raises TimeUp."""
        left, limit = self.deadline - time.monotonic(), LIMITS[kind][self.small]
        if left <= 0:
            raise TimeUp
        request = {"ask": kind, "small": self.small, "seconds": WORK[kind][self.small], **request}
        found = (workers or self.workers).ask(request, min(limit, left + GRACE))
        if found.pop("stopped", False) and left + GRACE < limit:
            raise TimeUp
        return found

    def measure(self, row: dict[str, Any], name: str, peer: str, setting: str,
                workers: Workers | None = None, all_devices: bool = False) -> None:
        """Measures one program into a row, and writes the file. Raises TimeUp."""
        library = peer.removesuffix("-compile")
        # inductor takes ten seconds for the smallest work
        compiler = "eager" if self.small else "inductor"
        if library in ("flax", "torch") and find_spec(library) is None:
            found = {"missing": f"{library} is not installed"}
        else:
            found = self.ask(
                "run", workers, work=row["work"], peer=peer, point=setting, compiler=compiler,
                all_devices=all_devices, first=not row["arms"], gradients=str(self.gradients))
        if peer == "torch-compile":
            setting = f"backend {compiler}"
        row["arms"][name] = {"setting": setting, **self.columns(row, name, found)}
        self.record.put(row)
        reason = found.get("failed") or found.get("missing")
        said = reason or f"{found['ms']:.3g} ms"
        print(f"{row['name']}, {name} ({setting}): {said}", file=sys.stderr, flush=True)

    def columns(self, row: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
        """Returns the columns of a program, or the reason why it has none."""
        if "ms" not in found:
            return found
        peaks = self.record.content["matmul_peak"]
        peak, seconds = peaks[row["dtype"]] or peaks["float32"], found["ms"] / 1e3
        xla = "PyTorch reports none" if name.startswith("torch") else "XLA reports none"
        reasons = {
            "peak_mb": "the device keeps no memory statistics", "temp_mb": xla,
            "peak_share": "the matmul peak was not measured",
            "gradient_difference": "no gradients to compare with"}
        return with_reasons({
            "ms": found["ms"], "per_s": row["batch"] / seconds, "peak_mb": found.get("peak_mb"),
            "temp_mb": found["temp_mb"], "compile_s": found["compile_s"],
            "peak_share": row["flops"] / seconds / peak if peak else None,
            "gradient_difference": found.get("gradient_difference"), "value": found["value"],
            "seconds": found["seconds"]}, reasons)

    def start_row(self, names: Sequence[str]) -> None:
        """Gives a row its share of the time, so that the first rows can all be finished."""
        left = [name for name in self.record.missing if name in names and name in ROWS[:FIRST]]
        now = time.monotonic()
        self.row_ends = now + (self.deadline - now) / max(1, len(left))

    def for_tuning(self, jax_program: dict[str, Any]) -> float:
        """Returns the seconds for compiling settings: what two more programs leave of the row."""
        most = WORK["tuned"][self.small]
        left = self.row_ends - time.monotonic() - 2 * jax_program.get("seconds", 0.0)
        return min(most, max(most / 3, left))


def with_reasons(columns: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    """Returns columns for JSON: null for what is not finite, and `why` with every null's reason."""
    odd = {key: f"{value}, not finite" for key, value in columns.items()
           if isinstance(value, float) and not math.isfinite(value)}
    columns = {key: None if key in odd else value for key, value in columns.items()}
    why = {key: odd.get(key) or reasons.get(key, "not measured")
           for key, value in columns.items() if value is None}
    return {**columns, **({"why": why} if why else {})}


def work_row(session: Session, row: dict[str, Any]) -> None:
    """Measures a work by hand, by jax.grad, by other libraries and at two tuned settings."""
    for program in PROGRAMS:
        session.measure(row, *program)
    programs = row["arms"]
    share_difference(programs["by hand"], programs["jax"])
    tuning = row["tuning"] = session.ask(
        "tuned", work=row["work"], seconds=session.for_tuning(programs["jax"]))
    for name, known in known_without_run(tuning).items():
        if known is not None:
            programs[name] = known
        else:
            session.measure(row, name, "jax-tuned", tuning["least" if name == LEAST else "plain"])


def share_difference(mine: dict[str, Any], plain: dict[str, Any]) -> None:
    """Gives the program by hand the difference between its gradients and those of jax.grad."""
    difference = plain.get("gradient_difference")
    if "ms" in mine and difference is not None:
        why = mine.pop("why", {})
        why.pop("gradient_difference", None)
        mine.update(gradient_difference=difference, **({"why": why} if why else {}))


def known_without_run(tuning: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Returns what is known of both tuned programs before a run; None for one that has to run."""
    if not tuning.get("compiled"):
        failed = {"failed": tuning.get("failed", "no setting was compiled in time")}
        return {LEAST: failed, PLAIN: failed}
    found: dict[str, dict[str, Any] | None] = {LEAST: None, PLAIN: None}
    if tuning["least"] == "idiomatic":
        why = "no compiled setting has fewer bytes than the idiomatic one"
        found[LEAST] = {"same_as": "jax", "why": why}
    if tuning["plain"] is None:
        why = "no compiled setting but the idiomatic one recomputes nothing"
        found[PLAIN] = {"same_as": "jax", "why": why}
    elif tuning["plain"] == tuning["least"]:
        why = "the setting with the least bytes recomputes nothing"
        found[PLAIN] = {"same_as": LEAST, "why": why}
    return found


def layers_row(session: Session, row: dict[str, Any]) -> None:
    """Compares every layer's float32 gradients, at the highest precision, with a reference."""
    found = session.ask("layers")
    if "differences" not in found:
        row["arms"]["layers"] = found
        return
    every = found["differences"]
    finite = {name: value for name, value in every.items() if math.isfinite(value)}
    odd = {name: f"the difference is {value}" for name, value in every.items()
           if name not in finite}
    failed = {**found["failed_layers"], **odd}
    worst = max(finite, key=finite.__getitem__, default=None)
    row.update(dtype="float32", against=found["against"], layers=found["layers"],
               compared=len(finite), failed_layers=failed, differences=finite,
               out_of_time=found["layers"] - len(finite) - len(failed))
    row["arms"]["layers"] = {
        "difference": finite[worst], "layer": worst, "seconds": found["seconds"],
    } if worst else {"failed": "no layer could be compared"}


def devices_row(session: Session, row: dict[str, Any]) -> None:
    """Compares loss and gradients on one device with those of the batch on all devices."""
    workers = None
    if session.about["backend"] == "cpu":  # a CPU is divided in two, in processes of their own
        environment = {**session.workers.environment, "JAX_NUM_CPU_DEVICES": "2"}
        workers = session.divided = Workers(environment, session.workers.reuse)
    row["devices"] = 2 if workers else session.about["count"]
    session.measure(row, "one device", "manual", "all kept", workers)
    if row["devices"] > 1:
        session.measure(row, "all devices", "manual", "all kept", workers, all_devices=True)
        share_difference(row["arms"]["one device"], row["arms"]["all devices"])
    else:
        row["arms"]["all devices"] = {"missing": "there is only one device"}


MAKERS: dict[str, Callable[[Session, dict[str, Any]], None]] = {
    "layers": layers_row, "devices": devices_row}


def measure(session: Session, names: Sequence[str]) -> None:
    """Measures the missing rows among `names` in order. Raises TimeUp."""
    for name in [name for name in session.record.missing if name in names]:
        session.start_row(names)
        work = SHARED if name == "devices" else name
        row: dict[str, Any] = {
            "name": name, "state": "missing", "why": "the call ended in this row", "work": work,
            **session.about["works"].get(work, {}), "date": now(), "commit": commit_name(),
            "arms": {}}
        MAKERS.get(name, work_row)(session, row)
        reasons = [each.get("failed") or each.get("missing") for each in row["arms"].values()]
        if all(reasons):
            row.update(state="failed", why=reasons[0])
        else:
            row.pop("why")
            row["state"] = "done"
        session.record.put(row)
