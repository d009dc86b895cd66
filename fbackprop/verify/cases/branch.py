"""Cases and mistakes of the combinators and of the wrappers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...compose import chain, skip
from ...layers.branch import add, concat, dot, fan_out, parallel
from ...layers.dense import dense
from ...layers.elementwise import identity, sigmoid, tanh
from ...layers.repeat import repeat
from ...layers.rewire import checkpoint, frozen, tied
from ...params import Tree
from .case import Bugs, Case, Right, normal, several

_block = chain(dense(5), tanh())
_twice = chain(dense(5), tanh(), dense(5))

CASES: tuple[Case, ...] = (
    Case("chain", chain(dense(7), tanh(), dense(3)), normal(2, 5)),
    Case("skip", skip(dense(5)), normal(3, 5)),
    Case("parallel", parallel(dense(7), sigmoid()), several((2, 5), (3, 2))),
    Case("fan_out", fan_out(dense(7), sigmoid(), dense(3)), normal(2, 5)),
    Case("add", add(), several((2, 5), (2, 5), (2, 5))),
    Case("concat", concat(), several((2, 5), (2, 3), (2, 7))),
    Case("concat", concat(0), several((2, 5), (3, 5))),
    Case("dot", dot(), several((2, 3, 5), (2, 3, 5))),
    Case("dot", chain(fan_out(dense(3), identity()), dot()), normal(2, 3)),
    Case("identity", chain(parallel(dense(3), identity())),
         lambda rng: (rng.standard_normal((2, 5)), rng.integers(0, 2, (2, 7)).astype(bool)), "beside a mask"),
    Case("repeat", repeat(_block, 3), normal(2, 5)),
    Case("repeat", repeat(skip(_block), 2, unroll=True), normal(3, 5), "unrolled"),
    Case("checkpoint", checkpoint(_block), normal(2, 5)),
    Case("frozen", chain(dense(5), frozen(_block)), normal(2, 5)),
    Case("tied", tied(_twice, {"2/w": "0/w"}), normal(3, 5)),
)


def _one_branch_dropped(right: Right) -> tuple[Tree, Any]:
    first, *others = right.dy
    return right.dparams, right.given(dy=(jnp.zeros_like(first), *others)).dx


def _second_use_counted(right: Right, times: int) -> tuple[Tree, Any]:
    """Counts the second use of the shared weight this many times."""
    first, middle, last = right.params
    w = first["w"]
    apart = right.given(layer=right.layer.parts[0], params=(first, middle, {**last, "w": w}))
    dfirst, dmiddle, dlast = apart.dparams
    shared = dfirst["w"] + times * dlast["w"]
    return ({**dfirst, "w": shared}, dmiddle, {**dlast, "w": None}), apart.dx


BUGS: Bugs = {
    "skip": {
        "without the cotangent of the skipped path":
            lambda right: (right.dparams, jax.tree.map(jnp.subtract, right.dx, right.dy)),
        "without the cotangent that came through the layer":
            lambda right: (right.dparams, right.dy),
    },
    "dot": {"the two inputs' cotangents swapped": lambda right: ((), right.dx[::-1])},
    "fan_out": {"without the cotangent of the first branch": _one_branch_dropped},
    "tied": {
        "the shared weight counted once too few": lambda right: _second_use_counted(right, 0),
        "the shared weight counted twice": lambda right: _second_use_counted(right, 2),
    },
}
