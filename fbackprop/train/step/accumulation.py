"""accumulate: the gradient of one large batch from several small ones, in the memory of a small one.

A loss is a mean, sum l / W, so the large batch's gradient is the sum of the small ones' gradients, each
times its share of all W. The seed of a small batch is its share. The mean of the means is another number
whenever the parts weigh differently (a ragged end, padded sequences). A loss that is a sum adds up as it
is: every share is 1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...checks import expect, show
from ...dtypes import combine, partition, wide, wide_dtype
from ...gradients import ValueAndGrad
from ...layer import Weight
from ...losses.inputs import inverse
from ...losses.weight import batch_size, summed
from ...params import Next, Tree, is_carried, merge, split


def accumulate(value_and_grad: ValueAndGrad, weight: Weight | None = None) -> ValueAndGrad:
    """Returns `(params, microbatches, seed=1.0) -> (value, grads)`, those of the whole batch.

    microbatches: a list of batches of any sizes, run one after the other, or one batch whose leaves have a leading axis more,
    run as a scan. weight: `batch -> scalar`, what the batch's loss divides by. The losses of this package
    say it themselves; for another loss it is the batch size unless given, or `token_weight(...)` where
    targets are ignored or weighted. Parts that weigh 0 count nowhere; all of them together give 0. State
    is threaded in order.

    Equal to the whole batch for a loss that is a mean or a sum, and a net whose examples do not meet: batch_norm takes its
    statistics and dropout its mask from each part. Raises ValueError for an empty list.
    """
    of_batch = weight or getattr(value_and_grad, "weight", None) or batch_size

    def run(params: Tree, microbatches: Tree, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        trainable, state = split(params)
        floats, _ = partition(trainable)
        widest = jnp.result_type(jnp.float32, *jax.tree.leaves(floats))

        def add(carry: Any, part: tuple[Tree, jax.Array]) -> tuple[Any, None]:
            (state, value, sums), (batch, share) = carry, part
            of_part, grads = value_and_grad(merge(trainable, state), batch, seed * share)
            gradients, successors = split(grads)
            sums = jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, gradients)
            # a part that weighs nothing may be anything, 0 / 0 included
            value = value + jnp.where(share == 0, 0, wide(of_part) * share).astype(value.dtype)
            return (split(merge(trainable, successors))[1], value, sums), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), floats)
        carry = (state, jnp.zeros((), widest), zeros)
        shares = _shares(of_batch, microbatches, widest)
        if isinstance(microbatches, list):
            for part in zip(microbatches, shares):
                carry, _ = add(carry, part)
        else:
            carry, _ = lax.scan(add, carry, (microbatches, shares))
        state, value, sums = carry
        gradients = jax.tree.map(lambda s, p: s.astype(p.dtype), sums, floats)
        successors = jax.tree.map(lambda n: Next(n.value), state, is_leaf=is_carried)
        return value, combine(gradients, successors)

    return run


def _shares(weight: Weight, microbatches: Tree, dtype: Any) -> jax.Array:
    """Returns each part's share of the whole batch, (n,)."""
    of_part = lambda batch: jnp.asarray(weight(batch), dtype)
    if isinstance(microbatches, list):
        expect(bool(microbatches), "microbatches", "at least one batch", "an empty list")
        weights = jnp.stack([of_part(batch) for batch in microbatches])
    else:
        weights = jax.vmap(of_part)(microbatches)
    return jnp.ones_like(weights) if weight is summed else weights * inverse(jnp.sum(weights))


def microbatches(batch: Tree, n: int) -> Tree:
    """Returns the batch in n parts along its first axis: stacked when n divides it, else a list.

    Raises ValueError when it has fewer than n rows or a leaf without axes.
    """
    expect(all(map(jnp.ndim, jax.tree.leaves(batch))), "batch", "leaves whose first axis counts examples", show(batch),
           "A scalar cannot be cut into parts")
    rows = batch_size(batch)
    expect(1 <= n <= rows, "microbatches", f"1 to {rows}, the rows of the batch", str(n))
    if rows % n == 0:
        return jax.tree.map(lambda a: a.reshape(n, rows // n, *a.shape[1:]), batch)
    ends = [rows * i // n for i in range(n + 1)]
    return [jax.tree.map(lambda a, s=s, e=e: a[s:e], batch) for s, e in pairwise(ends)]
