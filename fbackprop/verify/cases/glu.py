"""Cases and mistakes of swiglu, geglu and log_softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ...layer import Layer
from ...layers.glu import geglu, swiglu
from ...layers.softmax import log_softmax
from ...params import Tree
from .case import Bugs, Case, Right, Wrong, normal

CASES: tuple[Case, ...] = (
    Case("swiglu", swiglu(7), normal(3, 5)),
    Case("geglu", geglu(7), normal(3, 5)),
    Case("swiglu", swiglu(5), normal(2, 3, 5), "square, two leading axes"),
    Case("swiglu", swiglu(1), normal(1, 1), "sizes 1"),
    Case("swiglu", swiglu(3), normal(0, 5), "empty batch"),
    Case("geglu", geglu(3), normal(5), "one example"),
    Case("log_softmax", log_softmax(), normal(2, 3, 5)),
    Case("log_softmax", log_softmax(), normal(3, 5, scale=10), "large logits"),
    Case("log_softmax", log_softmax(), normal(3, 1), "one class: x has no effect"),
    Case("log_softmax", log_softmax(), normal(0, 5), "empty batch"),
)


def _derivative_of(other: Callable[[int], Layer]) -> Wrong:
    return lambda right: right.given(layer=other(right.params["gate"].shape[1])).gradients


def _swapped(weights: Tree) -> Tree:
    return {**weights, "gate": weights["up"], "up": weights["gate"]}


def _without_path(right: Right, name: str) -> tuple[Tree, Any]:
    """Puts zeros in place of the weights `name`: the backward reads them for dx alone."""
    residuals = right.layer.forward(right.params, right.x)[1]
    cut = {**right.params, name: jnp.zeros_like(right.params[name])}
    return right.layer.backward(cut, residuals, right.dy)


_GLU: dict[str, Wrong] = {
    "gate and up swapped in the result": lambda right: (_swapped(right.dparams), right.dx),
    "gate and up swapped in the backward":
        lambda right: right.given(params=_swapped(right.params)).gradients,
    "without the path through the gate": lambda right: _without_path(right, "gate"),
    "without the path through up": lambda right: _without_path(right, "up"),
}
BUGS: Bugs = {
    "swiglu": {**_GLU, "the derivative of gelu": _derivative_of(geglu)},
    "geglu": {**_GLU, "the derivative of silu": _derivative_of(swiglu)},
    "log_softmax": {"dy, without the rank-one term": lambda right: ((), right.dy)},
}
