"""Cases and mistakes of dropout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...layer import Layer
from ...layers.dropout import dropout
from ...params import Next, State, Tree
from .case import Bugs, Case, normal, right

_off = dropout(0.5).inference
assert _off is not None

CASES: tuple[Case, ...] = (
    Case("dropout", dropout(0.5), normal(3, 5)),
    Case("dropout", dropout(0.2), normal(2, 3, 7), "two leading axes"),
    Case("dropout", dropout(0.3), normal(1, 1), "sizes 1"),
    Case("dropout", dropout(0.0), normal(3, 5)),
    Case("dropout", dropout(0.5), normal(0, 5), "empty batch"),
    Case("dropout", _off, normal(3, 5)),
)


def _new_mask(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, _ = right(layer, params, x, dy)
    return dparams, right(layer, {"key": State(dparams["key"].value)}, x, dy)[1]


def _unscaled(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, dx = right(layer, params, x, dy)
    return dparams, jnp.where(dx == 0, 0, dy)


def _unmasked(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return {"key": Next(jax.random.split(params["key"].value)[1])}, dy


BUGS: Bugs = {"dropout": {
    "masked by the next key: another mask than the forward's": _new_mask,
    "without the division by 1 - rate": _unscaled,
    "without the mask": _unmasked,
}}
