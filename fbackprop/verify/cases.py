"""The one table of cases behind every test of a rule. A public layer, combinator or loss without a row here fails a test.

Axis sizes differ (2, 3, 5, 7), inputs are normal numbers with negatives; size-1 and size-0 axes, large logits, and kinks
pinned in cases of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _MODULE_OF, compose, losses
from ..layer import Layer
from ..layers import dense, elementwise, function, shape, softmax

Draw = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Case:
    """A layer and how to draw its x. `of`: the public name it stands for; `verdict`: what the checker has to say."""

    of: str
    layer: Layer
    x: Draw
    note: str = ""
    verdict: str = "OK"

    @property
    def family(self) -> str:
        """The file its layer is written in."""
        return _MODULE_OF[self.of].rpartition(".")[2]

    @property
    def name(self) -> str:
        return f"{self.layer.name} {self.note}".strip()


def normal(*sizes: int) -> Draw:
    return lambda rng: rng.standard_normal(sizes)


def pinned(*sizes: int) -> Draw:
    """Normal numbers with a zero of each sign among them."""
    def draw(rng: np.random.Generator) -> Any:
        x = rng.standard_normal(sizes)
        x.flat[1] = 0.0
        return x

    return draw


def with_classes(*sizes: int, scale: float = 1.0) -> Draw:
    """(logits, class numbers)."""
    return lambda rng: (scale * rng.standard_normal(sizes), rng.integers(0, sizes[-1], sizes[:-1]).astype(np.int32))


def with_probabilities(*sizes: int) -> Draw:
    """(logits, rows that are positive but do not sum to 1: the rule may not rely on it)."""
    return lambda rng: (rng.standard_normal(sizes), rng.random(sizes))


def pair(*sizes: int) -> Draw:
    return lambda rng: (rng.standard_normal(sizes), rng.standard_normal(sizes))


def _affine(params: Any, x: Any) -> Any:
    return {"y": jnp.sin(x["h"]) * jnp.broadcast_to(params["scale"], x["h"].shape), "ids": x["ids"]}


_with_ids: Draw = lambda rng: {"h": rng.standard_normal((3, 5)), "ids": np.arange(3, dtype=np.int32)}
_scale = lambda key, x: {"scale": jnp.ones(x["h"].shape[-1], x["h"].dtype)}

CASES: tuple[Case, ...] = (
    Case("dense", dense.dense(7), normal(3, 5)),
    Case("dense", dense.dense(5), normal(2, 3, 5), "square, two leading axes"),
    Case("dense", dense.dense(3, bias=False), normal(5), "one example"),
    Case("dense", dense.dense(1), normal(1, 1), "sizes 1"),
    Case("dense", dense.dense(7), normal(0, 5), "empty batch"),
    *(Case(name, getattr(elementwise, name)(), normal(3, 5)) for name in elementwise.TABLE),
    Case("gelu", elementwise.gelu(approximate=False), normal(3, 5)),
    Case("elu", elementwise.elu(0.5), normal(3, 5)),
    Case("relu", elementwise.relu(), pinned(3, 5), "at 0", "KINK"),
    Case("leaky_relu", elementwise.leaky_relu(0.2), pinned(3, 5), "at 0", "KINK"),
    Case("elu", elementwise.elu(0.5), pinned(3, 5), "at 0", "KINK"),
    Case("tanh", elementwise.tanh(), normal(0, 5), "empty batch"),
    Case("softmax", softmax.softmax(), normal(2, 3, 5)),
    Case("softmax", softmax.softmax(), lambda rng: 10 * rng.standard_normal((3, 5)), "large logits"),
    Case("flatten", shape.flatten(), normal(2, 3, 5)),
    Case("from_function", function.from_function(_affine, _scale), _with_ids),
    Case("mse", losses.mse(), pair(3, 5)),
    Case("half_squared_error", losses.half_squared_error(), pair(3, 5)),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_classes(3, 5)),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_classes(2, 3, 7, scale=10), "large logits"),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy(), with_probabilities(3, 5), "probabilities"),
    Case("chain", compose.chain(dense.dense(7), elementwise.tanh(), dense.dense(3)), normal(2, 5)),
    Case("skip", compose.skip(dense.dense(5)), normal(3, 5)),
)
