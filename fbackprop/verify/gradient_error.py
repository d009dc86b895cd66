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
from .oracles import quick_jit
from .subject import cast
from .verdict import SAFETY, TOLERANCE

DRAWS = 3
UNITS = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)


def gradient_error(net: Layer, loss: Layer | None = None, tol: float = TOLERANCE["float32"]) -> Callable:
    """`(params, batch, seed) -> ({path: error}, {path: norm})`; norm is that of the hand-written gradient.

    error = max abs(a - b) / (max abs(b) + 4 noise / tol): at most `tol` exactly when abs(a - b) <= tol max abs(b) + 4 noise
    holds for the leaf. noise: the largest change of jax.grad's leaf when every floating input and param moves by one unit in
    the last place, up or down at random, in three draws.

    A leaf that is above `tol`, or not finite, is judged again in float64, at the same params and batch,
    with the noise of the checker: rounding that moves do not show is no error of a rule. NaN: one of
    the two gradients is not finite there either.
    """
    by_hand, by_jax = value_and_grad(net, loss), auto_value_and_grad(net, loss)

    @jax.jit
    def single(params: Tree, batch: Any,
               seed: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
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

    def leaves(fn: Callable) -> Callable:
        return quick_jit(lambda params, batch: paths(split(fn(params, batch)[1])[0]))

    hand, auto = leaves(by_hand), leaves(by_jax)
    moved = quick_jit(_moved)

    def again(params: Tree, batch: Any, seed: int) -> dict[str, float]:
        """Returns the errors in float64."""
        narrow, (params, batch) = split(params)[0], cast((params, batch), np.float64)
        trainable, state = split(params)
        gradient = lambda trainable, batch: jax.device_get(auto(merge(trainable, state), batch))
        right = gradient(trainable, batch)
        noise: dict[str, float] = {}
        for draw in range(DRAWS):
            key = jax.random.key(DRAWS * seed + draw, impl="rbg")
            _widen(noise, gradient(*moved((trainable, batch), key)), right, 1.0)
            # what moving the inputs cannot show: a cancellation that moves with them
            inputs = moved((cast(narrow, np.float32), cast(batch, np.float32)), key)
            _widen(noise, gradient(*inputs), gradient(*cast(inputs, np.float64)), UNITS)
        got = jax.device_get(hand(params, batch))
        return {path: _error(got[path], leaf, noise[path], tol) for path, leaf in right.items()}

    def measure(params: Tree, batch: Any, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        errors, norms = single(params, batch, seed)
        doubtful = [path for path, error in errors.items() if not error <= tol]
        if doubtful:
            with jax.enable_x64(True):
                wide = again(params, batch, seed)
            errors = {**errors, **{path: wide[path] for path in doubtful}}
        return errors, norms

    return measure


def _widen(noise: dict[str, float], some: dict[str, Any], others: dict[str, Any],
           units: float) -> None:
    """Makes every leaf's noise at least the largest finite difference of two gradients, in units."""
    for path, leaf in others.items():
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.asarray(some[path], np.float64) - leaf)
        largest = units * np.max(apart, where=np.isfinite(apart), initial=0.0)
        noise[path] = max(noise.get(path, 0.0), float(largest))


def _error(got: Any, right: Any, noise: float, tol: float) -> float:
    """Returns the error of a leaf where the right one is finite.

    NaN if that is small and there are elements that cannot be judged.
    """
    judged = np.isfinite(right)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got - right)
    error = float(np.max(apart, where=judged, initial=0.0))
    allowed = float(np.max(np.abs(right), where=judged, initial=0.0)) + SAFETY * noise / tol
    relative = error / allowed if allowed else np.inf if error else 0.0
    return relative if relative > tol or np.all(judged) else np.nan


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
