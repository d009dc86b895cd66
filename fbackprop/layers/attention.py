"""attention: every query takes the mean of the values, weighted by the softmax of its products with the keys.

Shapes    x (..., T, (H + 2 K) C): q (H heads), k (K heads) and v (K heads) side by side; y (..., T, H C). With a padding
          mask, bool (..., T), True where a key may be attended: (x, mask) -> (y, mask)
Dtypes    floating; softmax in float32 and products accumulated in float32 when x is narrower; the cotangent of mask is None
Units     none
Forward   s = q k^T / sqrt(C), -inf where the mask or `causal` forbids; p = softmax s; y = p v. A group of H / K query heads
          shares one key/value head. A query that may attend to nothing: y = 0
Backward  dv = p^T dy; dp = dy v^T; ds = p (dp - rowsum(dy y)) / sqrt(C); dq = ds k; dk = ds^T q; dk and dv summed over the
          group. A query that may attend to nothing gives and gets zero
Keeps     x, the log-sum-exp of every row of s (T H numbers) and y: p is made again from the first two, never kept. y makes the
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

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..checks import expect, expect_floating, expect_params, expect_whole
from ..dtypes import wide, wide_dtype
from ..facts import Tuning, given
from ..layer import Layer
from ..params import Tree
from ..tuning import halves

FEW = 4  # tiles that are written out


def attention(heads: int, kv_heads: int | None = None, causal: bool = False, block: int | None = None) -> Layer:
    """softmax(q k^T / sqrt(C)) v. x (..., T, (heads + 2 kv_heads) C) -> y (..., T, heads C), or (x, mask) -> (y, mask).

    `kv_heads`: key/value heads, `heads` unless given; query head h reads key/value head h // (heads // kv_heads).
    `causal`: position t attends to 0..t. `block`: queries and keys of a tile, for memory linear in T; need not divide T.
    """
    heads = expect_whole("attention heads", heads)
    shared = heads if kv_heads is None else expect_whole("attention kv_heads", kv_heads)
    block = None if block is None else expect_whole("attention block", block)
    expect(heads % shared == 0, "attention kv_heads", f"a divisor of heads = {heads}", repr(kv_heads))

    def init(key: jax.Array, x: Any) -> Tree:
        _checked(x, heads + 2 * shared)
        return ()

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params)
        qkv, mask = _checked(x, heads + 2 * shared)
        steps = qkv.shape[-2]
        q, k, v, there = _blocks(qkv, mask, heads, shared, block)
        size = k.shape[-2]

        def tile(rows: Any, pair: Any) -> tuple[Any, None]:
            i, j = pair
            s = _product("...krc,...ksc->...krs", _at(i, q), _at(j, k)) / sqrt(q.shape[-1])
            s = _allowed(s, there, i, j, size if causal else None)
            return jax.tree.map(partial(_put, i), rows, _attend([_at(i, row) for row in rows], s, _at(j, v))), None

        zeros = wide(jnp.zeros(q.shape[:-1], q.dtype))  # (N, ..., K, R)
        rows = [wide(jnp.zeros(q.shape, q.dtype)), zeros, zeros - jnp.inf]
        y, mass, top = _walk(tile, rows, q, causal)
        mass = jnp.where(mass == 0, 1, mass)  # a query that may attend to nothing: y = 0, lse finite, exp(-inf - lse) = 0
        y = _packed(_ungrouped(y / _column(mass, y), heads), steps).astype(qkv.dtype)
        lse = jnp.where(top == -jnp.inf, 0, top) + jnp.log(mass)
        return (y if mask is None else (y, mask)), (qkv, mask, y, lse)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        qkv, mask, y, lse = residuals
        dy = dy if mask is None else dy[0]
        q, k, v, there = _blocks(qkv, mask, heads, shared, block)
        size = k.shape[-2]
        y, dy = (_grouped(_blocked(a, heads, size), shared) for a in (y, dy))
        mean = jnp.sum(wide(dy) * wide(y), axis=-1)  # rowsum(p dp): the rank-one term of the softmax

        def tile(sums: Any, pair: Any) -> tuple[Any, None]:
            i, j = pair
            # transposed, or XLA merges the product with the forward's and keeps the T x T of every layer in between
            s = _product("...ksc,...krc->...ksr", _at(j, k), _at(i, q)) / sqrt(q.shape[-1])
            s = _allowed(s, there, i, j, size if causal else None, transposed=True)
            p = jnp.exp(s - _row(_at(i, lse), s))
            pulled = _pull(p, _at(i, q), _at(j, k), _at(j, v), _at(i, dy), _at(i, mean))
            return [_put(at, a, _at(at, a) + da) for at, a, da in zip((i, j, j), sums, pulled)], None

        dq, dk, dv = _walk(tile, [wide(jnp.zeros_like(a)) for a in (q, k, v)], q, causal)
        dq, dk = dq / sqrt(q.shape[-1]), dk / sqrt(q.shape[-1])  # here: as part of ds it would be T x T numbers more
        dqkv = _packed(jnp.concatenate([_ungrouped(dq, heads), dk, dv], axis=-3), qkv.shape[-2]).astype(qkv.dtype)
        return (), dqkv if mask is None else (dqkv, None)

    options = given(attention, heads, kv_heads=kv_heads, causal=causal, block=block)
    tuning = Tuning(
        ("block",),
        lambda x: [{"block": size} for size in halves(block or jax.tree.leaves(x)[0].shape[-2], 32)],
        lambda setting: attention(heads, kv_heads, causal, setting["block"]))
    return Layer("attention", init, forward, backward, options, tuning=tuning)


def _checked(x: Any, parts: int) -> tuple[Any, Any]:
    """`(qkv, mask or None)`."""
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
        expect(hasattr(mask, "shape") and hasattr(mask, "dtype"), "mask", "one array", mask, error=TypeError)
        expect(mask.dtype == bool, "mask", "bool, True where a key may be attended", mask)
        expect(mask.shape == qkv.shape[:-1], "mask", f"a key per position, bool{list(qkv.shape[:-1])}", mask)
    return qkv, mask


# ---- blocks: the sequence cut in N pieces, which come first


def _blocks(qkv: jax.Array, mask: Any, heads: int, shared: int, block: int | None) -> tuple[Any, ...]:
    """q (N, ..., K, R, C), k and v (N, ..., K, S, C), and which keys are there, (N, ..., S) or None for all."""
    steps = qkv.shape[-2]
    size = min(block or steps, steps)
    q, k, v = jnp.split(_blocked(qkv, heads + 2 * shared, size), (heads, heads + shared), axis=-3)
    if mask is None and steps % size:
        mask = jnp.ones(steps, bool)  # the last block is filled up with keys that are not there
    there = None if mask is None else _blocked(mask[..., None], 1, size)[..., 0, :, 0]
    return _grouped(q, shared), k, v, there


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


def _at(i: Any, blocks: jax.Array) -> jax.Array:
    return lax.dynamic_slice(blocks, _start(i, blocks), (1, *blocks.shape[1:]))[0]


def _put(i: Any, blocks: jax.Array, block: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(blocks, block[None], _start(i, blocks))


def _start(i: Any, blocks: jax.Array) -> tuple[Any, ...]:
    return i, *[np.int32(0)] * (blocks.ndim - 1)


def _walk(tile: Callable[[Any, Any], tuple[Any, None]], carry: Any, q: jax.Array, causal: bool) -> Any:
    """`tile` on every pair (query block, key block) that may hold a weight."""
    count, rows, channels = len(q), *q.shape[-2:]
    pairs = np.array([(i, j) for i in range(count) for j in range(i + 1 if causal else count)], np.int32)
    few = len(pairs) <= FEW and rows <= 3 * count * channels  # the weights of a tile, of which XLA has several at a time: qkv
    if len(pairs) > 1 and not few:
        return lax.scan(tile, carry, pairs)[0]
    for pair in pairs:  # a loop copies the blocks it reads
        carry, _ = tile(carry, pair)
    return carry


# ---- one tile


def _column(row: jax.Array, like: jax.Array) -> jax.Array:
    """(..., T) -> (..., T, S): one number a row, written out."""
    return jnp.broadcast_to(row[..., None], like.shape)


def _row(row: jax.Array, like: jax.Array) -> jax.Array:
    """(..., R) -> (..., S, R)."""
    return jnp.broadcast_to(row[..., None, :], like.shape)


def _product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in the dtype of the layer's input `b`, accumulated in float32 when that is narrower."""
    return jnp.einsum(letters, a.astype(b.dtype), b, preferred_element_type=wide_dtype(b.dtype))


