"""branch: several values side by side, as tuples.

Shapes    parallel: (x0, x1, ...) -> (y0, y1, ...); fan_out: x -> (y0, y1, ...); add: equal shapes -> one; concat: shapes that
          agree but for one axis -> one; dot: two of (..., D) -> (...)
Dtypes    those of the layers; add, concat and dot: one floating dtype; dot accumulates in float32 when narrower
Units     none
Forward   parallel y_i = f_i(x_i); fan_out y_i = f_i(x); add y = sum x_i; concat y = x_0 | x_1 | ...;
          dot y = sum over D of x_0 x_1
Backward  parallel dx_i from f_i; fan_out dx = sum of all dx_i: a value used more than once adds its cotangents; add
          dx_i = dy; concat dx_i = its stretch of dy; dot dx_0 = dy x_1, dx_1 = dy x_0
Keeps     what the layers keep; add the number of its inputs, concat their sizes, static; dot both inputs
At kinks  none of its own
Raises    TypeError: x is no tuple of the right length; ValueError: shapes that do not fit
Source    elementary; derivation in docs/derivations/branch.md
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import at, expect, expect_floating, expect_params
from ..compose import expect_parts
from ..dtypes import wide
from ..facts import given
from ..layer import Layer
from ..params import Static, Tree


def _init_each(layers: tuple[Layer, ...], key: jax.Array, xs: Any) -> Tree:
    params = []
    for i, (layer, k, x) in enumerate(zip(layers, jax.random.split(key, len(layers)), xs)):
        with at(i, layer):
            params.append(layer.init(k, x))
    return tuple(params)


def _forward_each(layers: tuple[Layer, ...], params: Tree, xs: Any) -> tuple[Any, Any]:
    expect_parts(params, layers)
    ys = []
    for i, (layer, x) in enumerate(zip(layers, xs)):
        with at(i, layer):
            ys.append(layer.forward(params[i], x))
    return tuple(y for y, _ in ys), tuple(kept for _, kept in ys)


def _backward_each(layers: tuple[Layer, ...], params: Tree, residuals: Any, dys: Any) -> tuple[Tree, Any]:
    results = []
    for i, layer in enumerate(layers):
        with at(i, layer):
            results.append(layer.backward(params[i], residuals[i], dys[i]))
    return tuple(dparams for dparams, _ in results), tuple(dx for _, dx in results)


def _expect_tuple(x: Any, count: int | None) -> None:
    ok = isinstance(x, tuple) and (len(x) == count if count is not None else len(x) > 0)
    expect(ok, "x", f"a tuple of {count or 'several'} inputs", x, error=TypeError)


def parallel(*layers: Layer) -> Layer:
    """(x0, x1, ...) -> (y0, y1, ...), each by its own layer. params: a tuple, one tree per layer."""

    def init(key: jax.Array, x: Any) -> Tree:
        _expect_tuple(x, len(layers))
        return _init_each(layers, key, x)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        _expect_tuple(x, len(layers))
        return _forward_each(layers, params, x)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        return _backward_each(layers, params, residuals, dy)

    return Layer("parallel", init, forward, backward, parts=layers, rebuild=lambda parts: parallel(*parts))


def fan_out(*layers: Layer) -> Layer:
    """x -> (y0, y1, ...): one value into every layer. params: a tuple, one tree per layer."""

    def init(key: jax.Array, x: Any) -> Tree:
        return _init_each(layers, key, (x,) * len(layers))

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        return _forward_each(layers, params, (x,) * len(layers))

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dxs = _backward_each(layers, params, residuals, dy)
        return dparams, reduce(lambda a, b: jax.tree.map(jnp.add, a, b), dxs)  # None where integer: no leaf there

    return Layer("fan_out", init, forward, backward, parts=layers, rebuild=lambda parts: fan_out(*parts))


def add() -> Layer:
    """(x0, x1, ...) -> x0 + x1 + ..., all of one shape and dtype."""

    def forward(params: Tree, x: Any) -> tuple[jax.Array, Static]:
        expect_params(params)
        _expect_tuple(x, None)
        expect_floating(**{f"x{i}": a for i, a in enumerate(x)})
        expect(len({a.shape for a in x}) == 1, "x", "inputs of one shape", x, "Another shape would be broadcast")
        return reduce(jnp.add, x), Static(len(x))

    def backward(params: Tree, count: Static, dy: jax.Array) -> tuple[Tree, Any]:
        return (), (dy,) * count.value

    return Layer("add", lambda key, x: (), forward, backward)


def concat(axis: int = -1) -> Layer:
    """(x0, x1, ...) -> their concatenation along `axis`."""

    def forward(params: Tree, x: Any) -> tuple[jax.Array, Static]:
        expect_params(params)
        _expect_tuple(x, None)
        expect_floating(**{f"x{i}": a for i, a in enumerate(x)})
        shapes = [list(a.shape) for a in x]
        ok = all(-len(shape) <= axis < len(shape) for shape in shapes)
        expect(ok, "x", f"inputs with an axis {axis}", x)
        sizes = tuple(shape.pop(axis) for shape in shapes)
        expect(all(shape == shapes[0] for shape in shapes), "x", f"shapes that agree but for axis {axis}", x)
        return jnp.concatenate(x, axis), Static(sizes)

    def backward(params: Tree, sizes: Static, dy: jax.Array) -> tuple[Tree, Any]:
        return (), tuple(jnp.split(dy, np.cumsum(sizes.value)[:-1], axis))

    return Layer("concat", lambda key, x: (), forward, backward, given(concat, axis))


def dot() -> Layer:
    """(x0, x1), both (..., D) -> y (...): the product of two vectors."""

    def forward(params: Tree, x: Any) -> tuple[jax.Array, Any]:
        expect_params(params)
        _expect_tuple(x, 2)
        expect_floating(x0=x[0], x1=x[1])
        expect(x[0].ndim > 0 and x[0].shape == x[1].shape, "x", "two inputs of one shape (..., D)", x)
        return jnp.sum(wide(x[0]) * wide(x[1]), -1).astype(x[0].dtype), x

    def backward(params: Tree, x: Any, dy: jax.Array) -> tuple[Tree, Any]:
        dy = jnp.broadcast_to(dy[..., None], x[0].shape)
        return (), (dy * x[1], dy * x[0])

    return Layer("dot", lambda key, x: (), forward, backward)
