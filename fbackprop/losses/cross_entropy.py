"""softmax_cross_entropy: -log of the softmax probability of the target.

Shapes    logits (..., V), target (...) of class numbers 0..V-1 or (..., V) of probabilities, weights (...) if given;
          a scalar value. N rows n, class weights c (V,), smoothing a
Dtypes    floating; value and sums are float32 when the inputs are narrower; the cotangent of class numbers is None
Units     nats; mean over all axes but the last, weighted: sum u l / sum u k. k is 1 for every row; for class numbers c[target]
          with class weights, and 0 where ignored
Forward   l = -sum over V of t log p, with t the target, one-hot or probabilities, made (1 - a) t + a / V, then times c;
          0 in ignored rows
Backward  dlogits = (p sum(t) - t) u / W, W = sum u k; dtarget = -(1 - a) c log p u / W for probabilities;
          du = (l - value k) / W: a weight changes the divisor too; times dvalue. W = 0: value and cotangents are 0
Keeps     logits, target, weights and two numbers a row, max and log-sum-exp beyond it: p is recomputed from them
At kinks  none
Raises    TypeError: no pair or triple, a target that is no array; ValueError: shapes, dtypes, an empty mean, ignore_index with
          probabilities. A class number outside 0..V-1 that is not ignore_index gives NaN, in the value and in its row of the
          gradient: values cannot raise inside jit
Source    elementary; smoothing: Szegedy et al. 2016, section 7; derivation in docs/derivations/losses.md
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_array, expect_floating
from ..dtypes import is_floating, wide
from ..facts import given
from ..layer import Layer
from ..layers.algebra import column
from ..layers.parameterless import anything, parameterless
from .inputs import ClassWeights, check_options, class_numbers, inverse, is_index, several
from .weight import token_weight


@by_name()
def softmax_cross_entropy(*, label_smoothing: float = 0.0, class_weights: ClassWeights = None,
                          ignore_index: int | None = None) -> Layer:
    """-log of the softmax probability of the target, in nats, mean over all axes but the last.

    Input (logits (..., V), target) or (logits, target, weights): target integers (...) in 0..V-1, or probabilities (..., V);
    weights (...), floating and not negative, one a row: the mean is then sum(weights * loss) / sum(weights).
    `label_smoothing` a: the target becomes (1 - a) target + a / V. `class_weights` (V,), constants: each class's share of
    the loss; of class numbers the divisor is the sum of the weights used. `ignore_index`: rows of this class count nowhere.
    The mean over no row (all ignored, all weights 0) is 0, and so are its gradients.
    """
    check_options(label_smoothing, ignore_index)
    a, c = label_smoothing, class_weights

    def forward(batch: Any) -> tuple[jax.Array, Any]:
        logits, target, weights = _checked(batch, c, ignore_index)
        x = _seen(logits, target, ignore_index)
        top = lax.stop_gradient(jnp.max(x, axis=-1))  # (...); subtracted first, or a common offset would eat the digits
        x = x - column(top, x)
        log_sum = jnp.log(jnp.sum(jnp.exp(x), axis=-1))  # (...)
        t, _, k = _counted(target, x, a, c, ignore_index)
        u = jnp.ones_like(k) if weights is None else wide(weights)
        value = jnp.sum(u * _losses(t, column(log_sum, x) - x, target)) * inverse(jnp.sum(u * k))
        return value, (logits, target, weights, top, log_sum)

    def backward(residuals: Any, dvalue: jax.Array) -> Any:
        logits, target, weights, top, log_sum = residuals
        x = _seen(logits, target, ignore_index)
        minus_log_p = column(log_sum, x) - (x - column(top, x))  # (..., V)
        t, total, k = _counted(target, x, a, c, ignore_index)
        u = jnp.ones_like(k) if weights is None else wide(weights)
        scale = inverse(jnp.sum(u * k))
        each = column(u * (scale * dvalue), x)
        dx = ((jnp.exp(-minus_log_p) * column(total, x) - t) * each).astype(logits.dtype)
        dtarget = None
        if is_floating(target):
            dtarget = ((1 - a) * minus_log_p * _over_classes(c, x) * each).astype(target.dtype)
        if weights is None:
            return dx, dtarget
        losses = _losses(t, minus_log_p, target)
        value = jnp.sum(u * losses) * scale
        dweights = (losses - value * k) * (scale * dvalue)  # a weight is in the divisor too
        return dx, dtarget, dweights.astype(weights.dtype)

    options = given(softmax_cross_entropy, label_smoothing=a, class_weights=c, ignore_index=ignore_index)
    weight = token_weight(ignore_index=ignore_index, class_weights=c)
    return parameterless("softmax_cross_entropy", forward, backward, options, anything, weight=weight)


def _seen(logits: jax.Array, target: jax.Array, ignore_index: int | None) -> jax.Array:
    """Returns the logits, and zeros in ignored rows, whatever stands there: 0 * inf would be NaN."""
    x = wide(logits)
    return x if ignore_index is None else jnp.where(column(is_index(target, ignore_index), x), 0, x)


def _counted(target: jax.Array, x: jax.Array, smoothing: float, class_weights: Any,
             ignore_index: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per row of x (..., V): the target t (..., V) as it counts, its sum (...), and k (...), its part of the divisor."""
    c = _over_classes(class_weights, x)
    ones = jnp.ones(x.shape[:-1], x.dtype)
    if is_floating(target):
        t = _smoothed(wide(target), smoothing) * c
        return t, jnp.sum(t, axis=-1), ones
    hot, ignored = one_hot(target, x), is_index(target, ignore_index)
    t, total, k = _smoothed(jnp.where(hot, 1, 0).astype(x.dtype), smoothing) * c, ones, ones
    if class_weights is not None:
        k = jnp.sum(jnp.where(hot, c, 0), axis=-1)
        total = (1 - smoothing) * k + smoothing * jnp.mean(c, axis=-1)
    t = jnp.where(column(legal(target, x.shape[-1]), x), t, jnp.nan)
    return jnp.where(column(ignored, x), 0, t), jnp.where(ignored, 0, total), jnp.where(ignored, 0, k)


