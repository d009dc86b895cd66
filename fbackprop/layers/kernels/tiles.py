"""tiles: a large array visited in pieces, so that no array of its size is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...facts import Tuning
from ...layer import Layer
from ...tuning import halves
from ..algebra import column

LEAST = 32  # the smallest tile that is worth its loop

take = lax.dynamic_slice_in_dim  # (array, start, size)


def at(a: jax.Array, i: Any) -> jax.Array:
    """Returns `a[i]`."""
    return take(a, i, 1)[0]


def put(a: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    """Returns `a` with `part` in place of its rows from `start` on."""
    return lax.dynamic_update_slice_in_dim(a, part, start, 0)


def add(a: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    """Returns `a` with `part` added to its rows from `start` on."""
    return put(a, take(a, start, len(part)) + part, start)


def tile_size(whole: int, size: int | None) -> int:
    """Returns the size of a tile along an axis: the whole of it unless `size` is less."""
    return min(size or whole, whole)


def largest_divisor(whole: int, most: int) -> int:
    """Returns the largest divisor of `whole` up to `most`, 0 of 0."""
    return next((n for n in range(min(whole, most), 0, -1) if whole % n == 0), 0)


def walk(tile: Callable[[Any, Any], Any], carry: Any, spots: Any, few: int = 1) -> Any:
    """Returns the carry after `tile(carry, spot) -> carry` at every spot, a slice of each array.

    Up to `few` tiles are written out, for a loop copies what it reads; more are scanned.
    """
    count = len(jax.tree.leaves(spots)[0])
    if count > few:
        return lax.scan(lambda carry, spot: (tile(carry, spot), None), carry, spots)[0]
    for number in range(count):
        carry = tile(carry, jax.tree.map(lambda a: a[number], spots))  # noqa: B023, called at once
    return carry


def softmax_step(top: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each row's maximum after a tile x (..., V) more, p = exp(x - maximum), and the factor
    by which sums of earlier exponentials shrink.
    """
    new = lax.stop_gradient(jnp.maximum(top, jnp.max(x, axis=-1)))
    # nothing so far: exp(-inf - 0) = 0, where exp(-inf + inf) is NaN
    base = jnp.where(new == -jnp.inf, 0, new)
    return new, jnp.exp(x - column(base, x)), jnp.exp(top - base)


def tile_tuning(name: str, size: int | None, whole: Callable[[Any], int],
                make: Callable[[int], Layer]) -> Tuning:
    """Returns the tuning of a layer with a tile of `size`, None: of `whole(x)`; `make(smaller)`."""
    settings = lambda x: [{name: smaller} for smaller in halves(size or whole(x), LEAST)]
    return Tuning((name,), settings, lambda setting: make(setting[name]))
