"""attention: every query takes the mean of the values, weighted by the softmax of its products with the keys.

Shapes    x (..., T, (H + 2 K) C): q (H heads), k (K heads) and v (K heads) side by side; y (..., T, H C). With a padding
          mask, bool (..., T), True where a key may be attended: (x, mask) -> (y, mask)
Dtypes    floating; softmax in float32 and products accumulated in float32 when x is narrower; the cotangent of mask is None
Units     none
Forward   s = q k^T / sqrt(C), -inf where the mask or `causal` forbids; p = softmax s; y = p v. A group of H / K query heads
          shares one key/value head. A query that may attend to nothing: y = 0
Backward  dv = p^T dy; dp = dy v^T; ds = p (dp - rowsum(dy y)) / sqrt(C); dq = ds k; dk = ds^T q; dk and dv summed over the
          group. A query that may attend to nothing gives and gets zero
Keeps     x, the log-sum-exp of every row of s (T H numbers) and y: p is recomputed from the first two, never kept. y makes the
          rank-one term rowsum(dy y) = rowsum(p dp) known before the first block; it is usually the next dense's input,
          stored anyway
At kinks  none: the maximum that is subtracted cancels
Raises    TypeError: params that are not (), x neither an array nor a pair; ValueError: heads that do not divide, T = 0, a mask
          of another shape or dtype, x not floating
Source    Vaswani et al. 2017, section 3.2; groups: Ainslie et al. 2023, section 2.2; blocks: Milakov and Gimelshein 2018,
          section 3, and Dao et al. 2022, section 3.1; derivation in docs/derivations/attention.md

With `block` no array is T x T: the products are walked in tiles of block x block with a running maximum and sum, so memory is
linear in T; under `causal` the tiles above the diagonal are left out. A few small tiles are written out, more are scanned.
Axis letters: N blocks, T queries and S keys of a block, K key/value heads, R rows: the queries of all heads that share a
key/value head, C channels.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_array, expect_floating, expect_whole
from ..dtypes import wide
from ..facts import given
from ..layer import Layer
from .algebra import column, einsum
from .kernels.tiles import at, put, softmax_step, tile_size, tile_tuning, walk
from .parameterless import parameterless

FEW = 4  # tiles that are written out


class _Form(NamedTuple):
    """The options of attention: query heads, key/value heads, whether causal, the tile."""

    heads: int
    shared: int
    causal: bool
    block: int | None


class _Blocks(NamedTuple):
    """The sequence cut in N blocks: q (N, ..., K, R, C), k and v (N, ..., K, S, C).

    there: which keys are there, (N, ..., S), None for all.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    there: jax.Array | None


@by_name("embed_dim heads", "the width is taken from x")
def attention(heads: int, *, kv_heads: int | None = None, causal: bool = False,
              block: int | None = None) -> Layer:
    """softmax(q k^T / sqrt(C)) v. x (..., T, (heads + 2 kv_heads) C) -> y (..., T, heads C), or (x, mask) -> (y, mask).

    `kv_heads`: key/value heads, `heads` unless given; query head h reads key/value head h // (heads // kv_heads).
    `causal`: position t attends to 0..t. `block`: queries and keys of a tile, for memory linear in T; need not divide T.
    """
    heads = expect_whole("attention heads", heads)
    shared = heads if kv_heads is None else expect_whole("attention kv_heads", kv_heads)
    block = None if block is None else expect_whole("attention block", block)
    expect(heads % shared == 0, "attention kv_heads", f"a divisor of heads = {heads}", repr(kv_heads))
    form = _Form(heads, shared, causal, block)
    chosen: dict[str, Any] = {"kv_heads": kv_heads, "causal": causal}
    options = given(attention, heads, **chosen, block=block)
    tuning = tile_tuning("block", block, lambda x: jax.tree.leaves(x)[0].shape[-2],
                         lambda size: attention(heads, **chosen, block=size))
    return parameterless("attention", partial(_forward, form), partial(_backward, form), options,
                         partial(_checked, form), tuning)


