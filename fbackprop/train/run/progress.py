"""Where a run is and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax

from ...errors import Failure, FileProblem
from ..task.config import TrainConfig
from .epochs import Epoch


@dataclass(frozen=True)
class Tell:
    """Whom a run tells: of an Epoch, of a step's record, a sentence; `check` may raise Interrupted between steps."""

    epoch: Callable[[Epoch], object] = lambda epoch: None
    step: Callable[[dict[str, Any]], object] = lambda record: None
    say: Callable[[str], object] = lambda text: None
    check: Callable[[], object] = lambda: None


@dataclass
class Progress:
    """Where a run is: with the Training all that it needs to go on as if it had never stopped.

    step: how many were taken or left out; data: the number of the next batch; batches: the digests of some, by number;
    lines: bytes of metrics.jsonl that belong to it; loss_sum, losses: since the last epoch; epoch: that one, as a dict;
    gradient_error: the largest so far; monitor: what it goes by.
    """

    step: int = 0
    data: int = 0
    restores: int = 0
    lines: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    gradient_error: float = 0.0
    epoch: dict[str, Any] | None = None
    monitor: dict[str, Any] | None = None
    batches: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, header: dict[str, Any]) -> Progress:
        """Returns the Progress that a checkpoint's header holds. Raises FileProblem for what no run can have written."""
        where, given, known = header["file"], header.get("progress", {}), [each.name for each in fields(cls)]
        if sorted(given) != sorted(known):
            other = ", ".join(sorted({*given} ^ {*known}))
            raise FileProblem(f"{where}: expected progress with {', '.join(known)}, found a difference in {other}: another "
                              "version wrote it. Go on with that version, or give `out` another name for another run")
        for name in ("step", "data", "restores", "lines", "losses"):
            if not (type(given[name]) is int and given[name] >= 0):
                raise FileProblem(f"{where}: progress {name}: expected a whole number of at least 0, found {given[name]!r}")
        if given["step"] != header["step"]:
            raise FileProblem(f"{where}: progress step: expected {header['step']}, as its header says, found {given['step']}")
        return cls(**given)


class Taken(NamedTuple):
    """A step that was handed to the device: its number, its batch and the number of that, its metrics to come."""

    number: int
    data: int
    batch: Any
    metrics: Any


def layer_rows(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what a Monitor describes in one row for each layer and block."""
    rows: dict[str, dict[str, Any]] = {}
    for part in ("probe", "layers"):
        for path, numbers in seen[part].items():
            rows.setdefault(path, {}).update({name: number for name, number in numbers.items() if number is not None})
    return rows


@contextmanager
def enough_memory(step: Callable[[], int], config: TrainConfig) -> Iterator[None]:
    """Makes a Failure of memory that runs out; it says what needs less."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        of_memory = any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))
        if not isinstance(error, MemoryError) and not of_memory:
            raise
        said, parts = (str(error) or "MemoryError").splitlines()[0], 2 * config.accumulate
        smaller = "smaller batches" if config.batch_size is None else "a smaller `batch_size`"
        raise Failure(f"after step {step()}: memory ran out ({said}). What was saved is whole. Try a new run with {smaller}, "
                      f"with `accumulate` {parts} (the same gradient in parts), or with checkpoint(...) around the layers that "
                      "keep most") from error
