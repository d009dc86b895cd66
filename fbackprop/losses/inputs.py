"""What losses are given: a pair, and class numbers among its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import expect, is_whole

ClassWeights: TypeAlias = Sequence[float] | ArrayLike | None


def several(batch: Any, least: int = 2, most: int = 2, hint: str = "") -> tuple[Any, ...]:
    """The entries of a batch; TypeError unless there are as many as a loss takes."""
    ok = isinstance(batch, (tuple, list)) and least <= len(batch) <= most
    expect(ok, "input of a loss", "a pair (y, target)", batch, hint, TypeError)
    return tuple(batch)


def class_numbers(target: Any, shape: tuple[int, ...]) -> jax.Array:
    """`target` (...) in a dtype that can count classes: with uint8, class 256 would be class 0 again."""
    expect(jnp.issubdtype(target.dtype, jnp.integer), "target", "class numbers or probabilities", target)
    expect(target.shape == shape, "target", f"class numbers of shape {shape}", target, "One-hot targets must be floating")
    target = jnp.asarray(target)
    return target.astype(jnp.int32) if target.dtype.itemsize < 4 else target


def is_index(target: jax.Array, index: int | None) -> jax.Array:
    """Where `target` is `index`; an index its dtype cannot hold is nowhere."""
    limits = jnp.iinfo(target.dtype)
    if index is None or not limits.min <= index <= limits.max:
        return jnp.zeros(target.shape, bool)
    return target == jnp.asarray(index, target.dtype)


def inverse(total: jax.Array) -> jax.Array:
    """1 / total, and 0 where there is nothing to divide: the mean over no token is 0, and so are its gradients."""
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def check_options(label_smoothing: float, ignore_index: int | None) -> None:
    """ValueError unless the options of a cross-entropy make sense."""
    expect(0 <= label_smoothing < 1, "label_smoothing", "a share in [0, 1)", repr(label_smoothing))
    ok = ignore_index is None or is_whole(ignore_index)
    expect(ok, "ignore_index", "a whole number or None", repr(ignore_index))
