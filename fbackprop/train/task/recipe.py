"""From a Task and a TrainConfig to what a run computes: its value_and_grad, its optimizer, its first params."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from ...compose import objective
from ...distributed.mesh import data_parallel, devices, replicate, shard
from ...errors import Problem, as_problem
from ...gradients import ValueAndGrad, auto_value_and_grad, value_and_grad
from ...layer import Layer
from ...losses.weight import batch_size
from ...memory.planner import plan, temp_bytes_on, with_plan
from ...params import Tree
from ...precision import PRECISIONS, with_precision
from ..run.epochs import make_score
from ..step.accumulation import accumulate, microbatches
from .config import TrainConfig, memory_bytes
from .task import Task, users_code


def net_in_precision(task: Task, config: TrainConfig) -> Layer:
    """Returns the task's network in the precision of the run, on the same params and paths."""
    return task.net if config.precision == "float32" else with_precision(task.net, PRECISIONS[config.precision])


def fit_to_memory(task: Task, config: TrainConfig, batch: Any) -> tuple[Task, int]:
    """Returns the task with checkpoints placed so that a step's loss and gradients fit in config.memory, and their bytes.

    Both are of each device. Raises Problem with the least possible where config.memory is below it.
    """
    part = _largest_part(jax.eval_shape(lambda: batch), config.accumulate)
    share, needs = part, None
    if config.devices > 1:
        share = _largest_part(part, config.devices)
        needs = lambda net: temp_bytes_on(devices(config.devices), net, task.loss, part)
    net, budget = net_in_precision(task, config), memory_bytes(config.memory or "")
    with as_problem("memory: "):
        found = plan(net, task.loss, share, budget, needs=needs)
    return replace(task, net=with_plan(task.net, found)), found.temp_bytes


def _largest_part(batch: Any, parts: int) -> Any:
    """Returns the specs of the largest of so many parts of a batch of specs."""
    if parts == 1:
        return batch
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((-(-a.shape[0] // parts), *a.shape[1:]), a.dtype), batch)


def gradients(task: Task, config: TrainConfig) -> ValueAndGrad:
    """Returns `(params, batch, seed) -> (value, grads)` by the chain or jax, whole or in parts."""
    how = value_and_grad if config.backward == "manual" else auto_value_and_grad
    whole = how(net_in_precision(task, config), task.loss)
    if config.devices > 1:
        whole = data_parallel(whole, devices(config.devices))
    if config.accumulate == 1:
        return whole
    of_parts = accumulate(whole, task.weight or objective(task.net, task.loss).weight)
    return lambda params, batch, seed=1.0: of_parts(params, microbatches(batch, config.accumulate), seed)


def placement(config: TrainConfig) -> tuple[Callable[[Tree], Tree], Callable[[Any], Any]]:
    """Returns functions that put a Training on every device, and split a batch over the devices."""
    if config.devices == 1:
        return (lambda tree: tree), (lambda batch: batch)
    mesh = devices(config.devices)
    return partial(replicate, mesh=mesh), partial(shard, mesh=mesh)


def _expect_rows(config: TrainConfig, batch: Any) -> None:
    """Raises Problem for more devices than a part of the batch has rows."""
    if config.devices > 1 and config.devices > (rows := batch_size(batch) // config.accumulate):
        raise Problem(f"devices: expected at most {rows}, the rows of a part of the batch, got {config.devices}: the others "
                      "would have nothing to do")


def start(task: Task, config: TrainConfig) -> tuple[Tree, Any]:
    """Returns (params, first batch). All is traced, so a wrong shape raises before a file is made.

    Raises Problem with the layer path, or the line of the user's own file that raised.
    """
    batch = task.batches(config.seed, 0)
    of_user = partial(users_code, task.name, "the network") if ":" in task.name else nullcontext
    with of_user(), as_problem(f"{task.name}: "):
        _expect_rows(config, batch)
        params = jax.jit(objective(task.net, task.loss).init)(jax.random.key(config.seed), batch)
        jax.eval_shape(gradients(task, config), params, batch)
    if task.held_out is not None:
        with of_user(), as_problem(f"{task.name}: held_out: "):
            jax.eval_shape(make_score(task), params, task.held_out)
    return params, batch
