"""Cases and mistakes of pooling."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...layers.pool import avg_pool, global_avg_pool, global_max_pool, max_pool
from ...params import Tree
from .case import Bugs, Case, Draw, Right, Wrong, normal
from .conv import as_if


def tied(*sizes: int) -> Draw:
    """Draws normal numbers with two equal neighbours above all others."""
    def draw(rng: np.random.Generator) -> Any:
        x = rng.standard_normal(sizes)
        x[:, 0, :2] = 5.0
        return x

    return draw


CASES: tuple[Case, ...] = (
    Case("max_pool", max_pool(), normal(2, 4, 6, 3)),
    Case("max_pool", max_pool(), normal(2, 3, 7, 5, 2), "not divisible, two leading axes"),
    Case("max_pool", max_pool(3, 2, "SAME"), normal(2, 7, 5, 3), "overlapping"),
    Case("max_pool", max_pool((2, 3), (3, 1), ((1, 0), (2, 1))), normal(2, 7, 5, 3)),
    Case("max_pool", max_pool((3,), 1), normal(2, 7, 3), "one axis"),
    Case("max_pool", max_pool(1), normal(1, 1, 1, 1), "sizes 1"),
    Case("max_pool", max_pool(), normal(0, 4, 6, 3), "empty batch"),
    Case("max_pool", max_pool(), tied(2, 4, 6, 3), "at a tie", "KINK"),
    Case("avg_pool", avg_pool(), normal(2, 5, 7, 3)),
    Case("avg_pool", avg_pool(3, 2, "SAME"), normal(2, 7, 5, 3), "overlapping"),
    Case("avg_pool", avg_pool((2, 3), (3, 1), ((1, 0), (2, 1)), count_include_pad=False), normal(2, 7, 5, 3)),
    Case("avg_pool", avg_pool((3,), 1), normal(2, 7, 3), "one axis"),
    Case("global_avg_pool", global_avg_pool(), normal(2, 5, 3, 7)),
    Case("global_avg_pool", global_avg_pool(), normal(1, 1, 1, 1), "sizes 1"),
    Case("global_max_pool", global_max_pool(), normal(2, 5, 3, 7)),
    Case("global_max_pool", global_max_pool(), tied(2, 5, 3, 2), "at a tie", "KINK"),
)


def _written_not_added(right: Right) -> tuple[Tree, Any]:
    """Gives an element the cotangent of the last window that it is in, alone."""
    flat = right.dy.reshape(-1)

    def of_one(i: Any, dx: Any) -> Any:
        one = jnp.where(jnp.arange(flat.size) == i, flat, 0).reshape(right.dy.shape)
        alone = right.given(dy=one).dx
        return jnp.where(alone != 0, alone, dx)

    return (), jax.lax.fori_loop(0, flat.size, of_one, jnp.zeros_like(right.x))


def _without_divisor(right: Right) -> tuple[Tree, Any]:
    """Multiplies by the largest count: a window that padding does not touch has the divisor 1."""
    window = right.options.get("window", 2)
    return (), (prod(window) if isinstance(window, tuple) else window**2) * right.dx


_WINDOW: dict[str, Wrong] = {
    "padding off by one": lambda right: ((), jnp.roll(right.dx, 1, -2)),
    "written where the cotangents of overlapping windows add": _written_not_added,
}
BUGS: Bugs = {
    "max_pool": {
        **_WINDOW,
        "the stride forgotten": partial(as_if, maker=max_pool, stride=1),
        "spread over the window as that of a mean": lambda right: right.remade(avg_pool).gradients,
    },
    "avg_pool": {
        **_WINDOW,
        "the stride forgotten": partial(as_if, maker=avg_pool, stride=1),
        "the divisor missing": _without_divisor,
    },
    "global_max_pool": {
        "spread over the window as that of a mean":
            lambda right: right.remade(global_avg_pool).gradients,
    },
    "global_avg_pool": {
        "the divisor missing": lambda right: ((), prod(right.x.shape[1:-1]) * right.dx),
    },
}
