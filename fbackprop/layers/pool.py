"""pool: the largest or the mean of what a sliding window meets, channel by channel.

Shapes    max_pool, avg_pool: x (B..., *sizes, C), y (B..., *length, C), one B at least; sizes are H W for a window that is a
          number or a pair, W for a window (w,). Global pools: x (B, *sizes, C), y (B, C), any number of sizes
Dtypes    floating; means are summed in float32 when x is narrower
Units     window, stride and padding in elements; the stride is the window unless given
Forward   y[l] = max or mean over k of x[l stride + k - low]. Padding never is the maximum; in a mean it counts as zeros, as in
          torch and flax, unless count_include_pad=False: then the divisor is the number of elements of x in the window
Backward  dx[i] = sum over the windows l that i is in, of dy[l] where i is the maximum, or of dy[l] / divisor[l]
Keeps     max: which position won, uint8 up to 256 positions: a quarter of y, and x and y may go; mean: the shape of x, no bytes
At kinks  of equal maxima the first in the order of the window's elements takes all of dy, as XLA's select_and_scatter and torch
          have it. The first NaN counts as the maximum. Autodiff of this forward agrees
Raises    TypeError: params that are not (); ValueError: rank, an empty spatial axis, x not floating, a window larger than the
          padded x, padding as large as the window, options that are no whole numbers
Source    elementary; LeCun et al. 1989 (mean); Ranzato et al. 2007 (maximum); derivation in docs/derivations/pool.md

Sums over the window's positions of strided slices fuse into one pass; XLA's reduce_window has a backward that on a CPU takes 25
to 100 times as long (figures in docs/derivations/pool.md). The program grows with the window, one slice a position: for a
window that is the whole image there are the global pools.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..calls import by_name
from ..checks import expect
from ..dtypes import wide
from ..facts import Option, given
from ..layer import Layer
from ..params import Static
from .algebra import rows
from .kernels.windows import (
    Padding1d,
    Padding2d,
    Size1d,
    Size2d,
    Windows,
    added,
    checked_padding,
    per_axis,
    windows,
)
from .parameterless import parameterless
from .rewire import after

Window: TypeAlias = Size1d | Size2d
Padding: TypeAlias = Padding1d | Padding2d


@by_name()
def max_pool(window: Window = 2, *, stride: Window | None = None,
             padding: Padding = "VALID") -> Layer:
    """The largest element of every window. `window`: a number (H and W alike), a pair, or (w,) for one axis; `stride` alike."""

    def reduce(x: jax.Array, places: Windows) -> tuple[jax.Array, jax.Array]:
        padded = places.pad(x, -jnp.inf)
        best, *others = (places.look(padded, offset) for offset in places.offsets())
        winner = jnp.zeros(best.shape, _counter(prod(places.size)))
        for number, other in enumerate(others, 1):
            better = ~(other <= best) & (best == best)  # not other > best: a NaN wins; and it stays
            best = jnp.where(better, other, best)
            winner = jnp.where(better, jnp.asarray(number, winner.dtype), winner)
        return best, winner

    def spread(dy: jax.Array, winner: jax.Array, places: Windows) -> jax.Array:
        chosen = lambda number: jnp.where(winner == jnp.asarray(number, winner.dtype), wide(dy), 0)
        return added(places.put(chosen(number), offset) for number, offset in enumerate(places.offsets()))

    options = given(max_pool, window, stride=stride, padding=padding)
    return _pool("max_pool", options, window, stride, padding, reduce, spread)


@by_name()
def avg_pool(window: Window = 2, *, stride: Window | None = None, padding: Padding = "VALID",
             count_include_pad: bool = True) -> Layer:
    """The mean of every window; `count_include_pad=False` leaves padding out of the divisor. The rest as `max_pool`."""

    def shared(total: jax.Array, places: Windows) -> jax.Array:
        """Divided by the number of elements of every window."""
        if count_include_pad:
            return total / prod(places.size)
        return total / jnp.broadcast_to(jnp.asarray(_counts(places), total.dtype)[None, ..., None], total.shape)

    def reduce(x: jax.Array, places: Windows) -> tuple[jax.Array, tuple[()]]:
        padded = places.pad(wide(x))
        total = added(places.look(padded, offset) for offset in places.offsets())
        return shared(total, places).astype(x.dtype), ()

    def spread(dy: jax.Array, _: Any, places: Windows) -> jax.Array:
        share = shared(wide(dy), places)
        return added(places.put(share, offset) for offset in places.offsets())

    options = given(avg_pool, window, stride=stride, padding=padding, count_include_pad=count_include_pad)
    return _pool("avg_pool", options, window, stride, padding, reduce, spread)


def _pool(kind: str, options: tuple[Option, ...], window: Any, stride: Any, padding: Any, reduce: Callable,
          spread: Callable) -> Layer:
    """`reduce(x, places) -> (y, kept)` and its transpose `spread(dy, kept, places) -> dx`, on x (B, *sizes, C)."""
    axes = len(window) if isinstance(window, (tuple, list)) else 2
    expect(axes in (1, 2), f"{kind} window", "a whole number, a pair, or (w,) for one axis", repr(window))
    size = per_axis(f"{kind} window", window, axes)
    step = size if stride is None else per_axis(f"{kind} stride", stride, axes)
    padding = checked_padding(f"{kind} padding", padding, axes)
    expect(isinstance(padding, str) or all(max(pair) < k for pair, k in zip(padding, size)), f"{kind} padding",
           f"less on each side than the window, {size}", repr(padding), "A window may not lie in padding alone")

    def placed(shape: tuple[int, ...]) -> Windows:
        return windows(f"{kind} window", shape[-axes - 1: -1], size, step, padding)

    def forward(x: jax.Array) -> tuple[jax.Array, tuple[Any, Static]]:
        expect(x.ndim >= axes + 2, "x", f"at least {axes + 2} axes, (B..., {', '.join('HW'[2 - axes:])}, C)", x,
               "A window (w,) is for one axis, a number or a pair for two")
        y, kept = reduce(rows(x, axes), placed(x.shape))
        return y.reshape(*x.shape[: -axes - 1], *y.shape[1:]), (kept, Static(x.shape))

    dx_of = lambda kept, dy, shape: spread(rows(dy, axes), kept, placed(shape))
    return parameterless(kind, forward, _spread(dx_of), options)


def _spread(dx_of: Callable[[Any, jax.Array, tuple[int, ...]], jax.Array]) -> Callable:
    """The backward of a pool: dx from what is kept, dy and the shape of x."""

    def backward(residuals: tuple[Any, Static], dy: jax.Array) -> jax.Array:
        shape = residuals[1].value
        kept, dy = after(residuals[0], dy)  # or XLA finds the winners again, and keeps x for it
        return dx_of(kept, dy, shape).astype(dy.dtype).reshape(shape)

    return backward


def _counter(count: int) -> Any:
    """The narrowest dtype that can number `count` positions."""
    return np.min_scalar_type(max(count - 1, 0))


def _counts(places: Windows) -> np.ndarray:
    """How many elements of x every window holds: one product of counts an axis."""
    counts = np.ones((), int)
    for n, k, s, (low, _), m in zip(places.sizes, places.size, places.stride, places.pads, places.length):
        first = np.arange(m) * s - low
        counts = np.multiply.outer(counts, np.minimum(first + k, n) - np.maximum(first, 0))
    return counts


def _global(kind: str, reduce: Callable, spread: Callable) -> Layer:
    """`reduce(x) -> (y, kept)` over the middle axis of x (B, N, C) and its transpose `spread(dy, kept, N)`."""

    def forward(x: jax.Array) -> tuple[jax.Array, tuple[Any, Static]]:
        expect(x.ndim >= 3 and prod(x.shape[1:-1]) > 0, "x", "(B, *sizes, C) with no spatial axis of size 0", x)
        y, kept = reduce(x.reshape(x.shape[0], prod(x.shape[1:-1]), x.shape[-1]))
        return y, (kept, Static(x.shape))

    dx_of = lambda kept, dy, shape: spread(dy, kept, prod(shape[1:-1]))
    return parameterless(kind, forward, _spread(dx_of))


@by_name()
def global_avg_pool() -> Layer:
    """The mean of every channel over all axes between the first and the last: x (B, *sizes, C) -> y (B, C)."""

    def spread(dy: jax.Array, _: Any, count: int) -> jax.Array:
        return _along((wide(dy) / count).astype(dy.dtype), count)

    return _global("global_avg_pool", lambda x: (jnp.mean(wide(x), axis=1).astype(x.dtype), ()), spread)


@by_name()
def global_max_pool() -> Layer:
    """The largest of every channel over all axes between the first and the last: x (B, *sizes, C) -> y (B, C)."""

    def reduce(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        winner = jnp.argmax(x, axis=1, keepdims=True)  # B 1 C, the first of equals
        return jnp.take_along_axis(x, winner, axis=1)[:, 0], winner[:, 0].astype(_counter(x.shape[1]))

    def spread(dy: jax.Array, winner: jax.Array, count: int) -> jax.Array:
        numbers = lax.broadcasted_iota(winner.dtype, (dy.shape[0], count, dy.shape[1]), 1)
        return jnp.where(_along(winner, count) == numbers, _along(dy, count), 0)

    return _global("global_max_pool", reduce, spread)


def _along(row: jax.Array, count: int) -> jax.Array:
    """(B, C) -> (B, count, C)."""
    return jnp.broadcast_to(row[:, None], (row.shape[0], count, row.shape[1]))
