"""A workload: a network, its loss, its batch, and the programs that compute loss and gradients.

A user's own is a Work. The named works of this project are in experiments/bench of a checkout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ...compose import objective
from ...errors import Problem
from ...gradients import auto_value_and_grad, value_and_grad
from ...layer import Layer
from ...params import Tree
from .program import Program, measure, of_chain

FULL = "all kept"  # the setting every work has: the net as its maker gives it
NAMED_WORKS = Path("experiments") / "bench" / "works.py"  # in the working directory


@dataclass(frozen=True)
class Work:
    """`points`: settings of the hand-written chain by name, each the net rewritten, on the same
    params; the first is FULL.

    loss: None where the net ends in it. batch: a seed -> (x, target) or whatever the net takes.
    """

    name: str
    points: dict[str, Callable[[], Layer]]
    loss: Layer | None
    batch: Callable[[int], Any]
    narrow: bool = False  # computes in bfloat16
    peers: ClassVar[tuple[str, ...]] = ("jax", "jax-tuned")

    @property
    def net(self) -> Layer:
        return self.points[FULL]()

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of jax.grad by name, the plain one first."""
        return checkpointed(self.net)

    @cached_property
    def init(self) -> Callable[..., Tree]:
        """The init of net and loss; jitted, or it takes longer than the measurement."""
        return jax.jit(objective(self.net, self.loss).init)

    def params(self, seed: int) -> Tree:
        """Draws random weights."""
        spec = jax.eval_shape(partial(self.batch, 0))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), spec)
        return self.init(jax.random.key(seed, impl="unsafe_rbg"), zeros)

    def program(self, peer: str, point: str, seed: int) -> Program:
        """Returns loss and gradients by `peer` at `point`, on the same weights for every peer."""
        params = self.params(seed)
        if peer == "manual":
            return of_chain(value_and_grad(self.points[point](), self.loss), params)
        return of_chain(auto_value_and_grad(self.settings[point], self.loss), params)

    def measure(self, peer: str, point: str, seed: int, step: bool, seconds: float) -> dict:
        """Measures a program, or a training step with it, for `seconds`."""
        return measure(self.program(peer, point, seed), self.batch(seed), step, seconds)


def checkpointed(net: Layer) -> dict[str, Layer]:
    """By setting, nets of the same forward for jax.grad: as it is, around every part, and around the whole by policy."""
    found = {FULL: net}
    if len(net.parts) > 1 and net.rebuild is not None:
        found["checkpoint a part"] = net.rebuild(tuple(around(part) for part in net.parts))
    return {**found, "dots policy": around(net, policy=jax.checkpoint_policies.dots_saveable),
            "nothing saved": around(net, policy=jax.checkpoint_policies.nothing_saveable)}


def around(layer: Layer, **options: Any) -> Layer:
    return replace(layer, forward=jax.checkpoint(layer.forward, **options))


def find_work(name: str) -> Work:
    """Returns the user's own file.py:function, or a named work. Raises Problem for neither."""
    if ".py" in name:
        from ...train.task.config import TrainConfig
        from ...train.task.task import task_from_file

        task = task_from_file(TrainConfig.of(model=name))
        batch = lambda seed: jax.tree.map(jnp.asarray, task.batches(seed, 0))
        return Work(name, {FULL: lambda: task.net}, task.loss, batch)
    if not NAMED_WORKS.is_file():
        raise Problem(f"work {name!r}: expected file.py:function, or a named work in a checkout of "
                      f"the project, found no {NAMED_WORKS} in the working directory. An installed "
                      "package holds no named works: clone the repository and go to its root")
    sys.path.insert(0, str(NAMED_WORKS.parents[1].resolve()))
    return import_module("bench.works").find_named(name)
