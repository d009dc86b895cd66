"""chain, skip and objective: layers that run one after the other, and their rules as one rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

from .calls import by_name
from .checks import at, expect, expect_key, expect_like
from .dtypes import is_floating
from .facts import Scan
from .layer import Layer
from .params import Tree, Wrapped


def chain(*layers: Layer) -> Layer:
    """Runs `layers` one after the other; the backward walks back. params: a tuple, one tree per layer."""
    expect_layers("chain", layers)

    def init(key: jax.Array, x: Any) -> Tree:
        params = []
        expect_key(key)
        for i, (layer, k) in enumerate(zip(layers, jax.random.split(key, len(layers)))):
            with at(i, layer):
                params.append(layer.init(k, x))
                x, _ = jax.eval_shape(layer.forward, params[-1], x)
        return tuple(params)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_parts(params, layers)
        residuals = []
        for i, layer in enumerate(layers):
            with at(i, layer):
                x, kept = layer.forward(params[i], x)
                residuals.append(kept)
        return x, tuple(residuals)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        grads = []
        for i, layer in reversed(list(enumerate(layers))):
            with at(i, layer):
                dparams, dy = layer.backward(params[i], residuals[i], dy)
                grads.append(dparams)
        return tuple(reversed(grads)), dy

    return Layer("chain", init, forward, backward, parts=layers, rebuild=lambda parts: chain(*parts), scan=Scan("parts"))


@by_name()
def skip(layer: Layer) -> Layer:
    """Returns the Layer x + layer(x), for floating leaves. params: a tuple of one tree."""
    expect_layers("skip", (layer,))

    def init(key: jax.Array, x: Any) -> Tree:
        with at(0, layer):
            params = layer.init(jax.random.split(key, 1)[0], x)  # never the caller's own key, which State would hold
            y, _ = jax.eval_shape(layer.forward, params, x)
        expect_like(y, jax.eval_shape(lambda: x), "y of a layer inside skip")
        return (params,)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_parts(params, (layer,))
        with at(0, layer):
            y, residuals = layer.forward(params[0], x)
        expect_like(y, x, "y of a layer inside skip")
        return jax.tree.map(lambda a, b: a + b if is_floating(a) else a, x, y), residuals

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        with at(0, layer):
            dparams, dx = layer.backward(params[0], residuals, dy)
        return (dparams,), jax.tree.map(jnp.add, dy, dx)  # x was used twice: its cotangents add

    return Layer("skip", init, forward, backward, parts=(layer,), rebuild=lambda parts: skip(*parts))


def expect_layers(combinator: str, layers: tuple[Layer, ...]) -> None:
    """Raises TypeError unless every one is a Layer."""
    for i, layer in enumerate(layers):
        name = getattr(layer, "__name__", None)
        expect(isinstance(layer, Layer), f"{combinator}, part {i}", "a Layer", name or layer,
               f"Did you mean {name}()?" if name else f"Layers are given one by one: {combinator}(*layers)", TypeError)


def expect_parts(params: Tree, layers: tuple[Layer, ...]) -> None:
    """Raises TypeError unless `params` is a combinator's: a tuple with one tree per layer."""
    ok = isinstance(params, tuple) and len(params) == len(layers)
    expect(ok, "params", f"a tuple of {len(layers)} trees, one per layer", params,
           "Were they made by this network's own init, or graft()ed?", TypeError)


@by_name()
def objective(net: Layer, loss: Layer | None = None) -> Layer:
    """Returns the Layer from a batch to its scalar value: `net`, then `loss` on `(y, target)`.

    params are the net's and the loss gets `()`, unless a wrapper around it has params. In paths the
    net is at "", the loss at "loss". A net that ends in its loss (loss None) is its own objective and
    takes the whole batch.
    """
    if loss is None:
        return net
    expect_layers("objective", (net, loss))

    def init(key: jax.Array, batch: Any) -> Tree:
        x, target = _pair(batch)
        params = net.init(key, x)
        if not loss.wraps:
            return params
        y = jax.eval_shape(net.forward, params, x)[0]
        of_loss = loss.init(key, (y, target))
        return WithLoss(params, {"loss": of_loss}) if jax.tree.leaves(of_loss) else params

    def forward(params: Tree, batch: Any) -> tuple[Any, Any]:
        x, target = _pair(batch)
        of_net, of_loss = _both(params)
        y, kept = net.forward(of_net, x)
        with at("loss", loss):
            value, kept_by_loss = loss.forward(of_loss, (y, target))
        return value, (kept, kept_by_loss)

    def backward(params: Tree, residuals: Any, dvalue: Any) -> tuple[Tree, Any]:
        kept, kept_by_loss = residuals
        of_net, of_loss = _both(params)
        with at("loss", loss):
            dloss, (dy, dtarget) = loss.backward(of_loss, kept_by_loss, dvalue)
        dparams, dx = net.backward(of_net, kept, dy)
        if isinstance(params, WithLoss):
            dparams = WithLoss(dparams, {"loss": dloss})
        return dparams, (dx, dtarget)

    return Layer("objective", init, forward, backward, parts=(net, loss), places=("", "loss"), weight=loss.weight,
                 rebuild=lambda parts: objective(*parts))


@tree_util.register_pytree_with_keys_class
class WithLoss(Wrapped):
    """Params of an objective whose loss has params too: the net's, and `{"loss": params}`."""


def _both(params: Tree) -> tuple[Tree, Tree]:
    return (params.inner, params.outer["loss"]) if isinstance(params, WithLoss) else (params, ())


def _pair(batch: Any) -> tuple[Any, Any]:
    ok = isinstance(batch, (tuple, list)) and len(batch) == 2
    expect(ok, "batch", "a pair (x, target)", batch, error=TypeError)
    return batch[0], batch[1]
