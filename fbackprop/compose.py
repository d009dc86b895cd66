"""Rules compose into one reverse chain; what is done with a chain (gradients, custom_vjp, inference) is a function on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .dtypes import canonical, combine, is_floating, partition
from .errors import at, expect, expect_like
from .facts import CellRule, Scan
from .layer import Layer, Tree, is_carried, join, merge, split

Rewrite = Callable[[Layer], Layer]


def chain(*layers: Layer) -> Layer:
    """Runs `layers` one after the other; the backward walks back. params: a tuple, one tree per layer."""
    expect_layers("chain", layers)

    def init(key: jax.Array, x: Any) -> Tree:
        params = []
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


def skip(layer: Layer) -> Layer:
    """y = x + layer(x) on floating leaves, other leaves pass through. params: a tuple of one tree."""
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
    """TypeError unless every one is a Layer."""
    for i, layer in enumerate(layers):
        name = getattr(layer, "__name__", None)
        expect(isinstance(layer, Layer), f"{combinator}, part {i}", "a Layer", name or layer,
               f"Did you mean {name}()?" if name else "Layers are given one by one, not as a list", TypeError)


def expect_parts(params: Tree, layers: tuple[Layer, ...]) -> None:
    """TypeError unless `params` is a combinator's: a tuple with one tree per layer."""
    ok = isinstance(params, tuple) and len(params) == len(layers)
    expect(ok, "params", f"a tuple of {len(layers)} trees, one per layer", params,
           "Were they made by this network's own init, or graft()ed?", TypeError)


