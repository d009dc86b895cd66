"""elementwise losses: a sum or a mean of one function of every pair of elements.

Shapes    y and target the same shape; a scalar value
Dtypes    floating; value and sums are float32 when the inputs are narrower
Units     half_squared_error: half the sum over every element, batch included; the others: mean over every element, N of them,
          binary cross-entropy in nats
Forward   with e = y - t: mse = sum e^2 / N; half_squared_error = sum e^2 / 2; huber = sum h / N, h = e^2 / 2 up to
          |e| = delta, delta (|e| - delta / 2) beyond; binary_cross_entropy_with_logits = sum (log(1 + exp y) - t y) / N
Backward  dy = 2 e / N; e; e / N clipped to +-delta / N; (sigmoid(y) - t) / N; times dvalue. dtarget = -dy, or -y dvalue / N
Keeps     the difference e; for binary cross-entropy y and target
At kinks  none: huber bends in its second derivative alone, at |e| = delta
Raises    TypeError: no pair; ValueError: shapes that would broadcast, dtypes, an empty mean, delta <= 0
Source    elementary; huber: Huber 1964; derivation in docs/derivations/losses.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_floating
from ..dtypes import wide
from ..facts import Option, given
from ..layer import Layer
from ..layers.parameterless import anything, parameterless
from .inputs import several
from .weight import summed, target_size

Function = Callable[[jax.Array], jax.Array]


def _checked(batch: Any, mean: bool = True) -> tuple[jax.Array, jax.Array]:
    y, target = several(batch)
    expect_floating(y=y, target=target)
    expect(y.shape == target.shape, "target", f"the shape of y, {y.shape}", target,
           "Another shape would be broadcast: (B,) against (B, 1) makes (B, B)")
    expect(y.size > 0 or not mean, "y", "at least one element to take the mean of", y, "Is the batch empty?")
    return y, target


def _of_difference(kind: str, f: Function, df: Function, mean: bool = True, options: tuple[Option, ...] = ()) -> Layer:
    """sum f(y - t), or its mean."""

    def forward(batch: Any) -> tuple[jax.Array, jax.Array]:
        y, target = _checked(batch, mean)
        difference = y - target
        return jnp.sum(f(wide(difference))) / (y.size if mean else 1), difference

    def backward(difference: jax.Array, dvalue: jax.Array) -> Any:
        scale = dvalue / (difference.size if mean else 1)
        dy = (df(wide(difference)) * scale).astype(difference.dtype)
        return dy, -dy

    return parameterless(kind, forward, backward, options, anything, weight=target_size if mean else summed)


@by_name()
def mse() -> Layer:
    """The mean over every element of (y - target)^2."""
    return _of_difference("mse", jnp.square, lambda e: 2 * e)


@by_name()
def half_squared_error() -> Layer:
    """Half the sum over every element, batch included, of (y - target)^2: its gradient is y - target."""
    return _of_difference("half_squared_error", lambda e: 0.5 * jnp.square(e), lambda e: e, mean=False)


@by_name()
def huber(*, delta: float = 1.0) -> Layer:
    """The mean of (y - target)^2 / 2 up to a difference of delta, growing linearly beyond. ValueError unless delta > 0."""
    expect(delta > 0, "huber delta", "a number > 0", repr(delta))
    clipped = lambda e: jnp.clip(e, -delta, delta)
    # with c the clipped difference: e^2 / 2 inside, where c = e, and delta |e| - delta^2 / 2 outside
    return _of_difference("huber", lambda e: clipped(e) * (e - 0.5 * clipped(e)), clipped, options=given(huber, delta=delta))


@by_name()
def binary_cross_entropy_with_logits() -> Layer:
    """The mean over every element of -t log p - (1 - t) log(1 - p) with p = sigmoid(logit), in nats."""

    def forward(batch: Any) -> tuple[jax.Array, Any]:
        logits, target = _checked(batch)
        x, t = wide(logits), wide(target)
        # log(1 + exp x) - t x, its large part cancelled first: x - x is exact where t = 1
        # max(x, 0) and -|x| both take the left slope at 0: autodiff adds them up to sigmoid(0)
        terms = jnp.where(x > 0, x, 0) - t * x + jnp.log1p(jnp.exp(jnp.where(x > 0, -x, x)))
        return jnp.mean(terms), (logits, target)

    def backward(residuals: Any, dvalue: jax.Array) -> Any:
        logits, target = residuals
        x, scale = wide(logits), dvalue / logits.size
        dx, dt = (lax.logistic(x) - wide(target)) * scale, -x * scale
        return dx.astype(logits.dtype), dt.astype(target.dtype)

    return parameterless("binary_cross_entropy_with_logits", forward, backward, check=anything,
                         weight=target_size)
