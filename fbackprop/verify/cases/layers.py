"""Cases and mistakes of dense, softmax, elementwise functions, dropout, shapes and gated layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...layer import Layer
from ...layers import elementwise
from ...layers.dense import dense
from ...layers.dropout import dropout
from ...layers.function import from_function
from ...layers.glu import geglu, swiglu
from ...layers.shape import flatten, reshape, scale, take_last, transpose
from ...layers.softmax import log_softmax, softmax
from ...params import Next, State, Tree
from ...transform import inference
from .case import Bugs, Case, Draw, Right, Wrong, normal, pinned


def _sine(params: Any, x: Any) -> Any:
    return {"y": jnp.sin(x["h"]) * jnp.broadcast_to(params["scale"], x["h"].shape), "ids": x["ids"]}


_with_ids: Draw = lambda rng: {"h": rng.standard_normal((3, 5)), "ids": np.arange(3, dtype=np.int32)}
_scale = lambda key, x: {"scale": jnp.ones(x["h"].shape[-1], x["h"].dtype)}

CASES: tuple[Case, ...] = (
    Case("dense", dense(7), normal(3, 5)),
    Case("dense", dense(5), normal(2, 3, 5), "square, two leading axes"),
    Case("dense", dense(3, bias=False), normal(5), "one example"),
    Case("dense", dense(1), normal(1, 1), "sizes 1"),
    Case("dense", dense(7), normal(0, 5), "empty batch"),
    Case("softmax", softmax(), normal(2, 3, 5)),
    Case("softmax", softmax(), normal(3, 5, scale=10), "large logits"),
    Case("log_softmax", log_softmax(), normal(2, 3, 5)),
    Case("log_softmax", log_softmax(), normal(3, 5, scale=10), "large logits"),
    Case("log_softmax", log_softmax(), normal(3, 1), "one class: x has no effect"),
    Case("log_softmax", log_softmax(), normal(0, 5), "empty batch"),
    Case("from_function", from_function(_sine, _scale), _with_ids),
    *(Case(name, getattr(elementwise, name)(), normal(3, 5)) for name in elementwise.TABLE),
    Case("gelu", elementwise.gelu(approximate=False), normal(3, 5)),
    Case("elu", elementwise.elu(0.5), normal(3, 5)),
    Case("relu", elementwise.relu(), pinned(3, 5), "at 0", "KINK"),
    Case("leaky_relu", elementwise.leaky_relu(0.2), pinned(3, 5), "at 0", "KINK"),
    Case("elu", elementwise.elu(0.5), pinned(3, 5), "at 0", "KINK"),
    Case("tanh", elementwise.tanh(), normal(0, 5), "empty batch"),
    Case("dropout", dropout(0.5), normal(3, 5)),
    Case("dropout", dropout(0.2), normal(2, 3, 7), "two leading axes"),
    Case("dropout", dropout(0.3), normal(1, 1), "sizes 1"),
    Case("dropout", dropout(0.0), normal(3, 5)),
    Case("dropout", dropout(0.5), normal(0, 5), "empty batch"),
    Case("dropout", inference(dropout(0.5)), normal(3, 5)),
    Case("flatten", flatten(), normal(2, 3, 5)),
    Case("flatten", flatten(), normal(0, 3, 2), "empty batch"),
    Case("reshape", reshape(5, 3), normal(2, 3, 5)),
    Case("reshape", reshape(7, -1, 2), normal(3, 14), "the rest"),
    Case("reshape", reshape(), normal(3, 1), "a number an example"),
    Case("reshape", reshape(-1, 2), normal(0, 6), "empty batch"),
    Case("transpose", transpose(0, 2, 1), normal(2, 3, 5)),
    Case("transpose", transpose(1, 2, 0), normal(2, 2, 2), "a cycle of equal sizes"),
    Case("transpose", transpose(0, 2, 3, 1), normal(2, 5, 1, 3), "channels last"),
    Case("transpose", transpose(1, 0), normal(0, 3), "empty batch"),
    Case("take_last", take_last(), normal(2, 5, 3)),
    Case("take_last", take_last(), normal(3, 1, 2), "one step"),
    Case("take_last", take_last(), normal(0, 3, 2), "empty batch"),
    Case("scale", scale(-0.3), normal(3, 5)),
    Case("scale", scale(0), normal(3, 5)),
    Case("scale", scale(8), normal(0, 5), "empty batch"),
    Case("swiglu", swiglu(7), normal(3, 5)),
    Case("geglu", geglu(7), normal(3, 5)),
    Case("swiglu", swiglu(5), normal(2, 3, 5), "square, two leading axes"),
    Case("swiglu", swiglu(1), normal(1, 1), "sizes 1"),
    Case("swiglu", swiglu(3), normal(0, 5), "empty batch"),
    Case("geglu", geglu(3), normal(5), "one example"),
)


def _masked_by_the_next_key(right: Right) -> tuple[Tree, Any]:
    successor = State(right.dparams["key"].value)
    return right.dparams, right.with_params(key=successor).dx


def _derivative_of(other: Layer) -> Wrong:
    return lambda right: right.given(layer=other).gradients


def _derivative_with(other: Callable[[int], Layer]) -> Wrong:
    return lambda right: right.given(layer=other(right.params["gate"].shape[1])).gradients


def _swapped(weights: Tree) -> Tree:
    return {**weights, "gate": weights["up"], "up": weights["gate"]}


def _without_path(right: Right, name: str) -> tuple[Tree, Any]:
    """Puts zeros in place of the weights `name`: the backward reads them for dx alone."""
    residuals = right.layer.forward(right.params, right.x)[1]
    cut = {**right.params, name: jnp.zeros_like(right.params[name])}
    return right.layer.backward(cut, residuals, right.dy)


# The mistakes of an elementwise function are the derivatives of the others
_OTHERS: dict[str, Wrong] = {
    **{f"the derivative of {name}": _derivative_of(getattr(elementwise, name)())
       for name in elementwise.TABLE},
    "the derivative of the other gelu": _derivative_of(elementwise.gelu(approximate=False)),
}
_GLU: dict[str, Wrong] = {
    "gate and up swapped in the result": lambda right: (_swapped(right.dparams), right.dx),
    "gate and up swapped in the backward":
        lambda right: right.given(params=_swapped(right.params)).gradients,
    "without the path through the gate": lambda right: _without_path(right, "gate"),
    "without the path through up": lambda right: _without_path(right, "up"),
}
BUGS: Bugs = {
    **{name: {text: wrong for text, wrong in _OTHERS.items() if text != f"the derivative of {name}"}
       for name in elementwise.TABLE},
    "softmax": {
        "y dy, without the rank-one term":
            lambda right: ((), right.layer.forward((), right.x)[0] * right.dy),
    },
    "swiglu": {**_GLU, "the derivative of gelu": _derivative_with(geglu)},
    "geglu": {**_GLU, "the derivative of silu": _derivative_with(swiglu)},
    "log_softmax": {"dy, without the rank-one term": lambda right: ((), right.dy)},
    "dropout": {
        "masked by the next key: another mask than the forward's": _masked_by_the_next_key,
        "without the division by 1 - rate":
            lambda right: (right.dparams, jnp.where(right.dx == 0, 0, right.dy)),
        "without the mask":
            lambda right: ({"key": Next(jax.random.split(right.params["key"].value)[1])}, right.dy),
    },
    "transpose": {
        "reshaped, not transposed back": lambda right: ((), right.dy.reshape(right.x.shape)),
        "transposed by the same axes once more":
            lambda right: ((), right.layer.forward((), right.dy)[0].reshape(right.x.shape)),
    },
    "take_last": {
        "given to every step":
            lambda right: ((), jnp.broadcast_to(right.dy[..., None, :], right.x.shape)),
        "given to the first step":
            lambda right: ((), jnp.zeros_like(right.x).at[..., 0, :].set(right.dy)),
    },
    "scale": {"without the factor": lambda right: (right.dparams, right.dy)},
}
