"""A step taken once more with a probe at every layer: what it looks like, and where a number that is not finite was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from ...layer import Layer
from ...observe.origin import first_bad
from ...observe.probes import probe
from ...observe.reading import Reading
from ..step.accumulation import microbatches
from ..step.training import Training
from ..task.config import TrainConfig

DEFAULT_LR = TrainConfig.lr


@dataclass(frozen=True)
class Cause:
    """layer: its path, "" for none; side: batch, params, residual, dy, dx, dparams or update."""

    layer: str
    side: str
    words: str

    def cure(self, config: TrainConfig) -> str:
        """Returns what to try, as a sentence without its full stop."""
        if self.side == "batch":
            return "Look at the data: it holds NaN or inf"
        cures = [f"a lower rate (`lr` {min(config.lr / 10, DEFAULT_LR):g})"]
        cures += ["`clip` norm:1.0"] * (config.clip is None) + ["`precision` bfloat16"] * (config.precision == "float16")
        cures += ["`on_nonfinite` skip where the data is to blame"] * (config.on_nonfinite == "halt")
        return f"Try a new run with {', or '.join(cures)}"


class StepProbe:
    """A probe at every layer, for looks now and then and for what is not finite; compiled when it is first asked."""

    def __init__(self, net: Layer, loss: Layer | None, config: TrainConfig) -> None:
        self.net, self.loss, self.config = net, loss, config

    @cached_property
    def measure(self) -> Callable:
        return probe(self.net, self.loss)

    def cause(self, training: Training, batch: Any, lost: bool = False) -> Cause:
        """Returns the Cause in a step's batch, from the params before it. lost: those are gone."""
        if lost:
            return Cause("", "update", "the optimizer's update of the weights")
        params, scale = training.params, training.guard.scale
        seed = 1.0 if scale is None else scale.scale * (1.0 if training.guard.halted else 2.0)  # the guard has halved it since
        parts = self.parts(batch)
        for part in parts:
            value, readings, _ = self.measure(params, part, seed)
            found = first_bad(readings, params, part, value)
            if found is not None:
                if found.side == "batch":  # its path is that of a leaf of the batch, though a layer may have the same
                    return Cause("", found.side, str(found))
                name = readings[found.path].layer if found.path in readings else ""
                return Cause(found.path, found.side, f"{found} {name}".rstrip())
        return Cause("", "dparams", "the sum over the parts of the batch" if len(parts) > 1 else "the gradient's norm")

    def readings(self, training: Training, batch: Any) -> dict[str, Reading]:
        """Returns the readings of a pass over the first part of `batch`, at the loss's scale."""
        scale = training.guard.scale
        return self.measure(training.params, self.parts(batch)[0], 1.0 if scale is None else scale.scale)[1]

    def parts(self, batch: Any) -> list[Any]:
        if self.config.accumulate == 1:
            return [batch]
        parts = microbatches(batch, self.config.accumulate)
        if isinstance(parts, list):
            return parts
        return [jax.tree.map(lambda a, i=i: a[i], parts) for i in range(self.config.accumulate)]
