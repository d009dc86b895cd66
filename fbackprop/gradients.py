"""What is done with a chain: values, pullbacks and gradients, by hand and by `jax.grad`; custom_vjp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from .checks import expect, expect_like
from .compose import objective
from .dtypes import canonical, combine, is_floating, partition
from .layer import Layer
from .params import Tree, expect_gradients, is_carried, merge, split
from .transform import Rewrite, with_rules


class Function(Protocol):
    """A network as a function."""

    def __call__(self, params: Tree, x: Any, /) -> Any:
        """Returns y."""


class Pullback(Protocol):
    """The backward pass at one point."""

    def __call__(self, dy: Any, /) -> tuple[Tree, Any]:
        """Returns (dparams, dx)."""


class ValueAndGrad(Protocol):
    """A loss and its gradients, as `value_and_grad` returns them."""

    def __call__(self, params: Tree, batch: Tree, /, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        """Returns (value, grads). seed: the value's cotangent."""


def predict(net: Layer) -> Function:
    """Returns `(params, x) -> y`, the forward without its residuals."""
    return lambda params, x: net.forward(params, canonical(x))[0]


def vjp(net: Layer, params: Tree, x: Any) -> tuple[Any, Pullback]:
    """Mirrors `jax.vjp`: `(y, pullback)`, `pullback(dy) -> (dparams, dx)`."""
    y, residuals = net.forward(params, canonical(x))

    def pullback(dy: Any) -> tuple[Tree, Any]:
        expect_like(dy, y, "dy")
        return net.backward(params, residuals, canonical(dy))

    return y, pullback


def value_and_grad(net: Layer, loss: Layer | None = None, *,
                   rules: Mapping[str, Rewrite] | None = None) -> ValueAndGrad:
    """Returns `(params, batch, seed=1.0) -> (value, grads)`, by the hand-written chain.

    `loss` is None for a net that ends in its loss. `rules` maps layer path patterns to rewrites of the layers found there.
    `seed` is the value's cotangent and may be traced. `grads` has `Next` where `params` have `State`.
    Raises TypeError for a wrong structure of params, batch or gradients, ValueError for shapes, dtypes and a value that is no
    scalar, while tracing.
    """
    whole = with_rules(objective(net, loss), rules or {})

    def run(params: Tree, batch: Tree, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        value, residuals = whole.forward(params, canonical(batch))
        grads, _ = whole.backward(params, residuals, _cotangent(seed, value))
        expect_gradients(grads, params)
        return value, grads

    run.weight = whole.weight  # type: ignore[attr-defined]
    return run


def auto_value_and_grad(net: Layer, loss: Layer | None = None) -> ValueAndGrad:
    """Returns the same by `jax.value_and_grad` of the forward. Next comes from the chain."""
    whole, by_hand = objective(net, loss), value_and_grad(net, loss)

    def run(params: Tree, batch: Tree, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        trainable, state = split(params)
        floats, others = partition(trainable)

        def value_of(floats: Tree) -> tuple[jax.Array, jax.Array]:
            value, _ = whole.forward(merge(combine(floats, others), state), canonical(batch))
            return value * _cotangent(seed, value), value

        (_, value), gradients = jax.value_and_grad(value_of, has_aux=True)(floats)
        if not any(map(is_carried, jax.tree.leaves(state, is_leaf=is_carried))):
            return value, gradients
        _, successors = split(by_hand(params, batch, seed)[1])  # the gradients beside them are dead code under jit
        return value, combine(gradients, successors)

    run.weight = whole.weight  # type: ignore[attr-defined]
    return run


def _cotangent(seed: Any, value: Any) -> jax.Array:
    """Returns `seed` in the dtype of `value`. Raises ValueError unless both are scalars."""
    ok = hasattr(value, "dtype") and value.shape == () and is_floating(value)
    expect(ok, "value", "one floating scalar", value, "Pass the loss: value_and_grad(net, loss)")
    seed = jnp.asarray(seed, value.dtype)
    expect(seed.shape == (), "seed", "one floating scalar", seed)
    return seed


def as_custom_vjp(net: Layer) -> Function:
    """Returns `f(params, x) -> y` with the hand-written rule inside, for `jax.grad`.

    State is read, never advanced: differentiate the trainable half, `jax.grad(lambda t: g(f(merge(t, state), x)))`.
    """

    @jax.custom_vjp
    def f(params: Tree, x: Any) -> Any:
        return net.forward(params, x)[0]

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        y, residuals = net.forward(params, x)
        return y, (params, residuals)

    def backward(kept: Any, dy: Any) -> tuple[Tree, Any]:
        dy = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, dy)
        params, residuals = kept
        dparams, dx = net.backward(params, residuals, dy)
        return split(dparams)[0], dx

    f.defvjp(forward, backward)
    return f
