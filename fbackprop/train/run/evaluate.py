"""How good a network is on data it has not learned from: every layer by its twin out of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...compose import objective
from ...gradients import predict
from ...layer import Layer
from ...params import Tree
from ...transform import inference, map_layers_with_path, parts_with_path
from ..task.task import Task


@dataclass(frozen=True)
class Score:
    """loss: the training's own, out of training; accuracy of class numbers, rmse of ratings, None where it means nothing."""

    loss: float
    accuracy: float | None = None
    rmse: float | None = None


def evaluation(net: Layer, loss: Layer | None = None) -> Layer:
    """Returns the Layer from a batch to its loss out of training. The last layer, which makes the value, stays as it is."""
    whole = last = objective(net, loss)
    head = ""
    while last.parts:
        *_, (head, last) = parts_with_path(last, head)
    return map_layers_with_path(whole, lambda path, layer: layer if path == head else layer.inference or layer)


def evaluator(task: Task) -> Callable[[Tree, Any], Score]:
    """`(params, batch) -> Score`; a data set is taken in chunks of `task.chunk` examples."""
    whole, net = evaluation(task.net, task.loss), inference(task.net)

    @jax.jit
    def score(params: Tree, batch: Any) -> tuple[jax.Array, jax.Array | None]:
        value, _ = whole.forward(params, batch)
        if task.metric is None:
            return value, None
        y = predict(net)(params, batch[0])
        if task.metric == "accuracy":
            return value, jnp.mean(jnp.argmax(y, -1) == batch[1])
        return value, jnp.mean(jnp.square(y - batch[1]))

    def evaluate(params: Tree, batch: Any) -> Score:
        chunks, weights = _chunks(batch, task.chunk if task.test is not None else None)
        values = [score(params, chunk) for chunk in chunks]
        mean = lambda numbers: sum(w * float(number) for w, number in zip(weights, numbers))
        loss = mean(value for value, _ in values)
        if task.metric is None:
            return Score(loss)
        measured = mean(number for _, number in values)
        return Score(loss, accuracy=measured) if task.metric == "accuracy" else Score(loss, rmse=measured**0.5)

    return evaluate


def _chunks(batch: Any, size: int | None) -> tuple[list[Any], list[float]]:
    """The batch in pieces of `size` examples, and the share of each; in one piece when size is None."""
    if size is None:
        return [batch], [1.0]
    count = len(jax.tree.leaves(batch)[0])
    chunks = [jax.tree.map(lambda a, at=at: a[at : at + size], batch) for at in range(0, count, size)]
    return chunks, [len(jax.tree.leaves(chunk)[0]) / count for chunk in chunks]
