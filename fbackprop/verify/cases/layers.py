"""Cases and mistakes of dense, softmax, flatten and from_function."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...layers.dense import dense
from ...layers.function import from_function
from ...layers.shape import flatten
from ...layers.softmax import softmax
from .case import Bugs, Case, Draw, normal


def _sine(params: Any, x: Any) -> Any:
    return {"y": jnp.sin(x["h"]) * jnp.broadcast_to(params["scale"], x["h"].shape), "ids": x["ids"]}


_with_ids: Draw = lambda rng: {"h": rng.standard_normal((3, 5)), "ids": np.arange(3, dtype=np.int32)}
_scale = lambda key, x: {"scale": jnp.ones(x["h"].shape[-1], x["h"].dtype)}

CASES: tuple[Case, ...] = (
    Case("dense", dense(7), normal(3, 5)),
    Case("dense", dense(5), normal(2, 3, 5), "square, two leading axes"),
    Case("dense", dense(3, bias=False), normal(5), "one example"),
    Case("dense", dense(1), normal(1, 1), "sizes 1"),
    Case("dense", dense(7), normal(0, 5), "empty batch"),
    Case("softmax", softmax(), normal(2, 3, 5)),
    Case("softmax", softmax(), normal(3, 5, scale=10), "large logits"),
    Case("flatten", flatten(), normal(2, 3, 5)),
    Case("from_function", from_function(_sine, _scale), _with_ids),
)

BUGS: Bugs = {"softmax": {
    "y dy, without the rank-one term":
        lambda right: ((), right.layer.forward((), right.x)[0] * right.dy),
}}
