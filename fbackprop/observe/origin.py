"""first_bad: where in a pass the first number that is not finite was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..dtypes import is_floating
from ..params import Tree, paths
from .reading import Reading, turn


class Origin(NamedTuple):
    """The side of a layer that made a number, or the tree that holds it.

    side: "batch", "params", "residual" (the forward: y or what is kept), "dy", "dx" or "dparams".
    path: of the layer, "loss" for the loss, or of the leaf in params or in the batch.
    """

    path: str
    side: str

    def __str__(self) -> str:
        if self.side in ("batch", "params"):
            return f"{self.side} {self.path}".rstrip()
        return f"{self.side} of {'the loss' if self.path == 'loss' else f'layer {self.path}'}"


def first_bad(readings: Mapping[str, Reading], params: Tree = None, batch: Tree = None, value: Any = None) -> Origin | None:
    """Returns where the first number that is not finite was made, or None when all is finite.

    Looks in order of execution: batch, params, forward, loss, backward; leaves out what is None.
    "dy" of the loss: it hands a bad cotangent to a net whose forward was finite; "dy" of a layer: a
    sum of cotangents on the way to it overflowed. Of a layer whose dx and dparams are both bad, dx
    is named.
    """
    return next(_bad(readings, params, batch, value), None)


def _bad(readings: Mapping[str, Reading], params: Tree, batch: Tree, value: Any) -> Iterator[Origin]:
    for side, tree in (("batch", batch), ("params", params)):
        for path, leaf in paths(tree).items():
            if is_floating(leaf) and not bool(jnp.all(jnp.isfinite(leaf))):
                yield Origin(path, side)
    order = sorted(readings, key=turn)
    for path in order:
        if readings[path].nonfinite_residuals or readings[path].y.nonfinite:
            yield Origin(path, "residual")
    if value is not None and not np.isfinite(value):
        yield Origin("loss", "residual")
    for path in reversed(order):
        seen = readings[path]
        if seen.dy.nonfinite:
            yield Origin("loss" if path == order[-1] else path, "dy")
        if seen.nonfinite_dx:
            yield Origin(path, "dx")
        if seen.dparams.nonfinite:
            yield Origin(path, "dparams")
