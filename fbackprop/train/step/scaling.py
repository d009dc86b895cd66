"""scaling: the loss times a power of two, so that small cotangents do not vanish in float16 (Micikevicius et al. 2018, 3.2).

float16 ends at 6e-8 and a gradient below that is 0. The scale goes in as `seed` of value_and_grad and is divided out of the
float32 gradients: exact both ways. bfloat16 reaches as far down as float32 and needs none of this.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...dtypes import is_floating
from ...params import Tree, is_carried, split


class LossScale(NamedTuple):
    """A pytree of two scalars: the scale, float32, and how many finite steps in a row it has seen, int32."""

    scale: Any = np.float32(2**15)
    good: Any = np.int32(0)


def adjust(loss_scale: LossScale, finite: jax.Array | bool, *, patience: int = 2000, least: float = 1.0,
           most: float = 2.0**24) -> LossScale:
    """Returns the LossScale of the next step. finite: whether all gradients were; may be traced.

    Not finite: half the scale, `least` at least. After `patience` finite steps in a row: twice the scale, `most` at most.
    """
    scale, good = jnp.asarray(loss_scale.scale, jnp.float32), jnp.asarray(loss_scale.good, jnp.int32) + 1
    up = good >= patience
    higher = jnp.where(up, jnp.minimum(2 * scale, most), scale)
    scale = jnp.where(finite, higher, jnp.maximum(scale / 2, least))
    return LossScale(scale, jnp.where(finite & ~up, good, 0))


def unscale(grads: Tree, loss_scale: LossScale) -> Tree:
    """Divides `grads` by `loss_scale.scale`, the seed of their value. Next, no gradient, stays."""
    return jax.tree.map(lambda g: g if is_carried(g) else g / jnp.asarray(loss_scale.scale, g.dtype), grads, is_leaf=is_carried)


def all_finite(grads: Tree) -> jax.Array:
    """Returns whether no gradient holds inf or NaN. Next does not count."""
    return reduce(jnp.logical_and, [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(split(grads)[0]) if is_floating(g)],
                  jnp.bool_(True))
