"""recurrent: one cell at every time step, the carry handed on; rnn, lstm and gru cells.

Shapes    x (B, T, F), y (B, T, H) or, with last=True, (B, H); a cell: (carry, x_t (..., F)) -> (carry, y_t (..., H))
Dtypes    floating, all equal
Units     none
Forward   carry_t, y_t = cell(params, (carry_{t-1}, x_t))
Backward  a scan against time asks the cell for the cotangents of carry and x alone; then one call of the cell on all steps at
          once, stacked, gives dparams: one large product in place of T small ones
Keeps     what the cell keeps, T times; with remake x and the carries: no step then waits for another, so what the cell keeps is
          made again by one large product
At kinks  those of the cell
Raises    TypeError: no pair where an initial carry is due; ValueError: rank, T = 0, a width that does not fit, truncate < 1
Source    Werbos 1990 (backpropagation through time); lstm: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et
          al. 2000; gru: Cho et al. 2014, the reset gate after the product as in cuDNN;
          derivation in docs/derivations/recurrent.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..adjustable import Adjustable
from ..compose import chain, expect_parts
from ..dtypes import wide_dtype
from ..errors import at, expect, expect_floating, expect_params
from ..layer import Layer, Static, Tree
from .dense import dense
from .repeat import restore, scan_keeping, set_apart
from .segments import in_segments, segments

REMAKE = ("nothing", "gates", "carries")
XAVIER = jax.nn.initializers.glorot_uniform()


@dataclass(frozen=True)
class Cell(Layer):
    """A Layer on `(carry, x_t) -> (carry, y_t)`, x_t already projected, that knows its first carry."""

    start: Callable[[Any], Any] = lambda x: ()  # spec of x_t -> the first carry

    def __repr__(self) -> str:
        return self.name


def recurrent(cell: Cell, last: bool = False, reverse: bool = False, initial: bool = False,
              truncate: int | None = None, remake: bool = False) -> Layer:
    """x (B, T, F) -> y (B, T, H) by `cell` at every step. params: a tuple of one tree, the cell's.

    last: y (B, H), the output of the last step in time (of the first with reverse). reverse: from T - 1 down to 0.
    initial: input (carry, x), output (carry, y). truncate: the carry's cotangent is cut every so many steps, counted from the
    step that runs first (truncated backpropagation through time: no longer the gradient of the forward, on purpose).
    remake: the carry of every step is kept, not what the cell keeps, which the backward makes again for all steps at once.
    State in the cell is the same at every step (one dropout mask a sequence).
    """
    expect(truncate is None or truncate >= 1, "recurrent truncate", "None or at least 1", repr(truncate))

    def begin(x: Any) -> tuple[Any, Any]:
        carry = None
        if initial:
            expect(isinstance(x, tuple) and len(x) == 2, "x", "a pair (carry, x)", x, error=TypeError)
            carry, x = x
        expect_floating(x=x)
        expect(x.ndim == 3 and x.shape[1] > 0, "x", "(B, T, F) with T at least 1", x)
        return (carry if initial else cell.start(_one_step(x))), x

    def cut(turn: jax.Array, carry: Any, stop: Callable[[jax.Array], jax.Array]) -> Any:
        if truncate is None:
            return carry
        return jax.tree.map(lambda c: jnp.where((turn % truncate == 0) & (turn > 0), stop(c), c), carry)

    def turns(length: int) -> jax.Array:
        return jnp.arange(length)[::-1] if reverse else jnp.arange(length)  # at each time, how many steps ran before

    def init(key: jax.Array, x: Any) -> Tree:
        carry, x = begin(x)
        with at(0, cell):
            return (cell.init(key, (carry, _one_step(x))),)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_parts(params, (cell,))
        carry, x = begin(x)

        def step(carry: Any, at_t: Any) -> tuple[Any, Any, Any]:
            turn, x_t = at_t
            carry = cut(turn, carry, lax.stop_gradient)  # for autodiff of this forward; the rule below cuts by itself
            with at(0, cell):
                (after, y_t), residuals = cell.forward(params[0], (carry, x_t))
            return after, y_t, (carry, x_t) if remake else residuals

        xs = jnp.moveaxis(x, 1, 0)  # (T, B, F)
        carry, ys, (kept, plan) = scan_keeping(step, carry, (turns(len(xs)), xs), reverse)
        y = ys[0 if reverse else -1] if last else jnp.moveaxis(ys, 0, 1)
        known = x if any(pool == "given" for pool, _ in plan.value[1]) else Static((x.shape, x.dtype))
        return ((carry, y) if initial else y), (known, carry, (kept, plan))

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        known, carry, (kept, plan) = residuals
        # an x that no cell has kept is read nowhere: any numbers will do, and none are made
        x = jnp.zeros(*known.value) if isinstance(known, Static) else known
        xs, order = jnp.moveaxis(x, 1, 0), turns(x.shape[1])
        dcarry, dy = dy if initial else (jax.tree.map(jnp.zeros_like, carry), dy)
        dys = None if last else jnp.moveaxis(dy, 1, 0)
        pull, gradients = _halves(cell, params[0])
        if remake:  # of all steps at once: every carry is there, so no step waits for the one before
            with at(0, cell):
                given = restore(plan, (order, xs), kept)
                _, made = jax.vmap(lambda at_t: cell.forward(params[0], at_t))(given)
            kept, plan = set_apart(made, (order, xs))

        def step(dcarry: Any, at_t: Any) -> tuple[Any, Any]:
            turn, x_t, kept_t, dy_t = at_t
            if last:
                dy_t = jnp.where(turn == len(xs) - 1, dy, jnp.zeros_like(dy))
            with at(0, cell):
                dbefore, dx_t = pull(restore(plan, (turn, x_t), kept_t), (dcarry, dy_t))
            return cut(turn, dbefore, jnp.zeros_like), (dx_t, (dcarry, dy_t))

        dbefore, (dxs, dstates) = lax.scan(step, dcarry, (order, xs, kept, dys), reverse=not reverse)
        with at(0, cell):
            dparams = gradients(restore(plan, (order, xs), kept), dxs, dstates)  # all steps at once
        dx = jnp.moveaxis(dxs, 0, 1)
        return (dparams,), ((dbefore, dx) if initial else dx)

    options: dict[str, Any] = {"last": last, "reverse": reverse, "initial": initial, "truncate": truncate, "remake": remake}
    words = "".join(f", {name}={value}" for name, value in options.items() if value)
    return Layer(f"recurrent({cell.name}{words})", init, forward, backward, parts=(cell,),
                 rebuild=lambda parts: recurrent(Cell(**{**vars(parts[0]), "start": cell.start}), **options))


@dataclass(frozen=True)
class Halves:
    """A cell's backward in two, so that a scan can ask for each in its time. A cell given another backward has no halves.

    `pull(params, residuals, dy) -> (dcarry, dx)` of one step, `gradients(residuals, dx) -> dparams` of all steps, stacked.
    """

    pull: Callable[[Tree, Any, Any], tuple[Any, Any]]
    gradients: Callable[[Any, Any], Tree]

    def __call__(self, params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dcarry, dx = self.pull(params, residuals, dy)
        return self.gradients(residuals, dx), (dcarry, dx)


def _halves(cell: Cell, params: Tree) -> tuple[Callable, Callable]:
    """`(pull, gradients)`, the latter of (residuals, dx, (dcarry, dy)), of any cell."""
    if isinstance(cell.backward, Halves):
        two = cell.backward
        return (lambda residuals, dy: two.pull(params, residuals, dy)), (lambda residuals, dx, _: two.gradients(residuals, dx))
    return (lambda residuals, dy: cell.backward(params, residuals, dy)[1],
            lambda residuals, _, dy: cell.backward(params, residuals, dy)[0])


def _pulled(w: jax.Array, da: jax.Array) -> jax.Array:
    """da w^T, of (..., G) and (H, G), as (w da^T)^T: a product that reads w across its rows needs, on a CPU, a second w."""
    da = lax.optimization_barrier(jnp.moveaxis(da, -1, 0))
    dh = lax.optimization_barrier(jnp.tensordot(w, da, 1, preferred_element_type=wide_dtype(da.dtype)))  # H ...
    return jnp.moveaxis(dh, 0, -1).astype(da.dtype)


def _one_step(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype)


def _expect_step(carry: Any, x: jax.Array, features: int, gates: int) -> None:
    ok = x.shape[-1] == gates * features
    expect(ok, "x of the cell", f"a last axis of {gates * features} ({gates} times {features})", x,
           "Project it first: dense in front, as lstm(features) does")
    for h in jax.tree.leaves(carry):
        expect(h.shape == (*x.shape[:-1], features), "carry", f"shape {(*x.shape[:-1], features)}", h)


def _weight(gates: int, features: int, bias: bool = False) -> Callable[[jax.Array, Any], Tree]:
    def init(key: jax.Array, x: Any) -> Tree:
        dtype = x[1].dtype
        w = jax.nn.initializers.orthogonal(column_axis=-1)(key, (features, gates * features), dtype)
        return {"w": w, "b": jnp.zeros(features, dtype)} if bias else {"w": w}

    return init


def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(x, w, preferred_element_type=wide_dtype(x.dtype)).astype(x.dtype)


def _dw(h: jax.Array, da: jax.Array) -> jax.Array:
    """(T, B, H), (T, B, G) -> (H, G); not as T B rows, for a batch that devices divide is divided no more in those."""
    axes = tuple(range(h.ndim - 1))
    return jnp.tensordot(h, da, (axes, axes), preferred_element_type=wide_dtype(h.dtype)).astype(h.dtype)


def _zeros(features: int, count: int) -> Callable[[Any], Any]:
    def start(x: Any) -> Any:
        zero = jnp.zeros((*x.shape[:-1], features), x.dtype)
        return zero if count == 1 else tuple(jnp.zeros_like(zero) for _ in range(count))

    return start


def rnn_cell(features: int) -> Cell:
    """h' = tanh(x + h w). carry h (..., H), x (..., H); params {"w": (H, H)}. Keeps h and h'."""

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params, "w")
        h, a = x
        _expect_step(h, a, features, 1)
        y = jnp.tanh(a + _matmul(h, params["w"]))
        return (y, y), (h, y)

    def pull(params: Tree, residuals: Any, dy: Any) -> tuple[Any, Any]:
        _, y = residuals
        da = (dy[0] + dy[1]) * (1 - y) * (1 + y)  # the output is the carry too
        return _pulled(params["w"], da), da

    backward = Halves(pull, lambda residuals, da: {"w": _dw(residuals[0], da)})
    return Cell(f"rnn_cell({features})", _weight(1, features), forward, backward, start=_zeros(features, 1))


def lstm_cell(features: int) -> Cell:
    """i f g o = x + h w; c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c').

    carry (h, c), each (..., H), x (..., 4 H) in the order i f g o; params {"w": (H, 4 H)}. Keeps h, c and the four gates.
    """

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params, "w")
        (h, c), a = x
        _expect_step((h, c), a, features, 4)
        i, f, g, o = jnp.split(a + _matmul(h, params["w"]), 4, -1)
        i, f, g, o = lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)
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
        return (_pulled(params["w"], da), dc * f), da

    backward = Halves(pull, lambda residuals, da: {"w": _dw(residuals[0], da)})
    return Cell(f"lstm_cell({features})", _weight(4, features), forward, backward, start=_zeros(features, 2))


def gru_cell(features: int) -> Cell:
    """r z n = x, u v m = h w; r = sigmoid(r + u), z = sigmoid(z + v), n = tanh(n + r (m + b)); h' = (1 - z) n + z h.

    carry h (..., H), x (..., 3 H) in the order r z n; params {"w": (H, 3 H), "b": (H,)}. Keeps h, r, z, n and m + b.
    """

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params, "w", "b")
        h, a = x
        _expect_step(h, a, features, 3)
        (r, z, n), (u, v, m) = jnp.split(a, 3, -1), jnp.split(_matmul(h, params["w"]), 3, -1)
        r, z, m = lax.logistic(r + u), lax.logistic(z + v), m + jnp.broadcast_to(params["b"], m.shape)
        n = jnp.tanh(n + r * m)
        y = (1 - z) * n + z * h
        return (y, y), (h, r, z, n, m)

    def pull(params: Tree, residuals: Any, dy: Any) -> tuple[Any, Any]:
        h, r, z, n, m = residuals
        dh = dy[0] + dy[1]
        dn = dh * (1 - z) * (1 - n) * (1 + n)
        dx = jnp.concatenate([dn * m * r * (1 - r), dh * (h - n) * z * (1 - z), dn], -1)
        return dh * z + _pulled(params["w"], through(dx, r)), dx

    def through(dx: jax.Array, r: jax.Array) -> jax.Array:
        """The cotangent of h w: that of x but for the candidate's third, behind the reset gate."""
        dr, dz, dn = jnp.split(dx, 3, -1)
        return jnp.concatenate([dr, dz, dn * r], -1)

    def gradients(residuals: Any, dx: jax.Array) -> Tree:
        h, r, *_ = residuals
        du = through(dx, r)
        dm = du[..., 2 * features:]
        db = jnp.sum(dm, axis=tuple(range(dm.ndim - 1)), dtype=wide_dtype(dm.dtype)).astype(dm.dtype)
        return {"w": _dw(h, du), "b": db}

    backward = Halves(pull, gradients)
    return Cell(f"gru_cell({features})", _weight(3, features, bias=True), forward, backward, start=_zeros(features, 1))


