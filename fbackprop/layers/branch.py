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

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..calls import by_name
from ..checks import at, expect, expect_floating, is_whole
from ..compose import expect_parts
from ..dtypes import wide
from ..facts import given
from ..layer import Layer
from ..params import Static, Tree
from .parameterless import anything, parameterless


def parallel(*layers: Layer) -> Layer:
    """(x0, x1, ...) -> (y0, y1, ...), each by its own layer. params: a tuple, one tree per layer."""

    def each(x: Any) -> Any:
        _expect_tuple(x, len(layers))
        return x

    return _side_by_side(parallel, layers, each, lambda dxs: dxs)


def fan_out(*layers: Layer) -> Layer:
    """x -> (y0, y1, ...): one value into every layer. params: a tuple, one tree per layer."""

    def summed(dxs: tuple[Any, ...]) -> Any:
        return reduce(lambda a, b: jax.tree.map(jnp.add, a, b), dxs)  # None where integer

    return _side_by_side(fan_out, layers, lambda x: (x,) * len(layers), summed)


def _side_by_side(maker: Callable[..., Layer], layers: tuple[Layer, ...],
                  each: Callable[[Any], Any], back: Callable[[tuple[Any, ...]], Any]) -> Layer:
    """Layer i on each(x)[i]; dx = back(every layer's dx)."""

    def init(key: jax.Array, x: Any) -> Tree:
        xs, params = each(x), []
        for i, (layer, k, x) in enumerate(zip(layers, jax.random.split(key, len(layers)), xs)):
            with at(i, layer):
                params.append(layer.init(k, x))
        return tuple(params)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        xs, results = each(x), []
        expect_parts(params, layers)
        for i, (layer, x) in enumerate(zip(layers, xs)):
            with at(i, layer):
                results.append(layer.forward(params[i], x))
        return tuple(y for y, _ in results), tuple(kept for _, kept in results)

    def backward(params: Tree, residuals: Any, dys: Any) -> tuple[Tree, Any]:
        results = []
        for i, layer in enumerate(layers):
            with at(i, layer):
                results.append(layer.backward(params[i], residuals[i], dys[i]))
        return tuple(dparams for dparams, _ in results), back(tuple(dx for _, dx in results))

    return Layer(maker.__name__, init, forward, backward, parts=layers,
                 rebuild=lambda parts: maker(*parts))


@by_name()
def add() -> Layer:
    """(x0, x1, ...) -> x0 + x1 + ..., all of one shape and dtype."""

    def forward(x: Any) -> tuple[jax.Array, Static]:
        _expect_arrays(x)
        expect(len({a.shape for a in x}) == 1, "x", "inputs of one shape", x, "Another shape would be broadcast")
        return reduce(jnp.add, x), Static(len(x))

    return parameterless("add", forward, lambda count, dy: (dy,) * count.value, check=anything)


@by_name()
def concat(axis: int = -1) -> Layer:
    """(x0, x1, ...) -> their concatenation along `axis`."""
    expect(is_whole(axis), "concat axis", "a whole number", repr(axis))

    def forward(x: Any) -> tuple[jax.Array, Static]:
        _expect_arrays(x)
        shapes = [list(a.shape) for a in x]
        ok = all(-len(shape) <= axis < len(shape) for shape in shapes)
        expect(ok, "x", f"inputs with an axis {axis}", x)
        sizes = tuple(shape.pop(axis) for shape in shapes)
        expect(all(shape == shapes[0] for shape in shapes), "x", f"shapes that agree but for axis {axis}", x)
        return jnp.concatenate(x, axis), Static(sizes)

    def backward(sizes: Static, dy: jax.Array) -> Any:
        return tuple(jnp.split(dy, np.cumsum(sizes.value)[:-1], axis))

    return parameterless("concat", forward, backward, given(concat, axis), anything)


@by_name()
def dot() -> Layer:
    """(x0, x1), both (..., D) -> y (...): the product of two vectors."""

    def forward(x: Any) -> tuple[jax.Array, Any]:
        _expect_arrays(x, 2)
        expect(x[0].ndim > 0 and x[0].shape == x[1].shape, "x", "two inputs of one shape (..., D)", x)
        return jnp.sum(wide(x[0]) * wide(x[1]), -1).astype(x[0].dtype), x

    def backward(x: Any, dy: jax.Array) -> Any:
        dy = jnp.broadcast_to(dy[..., None], x[0].shape)
        return dy * x[1], dy * x[0]

    return parameterless("dot", forward, backward, check=anything)


def _expect_tuple(x: Any, count: int | None) -> None:
    ok = isinstance(x, tuple) and (len(x) == count if count is not None else len(x) > 0)
    expect(ok, "x", f"a tuple of {count or 'several'} inputs", x, error=TypeError)


def _expect_arrays(x: Any, count: int | None = None) -> None:
    """Raises unless x is a tuple of floating arrays of one dtype."""
    _expect_tuple(x, count)
    expect_floating(**{f"x{i}": a for i, a in enumerate(x)})
