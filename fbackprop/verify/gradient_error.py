"""How far the hand-written gradients are from jax.grad's on a real batch, in the training's own precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..dtypes import is_floating
from ..gradients import auto_value_and_grad, value_and_grad
from ..layer import Layer
from ..params import Tree, merge, paths, split
from .verdict import SAFETY, TOLERANCE

DRAWS = 3


def gradient_error(net: Layer, loss: Layer | None = None, tol: float = TOLERANCE["float32"]) -> Callable:
    """`(params, batch, seed) -> ({path: error}, {path: norm})`, jitted; norm is that of the hand-written gradient.

    error = max abs(a - b) / (max abs(b) + 4 noise / tol): at most `tol` exactly when abs(a - b) <= tol max abs(b) + 4 noise
    holds for the leaf. noise: the largest change of jax.grad's leaf when every floating input and param moves by one unit in
    the last place, up or down at random, in three draws.
    """
    by_hand, by_jax = value_and_grad(net, loss), auto_value_and_grad(net, loss)

    @jax.jit
    def measure(params: Tree, batch: Any, seed: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        trainable, state = split(params)
        inputs = (trainable, batch)

        def oracle(draw: jax.Array) -> dict[str, jax.Array]:
            moved, batch = _moved(inputs, jax.random.key(DRAWS * seed + draw, impl="rbg"))  # rbg compiles in no time
            return paths(split(by_jax(merge(moved, state), batch)[1])[0])

        a = paths(split(by_hand(params, batch)[1])[0])
        b = paths(split(by_jax(params, batch)[1])[0])
        draws = lax.map(oracle, jnp.arange(DRAWS))
        errors = {}
        for path, right in b.items():
            noise = jnp.max(jnp.abs(draws[path] - right), initial=0.0)
            allowed = jnp.max(jnp.abs(right), initial=0.0) + SAFETY * noise / tol
            error = jnp.max(jnp.abs(a[path] - right), initial=0.0)
            errors[path] = jnp.where(error == 0, 0.0, error / allowed)
        return errors, {path: jnp.linalg.norm(jnp.ravel(leaf)) for path, leaf in a.items()}

    return measure


def _moved(tree: Any, key: jax.Array) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    bits = jnp.split(jax.random.bits(key, (int(ends[-1]),), jnp.uint8), ends[:-1])

    def move(leaf: jax.Array, bits: jax.Array) -> jax.Array:
        if not is_floating(leaf):
            return leaf
        up = (bits & 1).reshape(leaf.shape) == 1
        return jnp.nextafter(leaf, jnp.where(up, jnp.inf, -jnp.inf).astype(leaf.dtype))

    return jax.tree.unflatten(treedef, [move(*pair) for pair in zip(leaves, bits)])
