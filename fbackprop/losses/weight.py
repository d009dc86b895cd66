"""What a batch weighs: the divisor of its loss, so that means over parts of a batch add up to the mean over the whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..calls import by_name
from ..checks import expect_array
from ..dtypes import is_floating, wide
from ..layer import Weight
from .inputs import ClassWeights, check_options, class_numbers, is_index, several


def batch_size(batch: Any) -> int:
    """The length of the first leaf's first axis: the weight of a loss that is a mean over examples of one size."""
    leaves = jax.tree.leaves(batch)
    expect_array("batch", leaves[0] if leaves and np.ndim(leaves[0]) else None)
    return int(leaves[0].shape[0])


def target_size(batch: Any) -> int:
    """Returns the number of elements of the target: the weight of a loss that is a mean over all of them."""
    _, target = several(batch)
    return int(np.size(target))


def summed(batch: Any) -> int:
    """Returns 1: the weight of a loss that is a sum, whose parts add up as they are."""
    return 1


@by_name()
def token_weight(*, ignore_index: int | None = None, class_weights: ClassWeights = None) -> Weight:
    """The weight of `(x, target)` or `(x, target, weights)` under a cross-entropy with these options.

    The number of targets that are not ignored, each times its class weight and its own: float32, 0 where all are ignored.
    """

    check_options(0, ignore_index)

    def weight(batch: Any) -> jax.Array:
        _, target, *rest = several(batch, most=3)
        expect_array("target", target)
        if is_floating(target):  # probabilities (..., V): every row counts as one
            counted = jnp.ones(target.shape[:-1], jnp.float32)
        else:
            target = class_numbers(target, target.shape)
            of_class = 1.0 if class_weights is None else jnp.asarray(class_weights, jnp.float32)[target]
            counted = jnp.where(is_index(target, ignore_index), 0.0, of_class)
        return jnp.sum(counted * wide(rest[0]) if rest else counted, dtype=jnp.float32)

    return weight
