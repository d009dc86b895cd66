"""lstm: a sequence read step by step, then classified from the last output."""

from __future__ import annotations

from ..calls import by_name
from ..compose import chain
from ..layer import Layer
from ..layers.dense import dense
from ..layers.recurrent.rnn import lstm
from ..layers.recurrent.segments import Remake
from .mlp import XAVIER


@by_name()
def lstm_classifier(features: int = 128, *, outputs: int = 10, segment: int | None = None,
                    remake: Remake | None = None) -> Layer:
    """x (B, T, I) -> (B, outputs): an lstm of `features`, its last output into a dense layer. segment, remake: as `lstm`."""
    reader = lstm(features, segment=segment, remake=remake, last=True)
    return chain(reader, dense(outputs, w_init=XAVIER))