def _checked(form: _Form, x: Any) -> tuple[Any, Any]:
    """`(qkv, mask or None)`."""
    parts = form.heads + 2 * form.shared
    paired = isinstance(x, (tuple, list))
    expect(not paired or len(x) == 2, "x", "qkv or a pair (qkv, mask)", x, error=TypeError)
    qkv: Any = x[0] if paired else x
    mask: Any = x[1] if paired else None
    expect_floating(qkv=qkv)
    expect(qkv.ndim >= 2 and qkv.shape[-1] > 0 and qkv.shape[-1] % parts == 0, "qkv",
           f"(..., T, {parts} C): queries, keys and values of {parts} heads in all, side by side", qkv,
           f"A dense({parts} * C) in front makes them")
    expect(qkv.shape[-2] > 0, "qkv", "at least one position", qkv, "A mean over nothing has no value")
    if paired:
        expect_array("mask", mask)
        expect(mask.dtype == bool, "mask", "bool, True where a key may be attended", mask)
        expect(mask.shape == qkv.shape[:-1], "mask", f"a key per position, bool{list(qkv.shape[:-1])}", mask)
    return qkv, mask


def _forward(form: _Form, x: Any) -> tuple[Any, Any]:
    qkv, mask = _checked(form, x)
    blocks = _blocks(form, qkv, mask)
    q = blocks.q
    zeros = wide(jnp.zeros(q.shape[:-1], q.dtype))  # (N, ..., K, R)
    rows = [wide(jnp.zeros(q.shape, q.dtype)), zeros, zeros - jnp.inf]
    y, mass, top = walk(partial(_attend, form, blocks), rows, *_pairs(form, q))
    # a query that may attend to nothing: y = 0, lse finite, exp(-inf - lse) = 0
    mass = jnp.where(mass == 0, 1, mass)
    y = _packed(_ungrouped(y / column(mass, y), form.heads), qkv.shape[-2]).astype(qkv.dtype)
    lse = jnp.where(top == -jnp.inf, 0, top) + jnp.log(mass)
    return (y if mask is None else (y, mask)), (qkv, mask, y, lse)


def _attend(form: _Form, blocks: _Blocks, rows: list[jax.Array], pair: Any) -> list[jax.Array]:
    """A tile into the sums of exp(s - top) v and of exp(s - top), top the maximum so far."""
    i, j = pair
    s = einsum("...krc,...ksc->...krs", at(blocks.q, i), at(blocks.k, j)) / sqrt(blocks.q.shape[-1])
    s = _allowed(form, blocks, s, i, j)
    y, mass, top = (at(row, i) for row in rows)
    v = at(blocks.v, j)
    top, p, shrink = softmax_step(top, s)
    y = y * column(shrink, y) + einsum("...krs,...ksc->...krc", p, v)
    mass = mass * shrink + jnp.sum(p, axis=-1)
    return [put(row, new[None], i) for row, new in zip(rows, (y, mass, top))]


def _backward(form: _Form, residuals: Any, dy: Any) -> Any:
    qkv, mask, y, lse = residuals
    dy = dy if mask is None else dy[0]
    blocks = _blocks(form, qkv, mask)
    q, k, v, _ = blocks
    y, dy = (_grouped(_blocked(a, form.heads, k.shape[-2]), form.shared) for a in (y, dy))
    mean = jnp.sum(wide(dy) * wide(y), axis=-1)  # rowsum(p dp): the rank-one term of the softmax
    sums = [wide(jnp.zeros_like(a)) for a in (q, k, v)]
    dq, dk, dv = walk(partial(_pull, form, blocks, lse, dy, mean), sums, *_pairs(form, q))
    root = sqrt(q.shape[-1])
    dq, dk = dq / root, dk / root  # here: as part of ds it would be T x T numbers more
    blocked = jnp.concatenate([_ungrouped(dq, form.heads), dk, dv], axis=-3)
    dqkv = _packed(blocked, qkv.shape[-2]).astype(qkv.dtype)
    return dqkv if mask is None else (dqkv, None)


def _pull(form: _Form, blocks: _Blocks, lse: jax.Array, dy: jax.Array, mean: jax.Array,
          sums: list[jax.Array], pair: Any) -> list[jax.Array]:
    """A tile's dq sqrt(C), dk sqrt(C) and dv added to the sums, dk and dv of a whole group."""
    i, j = pair
    # transposed, or XLA merges the product with the forward's and keeps every layer's T x T
    s = einsum("...ksc,...krc->...ksr", at(blocks.k, j), at(blocks.q, i)) / sqrt(blocks.q.shape[-1])
    s = _allowed(form, blocks, s, i, j, transposed=True)
    p = jnp.exp(s - _row(at(lse, i), s))
    q, k, v, dy, mean = at(blocks.q, i), at(blocks.k, j), at(blocks.v, j), at(dy, i), at(mean, i)
    dp = einsum("...ksc,...krc->...ksr", v, dy)
    ds = p * (dp - _row(mean, dp))
    dq = einsum("...ksr,...ksc->...krc", ds, k)
    dk = einsum("...ksr,...krc->...ksc", ds, q)
    dv = einsum("...ksr,...krc->...ksc", p, dy)
    return [put(total, (at(total, spot) + part)[None], spot)
            for spot, total, part in zip((i, j, j), sums, (dq, dk, dv))]


