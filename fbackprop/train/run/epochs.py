"""The length of a run, and its measurements: loss, accuracy, gradients against jax.grad's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...checks import expect, show
from ...compose import objective
from ...errors import Problem
from ...gradients import predict
from ...layer import Layer
from ...params import Tree, by_layer
from ...transform import inference, map_layers_with_path, parts_with_path
from ...verify.gradient_error import gradient_error
from ..task.config import TrainConfig
from ..task.task import Task

EPOCHS = 10  # where neither steps nor epochs are given
STEPS = 1000  # for batches without end
ROUNDS = 10  # batches without end are reported on this many times


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What is known after an epoch (epoch 0: before training).

    train_loss: the mean over its steps; test_*: of the held-out data, None without. gradient_norms: per layer path, of one
    batch.
    """

    epoch: int
    epochs: int
    step: int
    train_loss: float | None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_rmse: float | None = None
    gradient_error: float
    gradient_norms: dict[str, float]


class Length(NamedTuple):
    """How many steps a run takes, and after how many it is measured."""

    steps: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.per_epoch)


def length(task: Task, config: TrainConfig) -> Length:
    """Returns the Length of a run. Raises Problem for epochs of batches without end, or a warm-up as long as the run."""
    if task.steps_per_epoch is None:
        if config.epochs is not None:
            raise Problem(f"epochs: {task.name} makes batches without end. Give `steps`")
        steps = config.steps or STEPS
        found = Length(steps, math.ceil(steps / ROUNDS))
    else:
        found = Length(config.steps or (config.epochs or EPOCHS) * task.steps_per_epoch, task.steps_per_epoch)
    if config.warmup >= found.steps:
        raise Problem(f"warmup: expected fewer than the {found.steps} steps of the run, got {config.warmup}: the rate would "
                      f"never reach {config.lr:g}. Give `warmup` {found.steps // 10} or more `steps`")
    return found


def make_measure(task: Task, config: TrainConfig, total: Length) -> Callable[..., Epoch]:
    """Returns `measure(params, step, train_loss)`. It compares gradients in float32."""
    compare, score = gradient_error(task.net, task.loss), jax.jit(make_score(task))

    def measure(params: Tree, step: int, train_loss: float | None) -> Epoch:
        batch = task.batches(config.seed, step)
        errors, norms = compare(params, batch, step)
        return Epoch(
            epoch=math.ceil(step / total.per_epoch),
            epochs=total.epochs,
            step=step,
            train_loss=train_loss,
            gradient_error=float(np.max([np.asarray(e) for e in errors.values()], initial=0.0)),
            gradient_norms={path: math.hypot(*map(float, of_leaves.values()))
                            for path, of_leaves in by_layer(norms).items()},
            **({} if task.held_out is None else _evaluate(task, score, params)))

    return measure


def evaluation(net: Layer, loss: Layer | None = None) -> Layer:
    """Returns the Layer from a batch to its loss out of training. The last layer stays as it is."""
    whole = last = objective(net, loss)
    head = ""
    while last.parts:
        *_, (head, last) = parts_with_path(last, head)
    twin = lambda path, layer: layer if path == head else layer.inference or layer
    return map_layers_with_path(whole, twin)


def make_score(task: Task) -> Callable[[Tree, Any], tuple[jax.Array, ...]]:
    """Returns `(params, batch) -> (loss,)`, or (loss, metric) where the task has one, out of training."""
    whole, net = evaluation(task.net, task.loss), inference(task.net)

    def score(params: Tree, batch: Any) -> tuple[jax.Array, ...]:
        value, _ = whole.forward(params, batch)
        if task.metric is None:
            return (value,)
        y, target = predict(net)(params, batch[0]), batch[1]
        if task.metric == "accuracy":
            _expect_target("class numbers, one for each row of y", target, y, y.shape[:-1])
            return value, jnp.mean(jnp.argmax(y, -1) == target)
        _expect_target("numbers of the shape of y", target, y, y.shape)
        return value, jnp.mean(jnp.square(y - target))

    return score


def _expect_target(expected: str, target: Any, y: Any, shape: tuple[int, ...]) -> None:
    expect(jnp.shape(target) == shape, "target", expected, f"{show(target)} for y {show(y)}")


def _evaluate(task: Task, score: Callable[[Tree, Any], tuple[jax.Array, ...]], params: Tree) -> dict[str, float]:
    """Returns {"test_loss": ...} and the task's metric, of the held-out data in chunks of `task.chunk` examples."""
    chunks, weights = _chunks(task.held_out, task.chunk)
    scores = zip(*(score(params, chunk) for chunk in chunks))
    mean = lambda column: sum(w * float(number) for w, number in zip(weights, column))
    loss, *metric = map(mean, scores)
    if task.metric == "rmse":
        metric = [metric[0] ** 0.5]
    return {"test_loss": loss, **{f"test_{task.metric}": value for value in metric}}


def _chunks(batch: Any, size: int) -> tuple[list[Any], list[float]]:
    """Returns the batch in pieces of `size` examples and the share of each."""
    count = len(jax.tree.leaves(batch)[0])
    chunks = [jax.tree.map(lambda a, at=at: a[at : at + size], batch) for at in range(0, count, size)]
    return chunks, [len(jax.tree.leaves(chunk)[0]) / count for chunk in chunks]
