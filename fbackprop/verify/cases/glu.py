"""Cases and mistakes of swiglu, geglu and log_softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ...layer import Layer
from ...layers.glu import geglu, swiglu
from ...layers.softmax import log_softmax
from ...params import Tree
from .case import Bugs, Case, Wrong, normal, right

CASES: tuple[Case, ...] = (
    *(Case(kind, layer(7), normal(3, 5)) for kind, layer in (("swiglu", swiglu), ("geglu", geglu))),
    Case("swiglu", swiglu(5), normal(2, 3, 5), "square, two leading axes"),
    Case("swiglu", swiglu(1), normal(1, 1), "sizes 1"),
    Case("swiglu", swiglu(3), normal(0, 5), "empty batch"),
    Case("geglu", geglu(3), normal(5), "one example"),
    Case("log_softmax", log_softmax(), normal(2, 3, 5)),
    Case("log_softmax", log_softmax(), lambda rng: 10 * rng.standard_normal((3, 5)), "large logits"),
    Case("log_softmax", log_softmax(), normal(3, 1), "one class: x has no effect"),
    Case("log_softmax", log_softmax(), normal(0, 5), "empty batch"),
)


def _swapped(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, dx = right(layer, params, x, dy)
    return {**dparams, "gate": dparams["up"], "up": dparams["gate"]}, dx


def _swapped_before(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer, {**params, "gate": params["up"], "up": params["gate"]}, x, dy)


def _without_path(name: str) -> Wrong:
    """The weights `name` are read in the backward for dx alone: zeros there cut its path."""
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        residuals = layer.forward(params, x)[1]
        return layer.backward({**params, name: jnp.zeros_like(params[name])}, residuals, dy)

    return wrong


def _derivative_of(other: Callable[[int], Layer]) -> Wrong:
    return lambda layer, params, x, dy: right(other(params["gate"].shape[1]), params, x, dy)


def _dy_alone(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), dy


_GLU: dict[str, Wrong] = {
    "gate and up swapped in the result": _swapped,
    "gate and up swapped in the backward": _swapped_before,
    "without the path through the gate": _without_path("gate"),
    "without the path through up": _without_path("up"),
}
BUGS: Bugs = {
    "swiglu": {**_GLU, "the derivative of gelu": _derivative_of(geglu)},
    "geglu": {**_GLU, "the derivative of silu": _derivative_of(swiglu)},
    "log_softmax": {"dy, without the rank-one term": _dy_alone},
}
