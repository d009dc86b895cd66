"""linear_cross_entropy: the last dense and its cross-entropy in one, so that the logits are never whole in memory.

Shapes    h (..., D), target (...) of class numbers 0..V-1, w (V, D), b (V,); a scalar value. N rows, smoothing a
Dtypes    floating, all equal; products accumulate in float32 when inputs are narrower, value float32; the cotangent of
          class numbers is None
Units     nats; mean over the rows that are not ignored, M of them
Forward   x = h w^T + b; l = lse(x) - (1 - a) x[target] - a mean(x) over V; value = sum l / M
Backward  g = p - (1 - a) one_hot - a / V, 0 in ignored rows; dh = g w / M; dw = g^T h / M; db = sum of g over rows / M;
          times dvalue. M = 0: value and cotangents are 0
Keeps     dh, dw and db but for dvalue: a value has one cotangent, a number, so they are made while a tile's x is there (3
          products; no residual is larger than what the backward returns). Tiles of classes keep h, target and the log-sum-exp
          of every row instead, and make x again when all lse are known (4 products). One number a row is enough, for x carries
          the rounding of its own dot product, as large as that of lse
At kinks  none
Raises    TypeError: params without w (and b), no pair; ValueError: shapes, dtypes, an empty mean. A class number outside 0..V-1
          that is not ignore_index gives NaN, in the value and in its row of dh: values cannot raise inside jit
Source    elementary; tiles with a running maximum: Milakov and Gimelshein 2018, section 3; gradients in the forward: Hsu et
          al. 2024, Liger Kernel, section 3.2; derivation in docs/derivations/losses.md

A tile is some rows by some classes: `chunk` tokens by all classes, or all tokens by `chunk` classes. Where the chunk does not
divide, the last tile overlaps the one before it and leaves out what has been counted: no padded copy of h or w is made.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
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
from .cross_entropy import column
from .inputs import check_options, class_numbers, expect_array, inverse, is_index, several

Initializer = Callable[..., jax.Array]
AXES = ("tokens", "vocabulary")


def linear_cross_entropy(vocabulary: int, chunk: int | None = None, axis: str = "tokens", bias: bool = False,
                         label_smoothing: float = 0.0, ignore_index: int | None = None,
                         w_init: Initializer | None = None) -> Layer:
    """The mean cross-entropy of the logits h w^T + b: a net's head and its loss. Input (h (..., D), target (...)).

    params {"w": (vocabulary, D)}, as an embedding's table, and "b" (vocabulary,) with bias=True. `chunk`: tokens or, with
    axis="vocabulary", classes whose logits exist at a time; None: all. `label_smoothing` and `ignore_index` as in
    `softmax_cross_entropy`. Its inference twin takes the same (h, target), ignores target (None will do) and gives logits.
    """
    vocabulary = expect_whole("linear_cross_entropy vocabulary", vocabulary)
    chunk = None if chunk is None else expect_whole("linear_cross_entropy chunk", chunk)
    expect(axis in AXES, "linear_cross_entropy axis", " or ".join(map(repr, AXES)), repr(axis))
    check_options(label_smoothing, ignore_index)
    a = label_smoothing
    # a row of w is one class, so fan-in is its last axis
    made_with: dict[str, Any] = {"axis": axis, "bias": bias, "label_smoothing": a, "ignore_index": ignore_index,
                                 "w_init": w_init}
    w_init = w_init or jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    names = ("w", "b") if bias else ("w",)

    def init(key: jax.Array, x: Any) -> Tree:
        h, _ = several(x)
        expect_floating(h=h)
        shape = (vocabulary, h.shape[-1])
        w = w_init(key, shape, h.dtype) if min(shape) else jnp.zeros(shape, h.dtype)
        return {"w": w, "b": jnp.zeros(vocabulary, h.dtype)} if bias else {"w": w}

    at_once = axis == AXES[0]  # a tile has all classes of its rows: g is known as soon as the logits are

    def forward(params: Tree, x: Any) -> tuple[jax.Array, Any]:
        h, target = _checked(params, x, names, vocabulary)
        expect(h.size > 0, "h", "at least one row", h, "Is the batch empty?")
        expect_array("target", target)
        rows, labels = _rows(h), class_numbers(target, h.shape[:-1]).reshape(-1)
        n = len(labels)

        def tile(carry: Any, spot: Any) -> tuple[Any, None]:
            so_far, sums = carry
            (r, _), _ = spot
            top, mass, picked, spread = (_take(each, r, size[0]) for each in so_far)
            x, hot, fresh, w = _tile(params, rows, labels, spot, size)
            picked = picked + _picked(x, labels, spot)
            spread = spread + jnp.sum(jnp.where(fresh, x, 0), axis=-1) if a else spread
            x = jnp.where(fresh, x, -jnp.inf)
            new = lax.stop_gradient(jnp.maximum(top, jnp.max(x, axis=-1)))
            base = jnp.where(new == -jnp.inf, 0, new)  # no class so far: exp(-inf - 0) = 0, where exp(-inf + inf) is NaN
            p = jnp.exp(x - column(base, x))
            mass = mass * jnp.exp(top - base) + jnp.sum(p, axis=-1)
            so_far = tuple(_put(each, now, r) for each, now in zip(so_far, (new, mass, picked, spread)))
            if at_once:
                p = p * column(1 / mass, p)  # made from the exp above: a second one would cost as much as half a product
                sums = pull(sums, p, hot, fresh, w, rows, labels, spot, early)
            return (so_far, sums), None

        share = share_of(labels, h.dtype)
        early, late = _early_and_late(share, h.dtype)
        size = _tile_size(n, vocabulary, chunk, axis)
        zeros = wide(jnp.zeros(n, h.dtype))
        start = (zeros - jnp.inf, zeros, zeros, zeros), (_sums(rows, params["w"]) if at_once else ())
        (top, mass, picked, spread), sums = _walk(tile, start, (n, vocabulary), size)
        lse = top + jnp.log(mass)
        losses = lse - (1 - a) * picked - a / vocabulary * spread
        losses = jnp.where(_legal(labels, vocabulary), losses, jnp.nan)
        value = jnp.sum(jnp.where(is_index(labels, ignore_index), 0, losses)) * share
        if not at_once:
            return value, (h, labels, lse)
        dh, *dparams = sums
        return value, (dh.astype(h.dtype).reshape(h.shape), dparams, late)

    def pull(sums: Any, p: jax.Array, hot: jax.Array, fresh: jax.Array, w: jax.Array, rows: jax.Array, labels: jax.Array,
             spot: Any, early: Any) -> Any:
        """A tile's part of dh, dw and db, times `early`."""
        (dh, dw, db), ((r, c), _), n = sums, spot, len(p)
        ignored = column(_take(is_index(labels, ignore_index), r, n), p)
        g = p - jnp.where(hot, 1 - a, 0) - a / vocabulary
        g = jnp.where(column(_take(_legal(labels, vocabulary), r, n), g), g, jnp.nan)
        g = jnp.where(fresh & ~ignored, g * early, 0)
        dh = _add(dh, _product("nv,vd->nd", g, w), r)
        dw = _add(dw, _product("nv,nd->vd", g, _take(rows, r, n)), c)
        return dh, dw, _add(db, jnp.sum(g, axis=0), c) if bias else db

    def again(params: Tree, h: jax.Array, labels: jax.Array, lse: jax.Array) -> tuple[Any, ...]:
        """The same from logits made a second time: a tile of some classes cannot know lse before the last has been seen."""
        rows = _rows(h)

        def tile(sums: Any, spot: Any) -> tuple[Any, None]:
            (r, _), _ = spot
            x, hot, fresh, w = _tile(params, rows, labels, spot, size)
            p = jnp.exp(x - column(_take(lse, r, size[0]), x))
            return pull(sums, p, hot, fresh, w, rows, labels, spot, early), None

        early, late = _early_and_late(share_of(labels, h.dtype), h.dtype)
        size = _tile_size(len(labels), vocabulary, chunk, axis)
        dh, *dparams = _walk(tile, _sums(rows, params["w"]), (len(labels), vocabulary), size)
        return dh.reshape(h.shape), dparams, late

    def share_of(labels: jax.Array, dtype: Any) -> jax.Array:
        """1 / M."""
        return inverse(jnp.sum(jnp.where(is_index(labels, ignore_index), 0, jnp.ones(labels.shape, wide_dtype(dtype)))))

    def backward(params: Tree, residuals: Any, dvalue: jax.Array) -> tuple[Tree, Any]:
        dh, (dw, db), late = residuals if at_once else again(params, *residuals)
        dtype, scale = params["w"].dtype, dvalue if late is None else dvalue * late
        dh, dw, db = ((wide(total) * scale).astype(dtype) for total in (dh, dw, db))
        return {"w": dw, "b": db} if bias else {"w": dw}, (dh, None)

    options = given(linear_cross_entropy, vocabulary, chunk=chunk, **made_with)
    tuning = Tuning(
        ("chunk",),
        lambda x: [{"chunk": size} for size in halves(chunk or _whole(x, vocabulary, axis), 32)],
        lambda setting: linear_cross_entropy(vocabulary, setting["chunk"], **made_with))
    return Layer("linear_cross_entropy", init, forward, backward, options, tuning=tuning,
                 inference=_linear_logits(vocabulary, init, names))


