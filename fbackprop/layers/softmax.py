"""softmax: positive numbers that sum to 1 along the last axis, or their logarithms.

Shapes    x (..., V), y (..., V)
Dtypes    floating; computed in float32 when x is narrower
Units     probabilities; log_softmax: nats
Forward   y = exp(x - max x) / sum exp(x - max x); log_softmax: y = x - max x - log sum exp(x - max x)
Backward  dx = y (dy - sum(y dy)): the Jacobian is diag(y) - y y^T; log_softmax: dx = dy - exp(y) sum(dy)
Keeps     y, in float32 when x is narrower: a rounded y does not sum to 1, and dx would be off by that
At kinks  none: the maximum that is subtracted cancels
Raises    TypeError: params that are not (); ValueError: x not floating, no axis, an axis of size 0
Source    Bridle 1990; derivation in docs/derivations/softmax.md
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..calls import by_name
from ..checks import expect
from ..dtypes import wide
from ..layer import Layer
from .parameterless import parameterless

Function = Callable[..., jax.Array]


@by_name("dim", "it runs over the last axis")
def softmax() -> Layer:
    """y = exp(x) / sum(exp(x)) over the last axis. Before a cross-entropy use `softmax_cross_entropy` on the logits instead."""

    def dx(y: jax.Array, dy: jax.Array) -> jax.Array:
        mean = jnp.sum(y * dy, axis=-1, keepdims=True)  # (..., 1): the rank-one term
        return y * (dy - jnp.broadcast_to(mean, y.shape))

    return _over_last_axis("softmax", jax.nn.softmax, dx)


@by_name("dim", "it runs over the last axis")
def log_softmax() -> Layer:
    """y = x - log(sum(exp(x))) over the last axis: finite where the logarithm of softmax's y is not."""

    def dx(y: jax.Array, dy: jax.Array) -> jax.Array:
        total = jnp.sum(dy, axis=-1, keepdims=True)  # (..., 1): the rank-one term
        return dy - jnp.exp(y) * jnp.broadcast_to(total, y.shape)

    return _over_last_axis("log_softmax", jax.nn.log_softmax, dx)


def _over_last_axis(kind: str, f: Function, dx: Function) -> Layer:
    """y = f(x) and dx from y and dy, in the wide dtype."""

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect(x.ndim >= 1 and x.shape[-1] > 0, "x", "a last axis of size at least 1", x)
        y = f(wide(x), axis=-1)
        return y.astype(x.dtype), y

    return parameterless(kind, forward, lambda y, dy: dx(y, wide(dy)).astype(dy.dtype))
