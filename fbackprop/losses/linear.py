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

from functools import partial
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_array, expect_floating, expect_params, expect_whole
from ..dtypes import wide, wide_dtype
from ..facts import given
from ..layer import Layer
from ..layers.algebra import Initializer, bias_gradient, column, draw, einsum, plus_bias, rows
from ..layers.kernels.tiles import add, put, softmax_step, take, tile_size, tile_tuning, walk
from ..params import Tree
from .cross_entropy import legal
from .inputs import check_options, class_numbers, inverse, is_index, several
from .weight import token_weight

Axis: TypeAlias = Literal["tokens", "vocabulary"]
AXES: tuple[Axis, ...] = get_args(Axis)


class _Form(NamedTuple):
    """The options of linear_cross_entropy, `names` those of its params."""

    vocabulary: int
    chunk: int | None
    axis: Axis
    names: tuple[str, ...]
    smoothing: float
    ignore_index: int | None

    @property
    def at_once(self) -> bool:
        """Whether a tile has all classes of its rows: g is known as soon as the logits are."""
        return self.axis == AXES[0]


@by_name()
def linear_cross_entropy(vocabulary: int, *, chunk: int | None = None, axis: Axis = "tokens",
                         bias: bool = False, label_smoothing: float = 0.0,
                         ignore_index: int | None = None,
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
    names = ("w", "b")[: 1 + bias]
    form = _Form(vocabulary, chunk, axis, names, label_smoothing, ignore_index)
    made_with: dict[str, Any] = {"axis": axis, "bias": bias, "label_smoothing": label_smoothing,
                                 "ignore_index": ignore_index, "w_init": w_init}
    # a row of w is one class, so fan-in is its last axis
    init = partial(_init, form, w_init or jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2))
    whole = lambda x: prod(x[0].shape[:-1]) if form.at_once else vocabulary
    tuning = tile_tuning("chunk", chunk, whole,
                         lambda size: linear_cross_entropy(vocabulary, chunk=size, **made_with))
    return Layer("linear_cross_entropy", init, partial(_forward, form), partial(_backward, form),
                 given(linear_cross_entropy, vocabulary, chunk=chunk, **made_with), tuning=tuning,
                 inference=_linear_logits(form, init), weight=token_weight(ignore_index=ignore_index))


def _init(form: _Form, w_init: Initializer, key: jax.Array, x: Any) -> Tree:
    h, _ = several(x)
    expect_floating(h=h)
    w = draw(w_init, key, (form.vocabulary, h.shape[-1]), h.dtype)
    return {"w": w, "b": jnp.zeros(form.vocabulary, h.dtype)} if "b" in form.names else {"w": w}


def _forward(form: _Form, params: Tree, x: Any) -> tuple[jax.Array, Any]:
    h, target = _checked(form, params, x)
    expect(h.size > 0, "h", "at least one row", h, "Is the batch empty?")
    expect_array("target", target)
    flat, labels = rows(h), class_numbers(target, h.shape[:-1]).reshape(-1)
    tiles = _tiles(form, params, flat, labels)
    zeros = wide(jnp.zeros(len(labels), h.dtype))
    start = (zeros - jnp.inf, zeros, zeros, zeros), (_no_sums(tiles) if form.at_once else ())
    (top, mass, picked, spread), sums = walk(partial(_see, tiles), start, _spots(tiles))
    lse, a = top + jnp.log(mass), form.smoothing
    losses = lse - (1 - a) * picked - a / form.vocabulary * spread
    losses = jnp.where(legal(labels, form.vocabulary), losses, jnp.nan)
    value = jnp.sum(jnp.where(is_index(labels, form.ignore_index), 0, losses)) * tiles.share
    if not form.at_once:
        return value, (h, labels, lse)
    dh, *dparams = sums
    return value, (dh.astype(h.dtype).reshape(h.shape), dparams, tiles.late)


def _backward(form: _Form, params: Tree, residuals: Any, dvalue: jax.Array) -> tuple[Tree, Any]:
    dh, (dw, db), late = residuals if form.at_once else _see_again(form, params, *residuals)
    dtype, scale = params["w"].dtype, dvalue if late is None else dvalue * late
    dh, dw, db = ((wide(total) * scale).astype(dtype) for total in (dh, dw, db))
    return {"w": dw, "b": db} if "b" in form.names else {"w": dw}, (dh, None)


