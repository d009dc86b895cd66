"""Cases and mistakes of embedding, learned_positions and rotary."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...layers.embedding import embedding, learned_positions, rotary
from ...params import Tree
from .case import Bugs, Case, Draw, Right, normal


def tokens(vocabulary: int, *sizes: int) -> Draw:
    """Draws token numbers."""
    return lambda rng: rng.integers(0, vocabulary, sizes).astype(np.int32)


_twice: Draw = lambda rng: np.array([[2, 0, 2], [2, 4, 0]], np.int32)

CASES: tuple[Case, ...] = (
    Case("embedding", embedding(5, 3), _twice, "tokens that come again"),
    Case("embedding", embedding(7, 2), tokens(7, 2, 3, 5), "three leading axes"),
    Case("embedding", embedding(1, 3), tokens(1, 5), "one row"),
    Case("embedding", embedding(5, 1), lambda rng: np.int32(3), "one token"),
    Case("embedding", embedding(5, 3), tokens(5, 0, 2), "empty batch"),
    Case("learned_positions", learned_positions(7), normal(2, 5, 3), "shorter than it could be"),
    Case("learned_positions", learned_positions(5), normal(5, 3), "one sequence"),
    Case("learned_positions", learned_positions(3), normal(2, 1, 3), "one step"),
    Case("learned_positions", learned_positions(3), normal(0, 2, 5), "empty batch"),
    Case("rotary", rotary(), normal(2, 3, 7, 4), "heads"),
    Case("rotary", rotary(base=10.0), normal(5, 6), "one sequence"),
    Case("rotary", rotary(), normal(3, 1, 2), "one step"),
    Case("rotary", rotary(), normal(0, 3, 2), "empty batch"),
)


def _set_not_added(right: Right) -> tuple[Tree, Any]:
    return {"w": jnp.zeros_like(right.params["w"]).at[right.x].set(right.dy)}, None


def _by_position(right: Right) -> tuple[Tree, Any]:
    w, x = right.params["w"], right.x
    rows = jnp.arange(x.size).reshape(x.shape) % w.shape[0]
    return {"w": jnp.zeros_like(w).at[rows].add(right.dy)}, None


def _at_the_end(right: Right) -> tuple[Tree, Any]:
    dw = right.dparams["w"]
    return {"w": jnp.roll(dw, dw.shape[0] - right.x.shape[-2], 0)}, right.dx


def _neighbours_paired(right: Right) -> tuple[Tree, Any]:
    half = right.x.shape[-1] // 2
    order = np.arange(2 * half).reshape(half, 2).T.ravel()  # 0 2 4 .. 1 3 5 ..: neighbours become halves
    return (), jnp.take(right.given(dy=jnp.take(right.dy, order, -1)).dx, np.argsort(order), -1)


BUGS: Bugs = {
    "embedding": {
        "set, not added: a token that comes again counts once": _set_not_added,
        "added at the row of the position, not of the token": _by_position,
    },
    "learned_positions": {"the last rows, not the first": _at_the_end},
    "rotary": {
        "turned the same way as the forward":
            lambda right: ((), right.layer.forward((), right.dy)[0]),
        "neighbours paired where the forward pairs halves": _neighbours_paired,
    },
}
