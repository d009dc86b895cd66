"""fit: the five steps (forward, loss, backward, update, next mini-batch) over and over, measured and checked as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from ..compose import auto_value_and_grad, value_and_grad
from ..layer import Tree, split
from ..problem import Failure, Problem
from ..verify.gradient_error import gradient_error
from .config import TrainConfig
from .evaluate import evaluator
from .rundir import append
from .step import make_step
from .task import Task

EPOCHS = 10  # where neither steps nor epochs are given
STEPS = 1000  # for batches without end
ROUNDS = 10  # batches without end are reported on this many times


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch (epoch 0: before training). gradient_norms: per layer path, of one batch."""

    epoch: int
    epochs: int
    step: int
    train_loss: float | None
    test_loss: float
    test_accuracy: float | None
    test_rmse: float | None
    gradient_error: float
    gradient_norms: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How many steps there are and after how many the run is looked at."""

    steps: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.per_epoch)


def plan(task: Task, config: TrainConfig) -> Plan:
    """The Plan of a run. Raises Problem for epochs of batches without end."""
    if task.steps_per_epoch is None:
        if config.epochs is not None:
            raise Problem(f"epochs: {task.name} makes batches without end. Give --steps")
        steps = config.steps or STEPS
        return Plan(steps, math.ceil(steps / ROUNDS))
    return Plan(config.steps or (config.epochs or EPOCHS) * task.steps_per_epoch, task.steps_per_epoch)


def start(task: Task, config: TrainConfig) -> tuple[Tree, Any]:
    """(params, first batch), with everything traced once, so that a wrong shape or dtype is known before a file is made.

    Raises Problem with the layer path.
    """
    batch = task.batches(config.seed, 0)
    try:
        params = jax.jit(task.net.init)(jax.random.key(config.seed), batch if task.loss is None else batch[0])
        jax.eval_shape(value_and_grad(task.net, task.loss), params, batch)
    except (TypeError, ValueError) as error:
        raise Problem(f"{task.name}: {error}") from error
    return params, batch


def fit(task: Task, config: TrainConfig, params: Tree, directory: Path, on_epoch: Callable[[Epoch], object],
        on_step: Callable[[int], object] = lambda step: None) -> tuple[Tree, Epoch, float]:
    """Trains with Adam, the rate falling along a cosine; returns (params, the last Epoch, the largest gradient error seen).

    Writes a line per step and per epoch to metrics.jsonl. Raises Failure when the loss is no longer finite.
    """
    how = value_and_grad if config.backward == "manual" else auto_value_and_grad
    total = plan(task, config)
    tx = optax.adam(optax.cosine_decay_schedule(config.lr, total.steps))
    step, opt_state = make_step(how(task.net, task.loss), tx), tx.init(split(params)[0])
    look = _looker(task, config, total)
    pending: list[dict[str, Any]] = []
    seen, began = [look(params, 0, None)], time.perf_counter()
    on_epoch(seen[-1])
    for number in range(1, total.steps + 1):
        batch = task.batches(config.seed, number - 1)
        try:
            params, opt_state, metrics = step(params, opt_state, batch)
        except (TypeError, ValueError) as error:
            raise Problem(f"{task.name}: batch of step {number}: {error}") from error
        pending.append({"step": number, **metrics})
        on_step(number)
        if number % total.per_epoch == 0 or number == total.steps:
            records = [{"step": row["step"], **{name: float(row[name]) for name in metrics}} for row in pending]
            append(directory, records)
            _halt_unless_finite(records, config)
            seen.append(look(params, number, float(np.mean([row["loss"] for row in records]))))
            pending = []
            append(directory, [{**vars(seen[-1]), "seconds": time.perf_counter() - began}])
            on_epoch(seen[-1])
    return params, seen[-1], max(epoch.gradient_error for epoch in seen)


def _halt_unless_finite(records: list[dict[str, float]], config: TrainConfig) -> None:
    for row in records:
        if not math.isfinite(row["loss"]):
            raise Failure(f"step {row['step']}: expected a finite loss, got {row['loss']}: the training has run away or the "
                          f"data holds NaN. Try a lower rate (--lr {config.lr / 10:g}); metrics.jsonl has every step before")


def _looker(task: Task, config: TrainConfig, total: Plan) -> Callable[[Tree, int, float | None], Epoch]:
    """What is measured after each epoch: the loss and accuracy out of training, the gradients against jax.grad's."""
    measure, evaluate = gradient_error(task.net, task.loss), evaluator(task)

    def look(params: Tree, step: int, train_loss: float | None) -> Epoch:
        batch = task.batches(config.seed, step)
        errors, norms = measure(params, batch, step)
        score = evaluate(params, task.test if task.test is not None else batch)
        by_layer: dict[str, float] = {}
        for path, norm in norms.items():
            layer = path.rpartition("/")[0]
            by_layer[layer] = math.hypot(by_layer.get(layer, 0.0), float(norm))
        error = float(np.max([np.asarray(e) for e in errors.values()], initial=0.0))
        return Epoch(math.ceil(step / total.per_epoch), total.epochs, step, train_loss, score.loss, score.accuracy, score.rmse,
                     error, by_layer)

    return look
