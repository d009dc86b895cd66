"""dense: an affine map of the last axis.

Shapes    x (..., I), w (I, O), b (O,), y (..., O)
Dtypes    floating, all equal; products accumulate in float32 when inputs are narrower
Units     none
Forward   y = x w + b
Backward  dw = sum over leading axes of x^T dy; db = sum over leading axes of dy; dx = dy w^T
Keeps     x (its size): dw needs it, and it is usually the previous layer's output, stored anyway
At kinks  none: linear in x, in w and in b
Raises    TypeError: params without w, b; ValueError: x of another width or dtype, features no whole number
Source    elementary; derivation in docs/derivations/dense.md
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from ..checks import expect, expect_floating, expect_params, expect_whole
from ..dtypes import wide_dtype
from ..facts import given
from ..layer import Layer
from ..params import Tree

Initializer = Callable[..., jax.Array]


def dense(features: int, bias: bool = True, w_init: Initializer | None = None, b_init: Initializer | None = None) -> Layer:
    """y = x w + b. x (..., I) -> y (..., features); params {"w": (I, features), "b": (features,)}, no "b" with bias=False.

    `w_init` and `b_init` are `jax.nn.initializers`: He normal (right before relu) and zeros unless given;
    Xavier (`glorot_uniform`) is right before tanh and sigmoid.
    """
    features = expect_whole("dense features", features, 0)
    options = given(dense, features, bias=bias, w_init=w_init, b_init=b_init)
    w_init = w_init or jax.nn.initializers.he_normal()
    b_init = b_init or jax.nn.initializers.zeros
    names = ("w", "b") if bias else ("w",)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        w_key, b_key = jax.random.split(key)
        shape, dtype = (x.shape[-1], features), jnp.result_type(x)
        w = w_init(w_key, shape, dtype) if min(shape) else jnp.zeros(shape, dtype)  # He divides by the width
        return {"w": w, "b": b_init(b_key, (features,), dtype)} if bias else {"w": w}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect_params(params, *names)
        expect_floating(x=x, **params)
        w = params["w"]
        expect(w.ndim == 2 and w.shape[1] == features, "w", f"(I, {features})", w)
        expect(x.ndim >= 1 and x.shape[-1] == w.shape[0], "x", f"a last axis of {w.shape[0]}, the rows of w", x,
               "Was init given x of another shape, or is a flatten() missing?")
        y = jnp.matmul(x, w, preferred_element_type=wide_dtype(x.dtype))  # (..., O)
        if bias:
            expect(params["b"].shape == (features,), "b", f"({features},)", params["b"])
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        return y.astype(x.dtype), x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
        w, acc = params["w"], wide_dtype(x.dtype)
        leading = tuple(range(x.ndim - 1))
        dw = weight_gradient(x, dy)  # (I, O)
        dx = jnp.matmul(dy, w.T, preferred_element_type=acc).astype(x.dtype)  # (..., I)
        if not bias:
            return {"w": dw}, dx
        db = jnp.sum(dy, axis=leading, dtype=acc).astype(x.dtype)  # (O,): the visible sum of the broadcast
        return {"w": dw, "b": db}, dx

    return Layer("dense", init, forward, backward, options)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """x (..., I), dy (..., O) -> (I, O): the sum of x^T dy over leading axes, of y = x w for any x.

    Two axes, then one product: on a CPU XLA transposes an x of three axes first, number by number.
    """
    rows = prod(x.shape[:-1])
    x, dy = x.reshape(rows, x.shape[-1]), dy.reshape(rows, dy.shape[-1])
    return jnp.matmul(x.T, dy, preferred_element_type=wide_dtype(x.dtype)).astype(x.dtype)
