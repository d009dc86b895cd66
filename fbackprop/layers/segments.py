"""segments: a recurrent layer and the product in front of it, a few steps of the sequence at a time.

Shapes    x (B, T, F), y (B, T, H) or, with last=True, (B, H); a segment is the largest divisor of T up to `size`
Dtypes    those of the layers
Units     size in time steps
Forward   (carry, y of a segment) = over(before(x of the segment)), segment after segment
Backward  the same in reverse, the carry's cotangent handed on, the weights' gradients added up
Keeps     what both keep, segment by segment, but for x and for before's y, which is made again where it was kept; with
          remake=True the carry before every segment alone
At kinks  those of the layers
Raises    ValueError: what the layers raise
Source    Gruslys et al. 2016, Memory-Efficient Backpropagation Through Time, section 3.1; derivation in
          docs/derivations/recurrent.md

What is in front of a recurrent layer is one large product, several times as wide as x or y; here a segment of it exists at a
time, and stays in cache until the scan has read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..adjustable import Adjustable, halves
from ..compose import expect_parts
from ..errors import at, expect, expect_floating
from ..layer import Layer, Tree, join, split
from .repeat import restore, scan_keeping, set_apart


def in_segments(before: Layer, over: Layer, start: Any, size: int, last: bool = False, reverse: bool = False,
                remake: bool = False) -> Layer:
    """`over` is recurrent with initial=True, and last and reverse as here; start: spec of before's y -> the first carry.

    params: a tuple of two trees, as chain(before, over) has. State: every segment finds the same, the last says the Next.
    """
    ok = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    expect(ok, "segment", "a whole number of steps, at least 1", repr(size))
    parts = (before, over)

    def init(key: jax.Array, x: Any) -> Tree:
        keys = jax.random.split(key, 2)
        with at(0, before):
            first = before.init(keys[0], x)
            y, _ = jax.eval_shape(before.forward, first, x)
        with at(1, over):
            return first, over.init(keys[1], (jax.eval_shape(start, _one_step(y)), y))

    def run(params: Tree, carry: Any, x: jax.Array) -> tuple[Any, Any, Any]:
        with at(0, before):
            y, kept = before.forward(params[0], x)
        with at(1, over):
            (carry, y_over), kept_over = over.forward(params[1], (carry, y))
        return carry, y_over, set_apart((kept, kept_over), (x, y))

    def turns(x: jax.Array) -> tuple[jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
        """The number of every segment, and what takes that one out of (B, T, ...): sliced, for scanned x is laid out anew."""
        steps = next(n for n in range(min(size, x.shape[1]), 0, -1) if x.shape[1] % n == 0)
        return jnp.arange(x.shape[1] // steps), lambda a, turn: lax.dynamic_slice_in_dim(a, turn * steps, steps, 1)

    def forward(params: Tree, x: jax.Array) -> tuple[Any, Any]:
        expect_parts(params, parts)
        expect_floating(x=x)
        expect(x.ndim == 3 and x.shape[1] > 0, "x", "(B, T, F) with T at least 1", x)
        order, taken = turns(x)

        def step(carry: Any, turn: jax.Array) -> tuple[Any, Any, Any]:
            following, y, kept = run(params, carry, taken(x, turn))
            return following, y, carry if remake else kept

        first = jax.eval_shape(lambda x: before.forward(params[0], x)[0], x)
        _, ys, kept = scan_keeping(step, start(_one_step(first)), order, reverse)
        if last:
            return ys[0 if reverse else -1], (x, kept)
        return jnp.moveaxis(ys, 0, 1).reshape(*x.shape[:2], *ys.shape[3:]), (x, kept)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        x, (kept, plan) = residuals
        order, taken = turns(x)
        end = order[0 if reverse else -1]  # the segment that runs last

        def step(state: Any, at_segment: Any) -> tuple[Any, Any]:
            dcarry, sums = state
            turn, kept = at_segment
            x_here = taken(x, turn)
            dy_here = jnp.where(turn == end, dy, jnp.zeros_like(dy)) if last else taken(dy, turn)
            found = restore(plan, turn, kept)
            if remake:
                _, _, found = run(params, found, x_here)  # in a scan of its own: nothing to merge it with
            inner, inner_plan = found
            middle, _ = before.forward(params[0], x_here)  # wide, and one product; dropped where nothing has kept it
            found = restore(inner_plan, (x_here, middle), inner)
            with at(1, over):
                dover, (dcarry, dmiddle) = over.backward(params[1], found[1], (dcarry, dy_here))
            with at(0, before):
                dbefore, dx = before.backward(params[0], found[0], dmiddle)
            gradients, successors = split((dbefore, dover))
            return (dcarry, jax.tree.map(jnp.add, sums, gradients)), (dx, successors)

        spec = jax.eval_shape(lambda x: before.forward(params[0], x)[0], x)
        zero = jax.tree.map(jnp.zeros_like, (start(_one_step(spec)), split(params)[0]))
        (_, sums), (dxs, successors) = lax.scan(step, zero, (order, kept), reverse=not reverse)
        successors = jax.tree.map(lambda n: n[0 if reverse else -1], successors)
        return join(sums, successors), jnp.moveaxis(dxs, 0, 1).reshape(x.shape)

    def adjusted(segment: int, remake: str | None = None) -> Layer:
        return in_segments(before, over, start, segment, last, reverse, remake == "carries")

    return Adjustable(f"in_segments({before.name}, {over.name}, {size}{', remake=True' * remake})", init, forward, backward,
                      parts=parts, rebuild=lambda parts: in_segments(parts[0], parts[1], start, size, last, reverse, remake),
                      adjusted=adjusted, settings=lambda x: segments(min(size, x.shape[1]), remake))


def segments(size: int, remake: bool) -> list[dict[str, Any]]:
    """Settings that need less than segments of `size`: shorter ones, then those of which the carry alone is kept."""
    sizes = halves(size, 2)
    remade = [{"segment": n, "remake": "carries"} for n in (sizes if remake else [size, *sizes])]
    return remade if remake else [*({"segment": n} for n in sizes), *remade]


def _one_step(y: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((y.shape[0], *y.shape[2:]), y.dtype)
