"""losses: layers on (y, target) with a scalar output.

Shapes    mse, half_squared_error: y and target the same shape. softmax_cross_entropy: logits (..., V), target (...) of class
          numbers 0..V-1 or (..., V) of probabilities
Dtypes    floating; value and sums are float32 when the inputs are narrower; the cotangent of class numbers is None
Units     mse: mean over every element; half_squared_error: half the sum over every element, batch included;
          softmax_cross_entropy: nats, mean over all axes but the last
Forward   mse = sum (y - t)^2 / N; half_squared_error = sum (y - t)^2 / 2; softmax_cross_entropy = mean of -sum t log p
Backward  2 (y - t) / N; y - t; (p - t) / N, with p sum(t) for p where probabilities do not sum to 1; times dvalue.
          The target's cotangent is that of a function of two arguments: t - y, or -log p
Keeps     the difference; for cross-entropy the logits, the target and two numbers a row, max and log-sum-exp beyond it:
          p is made again from them
At kinks  none
Raises    TypeError: no pair; ValueError: shapes that would broadcast, dtypes, an empty mean. A class number outside 0..V-1
          gives NaN, in the value and in its row of the gradient: values cannot raise inside jit
Source    elementary; derivation in docs/derivations/losses.md
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from .dtypes import is_floating, wide
from .errors import expect, expect_floating, expect_params
from .layer import Layer, Tree


def _pair(batch: Any) -> tuple[jax.Array, jax.Array]:
    ok = isinstance(batch, (tuple, list)) and len(batch) == 2
    expect(ok, "input of a loss", "a pair (y, target)", batch, error=TypeError)
    return batch


def _no_params(key: jax.Array, batch: Any) -> Tree:
    return ()


def _squared(name: str, factor: Callable[[int], float], mean: bool) -> Layer:
    """factor(N) * sum (y - t)^2."""

    def forward(params: Tree, batch: Any) -> tuple[jax.Array, jax.Array]:
        expect_params(params)
        y, target = _pair(batch)
        expect_floating(y=y, target=target)
        expect(y.shape == target.shape, "target", f"the shape of y, {y.shape}", target,
               "Another shape would be broadcast: (B,) against (B, 1) makes (B, B)")
        expect(y.size > 0 or not mean, "y", "at least one element to take the mean of", y, "Is the batch empty?")
        difference = y - target
        return factor(y.size) * jnp.sum(jnp.square(wide(difference))), difference

    def backward(params: Tree, difference: jax.Array, dvalue: jax.Array) -> tuple[Tree, Any]:
        dy = (2 * factor(difference.size) * dvalue * wide(difference)).astype(difference.dtype)
        return (), (dy, -dy)

    return Layer(name, _no_params, forward, backward)


def mse() -> Layer:
    """The mean over every element of (y - target)^2."""
    return _squared("mse()", lambda n: 1 / n, mean=True)


def half_squared_error() -> Layer:
    """Half the sum over every element, batch included, of (y - target)^2: its gradient is y - target."""
    return _squared("half_squared_error()", lambda n: 0.5, mean=False)


def softmax_cross_entropy() -> Layer:
    """-log of the softmax probability of the target, in nats, mean over all axes but the last.

    Input (logits (..., V), target): integers (...) in 0..V-1, or probabilities (..., V).
    """

    def forward(params: Tree, batch: Any) -> tuple[jax.Array, Any]:
        expect_params(params)
        logits, target = _pair(batch)
        expect_floating(logits=logits)
        expect(logits.ndim >= 1 and logits.size > 0, "logits", "(..., V) with at least one row and one class", logits,
               "Is the batch empty?")
        x = wide(logits)
        top = jax.lax.stop_gradient(jnp.max(x, axis=-1))  # (...); subtracted first, or a common offset would eat the digits
        x = x - _column(top, x)
        log_sum = jnp.log(jnp.sum(jnp.exp(x), axis=-1))  # (...)
        if is_floating(target):
            expect_floating(logits=logits, target=target)
            expect(target.shape == logits.shape, "target", f"probabilities of shape {logits.shape}", target)
            rows = jnp.sum(wide(target) * (_column(log_sum, x) - x), axis=-1)
        else:
            expect(jnp.issubdtype(target.dtype, jnp.integer), "target", "class numbers or probabilities", target)
            expect(target.shape == logits.shape[:-1], "target", f"class numbers of shape {logits.shape[:-1]}", target,
                   "One-hot targets must be floating")
            rows = log_sum - jnp.sum(jnp.where(_one_hot(target, x), x, 0), axis=-1)
            rows = jnp.where(_legal(target, x), rows, jnp.nan)
        return jnp.mean(rows), (logits, target, top, log_sum)

    def backward(params: Tree, residuals: Any, dvalue: jax.Array) -> tuple[Tree, Any]:
        logits, target, top, log_sum = residuals
        x = wide(logits)
        minus_log_p = _column(log_sum, x) - (x - _column(top, x))  # (..., V)
        p, scale = jnp.exp(-minus_log_p), dvalue / prod(log_sum.shape)
        if is_floating(target):
            t = wide(target)
            mass = _column(jnp.sum(t, axis=-1), x)  # 1 for probabilities, but the rule holds for any target
            dtarget = (minus_log_p * scale).astype(target.dtype)
            return (), (((p * mass - t) * scale).astype(logits.dtype), dtarget)
        dx = jnp.where(_one_hot(target, x), p - 1, p) * jnp.where(_column(_legal(target, x), x), scale, jnp.nan)
        return (), (dx.astype(logits.dtype), None)

    return Layer("softmax_cross_entropy()", _no_params, forward, backward)


def _column(row: jax.Array, like: jax.Array) -> jax.Array:
    """(...) -> (..., V): one number a row, written out over the classes."""
    return jnp.broadcast_to(row[..., None], like.shape)


def _one_hot(target: jax.Array, like: jax.Array) -> jax.Array:
    """(...) -> (..., V), boolean; a row without a True for an illegal class."""
    return _column(target, like) == jax.lax.broadcasted_iota(target.dtype, like.shape, like.ndim - 1)


def _legal(target: jax.Array, like: jax.Array) -> jax.Array:
    return (target >= 0) & (target < like.shape[-1])
