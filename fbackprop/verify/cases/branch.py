"""Cases and mistakes of the combinators with branches, of repeat and of the wrappers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ... import compose
from ...layer import Layer
from ...layers.branch import add, concat, dot, fan_out, parallel
from ...layers.dense import dense
from ...layers.elementwise import identity, sigmoid, tanh
from ...layers.repeat import repeat
from ...layers.rewire import checkpoint, frozen, tied
from ...params import Tree
from .case import Bugs, Case, Draw, normal, right


def several(*shapes: tuple[int, ...]) -> Draw:
    """A tuple of normal numbers."""
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


_block = compose.chain(dense(5), tanh())
_twice = compose.chain(dense(5), tanh(), dense(5))

CASES: tuple[Case, ...] = (
    Case("parallel", parallel(dense(7), sigmoid()), several((2, 5), (3, 2))),
    Case("fan_out", fan_out(dense(7), sigmoid(), dense(3)), normal(2, 5)),
    Case("add", add(), several((2, 5), (2, 5), (2, 5))),
    Case("concat", concat(), several((2, 5), (2, 3), (2, 7))),
    Case("concat", concat(0), several((2, 5), (3, 5))),
    Case("dot", dot(), several((2, 3, 5), (2, 3, 5))),
    Case("dot", compose.chain(fan_out(dense(3), identity()), dot()), normal(2, 3)),
    Case("identity", compose.chain(parallel(dense(3), identity())),
         lambda rng: (rng.standard_normal((2, 5)), rng.integers(0, 2, (2, 7)).astype(bool)), "beside a mask"),
    Case("repeat", repeat(_block, 3), normal(2, 5)),
    Case("repeat", repeat(compose.skip(_block), 2, unroll=True), normal(3, 5), "unrolled"),
    Case("checkpoint", checkpoint(_block), normal(2, 5)),
    Case("frozen", compose.chain(dense(5), frozen(_block)), normal(2, 5)),
    Case("tied", tied(_twice, {"2/w": "0/w"}), normal(3, 5)),
)


def _one_branch_dropped(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, _ = right(layer, params, x, dy)
    return dparams, right(layer, params, x, (jnp.zeros_like(dy[0]), *dy[1:]))[1]


def _counted(times: float) -> Any:
    """The shared weight's second use counted this many times."""
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        net, w = layer.parts[0], params[0]["w"]
        apart = (params[0], params[1], {**params[2], "w": w})
        dparams, dx = right(net, apart, x, dy)
        shared = dparams[0]["w"] + times * dparams[2]["w"]
        return ({**dparams[0], "w": shared}, dparams[1], {"w": None, "b": dparams[2]["b"]}), dx

    return wrong


def _swapped(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), right(layer, params, x, dy)[1][::-1]


BUGS: Bugs = {
    "dot": {"the two inputs' cotangents swapped": _swapped},
    "fan_out": {"without the cotangent of the first branch": _one_branch_dropped},
    "tied": {"the shared weight counted once too few": _counted(0.0), "the shared weight counted twice": _counted(2.0)},
}
