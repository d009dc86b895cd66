"""A Task: a network, its loss and its batches; how one is made of the user's own file.py:function."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checks import show
from ...compose import objective
from ...errors import FileProblem, Problem, did_you_mean, unknown
from ...layer import Layer
from ...losses.weight import Weight, batch_size
from .config import PRESETS, TrainConfig

TEMPLATE = ("def function(): return net, loss, batches   # batches(seed, step) -> (x, target); loss None: the net ends in it; "
            "a fourth, weight(batch), for `accumulate` where a batch does not weigh its size")


@dataclass(frozen=True)
class Task:
    """Something to train. `batches` is pure in (seed, step); `test` a held-out (x, target) when there is one.

    steps_per_epoch is None for batches without end. metric: "accuracy" where targets are class numbers, "rmse" where they are
    ratings. weight: what a batch's loss divides by. baseline: by name, what `test` is to be measured against. chunk: examples
    of `test` evaluated at once.
    """

    name: str
    net: Layer
    loss: Layer | None
    batches: Callable[[int, int], Any]
    steps_per_epoch: int | None = None
    test: Any = None
    metric: str | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    chunk: int = 1000
    weight: Weight = batch_size


def task_from_file(config: TrainConfig, made: Any = None) -> Task:
    """Returns the Task of a `file.py:function`. made: what the function returned before.

    Raises Problem for a name, a file or a function that is not what it should be.
    """
    if config.data is not None:
        raise Problem(f"`data`: {config.model} makes its own batches. Leave `data` out")
    made = call(config.model) if made is None else made
    ok = isinstance(made, tuple) and len(made) in (3, 4)
    if not ok or not isinstance(made[0], Layer) or not isinstance(made[1], Layer | None) or not all(map(callable, made[2:])):
        raise Problem(f"{config.model}: expected (net, loss, batches), that is (Layer, Layer or None, function), got "
                      f"{describe(made)}. Template: {TEMPLATE}")
    net, loss, batches, *weight = made

    def checked(seed: int, step: int) -> Any:
        with users_code(config.model, "batches(seed, step)"):
            batch = batches(seed, step)
        ok = objective(net, loss) is net or (isinstance(batch, tuple) and len(batch) == 2)
        if not ok:
            raise Problem(f"{config.model}: batches(seed, step): expected a pair (x, target), got {describe(batch)}")
        return batch

    return Task(config.model, net, loss, checked, weight=weight[0] if weight else batch_size)


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
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))  # the file may import its neighbours
    sys.modules[file.stem] = module  # dataclasses look their module up
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
