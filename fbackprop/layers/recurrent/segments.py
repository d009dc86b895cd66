"""segments: a recurrent layer and the product in front of it, backward a few steps of the sequence at a time.

Shapes    x (B, T, F), y (B, T, H) or, with last=True, (B, H); a segment is the largest divisor of T up to `size`
Dtypes    those of the layers
Units     size in time steps
Forward   carry, y_t = over's cell(carry, before(x_t)), step after step
Backward  the same in reverse, a segment at a time: over its steps the cotangents of carry and of before's y, then for all
          of them together those of x and of the weights, which are added up
Keeps     x and, with remake="nothing", what the cell keeps, T times; with "gates" of every step's carry what the cell's product
          reads: no step waits for another's then, so what the cell keeps is recomputed by one large product; with "carries"
          nothing of a step. With both the carry before every segment
At kinks  those of the layers
Raises    ValueError: what the layers raise, a remake that is none of the three
Source    Gruslys et al. 2016, Memory-Efficient Backpropagation Through Time, section 3.1; derivation in
          docs/derivations/recurrent.md

What is in front of a recurrent layer is several times as wide as x or y; here a step of it exists in the forward, and the
cotangents of a segment in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax

from ...checks import at, expect, expect_whole
from ...compose import chain, expect_parts
from ...dtypes import combine
from ...facts import Option, Scan, Setting, Tuning, given
from ...layer import Layer
from ...params import Tree, split
from ...transform import core
from ...tuning import halves
from ..kernels.tiles import largest_divisor
from ..repeat import restore, scan_keeping, set_apart
from .cells import again_of, halves_of, rule_of
from .recurrent import expect_sequence, one_step

Remake: TypeAlias = Literal["nothing", "gates", "carries"]
REMAKE: tuple[Remake, ...] = get_args(Remake)


def in_segments(before: Layer, over: Layer, size: int, *, remake: Remake = "gates") -> Layer:
    """`before`, on the last axis alone, in front of `over`, a recurrent layer without initial and truncate.

    params: a tuple of two trees, as chain(before, over) has. Where a record is taken inside it runs as that chain.
    State: every segment finds the same, the last says the Next. Raises TypeError where `over` has another rule.
    """
    size = expect_whole("segment", size)
    expect(remake in REMAKE, "remake", ", ".join(map(repr, REMAKE)), repr(remake))
    whole = chain(before, over)
    recorded = _records(before) or _records(over)
    hint = "On one layer, segments do not go with replace_rules, checkpoint, frozen or a kept precision: leave one out"
    expect(recorded or over.scan is not None, "with_settings, segment", "a recurrent layer with the rule of its maker",
           over.name, hint, TypeError)
    rule: Any = whole  # a record is of all steps
    if over.scan is not None and not recorded:
        rule = _Segments(before, over, core(over).parts[0], over.scan, size, remake)
    options = (Option("size", size, True), *given(in_segments, remake=remake))
    return Layer("in_segments", whole.init, rule.forward, rule.backward, options, parts=whole.parts,
                 rebuild=lambda parts: in_segments(parts[0], parts[1], size, remake=remake),
                 tuning=by_segments(before, over, lambda x: segments(min(size, x.shape[1]), remake), size, remake))


def by_segments(before: Layer, over: Layer, settings: Callable[[Any], Sequence[Setting]], size: int | None = None,
                remake: Remake = "gates") -> Tuning:
    """Returns the tuning of a layer that may be `in_segments(before, over, size, remake)`."""
    def apply(setting: Setting) -> Layer:
        chosen = setting.get("remake", remake)
        return in_segments(before, over, setting.get("segment", size), remake=chosen)

    return Tuning(("segment", "remake"), settings, apply)


def _records(layer: Layer) -> bool:
    """Whether a layer or a part of it writes down what it sees."""
    return layer.role == "records" or any(map(_records, layer.parts))


@dataclass(frozen=True)
class _Segments:
    """in_segments' rule. params: of `before`, then a tuple of the cell's alone."""

    before: Layer
    over: Layer
    cell: Layer
    way: Scan
    size: int
    remake: str

    def forward(self, params: Tree, x: jax.Array) -> tuple[Any, Any]:
        expect_parts(params, (self.before, self.over))
        expect_sequence(x)
        state, order, steps = self.begin(params, x)

        def segment(state: Any, turn: jax.Array) -> tuple[Any, Any, Any]:
            following, ys, kept = self.walk(params, state, x, turn * steps + jnp.arange(steps), self.remake)
            return following, ys, (kept, state[0])

        if self.remake == "nothing":
            (_, y), ys, kept = self.walk(params, state, x, jnp.arange(x.shape[1]), self.remake)
        else:
            (_, y), ys, kept = scan_keeping(segment, state, order, self.way.reverse)
        return y if self.way.last else jnp.moveaxis(ys.reshape(x.shape[1], *ys.shape[-2:]), 0, 1), (x, kept)

    def backward(self, params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        x, (kept, plan) = residuals
        (first, y), order, steps = self.begin(params, x)
        last, reverse = self.way.last, self.way.reverse
        end = 0 if reverse else x.shape[1] - 1  # the step that runs last
        kept = restore(plan, (), kept)
        pull, gradients = halves_of(self.cell, params[1][0])

        def segment(state: Any, turn: jax.Array) -> tuple[Any, Any]:
            dcarry, sums = state
            begins = turn * steps
            x_here = lax.dynamic_slice_in_dim(x, begins, steps, 1)
            with at(0, self.before):
                a, kept_before = self.before.forward(params[0], x_here)  # B S G; dropped where nobody reads it
            a = jnp.moveaxis(a, 1, 0)
            if self.remake == "nothing":
                leaves, inner = kept
            else:
                leaves, inner = self.again(params, jax.tree.map(lambda c: _take(c, turn), kept), x_here, a, y)
            start = begins if self.remake == "nothing" else jnp.zeros_like(begins)  # kept of all steps: a slice would be a copy

            def step(dcarry: Any, s: jax.Array) -> tuple[Any, Any]:
                dy_t = jnp.where(begins + s == end, dy, jnp.zeros_like(dy)) if last else _take(dy, begins + s, 1)
                with at(1, self.over), at(0, self.cell):
                    dbefore, da = pull(restore(inner, _take(a, s), [_take(leaf, start + s) for leaf in leaves]), (dcarry, dy_t))
                return dbefore, (da, (dcarry, dy_t))

            dcarry, (da, dstates) = lax.scan(step, dcarry, jnp.arange(steps), reverse=not reverse)
            here = [lax.dynamic_slice_in_dim(leaf, start, steps) for leaf in leaves]
            with at(1, self.over), at(0, self.cell):
                dcell = gradients(restore(inner, a, here), da, dstates)  # all steps at once
            with at(0, self.before):
                dbefore, dx = self.before.backward(params[0], kept_before, jnp.moveaxis(da, 0, 1))
            found, successors = split((dbefore, (dcell,)))
            return (dcarry, jax.tree.map(jnp.add, sums, found)), (dx, successors)

        zero = jax.tree.map(jnp.zeros_like, (first, split(params)[0]))
        (_, sums), (dxs, successors) = lax.scan(segment, zero, order, reverse=not reverse)
        successors = jax.tree.map(lambda n: n[0 if reverse else -1], successors)
        return combine(sums, successors), jnp.moveaxis(dxs, 0, 1).reshape(x.shape)

    def begin(self, params: Tree, x: jax.Array) -> tuple[Any, jax.Array, int]:
        """The first state, the number of every segment, and how many steps one has."""
        def specs(x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            with at(0, self.before):
                a, _ = self.before.forward(params[0], x_t)
            return a, self.cell_at(params, start(a), a)[0][1]

        start = rule_of(self.cell).start
        a, y = jax.eval_shape(specs, one_step(x))
        steps = largest_divisor(x.shape[1], self.size)
        state = start(a), jnp.zeros(y.shape, y.dtype) if self.way.last else None
        return state, jnp.arange(x.shape[1] // steps), steps

    def walk(self, params: Tree, state: Any, x: jax.Array, times: jax.Array, remake: str) -> tuple[Any, Any, Any]:
        """From the state (carry, y or None) over these steps of x (B, T, F): `(state, ys or None, (kept, plan))`."""
        keep, _ = again_of(self.cell)
        last = self.way.last

        def step(state: Any, t: jax.Array) -> tuple[Any, Any, Any]:
            carry, _ = state
            with at(0, self.before):
                a, _ = self.before.forward(params[0], _take(x, t, 1))
            (following, y), residuals = self.cell_at(params, carry, a)
            kept = set_apart(residuals, a) if remake == "nothing" else keep(carry) if remake == "gates" else ()
            return (following, y if last else None), None if last else y, kept

        return scan_keeping(step, state, times, self.way.reverse)

    def again(self, params: Tree, kept: Any, x: jax.Array, a: jax.Array, y: Any) -> tuple[Any, Any]:
        """What the cell keeps in a segment, set apart, from what is `kept` of it, x (B, S, F) and a (S, B, G)."""
        (read, plan), carry = kept
        if self.remake == "carries":
            _, _, (made, plan) = self.walk(params, (carry, y), x, jnp.arange(x.shape[1]), "nothing")
            return restore(plan, (), made)
        _, again = again_of(self.cell)
        return set_apart(again(params[1][0], carry, restore(plan, (), read), a, self.way.reverse), a)

    def cell_at(self, params: Tree, carry: Any, a: jax.Array) -> tuple[Any, Any]:
        with at(1, self.over), at(0, self.cell):
            return self.cell.forward(params[1][0], (carry, a))


def _take(a: jax.Array, i: jax.Array, axis: int = 0) -> jax.Array:
    return lax.dynamic_index_in_dim(a, i, axis, keepdims=False)


def segments(size: int, remake: Remake) -> list[dict[str, Any]]:
    """Settings that need less than segments of `size`: those that keep less, and of those shorter ones."""
    sizes = [size, *halves(size, 2)]
    cheaper = REMAKE[REMAKE.index(remake):]
    return [{"segment": n, "remake": kind} for kind in cheaper for n in (sizes[:1] if kind == "nothing" else sizes)][1:]
