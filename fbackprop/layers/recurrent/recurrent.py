"""recurrent: one cell at every time step, the carry handed on.

Shapes    x (B, T, F), y (B, T, H) or, with last=True, (B, H)
Dtypes    floating, all equal
Units     none
Forward   carry_t, y_t = cell(params, (carry_{t-1}, x_t))
Backward  a scan against time asks the cell for the cotangents of carry and x alone; then one call of the cell on all steps at
          once, stacked, gives dparams: one large product in place of T small ones
Keeps     what the cell keeps, T times
At kinks  those of the cell
Raises    TypeError: no pair where an initial carry is due; ValueError: rank, T = 0, a width that does not fit, truncate < 1
Source    Werbos 1990 (backpropagation through time); derivation in docs/derivations/recurrent.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...calls import by_name
from ...checks import at, expect, expect_floating, is_whole
from ...compose import expect_layers, expect_parts
from ...facts import Scan, given
from ...layer import Layer
from ...params import Static, Tree
from ..repeat import restore, scan_keeping
from .cells import halves_of, rule_of


@by_name()
def recurrent(cell: Layer, *, last: bool = False, reverse: bool = False, initial: bool = False,
              truncate: int | None = None) -> Layer:
    """x (B, T, F) -> y (B, T, H) by `cell` at every step. params: a tuple of one tree, the cell's.

    last: y (B, H), the output of the last step in time (of the first with reverse). reverse: from T - 1 down to 0.
    initial: input (carry, x), output (carry, y). truncate: the carry's cotangent is cut every so many steps, counted from the
    step that runs first (truncated backpropagation through time: no longer the gradient of the forward, on purpose).
    State in the cell is the same at every step (one dropout mask a sequence).
    """
    expect_layers("recurrent", (cell,))
    start = rule_of(cell).start
    truncates = truncate is None or is_whole(truncate, 1)
    expect(truncates, "recurrent truncate", "None or at least 1", repr(truncate))
    options: dict[str, Any] = {"last": last, "reverse": reverse, "initial": initial,
                               "truncate": truncate}
    rule = _Recurrence(cell, start, **options)
    scan = None if initial or truncate else Scan("time", last=last, reverse=reverse)
    return Layer("recurrent", rule.init, rule.forward, rule.backward, given(recurrent, **options),
                 parts=(cell,), scan=scan, rebuild=lambda parts: recurrent(parts[0], **options))


@dataclass(frozen=True)
class _Recurrence:
    """The rule of recurrent. start: from the spec of x_t to the first carry."""

    cell: Layer
    start: Callable[[Any], Any]
    last: bool
    reverse: bool
    initial: bool
    truncate: int | None

    def init(self, key: jax.Array, x: Any) -> Tree:
        carry, x = self.begin(x)
        with at(0, self.cell):
            return (self.cell.init(key, (carry, one_step(x))),)

    def forward(self, params: Tree, x: Any) -> tuple[Any, Any]:
        expect_parts(params, (self.cell,))
        carry, x = self.begin(x)

        def step(carry: Any, at_t: Any) -> tuple[Any, Any, Any]:
            turn, x_t = at_t
            carry = self.cut(turn, carry, lax.stop_gradient)  # for autodiff: backward cuts itself
            with at(0, self.cell):
                (after, y_t), residuals = self.cell.forward(params[0], (carry, x_t))
            return after, y_t, residuals

        xs = jnp.moveaxis(x, 1, 0)  # (T, B, F)
        carry, ys, (kept, plan) = scan_keeping(step, carry, (self.turns(len(xs)), xs), self.reverse)
        y = ys[0 if self.reverse else -1] if self.last else jnp.moveaxis(ys, 0, 1)
        cell_keeps_x = any(pool == "given" for pool, _ in plan.value[1])
        known = x if cell_keeps_x else Static((x.shape, x.dtype))
        return ((carry, y) if self.initial else y), (known, carry, (kept, plan))

    def backward(self, params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        known, carry, (kept, plan) = residuals
        # an x that no cell has kept is read nowhere: any numbers will do, and none are made
        x = jnp.zeros(*known.value) if isinstance(known, Static) else known
        xs, order = jnp.moveaxis(x, 1, 0), self.turns(x.shape[1])
        dcarry, dy = dy if self.initial else (jax.tree.map(jnp.zeros_like, carry), dy)
        dys = None if self.last else jnp.moveaxis(dy, 1, 0)
        pull, gradients = halves_of(self.cell, params[0])

        def step(dcarry: Any, at_t: Any) -> tuple[Any, Any]:
            turn, x_t, kept_t, dy_t = at_t
            if self.last:
                dy_t = jnp.where(turn == len(xs) - 1, dy, jnp.zeros_like(dy))
            with at(0, self.cell):
                dbefore, dx_t = pull(restore(plan, (turn, x_t), kept_t), (dcarry, dy_t))
            return self.cut(turn, dbefore, jnp.zeros_like), (dx_t, (dcarry, dy_t))

        steps = (order, xs, kept, dys)
        dbefore, (dxs, dstates) = lax.scan(step, dcarry, steps, reverse=not self.reverse)
        with at(0, self.cell):
            dparams = gradients(restore(plan, (order, xs), kept), dxs, dstates)  # all steps at once
        dx = jnp.moveaxis(dxs, 0, 1)
        return (dparams,), ((dbefore, dx) if self.initial else dx)

    def begin(self, x: Any) -> tuple[Any, Any]:
        """The first carry, and x."""
        carry = None
        if self.initial:
            paired = isinstance(x, tuple) and len(x) == 2
            expect(paired, "x", "a pair (carry, x)", x, error=TypeError)
            carry, x = x
        expect_sequence(x)
        return (carry if self.initial else self.start(one_step(x))), x

    def cut(self, turn: jax.Array, carry: Any, stop: Callable[[jax.Array], jax.Array]) -> Any:
        """The carry, stopped in front of every `truncate`-th step."""
        if self.truncate is None:
            return carry
        stopped = lambda c: jnp.where((turn % self.truncate == 0) & (turn > 0), stop(c), c)
        return jax.tree.map(stopped, carry)

    def turns(self, length: int) -> jax.Array:
        """At each time, how many steps ran before."""
        return jnp.arange(length)[::-1] if self.reverse else jnp.arange(length)


def expect_sequence(x: Any) -> None:
    """ValueError unless x is (B, T, F) with a step."""
    expect_floating(x=x)
    expect(x.ndim == 3 and x.shape[1] > 0, "x", "(B, T, F) with T at least 1", x)


def one_step(x: Any) -> jax.ShapeDtypeStruct:
    """(B, T, F) -> the spec of x_t (B, F)."""
    return jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype)
