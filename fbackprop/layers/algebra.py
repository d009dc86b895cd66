"""Products that accumulate in a wide dtype, and axes that are joined, added or summed in sight."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ..checks import expect, expect_key
from ..dtypes import wide_dtype
from ..params import Tree


class Initializer(Protocol):
    """Draws a weight, as those of `jax.nn.initializers` do."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, /) -> jax.Array: ...


def einsum(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a product in the dtype of `b`, in float32 when that is narrower."""
    dtype = jnp.result_type(b)
    return jnp.einsum(letters, a.astype(dtype), b, preferred_element_type=wide_dtype(dtype))


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x w in the dtype of x, accumulated in float32 when that is narrower."""
    dtype = jnp.result_type(x)  # NumPy's float64 is float32 to jax
    return jnp.matmul(x, w, preferred_element_type=wide_dtype(dtype)).astype(dtype)


def rows(x: jax.Array, axes: int = 0) -> jax.Array:
    """Returns x (B..., *sizes, C) with its leading axes joined, (B, *sizes, C); `axes` sizes."""
    return x.reshape(prod(x.shape[: -axes - 1]), *x.shape[-axes - 1:])


def column(row: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a number per row, (...), written out over the last axis of `like`: (..., V)."""
    return jnp.broadcast_to(row[..., None], like.shape)


def plus_bias(y: jax.Array, params: Tree) -> jax.Array:
    """Returns y (..., O) + b (O,), or y where the params have no b."""
    if "b" not in params:
        return y
    b = params["b"]
    expect(b.shape == y.shape[-1:], "b", f"{y.shape[-1:]}", b)
    return y + jnp.broadcast_to(b.astype(y.dtype), y.shape)


def bias_gradient(dy: jax.Array) -> jax.Array:
    """Returns db (O,) of y (..., O) + b: the visible sum of the broadcast."""
    dtype = jnp.result_type(dy)
    return jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=wide_dtype(dtype)).astype(dtype)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Returns dw (I, O) of y = x w, x (..., I): the sum of x^T dy over leading axes.

    Two axes, then one product: on a CPU XLA transposes an x of three axes first, number by number.
    """
    x, dy = rows(x), rows(dy)
    return matmul(x.T, dy)


def draw(init: Initializer, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns a weight by `init`, or an empty one: initializers divide by the width."""
    return init(key, shape, dtype) if prod(shape) else jnp.zeros(shape, dtype)


def affine_init(key: jax.Array, shape: tuple[int, ...], dtype: Any, bias: bool,
                w_init: Initializer | None, b_init: Initializer | None) -> Tree:
    """Returns {"w": of `shape`, "b": its last axis}: He normal and zeros unless given."""
    expect_key(key)
    w_key, b_key = jax.random.split(key)
    params = {"w": draw(w_init or jax.nn.initializers.he_normal(), w_key, shape, dtype)}
    if bias:
        params["b"] = (b_init or jax.nn.initializers.zeros)(b_key, shape[-1:], dtype)
    return params