def _see_again(form: _Form, params: Tree, h: jax.Array, labels: jax.Array,
               lse: jax.Array) -> tuple[Any, ...]:
    """dh, dw and db from logits recomputed: a tile of some classes is seen before lse is known."""
    tiles = _tiles(form, params, rows(h), labels)

    def tile(sums: Any, spot: Any) -> Any:
        (r, _), _ = spot
        x, hot, fresh, w = _logits_at(tiles, spot)
        p = jnp.exp(x - column(take(lse, r, tiles.size[0]), x))
        return _pull(tiles, sums, p, hot, fresh, w, spot)

    dh, *dparams = walk(tile, _no_sums(tiles), _spots(tiles))
    return dh.reshape(h.shape), dparams, tiles.late


def _linear_logits(form: _Form, init: Any) -> Layer:
    """(h, anything) -> h w^T + b: the head out of training."""

    def forward(params: Tree, x: Any) -> tuple[jax.Array, jax.Array]:
        h, _ = _checked(form, params, x)
        return _logits(h, params).astype(h.dtype), h

    def backward(params: Tree, h: jax.Array, dy: jax.Array) -> tuple[Tree, Any]:
        dh = einsum("...v,vd->...d", dy, params["w"]).astype(h.dtype)
        dw = einsum("nv,nd->vd", rows(dy), rows(h)).astype(h.dtype)
        dparams = {"w": dw, "b": bias_gradient(rows(dy))} if "b" in form.names else {"w": dw}
        return dparams, (dh, None)

    return Layer("linear_logits", init, forward, backward, given(_linear_logits, form.vocabulary))


def _checked(form: _Form, params: Tree, x: Any) -> tuple[jax.Array, Any]:
    expect_params(params, *form.names)
    h, target = several(x)
    expect_floating(h=h, **params)
    w = params["w"]
    expect(w.ndim == 2 and len(w) == form.vocabulary, "w", f"({form.vocabulary}, D)", w)
    expect(h.ndim >= 1 and h.shape[-1] == w.shape[1], "h", f"a last axis of {w.shape[1]}, the columns of w", h)
    if "b" in form.names:
        expect(params["b"].shape == (form.vocabulary,), "b", f"({form.vocabulary},)", params["b"])
    return h, target


def _logits(h: jax.Array, params: Tree) -> jax.Array:
    return plus_bias(einsum("...d,vd->...v", h, params["w"]), params)


# ---- tiles: rows by classes


class _Tiles(NamedTuple):
    """The rows of h and their labels, in tiles of `size`, (rows, classes).

    share: 1 / M = early * late. early is a factor of every tile's g, late (None: 1) one of the
    sums. The first is free, the second a pass over dw; but in float16 g / M is too small.
    """

    form: _Form
    params: Tree
    rows: jax.Array
    labels: jax.Array
    size: tuple[int, int]
    share: jax.Array
    early: Any
    late: Any


def _tiles(form: _Form, params: Tree, flat: jax.Array, labels: jax.Array) -> _Tiles:
    n, v = len(labels), form.vocabulary
    size = (tile_size(n, form.chunk), v) if form.at_once else (n, tile_size(v, form.chunk))
    ignored = is_index(labels, form.ignore_index)
    if form.ignore_index is not None:
        flat = jnp.where(column(ignored, flat), 0, flat)  # whatever stands there: 0 * inf would be NaN
    share = inverse(jnp.sum(jnp.where(ignored, 0, jnp.ones(labels.shape, wide_dtype(flat.dtype)))))
    early, late = (1, share) if flat.dtype == jnp.float16 else (share, None)
    return _Tiles(form, params, flat, labels, size, share, early, late)


