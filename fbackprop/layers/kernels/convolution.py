"""convolution: formulations that are faster on a CPU than XLA's convolution, chosen by the sizes.

A function here computes what its argument `plain`, an equation of layers/conv.py, computes.
Measurements are in docs/derivations/conv.md.

Forward   of one channel a group: a sum of shifted products, for no matmul is left to make; of a
          kernel of one position: a matmul at every place
dx        the same two, transposed
dw        the windows of a few examples at a time side by side, for one matmul: they stay in cache,
          where XLA's own weight gradient, kept for accelerators, reads strided memory
Both      where jax 0.10 would use one core for a correlation: all images in one row
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod

import jax
import jax.numpy as jnp
from jax import lax

from ...dtypes import wide, wide_dtype
from ..rewire import after
from .tiles import largest_divisor, take, walk
from .windows import Windows, added

Equation = Callable[[jax.Array, jax.Array, Windows, int], jax.Array]
TAPS = 32  # of one channel: so many shifted products are one pass over y, and what follows joins it
# places an example, numbers in a kernel: XLA's weight gradient is as quick, and compiles sooner
FEW, LARGE = 64, 2**15
# windows laid side by side at a time: enough for a product, few enough for a cache
ROWS, BYTES = 2048, 2**21 * 5 // 4
SMALL = 2**22  # bytes of all windows that need no loop
# XLA's convolution on a CPU, unless the kernel has many numbers or a row many multiplications
ONE_CORE = jax.__version_info__ < (0, 11)
KERNEL, ROW = 10**5, 2**23


def correlate(plain: Equation, x: jax.Array, w: jax.Array, places: Windows,
              groups: int) -> jax.Array:
    """y less b; in the wide dtype where the sum over the window is ours."""
    outputs = w.shape[-1]
    taps_fit = groups == 1 and prod(places.size) <= TAPS
    if w.shape[-2] == 1 and (groups == outputs > 1 or taps_fit):
        padded, taps = places.pad(wide(x)), wide(w).reshape(-1, outputs)
        shape = (len(x), *places.length, outputs)
        looks = (jnp.broadcast_to(places.look(padded, at), shape) for at in places.offsets())
        return added(a * jnp.broadcast_to(tap, shape) for a, tap in zip(looks, taps))
    if prod(places.size) == groups == 1:
        seen, = places.looks(x)
        return jnp.matmul(seen, w.reshape(w.shape[-2:]), preferred_element_type=wide_dtype(x.dtype))
    return plain(x, w, places, groups)


def pull_x(plain: Equation, dy: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
    """dx; in the wide dtype where the sum over the window is ours."""
    if w.shape[-2] == 1 and groups == w.shape[-1] > 1:  # depthwise
        taps, dy = wide(w).reshape(-1, groups), wide(dy)
        parts = (dy * jnp.broadcast_to(tap, dy.shape) for tap in taps)
        return added(places.put(part, at) for part, at in zip(parts, places.offsets()))
    if prod(places.size) == groups == 1:
        w = w.reshape(w.shape[-2:])
        dseen = jnp.matmul(dy, w.T, preferred_element_type=wide_dtype(dy.dtype))
        return added(places.put(dseen, at) for at in places.offsets())
    return plain(dy, w, places, groups)


def in_one_row(plain: Equation) -> Equation:
    """Returns `plain`, a correlation, of the images in one row where that uses more cores."""
    if not ONE_CORE:
        return plain

    @wraps(plain)
    def chosen(x: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
        gap = max(places.pads[-1])

        def row(x: jax.Array, w: jax.Array) -> jax.Array:
            row = jnp.moveaxis(jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0))), 0, 1)  # H B W C
            y = plain(row.reshape(1, len(row), -1, x.shape[-1]), w, places, groups)[0]  # H (B W) O
            return jnp.moveaxis(y.reshape(len(y), *row.shape[1:3], -1)[:, :, : x.shape[2]], 1, 0)

        dense = len(places.pads) == 2 and max(*places.stride, *places.between, groups) == 1
        if not dense or sum(places.pads[1]) != places.reach[1] - 1 or x.dtype != jnp.float32:
            return plain(x, w, places, groups)
        if w.size >= KERNEL or len(x) * (x.shape[2] + gap) * w.size < ROW:
            return plain(x, w, places, groups)
        default = lambda x, w: plain(x, w, places, groups)
        return lax.platform_dependent(x, w, cpu=row, default=default)

    return chosen


def pull_w(plain: Equation, x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """dw (*kernel, I, O) in the wide dtype."""
    if groups == x.shape[-1] == dy.shape[-1] > 1:  # depthwise
        padded, dy, summed = places.pad(wide(x)), wide(dy), tuple(range(x.ndim - 1))
        products = (places.look(padded, at) * dy for at in places.offsets())
        return jnp.stack([jnp.sum(product, axis=summed) for product in products])
    in_parts = lambda x, dy: wide(side_by_side(x, dy, places, groups))
    default = lambda x, dy: wide(plain(x, dy, places, groups))
    numbers = prod(places.size) * x.shape[-1] * dy.shape[-1]
    if prod(places.length) <= FEW and numbers >= groups * LARGE:
        return default(x, dy)
    return lax.platform_dependent(x, dy, cpu=in_parts, default=default)


def side_by_side(x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """dw (*kernel, I, O): the windows side by side, transposed, times dy.

    Where that is less to lay out, a window's columns are x shifted along its rows, and its rows are
    dy shifted up and down.
    """
    if groups > 1:
        apart = (a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups) for a in (x, dy))
        one = lambda x, dy: side_by_side(x, dy, places, 1)
        dw = jax.vmap(one, in_axes=-2, out_axes=-2)(*apart)  # *K I G O
        return dw.reshape(*dw.shape[:-2], dy.shape[-1])
    batch, channels, features, acc = len(x), x.shape[-1], dy.shape[-1], wide_dtype(x.dtype)
    halves = (len(places.size) == 2 and places.stride[0] == 1
              and features < places.size[1] * channels)
    along, back = places.by_axis() if halves else (places, places.still())
    rows, widths = prod(along.length), (prod(along.size) * channels, prod(back.size) * features)

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        a, b = (jnp.concatenate(seen, -1).reshape(len(x) * rows, width)
                for seen, width in zip((along.looks(x), back.looks(dy)[::-1]), widths))
        if halves and widths[0] <= widths[1]:  # the narrower is transposed: read down its columns
            return jnp.matmul(a.T, b, preferred_element_type=acc)
        return jnp.matmul(b.T, a, preferred_element_type=acc).T

    part = _examples(places, batch, rows, (widths[0] + halves * widths[1]) * x.dtype.itemsize)
    if part == batch:
        # or XLA lays out the windows as soon as it has x, and keeps them until dy is there
        dw = product(*after(x, dy))
    else:
        add = lambda dw, start: dw + product(*(take(a, start, part) for a in (x, dy)))
        dw = walk(add, jnp.zeros(widths, acc), jnp.arange(0, batch, part))
    dw = jnp.moveaxis(dw.reshape(prod(along.size), channels, prod(back.size), features), 2, 0)
    return dw.reshape(*places.size, channels, features)


def _examples(places: Windows, batch: int, rows: int, row: int) -> int:
    """How many examples are laid out at a time; `row`: bytes of each of their `rows`."""
    if prod(places.size) == 1 or batch * rows * row <= SMALL:  # of 1: x itself is the windows
        return batch
    return largest_divisor(batch, max(1, min(ROWS, BYTES // row) // rows))
