"""segments: a recurrent layer and the product in front of it, backward a few steps of the sequence at a time.

Shapes    x (B, T, F), y (B, T, H) or, with last=True, (B, H); a segment is the largest divisor of T up to `size`
Dtypes    those of the layers
Units     size in time steps
Forward   carry, y_t = over's cell(carry, before(x_t)), step after step
Backward  the same in reverse, a segment at a time: over its steps the cotangents of carry and of before's y, then for all
          of them together those of x and of the weights, which are added up
Keeps     x and, with remake="nothing", what the cell keeps, T times; with "gates" of every step's carry what the cell's product
          reads: no step waits for another's then, so what the cell keeps is made again by one large product; with "carries"
          nothing of a step. With both the carry before every segment
At kinks  those of the layers
Raises    ValueError: what the layers raise, a remake that is none of the three
Source    Gruslys et al. 2016, Memory-Efficient Backpropagation Through Time, section 3.1; derivation in
          docs/derivations/recurrent.md

What is in front of a recurrent layer is several times as wide as x or y; here a step of it exists in the forward, and the
cotangents of a segment in the backward.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..adjustable import Adjustable, halves
from ..compose import chain, expect_parts
from ..errors import at, expect, expect_floating
from ..layer import Layer, Tree, join, split
from .cells import again_of, halves_of
from .recurrent import OverTime, one_step
from .repeat import restore, scan_keeping, set_apart

REMAKE = ("nothing", "gates", "carries")


def in_segments(before: Layer, over: Layer, size: int, remake: str = "gates") -> Layer:
    """`before`, on the last axis alone, in front of `over`, a recurrent layer without initial and truncate.

    params: a tuple of two trees, as chain(before, over) has. Where `over` has been given another backward it is that chain.
    State: every segment finds the same, the last says the Next.
    """
    ok = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    expect(ok, "segment", "a whole number of steps, at least 1", repr(size))
    expect(remake in REMAKE, "remake", ", ".join(map(repr, REMAKE)), repr(remake))
    whole = chain(before, over)
    if not isinstance(over.backward, OverTime):
        return whole
    cell, last, reverse = over.backward.cell, over.backward.last, over.backward.reverse
    keep, again = again_of(cell)

    def cell_at(params: Tree, carry: Any, a: jax.Array) -> tuple[Any, Any]:
        with at(1, over), at(0, cell):
            return cell.forward(params[1][0], (carry, a))

    def walk(params: Tree, state: Any, x: jax.Array, times: jax.Array, remake: str) -> tuple[Any, Any, Any]:
        """From the state (carry, y or None) over these steps of x (B, T, F): `(state, ys or None, (kept, plan))`."""
        def step(state: Any, t: jax.Array) -> tuple[Any, Any, Any]:
            carry, _ = state
            with at(0, before):
                a, _ = before.forward(params[0], _take(x, t, 1))
            (following, y), residuals = cell_at(params, carry, a)
            kept = set_apart(residuals, a) if remake == "nothing" else keep(carry) if remake == "gates" else ()
            return (following, y if last else None), None if last else y, kept

        return scan_keeping(step, state, times, reverse)

    def begin(params: Tree, x: jax.Array) -> tuple[Any, jax.Array, int]:
        """The first state, the number of every segment, and how many steps one has."""
        def specs(x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            with at(0, before):
                a, _ = before.forward(params[0], x_t)
            return a, cell_at(params, cell.start(a), a)[0][1]

        a, y = jax.eval_shape(specs, one_step(x))
        steps = next(n for n in range(min(size, x.shape[1]), 0, -1) if x.shape[1] % n == 0)
        return (cell.start(a), jnp.zeros(y.shape, y.dtype) if last else None), jnp.arange(x.shape[1] // steps), steps

    def forward(params: Tree, x: jax.Array) -> tuple[Any, Any]:
        expect_parts(params, whole.parts)
        expect_floating(x=x)
        expect(x.ndim == 3 and x.shape[1] > 0, "x", "(B, T, F) with T at least 1", x)
        state, order, steps = begin(params, x)

        def segment(state: Any, turn: jax.Array) -> tuple[Any, Any, Any]:
            following, ys, kept = walk(params, state, x, turn * steps + jnp.arange(steps), remake)
            return following, ys, (kept, state[0])

        if remake == "nothing":
            (_, y), ys, kept = walk(params, state, x, jnp.arange(x.shape[1]), remake)
        else:
            (_, y), ys, kept = scan_keeping(segment, state, order, reverse)
        return y if last else jnp.moveaxis(ys.reshape(x.shape[1], *ys.shape[-2:]), 0, 1), (x, kept)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        x, (kept, plan) = residuals
        (first, y), order, steps = begin(params, x)
        end = 0 if reverse else x.shape[1] - 1  # the step that runs last
        kept = restore(plan, (), kept)
        pull, gradients = halves_of(cell, params[1][0])

        def segment(state: Any, turn: jax.Array) -> tuple[Any, Any]:
            dcarry, sums = state
            begins = turn * steps
            x_here = lax.dynamic_slice_in_dim(x, begins, steps, 1)
            with at(0, before):
                a, kept_before = before.forward(params[0], x_here)  # B S G; dropped where nobody reads it
            a = jnp.moveaxis(a, 1, 0)
            if remake == "nothing":
                leaves, inner = kept
            else:
                (read, outer), carry = jax.tree.map(lambda c: _take(c, turn), kept)
                if remake == "gates":
                    leaves, inner = set_apart(again(params[1][0], carry, restore(outer, (), read), a, reverse), a)
                else:
                    _, _, (made, outer) = walk(params, (carry, y), x_here, jnp.arange(steps), "nothing")
                    leaves, inner = restore(outer, (), made)
            start = begins if remake == "nothing" else jnp.zeros_like(begins)  # kept of all steps: a slice would be a copy

            def step(dcarry: Any, s: jax.Array) -> tuple[Any, Any]:
                dy_t = jnp.where(begins + s == end, dy, jnp.zeros_like(dy)) if last else _take(dy, begins + s, 1)
                with at(1, over), at(0, cell):
                    dbefore, da = pull(restore(inner, _take(a, s), [_take(leaf, start + s) for leaf in leaves]), (dcarry, dy_t))
                return dbefore, (da, (dcarry, dy_t))

            dcarry, (da, dstates) = lax.scan(step, dcarry, jnp.arange(steps), reverse=not reverse)
            here = [lax.dynamic_slice_in_dim(leaf, start, steps) for leaf in leaves]
            with at(1, over), at(0, cell):
                dcell = gradients(restore(inner, a, here), da, dstates)  # all steps at once
            with at(0, before):
                dbefore, dx = before.backward(params[0], kept_before, jnp.moveaxis(da, 0, 1))
            found, successors = split((dbefore, (dcell,)))
            return (dcarry, jax.tree.map(jnp.add, sums, found)), (dx, successors)

        zero = jax.tree.map(jnp.zeros_like, (first, split(params)[0]))
        (_, sums), (dxs, successors) = lax.scan(segment, zero, order, reverse=not reverse)
        successors = jax.tree.map(lambda n: n[0 if reverse else -1], successors)
        return join(sums, successors), jnp.moveaxis(dxs, 0, 1).reshape(x.shape)

    name = f"in_segments({before.name}, {over.name}, {size}{f', remake={remake!r}' * (remake != 'gates')})"
    return Adjustable(name, whole.init, forward, backward, parts=whole.parts,
                      rebuild=lambda parts: in_segments(parts[0], parts[1], size, remake),
                      adjusted=lambda segment, remake=remake: in_segments(before, over, segment, remake),
                      settings=lambda x: segments(min(size, x.shape[1]), remake))


def _take(a: jax.Array, i: jax.Array, axis: int = 0) -> jax.Array:
    return lax.dynamic_index_in_dim(a, i, axis, keepdims=False)


def segments(size: int, remake: str) -> list[dict[str, Any]]:
    """Settings that need less than segments of `size`: those that keep less, and of those shorter ones."""
    sizes = [size, *halves(size, 2)]
    thriftier = REMAKE[REMAKE.index(remake):]
    return [{"segment": n, "remake": kind} for kind in thriftier for n in (sizes[:1] if kind == "nothing" else sizes)][1:]
