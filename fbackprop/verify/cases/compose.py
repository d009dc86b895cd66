"""Cases and mistakes of the combinators."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ... import compose
from ...layer import Layer
from ...layers.dense import dense
from ...layers.elementwise import tanh
from ...params import Tree
from .case import Bugs, Case, normal, right

CASES: tuple[Case, ...] = (
    Case("chain", compose.chain(dense(7), tanh(), dense(3)), normal(2, 5)),
    Case("skip", compose.skip(dense(5)), normal(3, 5)),
)


def _without_skipped_path(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, dx = right(layer, params, x, dy)
    return dparams, jax.tree.map(jnp.subtract, dx, dy)


def _without_layer(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer, params, x, dy)[0], dy


BUGS: Bugs = {"skip": {
    "without the cotangent of the skipped path": _without_skipped_path,
    "without the cotangent that came through the layer": _without_layer,
}}
