"""elementwise: one function on every element, all in one table.

Shapes    x (...), y (...)
Dtypes    floating; f of several steps and every derivative are computed in float32 when x is narrower
Units     none
Forward   y = f(x)
Backward  dx = f'(x) dy, f' written from x or from y
Keeps     y where f' can be had from it (it is usually the next layer's input, stored anyway), else x; identity keeps nothing
At kinks  relu'(0) = 0, leaky_relu'(0) = 1, elu'(0) = alpha, as jax.nn has them; the others are smooth. jnp.maximum(x, 0)
          is another function at 0: autodiff gives it one half there
Raises    TypeError: params that are not (); ValueError: x not floating, slope <= 0, alpha <= 0
Source    elementary; gelu: Hendrycks and Gimpel 2016, section 2; silu: the same, section 2 (as SiLU);
          elu: Clevert, Unterthiner and Hochreiter 2015, section 3; derivation in docs/derivations/elementwise.md

| name       | f                             | f'                             | largest f'           |
|------------|-------------------------------|--------------------------------|----------------------|
| identity   | x                             | 1                              | 1                    |
| relu       | max(x, 0)                     | 1 if y > 0 else 0              | 1                    |
| leaky_relu | x if x >= 0 else slope x      | 1 if y >= 0 else slope         | max(1, slope)        |
| sigmoid    | 1 / (1 + exp(-x))             | y (1 - y)                      | 1/4, at 0            |
| tanh       | tanh x                        | 1 - y^2                        | 1, at 0              |
| gelu       | x Phi(x), or its tanh form    | see below                      | 1.13, near sqrt(2)   |
| silu       | x s, s = sigmoid(x)           | s (1 + x (1 - s))              | 1.10, near 2.4       |
| softplus   | log(1 + exp x)                | sigmoid(x) = 1 - exp(-y)       | 1, towards infinity  |
| elu        | x if x > 0 else a (exp x - 1) | 1 if y > 0 else y + a          | max(1, a)            |
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import expect
from ..dtypes import wide
from ..facts import Option, given
from ..layer import Layer
from .parameterless import anything, parameterless


class Function(NamedTuple):
    """A row of the table: f and its derivative from what is kept; both take the layer's option last where it has one."""

    f: Callable[..., jax.Array]
    df: Callable[..., jax.Array]  # boolean where the derivative is 1 or 0
    keeps: str  # "x" or "y"; "" of identity


def _widely(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Rounded once, at the end: an f of several steps, and those primitives that are several steps on some backend."""
    return lambda x, *option: f(wide(x), *option).astype(x.dtype)


@_widely
def _gelu(x: jax.Array, approximate: bool) -> jax.Array:
    if approximate:
        return 0.5 * x * (1 + jnp.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * lax.erfc(-x / sqrt(2))


def _dgelu(x: jax.Array, approximate: bool) -> jax.Array:
    if approximate:
        t = jnp.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * lax.erfc(-x / sqrt(2)) + x * jnp.exp(-0.5 * x * x) / sqrt(2 * pi)  # Phi(x) + x phi(x)


def _dsilu(x: jax.Array) -> jax.Array:
    s = lax.logistic(x)
    return s * (1 + x * (1 - s))


# relu is a where, not a maximum, so that autodiff of this forward says 0 at 0 too; <= 0 and not > 0, so that NaN stays NaN
TABLE: dict[str, Function] = {
    "identity": Function(lambda x: x, lambda _: jnp.array(True), ""),
    "relu": Function(lambda x: jnp.where(x <= 0, 0, x), lambda y: y > 0, "y"),
    "leaky_relu": Function(lambda x, a: jnp.where(x >= 0, x, a * x), lambda y, a: jnp.where(y >= 0, 1, a).astype(y.dtype), "y"),
    "sigmoid": Function(_widely(lax.logistic), lambda y: y * (1 - y), "y"),
    "tanh": Function(jnp.tanh, lambda y: (1 - y) * (1 + y), "y"),
    "gelu": Function(_gelu, _dgelu, "x"),
    "silu": Function(_widely(lambda x: x * lax.logistic(x)), _dsilu, "x"),
    "softplus": Function(_widely(lambda x: jnp.logaddexp(x, 0)), lambda y: -jnp.expm1(-y), "y"),
    "elu": Function(_widely(lambda x, a: jnp.where(x > 0, x, a * jnp.expm1(jnp.where(x > 0, 0, x)))),
                    lambda y, a: jnp.where(y > 0, 1, y + a), "y"),
}

Activation: TypeAlias = Literal[
    "identity", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softplus", "elu"]


def _elementwise(function: str, *option: Any, options: tuple[Option, ...] = ()) -> Layer:
    row = TABLE[function]

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = row.f(x, *option)
        return y, {"x": x, "y": y}[row.keeps]

    def backward(kept: jax.Array, dy: jax.Array) -> jax.Array:
        slope = row.df(wide(kept), *option)
        if slope.dtype == bool:
            return jnp.where(slope, dy, 0)  # not a product: 0 * inf would be NaN
        return (slope * wide(dy)).astype(dy.dtype)

    return parameterless(function, forward, backward, options)


@by_name()
def identity() -> Layer:
    """y = x, any pytree: beside another layer in `parallel` it hands a mask or a target on."""
    return parameterless("identity", lambda x: (x, ()), lambda _, dy: dy, check=anything)


@by_name()
def relu() -> Layer:
    """y = max(x, 0); derivative 0 at 0."""
    return _elementwise("relu")


@by_name()
def leaky_relu(slope: float = 0.01) -> Layer:
    """y = x for x >= 0, slope x below; derivative 1 at 0. ValueError unless slope > 0.

    The backward reads the sign of y: where slope x underflows to zero (float16: -3e-6 < x < 0) it takes the derivative for 1.
    """
    expect(slope > 0, "leaky_relu slope", "a number > 0", repr(slope), "relu() is the one with slope 0")
    return _elementwise("leaky_relu", slope, options=given(leaky_relu, slope))


@by_name()
def sigmoid() -> Layer:
    """y = 1 / (1 + exp(-x)); derivative at most 1/4."""
    return _elementwise("sigmoid")


@by_name()
def tanh() -> Layer:
    """y = tanh x; derivative 1 at 0, below 1 elsewhere."""
    return _elementwise("tanh")


@by_name()
def gelu(*, approximate: bool = True) -> Layer:
    """y = x Phi(x), in its tanh form unless approximate=False, as `jax.nn.gelu`."""
    return _elementwise("gelu", approximate, options=given(gelu, approximate=approximate))


@by_name()
def silu() -> Layer:
    """y = x sigmoid(x), also called swish."""
    return _elementwise("silu")


@by_name()
def softplus() -> Layer:
    """y = log(1 + exp x), natural logarithm."""
    return _elementwise("softplus")


@by_name()
def elu(alpha: float = 1.0) -> Layer:
    """y = x for x > 0, alpha (exp x - 1) below; derivative alpha at 0. ValueError unless alpha > 0."""
    expect(alpha > 0, "elu alpha", "a number > 0", repr(alpha))
    return _elementwise("elu", alpha, options=given(elu, alpha))
