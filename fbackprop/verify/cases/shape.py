"""Cases and mistakes of reshape, transpose, take_last and scale."""

from __future__ import annotations

import jax.numpy as jnp

from ...layers.shape import flatten, reshape, scale, take_last, transpose
from .case import Bugs, Case, normal

CASES: tuple[Case, ...] = (
    Case("flatten", flatten(), normal(0, 3, 2), "empty batch"),
    Case("reshape", reshape(5, 3), normal(2, 3, 5)),
    Case("reshape", reshape(7, -1, 2), normal(3, 14), "the rest"),
    Case("reshape", reshape(), normal(3, 1), "a number an example"),
    Case("reshape", reshape(-1, 2), normal(0, 6), "empty batch"),
    Case("transpose", transpose(0, 2, 1), normal(2, 3, 5)),
    Case("transpose", transpose(1, 2, 0), normal(2, 2, 2), "a cycle of equal sizes"),
    Case("transpose", transpose(0, 2, 3, 1), normal(2, 5, 1, 3), "channels last"),
    Case("transpose", transpose(1, 0), normal(0, 3), "empty batch"),
    Case("take_last", take_last(), normal(2, 5, 3)),
    Case("take_last", take_last(), normal(3, 1, 2), "one step"),
    Case("take_last", take_last(), normal(0, 3, 2), "empty batch"),
    Case("scale", scale(-0.3), normal(3, 5)),
    Case("scale", scale(0), normal(3, 5)),
    Case("scale", scale(8), normal(0, 5), "empty batch"),
)

BUGS: Bugs = {
    "transpose": {
        "reshaped, not transposed back": lambda right: ((), right.dy.reshape(right.x.shape)),
        "transposed by the same axes once more":
            lambda right: ((), right.layer.forward((), right.dy)[0].reshape(right.x.shape)),
    },
    "take_last": {
        "given to every step":
            lambda right: ((), jnp.broadcast_to(right.dy[..., None, :], right.x.shape)),
        "given to the first step":
            lambda right: ((), jnp.zeros_like(right.x).at[..., 0, :].set(right.dy)),
    },
    "scale": {"without the factor": lambda right: (right.dparams, right.dy)},
}
