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

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from ...calls import by_name
from ...checks import expect, expect_whole
from ...compose import chain
from ...layer import Layer
from ..dense import dense
from .cells import gru_cell, lstm_cell, rnn_cell
from .recurrent import recurrent
from .segments import Remake, by_segments, in_segments, segments

XAVIER = jax.nn.initializers.glorot_uniform()
ELSEWHERE = ("input_size features num_layers",
             "the number of inputs is taken from x, and several layers are a chain of them")


@by_name(*ELSEWHERE)
def rnn(features: int, *, segment: int | None = None, remake: Remake | None = None,
        last: bool = False, reverse: bool = False, initial: bool = False,
        truncate: int | None = None) -> Layer:
    """x (B, T, I) -> y (B, T, H): a dense projection of all steps, then `recurrent(rnn_cell(H))`.

    segment: so many steps at a time, less memory for the same result. remake, of a segment: "gates", the default, keeps x and
    every step's h, "nothing" the gates too, "carries" only the carry before the segment, whose forward then runs again.
    last, reverse, initial, truncate: as `recurrent`.
    """
    options = {"last": last, "reverse": reverse, "initial": initial, "truncate": truncate}
    return _projected("rnn", rnn_cell, 1, features, segment, remake, options)


@by_name(*ELSEWHERE)
def lstm(features: int, *, segment: int | None = None, remake: Remake | None = None,
         last: bool = False, reverse: bool = False, initial: bool = False,
         truncate: int | None = None) -> Layer:
    """x (B, T, I) -> y (B, T, H): `rnn` with `lstm_cell(H)`."""
    options = {"last": last, "reverse": reverse, "initial": initial, "truncate": truncate}
    return _projected("lstm", lstm_cell, 4, features, segment, remake, options)


@by_name(*ELSEWHERE)
def gru(features: int, *, segment: int | None = None, remake: Remake | None = None,
        last: bool = False, reverse: bool = False, initial: bool = False,
        truncate: int | None = None) -> Layer:
    """x (B, T, I) -> y (B, T, H): `rnn` with `gru_cell(H)`."""
    options = {"last": last, "reverse": reverse, "initial": initial, "truncate": truncate}
    return _projected("gru", gru_cell, 3, features, segment, remake, options)


def _projected(kind: str, cell: Callable[[int], Layer], gates: int, features: int,
               segment: int | None, remake: Remake | None, options: dict[str, Any]) -> Layer:
    features = expect_whole(f"{kind} features", features, 0)
    before, over = dense(gates * features, w_init=XAVIER), recurrent(cell(features), **options)
    if segment is None:
        expect(remake is None, "remake", "a segment beside it", "segment=None", "Give both: segment=16, remake='gates'")
        return _whole(before, over)
    chosen = {name: value for name, value in options.items() if value}
    ok = not {"truncate", "initial"} & set(chosen)
    expect(ok, "segment", "no truncate and no initial beside it", repr(chosen))
    return in_segments(before, over, segment, remake=remake or "gates")


def _whole(before: Layer, over: Layer) -> Layer:
    """Returns chain(before, over), which offers segments where `over` can be taken in segments."""
    whole = chain(before, over)
    if over.scan is None:
        return whole
    tuning = by_segments(before, over, lambda x: segments(x.shape[1], "nothing"))
    return replace(whole, rebuild=lambda parts: _whole(*parts), tuning=tuning)
