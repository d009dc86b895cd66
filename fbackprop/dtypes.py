"""Which leaves a gradient flows through, and the dtype sums are taken in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_floating(leaf: Any) -> bool:
    """Returns True for arrays, specs and Python numbers that a gradient can flow through."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def canonical(tree: Any) -> Any:
    """Casts NumPy arrays as jit does: float64 to float32 and int64 to int32 unless x64 is on."""
    one = lambda a: jnp.asarray(a, jnp.result_type(a)) if isinstance(a, np.ndarray) else a
    return jax.tree.map(one, tree)


def same_structure(a: Any, b: Any) -> bool:
    """Returns True when the trees differ only in their leaves."""
    left: Any = jax.tree.structure(a)
    return bool(left == jax.tree.structure(b))


def wide_dtype(dtype: Any) -> Any:
    """Returns float32 for a narrower dtype, else `dtype` itself."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in the dtype of its reductions and curved functions."""
    return x.astype(wide_dtype(x.dtype))


Test = Callable[[Any], bool]


def partition(tree: Any, chosen: Test = is_floating, is_leaf: Test | None = None) -> tuple[Any, Any]:
    """Returns (chosen leaves, others), each with the whole structure and None elsewhere."""
    those = jax.tree.map(lambda a: a if chosen(a) else None, tree, is_leaf=is_leaf)
    others = jax.tree.map(lambda a: None if chosen(a) else a, tree, is_leaf=is_leaf)
    return those, others


def combine(chosen: Any, others: Any) -> Any:
    """Returns the tree that `partition` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda a: a is None)
