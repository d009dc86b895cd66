"""Measures one program of a benchmark in a process of its own, which prints one JSON line.

    python -m fbackprop.comparison.bench.process '{"work": "file.py:function", ...}'

A fresh process for every measurement, so that no program finds the caches, threads or memory that
another has left.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...gradients import value_and_grad
from ...jaxprs.flops import count_flops
from ...layer import Layer
from ...memory.planner import plans
from ...memory.schedule import Schedule, with_schedules
from ...params import split
from ...tuning import with_settings
from ..costs import largest_error
from .program import timed
from .work import Work, find_work


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Answers `measure.ask`: a program's figures, the check, plans, or the device's peak."""
    work, peer = find_work(request["work"]), request["peer"]
    seed, seconds = request["seed"], request["seconds"]
    if peer == "peak":
        return matmul_peak(work.narrow, seconds)
    if peer == "check":
        return checked(work, seed)
    if peer == "plans":
        return {"plans": planned_for(work)}
    settle_heap()
    point = request["point"]
    if request["plan"]:
        planned = partial(of_json, work.net, request["plan"])
        work = replace(work, points={**work.points, point: planned})
    return work.measure(peer, point, seed, request["step"], seconds)


def matmul_peak(narrow: bool, seconds: float) -> dict[str, Any]:
    """FLOPs a second of this device's best square product: what every share is a share of."""
    on_cpu = jax.default_backend() == "cpu"
    n, dtype = 2048 if on_cpu else 8192, jnp.bfloat16 if narrow and not on_cpu else jnp.float32
    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    return {"flops_per_s": 2 * n**3 / timed(lambda: jax.block_until_ready(product(a, a)), seconds) * 1e3, "n": n}


def checked(work: Work, seed: int) -> dict[str, Any]:
    """Compares the gradients by hand with the oracle, at these very sizes; adds facts."""
    error = None if work.narrow else largest_error(work.net, work.loss, work.params(seed), work.batch(seed))
    return {"gradient_error": error, **counts(work), "device": jax.devices()[0].device_kind,
            "jax": jax.__version__}


def counts(work: Work) -> dict[str, int]:
    """Counts the FLOPs of loss and gradients by hand, and the weights. Runs nothing."""
    params, batch = jax.eval_shape(lambda: (work.params(0), work.batch(0)))
    return {"flops": count_flops(value_and_grad(work.net, work.loss), params, batch),
            "params": sum(leaf.size for leaf in jax.tree.leaves(split(params)[0]))}


def planned_for(work: Work) -> list[dict[str, Any]]:
    """A few plans between all kept and the least memory: each one's name and choices."""
    found = plans(work.net, work.loss, jax.eval_shape(partial(work.batch, 0)))
    return [{"name": f"planned, {p.temp_bytes / 1e6:.3g} MB", "plan": {"schedules": p.schedules, "settings": p.settings}}
            for p in found]


def of_json(net: Layer, plan: dict[str, Any]) -> Layer:
    """`net` by one of these plans."""
    schedules = {path: _tuples(each) for path, each in plan["schedules"].items()}
    return with_schedules(with_settings(net, plan["settings"]), schedules)


def _tuples(schedule: Any) -> Schedule:
    return tuple(_tuples(each) if isinstance(each, list) else each for each in schedule)


def settle_heap() -> None:
    """Sets glibc's thresholds as in a process that has freed an array of 32 MB, such as a data set.

    Otherwise the holes that the creation of the weights left in the heap decide whether the memory
    that a run frees goes back to the system and is cleared again for the next run: 0.4 of the mlp's
    time, for the same instructions.
    """
    np.empty(2**25 - 2**16, np.uint8)  # the largest that still moves them; freed at once


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
