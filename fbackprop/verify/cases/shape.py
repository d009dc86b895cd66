"""Cases and mistakes of reshape, transpose, take_last and scale."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ...layer import Layer
from ...layers.shape import flatten, reshape, scale, take_last, transpose
from ...params import Tree
from .case import Bugs, Case, normal, right

CASES: tuple[Case, ...] = (
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
)


def _reshaped(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), dy.reshape(x.shape)


def _same_axes(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), layer.forward(params, dy)[0].reshape(x.shape)


def _at_every_step(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), jnp.broadcast_to(dy[..., None, :], x.shape)


def _at_the_first_step(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return (), jnp.zeros_like(x).at[..., 0, :].set(dy)


def _unscaled(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer, params, x, dy)[0], dy


BUGS: Bugs = {
    "transpose": {"reshaped, not transposed back": _reshaped, "transposed by the same axes once more": _same_axes},
    "take_last": {"given to every step": _at_every_step, "given to the first step": _at_the_first_step},
    "scale": {"without the factor": _unscaled},
}
