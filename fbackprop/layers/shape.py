"""shape: the same elements in another shape.

Shapes    flatten: x (B, ...), y (B, prod(...))
Dtypes    any; integer input has cotangent None
Units     none
Forward   y = reshape(x)
Backward  dx = reshape(dy) to the shape of x: elements only move, so do their cotangents
Keeps     the shape of x, static: no bytes
At kinks  none: linear
Raises    TypeError: params that are not (); ValueError: x without a batch axis
Source    elementary; derivation in docs/derivations/shape.md
"""

from __future__ import annotations

from math import prod
from typing import Any

import jax

from ..dtypes import is_floating
from ..errors import expect, expect_params
from ..layer import Layer, Static, Tree


def flatten() -> Layer:
    """x (B, ...) -> y (B, product of the rest)."""

    def init(key: jax.Array, x: Any) -> Tree:
        return ()

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, Static]:
        expect_params(params)
        expect(hasattr(x, "shape"), "x", "one array", x, error=TypeError)
        expect(x.ndim >= 1, "x", "a batch axis", x)
        return x.reshape(x.shape[0], prod(x.shape[1:])), Static((x.shape, is_floating(x)))

    def backward(params: Tree, residuals: Static, dy: Any) -> tuple[Tree, Any]:
        shape, floating = residuals.value
        return (), dy.reshape(shape) if floating else None

    return Layer("flatten()", init, forward, backward)
