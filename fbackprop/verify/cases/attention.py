"""Cases and mistakes of attention."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...layers.attention import attention
from ...params import Tree
from .case import Bugs, Case, Draw, Right, normal


def masked(*sizes: int, all_of_first: bool = False) -> Draw:
    """Draws qkv and a mask that leaves the first key and about two thirds of the others.

    all_of_first: the mask leaves no key in the first row.
    """
    def draw(rng: np.random.Generator) -> Any:
        mask = rng.random(sizes[:-1]) < 2 / 3
        mask[..., 0] = True
        if all_of_first:
            mask[0] = False
        return rng.standard_normal(sizes), mask

    return draw


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
    Case("attention", attention(1, block=3), normal(2, 7, 6, scale=4), "large scores"),
    Case("attention", attention(1, causal=True), normal(5, 3), "one example, one channel"),
    Case("attention", attention(2), normal(3, 1, 18), "one position"),
    Case("attention", attention(2, block=2), normal(0, 5, 18), "empty batch"),
)


def plain(right: Right, *, scale: bool = True, later: int = 0, one_block_later: bool = False,
          rank_one: bool = True, group_sum: bool = True, dv_transposed: bool = False,
          dk_transposed: bool = False) -> tuple[Tree, Any]:
    """Returns the gradients by the rule with its T x T matrices in full; every option is a mistake.

    later: how many positions later than its own a query may look, under causal.
    """
    qkv, mask, dy = right.x, None, right.dy
    if isinstance(qkv, tuple):
        (qkv, mask), dy = qkv, dy[0]
    *leading, steps, _ = qkv.shape
    heads = right.options["heads"]
    shared = right.options.get("kv_heads", heads)
    split = jnp.moveaxis(qkv.reshape(*leading, steps, heads + 2 * shared, -1), -2, -3)
    grouped = lambda a: a.reshape(*leading, shared, heads // shared, steps, -1)
    q, k, v = jnp.split(split, (heads, heads + shared), axis=-3)
    q = grouped(q)
    dy = grouped(jnp.moveaxis(dy.reshape(*leading, steps, heads, -1), -2, -3))
    s = jnp.einsum("...kgtc,...ksc->...kgts", q, k) / sqrt(q.shape[-1])

    def weights(later: int) -> Any:
        """exp(s) where a query may look `later` positions further than it may."""
        latest = later if "causal" in right.options else steps
        may = jnp.tril(jnp.ones((steps, steps), bool), latest)
        may = jnp.broadcast_to(may, s.shape)
        if mask is not None:
            may = may & jnp.broadcast_to(mask[..., None, None, None, :], s.shape)
        return jnp.where(may, jnp.exp(s), 0)

    mass = jnp.sum(weights(0), axis=-1, keepdims=True)
    seen = weights(right.options.get("block", steps) if one_block_later else later)
    p = seen / jnp.broadcast_to(jnp.where(mass == 0, 1, mass), s.shape)
    dp = jnp.einsum("...kgtc,...ksc->...kgts", dy, v)
    mean = jnp.sum(p * dp, axis=-1, keepdims=True) * rank_one
    ds = p * (dp - jnp.broadcast_to(mean, dp.shape)) / (sqrt(q.shape[-1]) if scale else 1)
    turned = lambda a, yes: jnp.swapaxes(a, -1, -2) if yes else a
    group = slice(None) if group_sum else slice(0, 1)
    to_keys = lambda a, b: jnp.einsum("...kgts,...kgtc->...ksc", a[..., :, group, :, :], b[..., :, group, :, :])
    dq = jnp.einsum("...kgts,...ksc->...kgtc", ds, k).reshape(*leading, heads, steps, -1)
    dk, dv = to_keys(turned(ds, dk_transposed), q), to_keys(turned(p, dv_transposed), dy)
    dx = jnp.moveaxis(jnp.concatenate([dq, dk, dv], axis=-3), -2, -3).reshape(qkv.shape)
    return (), dx if mask is None else (dx, None)


def _q_and_k_swapped(right: Right) -> tuple[Tree, Any]:
    heads = right.options["heads"]
    if heads != right.options.get("kv_heads", heads):
        return right.gradients
    dqkv, *dmask = right.dx if isinstance(right.dx, tuple) else (right.dx,)
    dq, dk, dv = jnp.split(dqkv, 3, axis=-1)
    swapped = jnp.concatenate([dk, dq, dv], axis=-1)
    return (), (swapped, *dmask) if dmask else swapped


BUGS: Bugs = {"attention": {
    "without the scale in the backward": partial(plain, scale=False),
    "the causal mask one position late: a query sees its successor": partial(plain, later=1),
    "the causal mask one position early: a query does not see itself": partial(plain, later=-1),
    "the causal mask one block late": partial(plain, one_block_later=True),
    "without the rank-one term of the softmax": partial(plain, rank_one=False),
    "dk and dv of the first query head of a group alone": partial(plain, group_sum=False),
    "dv by the probabilities, not by their transpose": partial(plain, dv_transposed=True),
    "dk by ds, not by its transpose": partial(plain, dk_transposed=True),
    "the cotangents of q and k swapped": _q_and_k_swapped,
}}