def _losses(t: jax.Array, minus_log_p: jax.Array, target: jax.Array) -> jax.Array:
    """-sum t log p over the classes; of class numbers a logit of -inf, a class left out, costs nothing where t = 0."""
    terms = t * minus_log_p
    return jnp.sum(terms if is_floating(target) else jnp.where(t == 0, 0, terms), axis=-1)


def _over_classes(class_weights: Any, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(1 if class_weights is None else class_weights, like.dtype), like.shape)


def _checked(batch: Any, class_weights: Any, ignore_index: int | None) -> tuple[Any, Any, Any]:
    """`(logits, target, weights or None)`."""
    logits, target, *rest = several(batch, most=3, hint="The weights of the rows may come third")
    expect_floating(logits=logits)
    expect_array("target", target)
    expect(logits.ndim >= 1 and logits.size > 0, "logits", "(..., V) with at least one row and one class", logits,
           "Is the batch empty?")
    if is_floating(target):
        expect_floating(logits=logits, target=target)
        expect(target.shape == logits.shape, "target", f"probabilities of shape {logits.shape}", target)
        expect(ignore_index is None, "target", f"class numbers, of which ignore_index={ignore_index} can be one", target)
    else:
        target = class_numbers(target, logits.shape[:-1])
    for weights in rest:
        expect_floating(logits=logits, weights=weights)
        expect(weights.shape == logits.shape[:-1], "weights", f"one a row, of shape {logits.shape[:-1]}", weights)
    if class_weights is not None:
        expect(np.shape(class_weights) == logits.shape[-1:], "class_weights", f"one a class, of shape {logits.shape[-1:]}",
               f"shape {np.shape(class_weights)}")
    return logits, target, rest[0] if rest else None


def _smoothed(t: jax.Array, share: float) -> jax.Array:
    return (1 - share) * t + share / t.shape[-1] if share else t


def one_hot(target: jax.Array, like: jax.Array) -> jax.Array:
    """(...) -> (..., V), boolean; a row without a True for an illegal class."""
    return column(target, like) == lax.broadcasted_iota(target.dtype, like.shape, like.ndim - 1)


def legal(target: jax.Array, classes: int) -> jax.Array:
    """Where a class number is one of 0..classes - 1."""
    return (target >= 0) & (target < classes)
