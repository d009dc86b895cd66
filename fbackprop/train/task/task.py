"""A Task: a network, its loss and its batches; how one is made of the user's own file.py:function."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import jax

from ...checks import show
from ...compose import objective
from ...errors import FileProblem, Problem, did_you_mean, unknown
from ...layer import Layer, Weight
from .config import PRESETS, TrainConfig

TEMPLATE = ("def function(): return net, loss, batches   # batches(seed, step) -> (x, target); loss None: the net ends in it; "
            "or fbackprop.train.Task(net, loss, batches, held_out=(x, target)) to measure a test loss too")


@dataclass(frozen=True)
class Task:
    """Something to train: a network, its loss and its batches; a `file.py:function` may return one.

    Args:
        net: the network.
        loss: its loss, None where the net ends in it.
        batches: `(seed, step) -> (x, target)`, a pure function.
        held_out: (x, target) that no batch holds, for the test loss. None: no test loss is reported.
        weight: `batch -> scalar`, what a batch's loss divides by; by default the loss says so itself, or the batch size.
        metric: measured on held_out: "accuracy" where targets are class numbers, "rmse" where they are ratings.
        chunk: examples of held_out evaluated at once.
        steps_per_epoch: None for batches without end.
        baseline: numbers, by name, to compare the test loss with.
        name: filled in by the command line.
    """

    net: Layer
    loss: Layer | None
    batches: Callable[[int, int], Any]
    held_out: Any = None
    weight: Weight | None = None
    _: KW_ONLY
    metric: str | None = None
    chunk: int = 1000
    steps_per_epoch: int | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    name: str = ""


def task_from_file(config: TrainConfig, made: Any = None) -> Task:
    """Returns the Task of a `file.py:function`. made: what the function returned before.

    Raises Problem for a name, a file or a function that is not what it should be.
    """
    if config.data is not None:
        raise Problem(f"`data`: {config.model} makes its own batches. Leave `data` out")
    made = call(config.model) if made is None else made
    task = made
    if isinstance(made, tuple) and len(made) in (3, 4):
        net, loss, batches, *weight = made
        task = Task(net, loss, batches, None, *weight)
    if not (isinstance(task, Task) and isinstance(task.net, Layer) and isinstance(task.loss, Layer | None)
            and callable(task.batches) and (task.weight is None or callable(task.weight))):
        raise Problem(f"{config.model}: expected (net, loss, batches), that is (Layer, Layer or None, function), got "
                      f"{describe(made)}. Template: {TEMPLATE}")
    _check_held_out(config.model, task)

    @wraps(task.batches)
    def checked(seed: int, step: int) -> Any:
        with users_code(config.model, "batches(seed, step)"):
            batch = task.batches(seed, step)
        if not _is_batch(task, batch):
            raise Problem(f"{config.model}: batches(seed, step): expected a pair (x, target), got {describe(batch)}")
        return batch

    return replace(task, batches=checked, name=config.model)


def _is_batch(task: Task, batch: Any) -> bool:
    return objective(task.net, task.loss) is task.net or (isinstance(batch, tuple) and len(batch) == 2)


def _check_held_out(model: str, task: Task) -> None:
    """Raises Problem for held-out data or a metric that cannot be measured."""
    if task.metric not in (None, "accuracy", "rmse"):
        raise Problem(f"{model}: Task metric: expected \"accuracy\", \"rmse\" or None, got {task.metric!r}")
    if task.held_out is None:
        if task.metric or task.baseline:
            raise Problem(f"{model}: Task held_out: expected data beside metric and baseline, got None. These are measured on "
                          "held-out data")
        return
    rows = [len(leaf) if getattr(leaf, "ndim", 0) else 0 for leaf in jax.tree.leaves(task.held_out)]
    if not _is_batch(task, task.held_out) or not rows or min(rows) != max(rows) or not rows[0]:
        raise Problem(f"{model}: Task held_out: expected a pair (x, target) of at least one example, equally many in every "
                      f"array, got {describe(task.held_out)}")


def call(model: str) -> Any:
    """Calls a `file.py:function`. Raises Problem where there is none, or it raised."""
    path, colon, name = model.rpartition(":")
    if not colon or not path.endswith(".py"):
        hint = "Your own is named file.py:function"
        raise unknown("model", model, PRESETS, also=" or file.py:function", hint=hint)
    file = Path(path)
    if not file.is_file():
        raise FileProblem(f"{file}: expected a Python file, found none. The working directory is {Path.cwd()}")
    with users_code(model, "importing the file"):
        module = _import(file)
    function = getattr(module, name, None)
    if not callable(function):
        near = did_you_mean(name, [key for key, value in vars(module).items() if callable(value)])
        raise Problem(f"{file}: expected a function {name!r}, found none. {near}".rstrip())
    with users_code(model, f"{name}()"):
        return function()


def _import(file: Path) -> Any:
    name = f"__model__.{file.stem}"  # no other module's name: a file called fbackprop.py or jax.py hides nothing
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))  # the file may import its neighbours
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def users_code(model: str, what: str) -> Iterator[None]:
    """Makes a Problem of what the user's code raises; it names the line of their file."""
    try:
        yield
    except Problem:
        raise
    except (Exception, SystemExit) as error:
        file = Path(model.rpartition(":")[0]).name
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == file]
        number = lines[-1].lineno if lines else getattr(error, "lineno", None)  # a SyntaxError has no frame in the file
        where = f"{file}, line {number}" if number else file
        raise Problem(f"{model}: {what} raised {type(error).__name__}: {error} ({where})") from error


def describe(value: Any) -> str:
    """Returns what the user's function returned, in a few words."""
    if isinstance(value, tuple):
        return f"({', '.join(describe(v) for v in value)})"
    return f"Layer {value.name}" if isinstance(value, Layer) else show(value)
