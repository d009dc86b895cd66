"""lstm: a sequence read step by step, then classified from the last output."""

from __future__ import annotations

from ..compose import chain
from ..layer import Layer
from ..layers.dense import dense
from ..layers.recurrent.rnn import lstm
from .mlp import XAVIER


def lstm_classifier(features: int = 128, outputs: int = 10, segment: int | None = None, remake: str | None = None) -> Layer:
    """x (B, T, I) -> (B, outputs): an lstm of `features`, its last output into a dense layer. segment, remake: as `lstm`."""
    return chain(lstm(features, segment, remake, last=True), dense(outputs, w_init=XAVIER))
