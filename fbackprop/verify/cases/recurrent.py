"""Cases and mistakes of recurrent and its cells."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...layers.recurrent.cells import gru_cell, lstm_cell, rnn_cell
from ...layers.recurrent.recurrent import recurrent
from ...layers.recurrent.rnn import gru, lstm, rnn
from ...params import Tree
from .case import Bugs, Case, Right, Wrong, normal, several

CASES: tuple[Case, ...] = (
    Case("rnn_cell", rnn_cell(5), several((2, 5), (2, 5))),
    Case("lstm_cell", lstm_cell(5), several(((2, 5), (2, 5)), (2, 20))),
    Case("gru_cell", gru_cell(5), several((3, 5), (3, 15))),
    Case("recurrent", recurrent(rnn_cell(5)), normal(2, 3, 5)),
    Case("recurrent", recurrent(rnn_cell(5), reverse=True), normal(2, 3, 5)),
    Case("recurrent", recurrent(lstm_cell(5), initial=True), several(((2, 5), (2, 5)), (2, 3, 20))),
    Case("recurrent", recurrent(gru_cell(3), last=True), normal(2, 5, 9)),
    Case("recurrent", recurrent(gru_cell(3), last=True, reverse=True), normal(2, 1, 9), "one step"),
    Case("rnn", rnn(5), normal(2, 3, 7)),
    Case("lstm", lstm(3, last=True), normal(2, 5, 7)),
    Case("gru", gru(3), normal(2, 5, 7)),
)


def _last_step_alone(right: Right) -> tuple[Tree, Any]:
    """Cuts off every earlier step: no backpropagation through time."""
    return right.remade(partial(recurrent, right.layer.parts[0]), truncate=1).gradients


def _carry_forgotten(right: Right) -> tuple[Tree, Any]:
    dcarry, dy = right.dy
    return right.given(dy=(jax.tree.map(jnp.zeros_like, dcarry), dy)).gradients


def _output_forgotten(right: Right) -> tuple[Tree, Any]:
    dcarry, dy = right.dy
    return right.given(dy=(dcarry, jnp.zeros_like(dy))).gradients


def _first_gates_swapped(right: Right, gates: int) -> tuple[Tree, Any]:
    dcarry, dx = right.dx
    first, second, *others = jnp.split(dx, gates, -1)
    return right.dparams, (dcarry, jnp.concatenate([second, first, *others], -1))


_CELL: dict[str, Wrong] = {
    "without the carry's cotangent": _carry_forgotten,
    "without the output's cotangent": _output_forgotten,
}
BUGS: Bugs = {
    "recurrent": {"cut off before every step": _last_step_alone},
    "rnn_cell": _CELL,
    "lstm_cell": {**_CELL, "input and forget gate swapped": partial(_first_gates_swapped, gates=4)},
    "gru_cell": {**_CELL, "reset and update gate swapped": partial(_first_gates_swapped, gates=3)},
}