def _pairs(form: _Form, q: jax.Array) -> tuple[np.ndarray, int]:
    """Every (query block, key block) that may hold a weight; how many may be written out."""
    count, rows, channels = len(q), *q.shape[-2:]
    pairs = [(i, j) for i in range(count) for j in range(i + 1 if form.causal else count)]
    # the weights of a tile, of which XLA has several at a time, against qkv
    return np.array(pairs, np.int32), FEW if rows <= 3 * count * channels else 1


def _allowed(form: _Form, blocks: _Blocks, s: jax.Array, i: Any, j: Any,
             transposed: bool = False) -> jax.Array:
    """s (..., K, R, S) of query block i and key block j with -inf where a query may not look."""
    rows, keys = (-1, -2) if transposed else (-2, -1)
    size = blocks.k.shape[-2]
    if blocks.there is not None:
        there = jnp.expand_dims(at(blocks.there, j), (-3, rows))
        s = jnp.where(jnp.broadcast_to(there, s.shape), s, -jnp.inf)
    if form.causal:
        row, key = (block * size + lax.iota(np.int32, s.shape[axis]) % size
                    for block, axis in ((i, rows), (j, keys)))
        row, key = jnp.expand_dims(row, keys), jnp.expand_dims(key, rows)  # not yet T x T
        forward = jnp.broadcast_to(key, s.shape) <= jnp.broadcast_to(row, s.shape)
        s = jnp.where(forward, s, -jnp.inf)
    return s


def _row(row: jax.Array, like: jax.Array) -> jax.Array:
    """(..., R) -> (..., S, R)."""
    return jnp.broadcast_to(row[..., None, :], like.shape)


# ---- blocks: the sequence cut in N pieces, which come first


def _blocks(form: _Form, qkv: jax.Array, mask: Any) -> _Blocks:
    heads, shared, steps = form.heads, form.shared, qkv.shape[-2]
    size = tile_size(steps, form.block)
    q, k, v = jnp.split(_blocked(qkv, heads + 2 * shared, size), (heads, heads + shared), axis=-3)
    if mask is None and steps % size:
        mask = jnp.ones(steps, bool)  # the last block is filled up with keys that are not there
    there = None if mask is None else _blocked(mask[..., None], 1, size)[..., 0, :, 0]
    return _Blocks(_grouped(q, shared), k, v, there)


def _blocked(x: jax.Array, heads: int, size: int) -> jax.Array:
    """(..., T, heads C) -> (N, ..., heads, size, C), filled up with zeros."""
    *leading, steps, width = x.shape
    count = -(-steps // size)
    x = jnp.pad(x, [(0, 0)] * len(leading) + [(0, count * size - steps), (0, 0)])
    return jnp.moveaxis(x.reshape(*leading, count, size, heads, width // heads), (-4, -2), (0, -3))


def _packed(blocks: jax.Array, steps: int) -> jax.Array:
    """(N, ..., heads, size, C) -> (..., T, heads C): the inverse of `_blocked`."""
    x = jnp.moveaxis(blocks, (0, -3), (-4, -2))  # (..., N, size, heads, C)
    *leading, count, size, heads, width = x.shape
    return x.reshape(*leading, count * size, heads * width)[..., :steps, :]


def _grouped(blocks: jax.Array, shared: int) -> jax.Array:
    """(N, ..., H, T, C) -> (N, ..., K, R, C), R = T H / K: more rows, not an axis more, for XLA would copy T x T to move it."""
    *leading, heads, size, width = blocks.shape
    return blocks.reshape(*leading, shared, heads // shared * size, width)


def _ungrouped(blocks: jax.Array, heads: int) -> jax.Array:
    """(N, ..., K, R, C) -> (N, ..., H, T, C)."""
    *leading, shared, rows, width = blocks.shape
    return blocks.reshape(*leading, heads, rows * shared // heads, width)