def _whole(x: Any, vocabulary: int, axis: str) -> int:
    return prod(x[0].shape[:-1]) if axis == AXES[0] else vocabulary


def _linear_logits(vocabulary: int, init: Any, names: tuple[str, ...]) -> Layer:
    """(h, anything) -> h w^T + b: the head out of training."""

    def forward(params: Tree, x: Any) -> tuple[jax.Array, jax.Array]:
        h, _ = _checked(params, x, names, vocabulary)
        y = _logits(h, params["w"], params.get("b"))
        return y.astype(h.dtype), h

    def backward(params: Tree, h: jax.Array, dy: jax.Array) -> tuple[Tree, Any]:
        dh = _product("...v,vd->...d", dy, params["w"]).astype(h.dtype)
        dw = _product("nv,nd->vd", _rows(dy), _rows(h)).astype(h.dtype)
        db = jnp.sum(wide(_rows(dy)), axis=0).astype(h.dtype)
        return {"w": dw, "b": db} if "b" in names else {"w": dw}, (dh, None)

    return Layer("linear_logits", init, forward, backward, given(_linear_logits, vocabulary))


def _checked(params: Tree, x: Any, names: tuple[str, ...], vocabulary: int) -> tuple[jax.Array, Any]:
    expect_params(params, *names)
    h, target = several(x)
    expect_floating(h=h, **params)
    w = params["w"]
    expect(w.ndim == 2 and len(w) == vocabulary, "w", f"({vocabulary}, D)", w)
    expect(h.ndim >= 1 and h.shape[-1] == w.shape[1], "h", f"a last axis of {w.shape[1]}, the columns of w", h)
    if "b" in names:
        expect(params["b"].shape == (vocabulary,), "b", f"({vocabulary},)", params["b"])
    return h, target


