"""glu: the gated feed-forward block of a transformer, a dense layer whose hidden units are opened and shut by another.

Shapes    x (..., D), gate (D, H), up (D, H), down (H, D), y (..., D)
Dtypes    floating, all equal; products accumulate in float32 when inputs are narrower
Units     none
Forward   g = x gate; u = x up; h = act(g) u; y = h down. act: silu (swiglu) or gelu in its tanh form (geglu); no biases
Backward  dh = dy down^T; dg = dh u act'(g); du = dh act(g); ddown = h^T dy; dgate = x^T dg; dup = x^T du;
          dx = dg gate^T + du up^T
Keeps     x, g and u. Why: g and u cost a matmul each to make again, h and act(g) only elementwise work
At kinks  none: silu and gelu are smooth
Raises    TypeError: params without gate, up, down; ValueError: widths or dtypes, hidden no whole number
Source    Shazeer 2020, section 2; derivation in docs/derivations/glu.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..calls import by_name
from ..checks import expect, expect_floating, expect_params, expect_whole
from ..dtypes import wide
from ..facts import given
from ..layer import Layer
from ..params import Tree
from .algebra import Initializer, draw, matmul, weight_gradient
from .elementwise import TABLE

ELSEWHERE = ("in_features hidden", "the number of inputs is taken from x")


@by_name(*ELSEWHERE)
def swiglu(hidden: int, *, w_init: Initializer | None = None) -> Layer:
    """y = (silu(x gate) * (x up)) down. x (..., D) -> y (..., D); params {"gate", "up": (D, hidden), "down": (hidden, D)}.

    `w_init` is a `jax.nn.initializers`: LeCun normal (variance 1 / inputs) unless given.
    """
    return _glu(swiglu, hidden, w_init, "silu")


@by_name(*ELSEWHERE)
def geglu(hidden: int, *, w_init: Initializer | None = None) -> Layer:
    """y = (gelu(x gate) * (x up)) down, gelu in its tanh form; otherwise as `swiglu`."""
    return _glu(geglu, hidden, w_init, "gelu", True)


def _glu(maker: Callable, hidden: int, w_init: Initializer | None, function: str, *option: Any) -> Layer:
    hidden = expect_whole(f"{maker.__name__} hidden", hidden, 0)
    act = TABLE[function]

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        of = w_init or jax.nn.initializers.lecun_normal()
        keys = zip(jax.random.split(key, 3), shapes(x).items())
        return {name: draw(of, k, shape, x.dtype) for k, (name, shape) in keys}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, Any]:
        expect_params(params, "gate", "up", "down")
        expect_floating(x=x, **params)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        for name, shape in shapes(x).items():
            expect(params[name].shape == shape, name, f"{shape} for x of width {x.shape[-1]}", params[name])
        g, u = matmul(x, params["gate"]), matmul(x, params["up"])  # (..., H)
        return matmul(_product(act.f(wide(g), *option), u), params["down"]), (x, g, u)

    def backward(params: Tree, residuals: Any, dy: jax.Array) -> tuple[Tree, jax.Array]:
        x, g, u = residuals
        a = act.f(wide(g), *option)  # (..., H)
        dh = matmul(dy, params["down"].T)  # (..., H)
        du = _product(a, dh)
        dg = _product(wide(u) * act.df(wide(g), *option), dh)
        dparams = {"gate": weight_gradient(x, dg), "up": weight_gradient(x, du), "down": weight_gradient(_product(a, u), dy)}
        dx = matmul(dg, params["gate"].T) + matmul(du, params["up"].T)  # x was used twice
        return dparams, dx

    def shapes(x: Any) -> dict[str, tuple[int, int]]:
        into, out = (x.shape[-1], hidden), (hidden, x.shape[-1])
        return {"gate": into, "up": into, "down": out}

    return Layer(maker.__name__, init, forward, backward, given(maker, hidden, w_init=w_init))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in the dtype of b, rounded once."""
    return (a * wide(b)).astype(b.dtype)
