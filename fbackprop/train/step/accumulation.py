"""accumulate: the gradient of one large batch from several small ones, in the memory of a small one.

A loss is a mean, sum l / W, so the large batch's gradient is the sum of the small ones' sums over the sum of their W. The seed
of a small batch is its W: its backward then returns its sum, not its mean, and the division is made once, at the end. The mean
of the means is another number whenever the parts weigh differently (a ragged end, padded sequences).
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
from ...losses.inputs import inverse
from ...losses.weight import Weight, batch_size
from ...params import Next, Tree, is_carried, merge, split


def accumulate(value_and_grad: ValueAndGrad, weight: Weight = batch_size) -> ValueAndGrad:
    """Returns `(params, microbatches, seed=1.0) -> (value, grads)`, those of the whole batch.

    microbatches: a list of batches of any sizes, run one after the other, or one batch whose leaves have a leading axis more,
    run as a scan. weight: `batch -> scalar`, what the batch's loss divides by: the batch size, or `token_weight(...)` where
    targets are ignored or weighted. Parts that weigh 0 count nowhere; all of them together give 0. State is threaded in order.

    Equal to the whole batch for a loss that is a mean and a net whose examples do not meet: batch_norm takes its statistics and
    dropout its mask from each part. Raises ValueError for an empty list.
    """

    def run(params: Tree, microbatches: Tree, seed: Any = 1.0) -> tuple[jax.Array, Tree]:
        trainable, state = split(params)
        floats, _ = partition(trainable)
        widest = jnp.result_type(jnp.float32, *jax.tree.leaves(floats))

        def add(carry: Any, batch: Tree) -> tuple[Any, None]:
            state, value, sums, total = carry
            w = jnp.asarray(weight(batch), widest)
            of_part, grads = value_and_grad(merge(trainable, state), batch, seed * w)
            gradients, successors = split(grads)
            sums = jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, gradients)
            # a part that weighs nothing may be anything, 0 / 0 included
            value = value + jnp.where(w == 0, 0, wide(of_part) * w).astype(value.dtype)
            return (split(merge(trainable, successors))[1], value, sums, total + w), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), floats)
        carry = (state, jnp.zeros((), widest), zeros, jnp.zeros((), widest))
        if isinstance(microbatches, list):
            expect(bool(microbatches), "microbatches", "at least one batch", "an empty list")
            for batch in microbatches:
                carry, _ = add(carry, batch)
        else:
            carry, _ = lax.scan(add, carry, microbatches)
        state, value, sums, total = carry
        share = inverse(total)
        gradients = jax.tree.map(lambda s, p: (s * share).astype(p.dtype), sums, floats)
        successors = jax.tree.map(lambda n: Next(n.value), state, is_leaf=is_carried)
        return value * share, combine(gradients, successors)

    return run


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