def _allowed(s: jax.Array, there: Any, i: Any, j: Any, causal: int | None, transposed: bool = False) -> jax.Array:
    """s (..., K, R, S) of query block i and key block j with -inf where a query may not look; causal: the size of a block."""
    rows, keys = (-1, -2) if transposed else (-2, -1)
    if there is not None:
        s = jnp.where(jnp.broadcast_to(jnp.expand_dims(_at(j, there), (-3, rows)), s.shape), s, -jnp.inf)
    if causal is not None:
        row, key = (block * causal + lax.iota(np.int32, s.shape[axis]) % causal for block, axis in ((i, rows), (j, keys)))
        row, key = (jnp.expand_dims(each, other) for each, other in ((row, keys), (key, rows)))  # not yet T x T: that is kept
        s = jnp.where(jnp.broadcast_to(key, s.shape) <= jnp.broadcast_to(row, s.shape), s, -jnp.inf)
    return s


def _attend(rows: Any, s: jax.Array, v: jax.Array) -> Any:
    """A tile into the running sum of exp(s - top) v, of exp(s - top), and the running maximum `top` of its queries."""
    y, mass, top = rows
    new = lax.stop_gradient(jnp.maximum(top, jnp.max(s, axis=-1)))
    base = jnp.where(new == -jnp.inf, 0, new)  # no key so far: exp(-inf - 0) = 0, where exp(-inf + inf) is NaN
    p, shrink = jnp.exp(s - _column(base, s)), jnp.exp(top - base)
    y = y * _column(shrink, y) + _product("...krs,...ksc->...krc", p, v)
    return [y, mass * shrink + jnp.sum(p, axis=-1), new]


def _pull(p: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array, mean: jax.Array) -> tuple[jax.Array, ...]:
    """(dq, dk, dv) of a tile from p (..., K, S, R), the first two times sqrt(C); dk and dv sum over all rows of the group."""
    dp = _product("...ksc,...krc->...ksr", v, dy)
    ds = p * (dp - _row(mean, dp))
    return (_product("...ksr,...ksc->...krc", ds, k), _product("...ksr,...krc->...ksc", ds, q),
            _product("...ksr,...krc->...ksc", p, dy))