def rnn(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): a dense projection of all steps at once, then `recurrent(rnn_cell(H), **options)`.

    segment: so many steps at a time, less memory for the same result. remake, of a segment: "gates", the default, keeps x and
    every step's carry, "nothing" the gates too, "carries" only the carry before the segment, whose forward then runs again.
    """
    return _projected(features, rnn_cell(features), segment, remake, options)


def lstm(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): `recurrent(lstm_cell(H), **options)` on a dense projection; the rest as `rnn`."""
    return _projected(4 * features, lstm_cell(features), segment, remake, options)


def gru(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): `recurrent(gru_cell(H), **options)` on a dense projection; the rest as `rnn`."""
    return _projected(3 * features, gru_cell(features), segment, remake, options)


def _projected(width: int, cell: Cell, segment: int | None, remake: str | None, options: dict[str, Any]) -> Layer:
    before = dense(width, w_init=XAVIER)
    if segment is None:
        expect(remake is None, "remake", "a segment beside it", "segment=None", "Give both: segment=16, remake='gates'")
        whole = chain(before, recurrent(cell, **options))
        if {"truncate", "initial"} & {name for name, value in options.items() if value}:
            return whole
        return Adjustable(
            **vars(whole), settings=lambda x: segments(x.shape[1], remake=False),
            adjusted=lambda segment, remake=None: _projected(width, cell, segment, remake, options))
    expect(remake in (None, *REMAKE), "remake", ", ".join(map(repr, REMAKE)), repr(remake))
    ok = not {"truncate", "initial"} & {name for name, value in options.items() if value}
    expect(ok, "segment", "no truncate and no initial beside it", repr(options))
    over = recurrent(cell, initial=True, remake=remake in (None, "gates"), **options)
    return in_segments(before, over, cell.start, segment, remake=remake == "carries", **options)
