"""cells: one step of a recurrence. rnn, lstm and gru cells.

Shapes    a cell: (carry, x_t (..., F)) -> (carry, y_t (..., H)); leading axes are batch, and may be time and batch
Dtypes    floating, all equal
Units     none
Forward   those of the cells below
Backward  in two halves: `pull` gives a step's cotangents of carry and x, all that the step before waits for; `gradients` gives
          dparams of many steps at once: one large product in place of many small ones
Keeps     what each says
At kinks  none: sigmoid and tanh are smooth
Raises    ValueError: a width that does not fit
Source    lstm: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; gru: Cho et al. 2014, the reset gate
          after the product as in cuDNN; derivation in docs/derivations/recurrent.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...calls import by_name
from ...checks import expect, expect_params, expect_whole
from ...dtypes import wide_dtype
from ...facts import CellRule, Option
from ...layer import Layer
from ...params import Tree
from ..algebra import bias_gradient, matmul


def _cell(kind: str, features: int, gates: int, carried: int, forward: Callable, pull: Callable,
          gradients: Callable, again: Callable | None = None, bias: bool = False) -> Layer:
    """Returns the cell `(carry, x_t) -> (carry, y_t)`, x_t projected before; backward in halves.

    gates: how often x is as wide as h; carried: arrays in the carry; again: see CellRule; bias:
    whether params have a b.
    """

    features = expect_whole(f"{kind} features", features, 0)

    def init(key: jax.Array, x: Any) -> Tree:
        dtype = x[1].dtype
        w = jax.nn.initializers.orthogonal(column_axis=-1)(key, (features, gates * features), dtype)
        return {"w": w, "b": jnp.zeros(features, dtype)} if bias else {"w": w}

    def checked(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params, *("w", "b")[: 1 + bias])
        carry, a = x
        expect(a.shape[-1] == gates * features, "x of the cell",
               f"a last axis of {gates * features} ({gates} times {features})", a,
               "Project it first: dense in front, as lstm(features) does")
        wanted = (*a.shape[:-1], features)
        for h in jax.tree.leaves(carry):
            expect(h.shape == wanted, "carry", f"shape {wanted}", h)
        return forward(params, carry, a)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dcarry, dx = pull(params, residuals, dy)
        return gradients(residuals, dx), (dcarry, dx)

    def start(x: Any) -> Any:
        zero = jnp.zeros((*x.shape[:-1], features), x.dtype)
        return zero if carried == 1 else tuple(jnp.zeros_like(zero) for _ in range(carried))

    rule = CellRule(start, pull, gradients, again)
    return Layer(kind, init, checked, backward, (Option("features", features, True),), cell=rule)


def rule_of(cell: Layer) -> CellRule:
    """Returns what `cell` says of itself. Raises TypeError for a layer that is no cell."""
    expect(cell.cell is not None, "recurrent", "a cell: lstm_cell(features), or a Layer with cell=CellRule(start)",
           f"{cell.name}", error=TypeError)
    assert cell.cell is not None
    return cell.cell


def halves_of(cell: Layer, params: Tree) -> tuple[Callable, Callable]:
    """Returns `(pull, gradients)`, the latter of (residuals, dx, (dcarry, dy)), of any cell."""
    pull, gradients = rule_of(cell).pull, rule_of(cell).gradients
    if pull is not None and gradients is not None:
        return (lambda residuals, dy: pull(params, residuals, dy)), (lambda residuals, dx, _: gradients(residuals, dx))
    return (lambda residuals, dy: cell.backward(params, residuals, dy)[1],
            lambda residuals, _, dy: cell.backward(params, residuals, dy)[0])


def again_of(cell: Layer) -> tuple[Callable, Callable]:
    """Returns `(keep, again)` of any cell: what of every step's carry to keep, and `CellRule.again` of that, called `read`."""
    again = rule_of(cell).again
    if again is not None:
        return (lambda carry: carry[0]), again
    return (lambda carry: carry), (lambda params, _, read, x, reverse:
                                   jax.vmap(lambda carry, x_t: cell.forward(params, (carry, x_t))[1])(read, x))


def _dw(h: jax.Array, da: jax.Array) -> jax.Array:
    """(T, B, H), (T, B, G) -> (H, G); not as T B rows, for a batch that devices divide is divided no more in those."""
    axes = tuple(range(h.ndim - 1))
    return jnp.tensordot(h, da, (axes, axes), preferred_element_type=wide_dtype(h.dtype)).astype(h.dtype)


def _w_gradient(residuals: Any, da: jax.Array) -> Tree:
    """Of a cell that keeps h first and adds h w to x."""
    return {"w": _dw(residuals[0], da)}


