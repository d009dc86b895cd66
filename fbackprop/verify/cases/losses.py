"""Cases and mistakes of the losses."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ... import losses
from ...dtypes import is_floating
from ...layer import Layer, Tree
from .case import Bugs, Case, Draw, right


def with_classes(*sizes: int, scale: float = 1.0) -> Draw:
    """(logits, class numbers)."""
    return lambda rng: (scale * rng.standard_normal(sizes), rng.integers(0, sizes[-1], sizes[:-1]).astype(np.int32))


def with_probabilities(*sizes: int) -> Draw:
    """(logits, rows that are positive but do not sum to 1: the rule may not rely on it)."""
    return lambda rng: (rng.standard_normal(sizes), rng.random(sizes))


def pair(*sizes: int) -> Draw:
    """(y, target) of one shape."""
    return lambda rng: (rng.standard_normal(sizes), rng.standard_normal(sizes))


CASES: tuple[Case, ...] = (
    Case("mse", losses.mse(), pair(3, 5)),
    Case("half_squared_error", losses.half_squared_error(), pair(3, 5)),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_classes(3, 5)),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_classes(2, 3, 7, scale=10), "large logits"),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_probabilities(3, 5), "probabilities"),
)


def _p_alone(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, (dlogits, dtarget) = right(layer, params, x, dy)
    logits, target = x
    rows = logits.size // logits.shape[-1]
    one_hot = target if is_floating(target) else jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return dparams, (dlogits + one_hot * dy / rows, dtarget)


BUGS: Bugs = {"softmax_cross_entropy": {"p, without the - t": _p_alone}}
