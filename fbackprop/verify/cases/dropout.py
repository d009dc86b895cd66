"""Cases and mistakes of dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ...layers.dropout import dropout
from ...params import Next, State
from ...transform import inference
from .case import Bugs, Case, normal

CASES: tuple[Case, ...] = (
    Case("dropout", dropout(0.5), normal(3, 5)),
    Case("dropout", dropout(0.2), normal(2, 3, 7), "two leading axes"),
    Case("dropout", dropout(0.3), normal(1, 1), "sizes 1"),
    Case("dropout", dropout(0.0), normal(3, 5)),
    Case("dropout", dropout(0.5), normal(0, 5), "empty batch"),
    Case("dropout", inference(dropout(0.5)), normal(3, 5)),
)

BUGS: Bugs = {"dropout": {
    "masked by the next key: another mask than the forward's":
        lambda right: (right.dparams, right.with_params(key=State(right.dparams["key"].value)).dx),
    "without the division by 1 - rate":
        lambda right: (right.dparams, jnp.where(right.dx == 0, 0, right.dy)),
    "without the mask":
        lambda right: ({"key": Next(jax.random.split(right.params["key"].value)[1])}, right.dy),
}}