def parts_with_path(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yields (path, part) of the parts of the layer at `path`."""
    for i, part in enumerate(layer.parts):
        place = str(i) if layer.places is None else layer.places[i]
        yield "/".join(filter(None, (path, place))), part


def map_layers_with_path(net: Layer, fn: Callable[[str, Layer], Layer], path: str = "", wrappers: bool = False) -> Layer:
    """Returns `net` with `fn(path, layer)` in place of every layer, children first, the root (path "") included.

    `fn` is applied again to whatever the layer becomes later: with other parts, another setting, or
    out of training. So rewrites commute. wrappers: also visit what stands around a layer at the
    layer's own path (checkpoint, frozen, a tap); without, wrappers are put back around the result.
    """
    parts = tuple(map_layers_with_path(part, fn, below, wrappers) for below, part in parts_with_path(net, path))
    if any(new is not old for new, old in zip(parts, net.parts)):
        expect(net.rebuild is not None, net.name, "a combinator with rebuild", "none, and a part of it changed",
               "Give its Layer rebuild=lambda parts: ...", TypeError)
        net = net.rebuild(parts)  # type: ignore[misc]
    return _rewritten(net, partial(fn, path)) if wrappers or not net.wraps else net


def _rewritten(layer: Layer, fn: Rewrite) -> Layer:
    """`fn(layer)`, with facts that apply `fn` again to what the facts of `layer` make."""
    new = fn(layer)
    if new is layer or (new.wraps and new.parts is not layer.parts):
        return new  # a wrapper leaves what it wraps to later rewrites
    again = lambda other: _rewritten(other, fn)
    facts: dict[str, Any] = {}
    if layer.inference is not None and new.inference is layer.inference:
        facts["inference"] = again(layer.inference)
    if layer.tuning is not None and new.tuning is None:
        apply = layer.tuning.apply
        facts["tuning"] = replace(layer.tuning, apply=lambda setting: again(apply(setting)))
    if layer.cell is not None and new.cell is None:
        facts["cell"] = CellRule(layer.cell.start)
    if layer.parts and new.parts is layer.parts and layer.rebuild is not None:
        rebuild, scan = layer.rebuild, layer.scan
        facts["rebuild"] = lambda parts: again(rebuild(parts))
        if new.scan is None and scan is not None and scan.over != "time":
            facts["scan"] = replace(scan, again=lambda other: again(scan.again(other)))
    return replace(new, **facts)


def map_layers(net: Layer, fn: Rewrite, wrappers: bool = False) -> Layer:
    """Returns `net` with `fn(layer)` in place of every layer, as `map_layers_with_path`."""
    return map_layers_with_path(net, lambda _, layer: fn(layer), wrappers=wrappers)


def inside(layer: Layer, fn: Rewrite) -> Layer:
    """Returns `fn` of the layer that stands inside the wrappers of `layer`, with the wrappers around it."""
    if not layer.wraps:
        return fn(layer)
    return layer.rebuild((inside(layer.parts[0], fn), *layer.parts[1:]))  # type: ignore[misc]


def core(layer: Layer) -> Layer:
    """Returns the layer that stands inside the wrappers of `layer`."""
    return core(layer.parts[0]) if layer.wraps else layer


def replace_rules(net: Layer, where: str, fn: Rewrite) -> Layer:
    """Returns `net` with `fn(layer)` at every path that matches the glob `where`.

    `2` is that layer, `2/*` all below it, `""` the root.

    Raises ValueError when nothing matches.
    """
    return with_rules(net, {where: fn})


def with_rules(net: Layer, rules: Mapping[str, Rewrite]) -> Layer:
    """All of them in one walk, children first."""
    seen: list[str] = []

    def replaced(path: str, layer: Layer) -> Layer:
        seen.append(path)
        for where, fn in rules.items():
            layer = fn(layer) if fnmatchcase(path, where) else layer
        return layer

    rewritten = map_layers_with_path(net, replaced)
    for where in rules:
        found = any(fnmatchcase(path, where) for path in seen)
        expect(found, f"rules pattern {where!r}", f"a match among the layer paths {sorted(seen)}", "none")
    return rewritten


def inference(net: Layer) -> Layer:
    """Every layer replaced by its twin out of training; the params stay, and so does the backward pass."""
    return map_layers(net, lambda layer: layer.inference or layer)


def predict(net: Layer) -> Callable[[Tree, Any], Any]:
    """`(params, x) -> y`: the forward without what it keeps."""
    return lambda params, x: net.forward(params, canonical(x))[0]


def vjp(net: Layer, params: Tree, x: Any) -> tuple[Any, Callable[[Any], tuple[Tree, Any]]]:
    """Mirrors `jax.vjp`: `(y, pullback)`, `pullback(dy) -> (dparams, dx)`."""
    y, residuals = net.forward(params, canonical(x))

    def pullback(dy: Any) -> tuple[Tree, Any]:
        expect_like(dy, y, "dy")
        return net.backward(params, residuals, dy)

    return y, pullback


def objective(net: Layer, loss: Layer | None = None) -> Layer:
    """Returns the Layer from a batch to its scalar value: `net`, then `loss` on `(y, target)`.

    params are the net's and the loss gets `()`. In paths the net stands at "", the loss at "loss". A
    net that ends in its loss (loss None) is its own objective and takes the whole batch.
    """
    if loss is None:
        return net
    expect_layers("objective", (net, loss))

    def init(key: jax.Array, batch: Any) -> Tree:
        return net.init(key, _pair(batch)[0])

    def forward(params: Tree, batch: Any) -> tuple[Any, Any]:
        x, target = _pair(batch)
        y, kept = net.forward(params, x)
        with at("loss", loss):
            value, kept_by_loss = loss.forward((), (y, target))
        return value, (kept, kept_by_loss)

    def backward(params: Tree, residuals: Any, dvalue: Any) -> tuple[Tree, Any]:
        kept, kept_by_loss = residuals
        with at("loss", loss):
            _, (dy, dtarget) = loss.backward((), kept_by_loss, dvalue)
        dparams, dx = net.backward(params, kept, dy)
        return dparams, (dx, dtarget)

    return Layer("objective", init, forward, backward, parts=(net, loss), places=("", "loss"),
                 rebuild=lambda parts: objective(*parts))


def _pair(batch: Any) -> tuple[Any, Any]:
    ok = isinstance(batch, (tuple, list)) and len(batch) == 2
    expect(ok, "batch", "a pair (x, target)", batch, error=TypeError)
    return batch[0], batch[1]


ValueAndGrad = Callable[..., tuple[jax.Array, Tree]]


def value_and_grad(net: Layer, loss: Layer | None = None, rules: Mapping[str, Rewrite] | None = None) -> ValueAndGrad:
    """The scalar value and its gradients by the hand-written chain: `(params, batch, seed=1.0) -> (value, grads)`.

    `loss` is None for a net that ends in its loss. `rules` maps layer path patterns to rewrites of the layers found there.
    `seed` is the value's cotangent and may be traced. `grads` has `Next` where `params` have `State`.
    Raises TypeError for a wrong structure of params or batch, ValueError for shapes, dtypes and a value that is no scalar.
    """
    whole = with_rules(objective(net, loss), rules or {})

    def run(params: Tree, batch: Any, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        value, residuals = whole.forward(params, canonical(batch))
        _expect_scalar("value", value)
        _expect_scalar("seed", jnp.asarray(seed, value.dtype))
        grads, _ = whole.backward(params, residuals, jnp.asarray(seed, value.dtype))
        return value, grads

    return run


def auto_value_and_grad(net: Layer, loss: Layer | None = None) -> ValueAndGrad:
    """The same forward under `jax.value_and_grad`: the other arm of every comparison. Next comes from the chain."""
    whole, by_hand = objective(net, loss), value_and_grad(net, loss)

    def run(params: Tree, batch: Any, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        trainable, state = split(params)
        floats, others = partition(trainable)

        def value_of(floats: Tree) -> tuple[jax.Array, jax.Array]:
            value, _ = whole.forward(merge(combine(floats, others), state), canonical(batch))
            _expect_scalar("value", value)
            _expect_scalar("seed", jnp.asarray(seed, value.dtype))
            return value * jnp.asarray(seed, value.dtype), value

        (_, value), gradients = jax.value_and_grad(value_of, has_aux=True)(floats)
        if not any(map(is_carried, jax.tree.leaves(state, is_leaf=is_carried))):
            return value, gradients
        _, successors = split(by_hand(params, batch, seed)[1])  # the gradients beside them are dead code under jit
        return value, join(gradients, successors)

    return run


def _expect_scalar(what: str, value: Any) -> None:
    ok = hasattr(value, "dtype") and value.shape == () and is_floating(value)
    expect(ok, what, "one floating scalar", value, "Pass the loss: value_and_grad(net, loss)" if what == "value" else "")


def as_custom_vjp(net: Layer) -> Callable[[Tree, Any], Any]:
    """`f(params, x) -> y` with the hand-written rule inside, for anybody's `jax.grad` program.

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
