"""Cases and mistakes of recurrent and its cells."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...layer import Layer
from ...layers.recurrent.cells import gru_cell, lstm_cell, rnn_cell
from ...layers.recurrent.recurrent import recurrent
from ...layers.recurrent.rnn import gru, lstm, rnn
from ...params import Tree
from .case import Bugs, Case, Draw, Wrong, normal, options_of, right


def _cell(*sizes: int, carries: int, gates: int) -> Draw:
    def draw(rng: Any) -> Any:
        carry = tuple(rng.standard_normal(sizes) for _ in range(carries))
        return (carry if carries > 1 else carry[0]), rng.standard_normal((*sizes[:-1], gates * sizes[-1]))

    return draw


def _with_carry(rng: Any) -> Any:
    return (rng.standard_normal((2, 5)), rng.standard_normal((2, 5))), rng.standard_normal((2, 3, 20))


CASES: tuple[Case, ...] = (
    Case("rnn_cell", rnn_cell(5), _cell(2, 5, carries=1, gates=1)),
    Case("lstm_cell", lstm_cell(5), _cell(2, 5, carries=2, gates=4)),
    Case("gru_cell", gru_cell(5), _cell(3, 5, carries=1, gates=3)),
    Case("recurrent", recurrent(rnn_cell(5)), normal(2, 3, 5)),
    Case("recurrent", recurrent(rnn_cell(5), reverse=True), normal(2, 3, 5)),
    Case("recurrent", recurrent(lstm_cell(5), initial=True), _with_carry),
    Case("recurrent", recurrent(gru_cell(3), last=True), normal(2, 5, 9)),
    Case("recurrent", recurrent(gru_cell(3), last=True, reverse=True), normal(2, 1, 9), "one step"),
    Case("rnn", rnn(5), normal(2, 3, 7)),
    Case("lstm", lstm(3, last=True), normal(2, 5, 7)),
    Case("gru", gru(3), normal(2, 5, 7)),
)


def _carry_forgotten(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer, params, x, (jax.tree.map(jnp.zeros_like, dy[0]), dy[1]))


def _output_forgotten(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer, params, x, (dy[0], jnp.zeros_like(dy[1])))


def _last_step_alone(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    """No backpropagation through time: every earlier step is cut off."""
    options = options_of(layer)
    return right(recurrent(layer.parts[0], **{**options, "truncate": 1}), params, x, dy)


_CELL: dict[str, Wrong] = {
    "without the carry's cotangent": _carry_forgotten, "without the output's cotangent": _output_forgotten}


def _gates_swapped(first: int, second: int, gates: int) -> Wrong:
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, (dcarry, dx) = right(layer, params, x, dy)
        pieces = jnp.split(dx, gates, -1)
        pieces[first], pieces[second] = pieces[second], pieces[first]
        return dparams, (dcarry, jnp.concatenate(pieces, -1))

    return wrong


BUGS: Bugs = {
    "recurrent": {"cut off before every step": _last_step_alone},
    "rnn_cell": _CELL,
    "lstm_cell": {**_CELL, "input and forget gate swapped": _gates_swapped(0, 1, 4)},
    "gru_cell": {**_CELL, "reset and update gate swapped": _gates_swapped(0, 1, 3)},
}
