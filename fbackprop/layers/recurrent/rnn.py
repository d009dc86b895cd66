"""rnn, lstm, gru: a dense projection of every x_t, then a cell at every step; all steps at once, or in segments.

Shapes    x (B, T, I), y (B, T, H) or, with last=True, (B, H)
Dtypes    floating, all equal
Units     segment in time steps
Forward   y = recurrent(cell)(x w + b)
Backward  that of the two; in segments as layers/segments.py
Keeps     x and what the cell keeps, T times; in segments less
At kinks  none
Raises    ValueError: what the two raise, an option that segments do not go with
Source    those of recurrent and of the cells; derivation in docs/derivations/recurrent.md
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from ...checks import expect
from ...compose import chain
from ...layer import Layer
from ..dense import dense
from .cells import gru_cell, lstm_cell, rnn_cell
from .recurrent import recurrent
from .segments import by_segments, in_segments, segments

XAVIER = jax.nn.initializers.glorot_uniform()


def rnn(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): a dense projection of all steps at once, then `recurrent(rnn_cell(H), **options)`.

    segment: so many steps at a time, less memory for the same result. remake, of a segment: "gates", the default, keeps x and
    every step's h, "nothing" the gates too, "carries" only the carry before the segment, whose forward then runs again.
    """
    return _projected(features, rnn_cell(features), segment, remake, options)


def lstm(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): `recurrent(lstm_cell(H), **options)` on a dense projection; the rest as `rnn`."""
    return _projected(4 * features, lstm_cell(features), segment, remake, options)


def gru(features: int, segment: int | None = None, remake: str | None = None, **options: Any) -> Layer:
    """x (B, T, I) -> y (B, T, H): `recurrent(gru_cell(H), **options)` on a dense projection; the rest as `rnn`."""
    return _projected(3 * features, gru_cell(features), segment, remake, options)


def _projected(width: int, cell: Layer, segment: int | None, remake: str | None, options: dict[str, Any]) -> Layer:
    before, over = dense(width, w_init=XAVIER), recurrent(cell, **options)
    whole_only = {"truncate", "initial"} & {name for name, value in options.items() if value}
    if segment is None:
        expect(remake is None, "remake", "a segment beside it", "segment=None", "Give both: segment=16, remake='gates'")
        return _whole(before, over)
    expect(not whole_only, "segment", "no truncate and no initial beside it", repr(options))
    return in_segments(before, over, segment, remake or "gates")


def _whole(before: Layer, over: Layer) -> Layer:
    """Returns chain(before, over), which offers segments where `over` can be taken in segments."""
    whole = chain(before, over)
    if over.scan is None:
        return whole
    tuning = by_segments(before, over, lambda x: segments(x.shape[1], "nothing"))
    return replace(whole, rebuild=lambda parts: _whole(*parts), tuning=tuning)
