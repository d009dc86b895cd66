"""from_function: any JAX function as a layer, its rule made by jax.vjp.

Shapes    those of the function
Dtypes    those of the function; the cotangent of an integer leaf is None
Units     none
Forward   y = fn(params, x)
Backward  the pullback of jax.vjp: the one rule here that is not written by hand, and the layer's name says so
Keeps     what jax.vjp keeps
At kinks  what jax.vjp says
Raises    what the function raises
Source    the documentation of jax.vjp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..calls import by_name
from ..dtypes import combine, partition
from ..facts import Option
from ..layer import Layer
from ..params import Next, Tree, is_carried, merge, split

Function = Callable[[Tree, Any], Any]


def vjp_by_jax(fn: Function, params: Tree, x: Any) -> tuple[Any, Callable[[Any], tuple[Tree, Any]]]:
    """`jax.vjp` in this package's conventions: `(y, pullback)`, None for integer leaves, None where params have State.

    The pullback is a pytree, so it may be a residual.
    """
    trainable, state = split(params)
    inputs, fixed = partition((trainable, x))

    def of_floats(inputs: Any) -> tuple[Any, Any]:
        trainable, x = combine(inputs, fixed)
        return partition(fn(merge(trainable, state), x))

    y, pullback, rest = jax.vjp(of_floats, inputs, has_aux=True)
    return combine(y, rest), pullback


@by_name()
def from_function(fn: Function, init: Callable[[jax.Array, Any], Tree] | None = None) -> Layer:
    """`fn(params, x) -> y`, any JAX code, as a Layer; `init(key, x) -> params`, () without one. State passes unchanged."""

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        return vjp_by_jax(fn, params, x)

    def backward(params: Tree, pullback: Any, dy: Any) -> tuple[Tree, Any]:
        ((gradients, dx),) = pullback(dy)
        return combine(gradients, jax.tree.map(lambda s: Next(s.value), split(params)[1], is_leaf=is_carried)), dx

    options = (Option("fn", fn, True), Option("rule", "jax.vjp"))
    return Layer("from_function", init or (lambda key, x: ()), forward, backward, options)