def _rows(h: jax.Array) -> jax.Array:
    return h.reshape(prod(h.shape[:-1]), h.shape[-1])


def _legal(labels: jax.Array, vocabulary: int) -> jax.Array:
    return (labels >= 0) & (labels < vocabulary)


def _product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in the dtype of `b`, accumulated in float32 when that is narrower."""
    return jnp.einsum(letters, a.astype(b.dtype), b, preferred_element_type=wide_dtype(b.dtype))


def _logits(h: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
    x = _product("...d,vd->...v", h, w)
    return x if b is None else x + jnp.broadcast_to(b.astype(x.dtype), x.shape)


def _early_and_late(share: jax.Array, dtype: Any) -> tuple[Any, Any]:
    """1 / M in two: a factor of every tile's g and one of the sums. The first is free, the second a pass over dw; but
    in float16 g / M is too small.
    """
    return (1, share) if dtype == jnp.float16 else (share, None)


# ---- tiles: rows by classes


def _tile_size(rows: int, classes: int, chunk: int | None, axis: str) -> tuple[int, int]:
    along_rows = axis == AXES[0]
    return min(chunk or rows, rows) if along_rows else rows, classes if along_rows else min(chunk or classes, classes)


def _walk(tile: Callable, carry: Any, whole: tuple[int, int], size: tuple[int, int]) -> Any:
    """`tile` at every spot ((first row, first class), (first row, first class not counted before)); one needs no loop."""
    firsts = [(r, c) for r in range(0, whole[0], size[0]) for c in range(0, whole[1], size[1])]
    starts = [(min(r, whole[0] - size[0]), min(c, whole[1] - size[1])) for r, c in firsts]
    if len(firsts) == 1:
        return tile(carry, (starts[0], firsts[0]))[0]
    return lax.scan(tile, carry, (np.array(starts, np.int32), np.array(firsts, np.int32)))[0]


def _tile(params: Tree, rows: jax.Array, labels: jax.Array, spot: Any, size: tuple[int, int]) -> tuple[jax.Array, ...]:
    """Of some rows and classes: logits, where the target's stand, which were not counted before, and those rows of w."""
    (r, c), first = spot
    w = _take(params["w"], c, size[1])
    b = _take(params["b"], c, size[1]) if "b" in params else None
    x = _logits(_take(rows, r, size[0]), w, b)  # (n, v)
    row, label = (start + lax.broadcasted_iota(np.int32, x.shape, axis) for axis, start in enumerate((r, c)))
    hot = column(_take(labels, r, size[0]), x) == label.astype(labels.dtype)
    overlap = len(rows) % size[0] or len(params["w"]) % size[1]
    return x, hot, (row >= first[0]) & (label >= first[1]) if overlap else jnp.array(True), w


def _picked(x: jax.Array, labels: jax.Array, spot: Any) -> jax.Array:
    """A tile's x at its rows' labels, 0 where the label is not among its classes or the row has been counted."""
    (r, c), first = spot
    label, row = _take(labels, r, len(x)), r + lax.iota(np.int32, len(x))
    first_class, start, stop = (jnp.asarray(number, label.dtype) for number in (first[1], c, c + x.shape[1]))
    there = (row >= first[0]) & (label >= first_class) & (label < stop)
    return jnp.where(there, jnp.take_along_axis(x, jnp.where(there, label - start, 0)[:, None], axis=1)[:, 0], 0)


def _sums(rows: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
    """dh, dw and db before the first tile."""
    return tuple(wide(jnp.zeros(shape, w.dtype)) for shape in (rows.shape, w.shape, w.shape[:1]))


def _take(a: jax.Array, start: Any, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(a, start, size)


def _put(a: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(a, part, start, 0)


def _add(a: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    return _put(a, _take(a, start, len(part)) + part, start)
