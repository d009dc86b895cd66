"""Cases and mistakes of attention."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...layer import Layer
from ...layers.attention import attention
from ...params import Tree
from .case import Bugs, Case, Draw, Wrong, normal, options_of, right


def masked(*sizes: int, all_of_first: bool = False) -> Draw:
    """(qkv, a mask that leaves the first key and about two thirds of the others; or nothing of the first row)."""
    def draw(rng: np.random.Generator) -> Any:
        mask = rng.random(sizes[:-1]) < 2 / 3
        mask[..., 0] = True
        if all_of_first:
            mask[0] = False
        return rng.standard_normal(sizes), mask

    return draw


def large(*sizes: int) -> Draw:
    return lambda rng: 4 * rng.standard_normal(sizes)


CASES: tuple[Case, ...] = (
    Case("attention", attention(2), normal(3, 5, 18)),
    Case("attention", attention(2, causal=True), normal(2, 5, 42)),
    Case("attention", attention(6, kv_heads=2), normal(2, 5, 30)),
    Case("attention", attention(2, kv_heads=1, causal=True), masked(3, 5, 12), "padding mask"),
    Case("attention", attention(2), masked(2, 3, 5, 18, all_of_first=True), "no key for some"),
    Case("attention", attention(2, block=2), normal(2, 5, 18)),
    Case("attention", attention(4, kv_heads=2, causal=True, block=3), normal(2, 7, 24), "block does not divide T"),
    Case("attention", attention(2, causal=True, block=2), masked(3, 5, 18, all_of_first=True), "no key for some"),
    Case("attention", attention(2, causal=True, block=4), masked(2, 7, 18), "two blocks, tiles written out"),
    Case("attention", attention(1, block=3), large(2, 7, 6), "large scores"),
    Case("attention", attention(1, causal=True), normal(5, 3), "one example, one channel"),
    Case("attention", attention(2), normal(3, 1, 18), "one position"),
    Case("attention", attention(2, block=2), normal(0, 5, 18), "empty batch"),
)


@dataclass(frozen=True)
class _Plain:
    """The rule with its T x T matrices in full, and where it may go wrong."""

    scale: bool = True
    later: int = 0  # how many positions later than its own a query may look, under causal
    one_block_later: bool = False
    rank_one: bool = True
    group_sum: bool = True
    dv_transposed: bool = False
    dk_transposed: bool = False

    def __call__(self, layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        (qkv, mask), dy = (x, dy[0]) if isinstance(x, tuple) else ((x, None), dy)
        *leading, steps, _ = qkv.shape
        heads, shared, size = _options(layer, steps)
        split = jnp.moveaxis(qkv.reshape(*leading, steps, heads + 2 * shared, -1), -2, -3)
        grouped = lambda a: a.reshape(*leading, shared, heads // shared, steps, -1)
        q, k, v = jnp.split(split, (heads, heads + shared), axis=-3)
        q = grouped(q)
        dy = grouped(jnp.moveaxis(dy.reshape(*leading, steps, heads, -1), -2, -3))
        s = jnp.einsum("...kgtc,...ksc->...kgts", q, k) / sqrt(q.shape[-1])

        def weights(later: int) -> Any:
            """exp(s) where a query may look `later` positions further than it may."""
            may = jnp.tril(jnp.ones((steps, steps), bool), later if "causal" in options_of(layer) else steps)
            may = jnp.broadcast_to(may, s.shape)
            if mask is not None:
                may = may & jnp.broadcast_to(mask[..., None, None, None, :], s.shape)
            return jnp.where(may, jnp.exp(s), 0)

        mass = jnp.sum(weights(0), axis=-1, keepdims=True)
        p = weights(size if self.one_block_later else self.later) / jnp.broadcast_to(jnp.where(mass == 0, 1, mass), s.shape)
        dp = jnp.einsum("...kgtc,...ksc->...kgts", dy, v)
        mean = jnp.sum(p * dp, axis=-1, keepdims=True) * self.rank_one
        ds = p * (dp - jnp.broadcast_to(mean, dp.shape)) / (sqrt(q.shape[-1]) if self.scale else 1)
        turned = lambda a, yes: jnp.swapaxes(a, -1, -2) if yes else a
        group = slice(None) if self.group_sum else slice(0, 1)
        to_keys = lambda a, b: jnp.einsum("...kgts,...kgtc->...ksc", a[..., :, group, :, :], b[..., :, group, :, :])
        dq = jnp.einsum("...kgts,...ksc->...kgtc", ds, k).reshape(*leading, heads, steps, -1)
        dk, dv = to_keys(turned(ds, self.dk_transposed), q), to_keys(turned(p, self.dv_transposed), dy)
        dx = jnp.moveaxis(jnp.concatenate([dq, dk, dv], axis=-3), -2, -3).reshape(qkv.shape)
        return (), dx if mask is None else (dx, None)


def _options(layer: Layer, steps: int) -> tuple[int, int, int]:
    """Heads, key/value heads and block, as the layer was given them."""
    options = options_of(layer)
    heads = options["heads"]
    return heads, options.get("kv_heads", heads), options.get("block", steps)


def _q_and_k_swapped(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, dx = right(layer, params, x, dy)
    heads, shared, _ = _options(layer, 1)
    if heads != shared:
        return dparams, dx
    dqkv = dx[0] if isinstance(dx, tuple) else dx
    dq, dk, dv = jnp.split(dqkv, 3, axis=-1)
    swapped = jnp.concatenate([dk, dq, dv], axis=-1)
    return dparams, (swapped, None) if isinstance(dx, tuple) else swapped


_MISTAKES: dict[str, Wrong] = {
    "without the scale in the backward": _Plain(scale=False),
    "the causal mask one position late: a query sees its successor": _Plain(later=1),
    "the causal mask one position early: a query does not see itself": _Plain(later=-1),
    "the causal mask one block late": _Plain(one_block_later=True),
    "without the rank-one term of the softmax": _Plain(rank_one=False),
    "dk and dv of the first query head of a group alone": _Plain(group_sum=False),
    "dv by the probabilities, not by their transpose": _Plain(dv_transposed=True),
    "dk by ds, not by its transpose": _Plain(dk_transposed=True),
    "the cotangents of q and k swapped": _q_and_k_swapped,
}
BUGS: Bugs = {"attention": _MISTAKES}
