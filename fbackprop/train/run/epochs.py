"""What is measured after each epoch: the loss and accuracy out of training, the gradients against jax.grad's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import Problem
from ...params import Tree
from ...verify.gradient_error import gradient_error
from ..task.config import TrainConfig
from ..task.task import Task
from .evaluate import evaluator

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
            raise Problem(f"epochs: {task.name} makes batches without end. Give `steps`")
        steps = config.steps or STEPS
        return Plan(steps, math.ceil(steps / ROUNDS))
    return Plan(config.steps or (config.epochs or EPOCHS) * task.steps_per_epoch, task.steps_per_epoch)


def looker(task: Task, config: TrainConfig, total: Plan) -> Callable[[Tree, int, float | None], Epoch]:
    """`look(params, step, train_loss)`. Gradients are compared in float32, whatever precision the run computes in."""
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
