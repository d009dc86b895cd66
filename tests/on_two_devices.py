"""Run by test_plan.py in a process of its own, for a CPU is divided before jax begins. Prints one JSON object.

By options: the bytes of the net as it is, those of its plan, the budget, and the loss after one step.
"""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np

from fbackprop import gpt
from fbackprop.distributed import ask_for, devices
from fbackprop.memory.planner import temp_bytes_on
from fbackprop.train.task.config import TrainConfig
from fbackprop.train.task.recipe import fit_to_memory, gradients, net_in_precision, start
from fbackprop.train.task.task import Task

# every two options meet
COMBINATIONS = [("float32", 1, 1), ("float32", 2, 2), ("bfloat16", 1, 2), ("bfloat16", 2, 1), ("float16", 1, 1),
                ("float16", 2, 2)]


def found(precision, parts, count):
    """(bytes as it is, bytes planned, budget, loss) of a small gpt under these options."""
    tokens = np.random.default_rng(0).integers(0, 32, (8, 17))
    net = gpt(32, 16, features=32, heads=2, blocks=3)
    task = Task(net, None, lambda seed, step: (tokens[:, :-1], tokens[:, 1:]), name="gpt")
    config = TrainConfig.of(model="gpt", precision=precision, accumulate=parts, devices=count, clip="norm:1.0")
    params, batch = start(task, config)
    part = jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(a) // parts, *a.shape[1:]), a.dtype), batch)
    whole = temp_bytes_on(devices(count), net_in_precision(task, config), None, part)
    config = replace(config, memory=f"{whole * 0.9:.0f}B")
    task, needed = fit_to_memory(task, config, batch)
    value, grads = jax.jit(gradients(task, config))(params, batch)
    return whole, needed, whole * 0.9, float(value)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    ask_for(2)
    print(json.dumps({f"{precision}, {parts} parts, {count} devices": found(precision, parts, count)
                      for precision, parts, count in COMBINATIONS}))
