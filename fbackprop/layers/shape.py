"""shape: the same elements in another place; and scale, the same times a number.

Shapes    flatten: x (B, ...), y (B, prod(...)); reshape: x (B, ...), y (B, *shape); transpose: y's axis i is x's axis axes[i];
          take_last: x (..., T, D), y (..., D); scale: x (...), y (...)
Dtypes    any; integer input has cotangent None. scale: floating, the product is taken in float32 when narrower
Units     none
Forward   y = reshape(x); y = transpose(x); y = x at the last step in time; y = factor x
Backward  elements only move, so do their cotangents: dx = reshape(dy) to the shape of x; dx = dy transposed back; dx = dy at
          the last step, 0 at the others, which y does not depend on; dx = factor dy
Keeps     the shape of x, static: no bytes; scale: nothing
At kinks  none: linear
Raises    TypeError: params that are not (); ValueError: x without a batch axis, elements that do not fit the shape, axes that
          are no permutation of x's, no last step, a factor that is no number
Source    elementary; derivation in docs/derivations/shape.md
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..calls import by_name
from ..checks import expect, is_whole
from ..dtypes import is_floating, wide
from ..facts import Option, given
from ..layer import Layer
from ..params import Static
from .parameterless import anything, parameterless

Shape = tuple[int, ...]


@by_name("start_dim end_dim", "every axis behind the batch axis is joined")
def flatten() -> Layer:
    """x (B, ...) -> y (B, product of the rest)."""

    def move(x: jax.Array) -> jax.Array:
        _expect_batch_axis(x)
        return x.reshape(x.shape[0], prod(x.shape[1:]))

    return _moving("flatten", (), move, lambda shape, dy: dy.reshape(shape))


def reshape(*shape: int) -> Layer:
    """x (B, ...) -> y (B, *shape): the batch axis stays. One of the sizes may be -1: whatever is left."""
    ok = all(is_whole(size, -1) for size in shape) and shape.count(-1) <= 1
    expect(ok, "reshape shape", "sizes without the batch axis, at most one of them -1", repr(shape))
    shape = tuple(map(int, shape))

    def move(x: jax.Array) -> jax.Array:
        _expect_batch_axis(x)
        have, known = prod(x.shape[1:]), prod(size for size in shape if size >= 0)
        fits = have == known or (-1 in shape and known > 0 and have % known == 0)
        expect(fits, "x", f"{shape} to hold the {have} elements of an example", x)
        left = have // max(known, 1)  # not asked of jnp.reshape, which cannot divide an empty batch
        return x.reshape(x.shape[0], *(left if size < 0 else size for size in shape))

    return _moving("reshape", given(reshape, *shape), move, lambda shape, dy: dy.reshape(shape))


def transpose(*axes: int) -> Layer:
    """y = jnp.transpose(x, axes): `axes` are those of x, the batch axis 0 among them, in the order y has them."""
    ok = all(map(is_whole, axes)) and sorted(axes) == list(range(len(axes)))
    expect(ok, "transpose axes", "each of 0, 1, ... once, the batch axis too", repr(axes))

    def move(x: jax.Array) -> jax.Array:
        expect(x.ndim == len(axes), "x", f"{len(axes)} axes", x)
        return jnp.transpose(x, axes)

    back = tuple(int(axis) for axis in np.argsort(axes))
    return _moving("transpose", given(transpose, *axes), move, lambda _, dy: jnp.transpose(dy, back))


@by_name()
def take_last() -> Layer:
    """x (..., T, D) -> y (..., D), the last step in time."""

    def move(x: jax.Array) -> jax.Array:
        expect(x.ndim >= 2 and x.shape[-2] > 0, "x", "at least one step in time, (..., T, D)", x)
        return x[..., -1, :]

    return _moving("take_last", (), move, lambda shape, dy: jnp.zeros(shape, dy.dtype).at[..., -1, :].set(dy))


def _moving(kind: str, options: tuple[Option, ...], move: Callable[[jax.Array], jax.Array],
            back: Callable[[Shape, jax.Array], jax.Array]) -> Layer:
    """y = move(x), dx = back(shape of x, dy)."""

    def forward(x: jax.Array) -> tuple[jax.Array, Static]:
        expect(hasattr(x, "shape"), "x", "one array", x, error=TypeError)
        return move(x), Static((x.shape, is_floating(x)))

    def backward(residuals: Static, dy: Any) -> Any:
        shape, floating = residuals.value
        return back(shape, dy) if floating else None

    return parameterless(kind, forward, backward, options, anything)


def _expect_batch_axis(x: jax.Array) -> None:
    expect(x.ndim >= 1, "x", "a batch axis", x)


@by_name()
def scale(factor: float) -> Layer:
    """y = factor x, the factor a fixed number."""
    expect(isinstance(factor, Real) and not isinstance(factor, bool), "scale factor", "a number", repr(factor),
           "A trained factor is a layer of its own: see docs/adding-a-layer.md")

    times = lambda x: (float(factor) * wide(x)).astype(x.dtype)
    return parameterless("scale", lambda x: (times(x), ()), lambda _, dy: times(dy),
                         given(scale, float(factor)))
