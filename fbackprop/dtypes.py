"""Which leaves a gradient flows through, and the dtype sums are taken in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_floating(leaf: Any) -> bool:
    """True for arrays, specs and Python numbers that a gradient can flow through."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def canonical(tree: Any) -> Any:
    """NumPy arrays as jit would take them: float64 is float32 and int64 int32 unless x64 is on."""
    one = lambda a: jnp.asarray(a, jnp.result_type(a)) if isinstance(a, np.ndarray) else a
    return jax.tree.map(one, tree)


def same_structure(a: Any, b: Any) -> bool:
    """True when the trees differ in their leaves alone."""
    left: Any = jax.tree.structure(a)
    return bool(left == jax.tree.structure(b))


def wide_dtype(dtype: Any) -> Any:
    """float32 for anything narrower, else `dtype` itself."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """`x` in the dtype its reductions and curved functions are computed in."""
    return x.astype(wide_dtype(x.dtype))


def partition(tree: Any) -> tuple[Any, Any]:
    """(floating leaves, the others): the whole structure each, None where the other's leaves stood."""
    floats = jax.tree.map(lambda a: a if is_floating(a) else None, tree)
    others = jax.tree.map(lambda a: None if is_floating(a) else a, tree)
    return floats, others


def combine(floats: Any, others: Any) -> Any:
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, floats, others, is_leaf=lambda a: a is None)
