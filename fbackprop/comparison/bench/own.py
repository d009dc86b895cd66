"""jax.checkpoint on a user's own net, whose layers are all there is to put it around."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from ...layer import Layer
from .works import FULL

KEPT = jax.checkpoint_policies


def checkpointed(net: Layer) -> dict[str, Layer]:
    """By setting, nets of the same forward for jax.grad: as it is, around every part, and around the whole by policy."""
    found = {FULL: net}
    if len(net.parts) > 1 and net.rebuild is not None:
        found["checkpoint a part"] = net.rebuild(tuple(around(part) for part in net.parts))
    return {**found, "dots policy": around(net, policy=KEPT.dots_saveable),
            "nothing saved": around(net, policy=KEPT.nothing_saveable)}


def around(layer: Layer, **options: Any) -> Layer:
    return replace(layer, forward=jax.checkpoint(layer.forward, **options))