def _spots(tiles: _Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Each tile's (first row, first class), and (row, class) from which nothing was counted yet."""
    whole, size = (len(tiles.rows), tiles.form.vocabulary), tiles.size
    along = (range(0, n, step) for n, step in zip(whole, size))
    firsts = np.array(list(product(*along)), np.int32)
    return np.minimum(firsts, np.subtract(whole, size, dtype=np.int32)), firsts


def _see(tiles: _Tiles, carry: Any, spot: Any) -> Any:
    """A tile into each row's maximum, sum of exp, label's logit, sum of logits; and dh, dw, db."""
    so_far, sums = carry
    (r, _), _ = spot
    top, mass, picked, spread = (take(each, r, tiles.size[0]) for each in so_far)
    x, hot, fresh, w = _logits_at(tiles, spot)
    picked = picked + _picked(x, tiles.labels, spot)
    spread = spread + jnp.sum(jnp.where(fresh, x, 0), axis=-1) if tiles.form.smoothing else spread
    top, p, shrink = softmax_step(top, jnp.where(fresh, x, -jnp.inf))
    mass = mass * shrink + jnp.sum(p, axis=-1)
    so_far = tuple(put(each, now, r) for each, now in zip(so_far, (top, mass, picked, spread)))
    if tiles.form.at_once:
        p = p * column(1 / mass, p)  # a second exp would cost as much as half a product
        sums = _pull(tiles, sums, p, hot, fresh, w, spot)
    return so_far, sums


def _pull(tiles: _Tiles, sums: Any, p: jax.Array, hot: jax.Array, fresh: jax.Array, w: jax.Array,
          spot: Any) -> Any:
    """A tile's part of dh, dw and db, times `early`, added to the sums."""
    (dh, dw, db), ((r, c), _), n = sums, spot, len(p)
    form, labels = tiles.form, tiles.labels
    ignored = column(take(is_index(labels, form.ignore_index), r, n), p)
    g = p - jnp.where(hot, 1 - form.smoothing, 0) - form.smoothing / form.vocabulary
    g = jnp.where(column(take(legal(labels, form.vocabulary), r, n), g), g, jnp.nan)
    g = jnp.where(fresh & ~ignored, g * tiles.early, 0)
    dh = add(dh, einsum("nv,vd->nd", g, w), r)
    dw = add(dw, einsum("nv,nd->vd", g, take(tiles.rows, r, n)), c)
    return dh, dw, add(db, jnp.sum(g, axis=0), c) if "b" in form.names else db


def _logits_at(tiles: _Tiles, spot: Any) -> tuple[jax.Array, ...]:
    """A tile's logits, where the targets' are, which were not counted before, and its rows of w."""
    (r, c), first = spot
    part = {name: take(tiles.params[name], c, tiles.size[1]) for name in tiles.form.names}
    x = _logits(take(tiles.rows, r, tiles.size[0]), part)  # (n, v)
    row, label = (start + lax.broadcasted_iota(np.int32, x.shape, axis) for axis, start in enumerate((r, c)))
    hot = column(take(tiles.labels, r, tiles.size[0]), x) == label.astype(tiles.labels.dtype)
    overlap = len(tiles.rows) % tiles.size[0] or tiles.form.vocabulary % tiles.size[1]
    fresh = (row >= first[0]) & (label >= first[1]) if overlap else jnp.array(True)
    return x, hot, fresh, part["w"]


def _picked(x: jax.Array, labels: jax.Array, spot: Any) -> jax.Array:
    """A tile's x at its rows' labels, 0 where the label is not among its classes or the row has been counted."""
    (r, c), first = spot
    label, row = take(labels, r, len(x)), r + lax.iota(np.int32, len(x))
    first_class, start, stop = (jnp.asarray(number, label.dtype) for number in (first[1], c, c + x.shape[1]))
    there = (row >= first[0]) & (label >= first_class) & (label < stop)
    return jnp.where(there, jnp.take_along_axis(x, jnp.where(there, label - start, 0)[:, None], axis=1)[:, 0], 0)


def _no_sums(tiles: _Tiles) -> tuple[jax.Array, ...]:
    """dh, dw and db before the first tile."""
    w = tiles.params["w"]
    shapes = (tiles.rows.shape, w.shape, w.shape[:1])
    return tuple(wide(jnp.zeros(shape, w.dtype)) for shape in shapes)