@by_name("input_size features", "the number of inputs is taken from x")
def rnn_cell(features: int) -> Layer:
    """h' = tanh(x + h w). carry h (..., H), x (..., H); params {"w": (H, H)}. Keeps h and h'."""

    def forward(params: Tree, h: jax.Array, a: jax.Array) -> tuple[Any, Any]:
        y = jnp.tanh(a + matmul(h, params["w"]))
        return (y, y), (h, y)

    def pull(params: Tree, residuals: Any, dy: Any) -> tuple[Any, Any]:
        _, y = residuals
        da = (dy[0] + dy[1]) * (1 - y) * (1 + y)  # the output is the carry too
        return matmul(da, params["w"].T), da

    return _cell("rnn_cell", features, 1, 1, forward, pull, _w_gradient)


@by_name("input_size features", "the number of inputs is taken from x")
def lstm_cell(features: int) -> Layer:
    """i f g o = x + h w; c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c').

    carry (h, c), each (..., H), x (..., 4 H) in the order i f g o; params {"w": (H, 4 H)}. Keeps h, c and the four gates.
    """

    def gates(params: Tree, h: jax.Array, a: jax.Array) -> tuple[jax.Array, ...]:
        i, f, g, o = jnp.split(a + matmul(h, params["w"]), 4, -1)
        return lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)

    def forward(params: Tree, carry: Any, a: jax.Array) -> tuple[Any, Any]:
        h, c = carry
        i, f, g, o = gates(params, h, a)
        c_next = f * c + i * g
        y = o * jnp.tanh(c_next)
        return ((y, c_next), y), (h, c, i, f, g, o)

    def pull(params: Tree, residuals: Any, dy: Any) -> tuple[Any, Any]:
        _, c, i, f, g, o = residuals
        (dh, dc), dout = dy
        t = jnp.tanh(f * c + i * g)  # cheaper to make again than to keep
        dh = dh + dout
        dc = dc + dh * o * (1 - t) * (1 + t)
        da = jnp.concatenate(
            [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g) * (1 + g), dh * t * o * (1 - o)], -1)
        return (matmul(da, params["w"].T), dc * f), da

    def again(params: Tree, carry: Any, h: jax.Array, a: jax.Array, reverse: bool) -> Any:
        i, f, g, o = gates(params, h, a)  # of all steps: one product. c is a sum along time, elementwise
        _, c = lax.scan(lambda c, at_t: (at_t[0] * c + at_t[1] * at_t[2], c), carry[1], (f, i, g), reverse=reverse)
        return h, c, i, f, g, o

    return _cell("lstm_cell", features, 4, 2, forward, pull, _w_gradient, again)


@by_name("input_size features", "the number of inputs is taken from x")
def gru_cell(features: int) -> Layer:
    """r z n = x, u v m = h w; r = sigmoid(r + u), z = sigmoid(z + v), n = tanh(n + r (m + b)); h' = (1 - z) n + z h.

    carry h (..., H), x (..., 3 H) in the order r z n; params {"w": (H, 3 H), "b": (H,)}. Keeps h, r, z, n and m + b.
    """

    def forward(params: Tree, h: jax.Array, a: jax.Array) -> tuple[Any, Any]:
        (r, z, n), (u, v, m) = jnp.split(a, 3, -1), jnp.split(matmul(h, params["w"]), 3, -1)
        r, z, m = lax.logistic(r + u), lax.logistic(z + v), m + jnp.broadcast_to(params["b"], m.shape)
        n = jnp.tanh(n + r * m)
        y = (1 - z) * n + z * h
        return (y, y), (h, r, z, n, m)

    def pull(params: Tree, residuals: Any, dy: Any) -> tuple[Any, Any]:
        h, r, z, n, m = residuals
        dh = dy[0] + dy[1]
        dn = dh * (1 - z) * (1 - n) * (1 + n)
        dx = jnp.concatenate([dn * m * r * (1 - r), dh * (h - n) * z * (1 - z), dn], -1)
        return dh * z + matmul(through(dx, r), params["w"].T), dx

    def through(dx: jax.Array, r: jax.Array) -> jax.Array:
        """The cotangent of h w: that of x but for the candidate's third, behind the reset gate."""
        dr, dz, dn = jnp.split(dx, 3, -1)
        return jnp.concatenate([dr, dz, dn * r], -1)

    def gradients(residuals: Any, dx: jax.Array) -> Tree:
        h, r, *_ = residuals
        du = through(dx, r)
        db = bias_gradient(du[..., 2 * features:])
        return {"w": _dw(h, du), "b": db}

    return _cell("gru_cell", features, 3, 1, forward, pull, gradients, bias=True)
