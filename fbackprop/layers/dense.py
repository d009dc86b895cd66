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

from typing import Any

import jax
import jax.numpy as jnp

from ..calls import by_name
from ..checks import expect, expect_floating, expect_params, expect_whole
from ..dtypes import wide_dtype
from ..facts import given
from ..layer import Layer
from ..params import Tree
from .algebra import Initializer, affine_init, bias_gradient, matmul, plus_bias, weight_gradient


@by_name("in_features features bias", "the number of inputs is taken from x")
def dense(features: int, *, bias: bool = True, w_init: Initializer | None = None,
          b_init: Initializer | None = None) -> Layer:
    """y = x w + b. x (..., I) -> y (..., features); params {"w": (I, features), "b": (features,)}, no "b" with bias=False.

    `w_init` and `b_init` are `jax.nn.initializers`: He normal (right before relu) and zeros unless given;
    Xavier (`glorot_uniform`) is right before tanh and sigmoid.
    """
    features = expect_whole("dense features", features, 0)
    options = given(dense, features, bias=bias, w_init=w_init, b_init=b_init)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        return affine_init(key, (x.shape[-1], features), jnp.result_type(x), bias, w_init, b_init)

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect_params(params, *("w", "b")[: 1 + bias])
        expect_floating(x=x, **params)
        w = params["w"]
        expect(w.ndim == 2 and w.shape[1] == features, "w", f"(I, {features})", w)
        expect(x.ndim >= 1 and x.shape[-1] == w.shape[0], "x", f"a last axis of {w.shape[0]}, the rows of w", x,
               "Was init given x of another shape, or is a flatten() missing?")
        y = jnp.matmul(x, w, preferred_element_type=wide_dtype(x.dtype))  # (..., O)
        return plus_bias(y, params).astype(x.dtype), x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
        dw = weight_gradient(x, dy)  # (I, O)
        dx = matmul(dy, params["w"].T)  # (..., I)
        return {"w": dw, "b": bias_gradient(dy)} if bias else {"w": dw}, dx

    return Layer("dense", init, forward, backward, options)
