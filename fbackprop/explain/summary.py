"""The network at a glance: one row per layer, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np

from ..errors import at, show
from ..layer import Layer, Tree, paths
from ..rewrite.tap import tap


@dataclass(frozen=True)
class Row:
    """One layer: what it makes of a batch, how many numbers it trains, what its backward keeps and the bytes that takes."""

    path: str
    layer: str
    output: str
    parameters: int
    keeps: str
    kept_bytes: int  # an array that an earlier layer keeps already counts once, there


def summarize(net: Layer, loss: Layer | None, params: Tree, batch: Any) -> list[Row]:
    """A Row per layer without parts, in the order they run, the loss last. Nothing is computed: only shapes are traced.

    Raises what the layers raise on a wrong batch or wrong params.
    """
    rows: list[Row] = []
    kept: list[Any] = []  # the tracers themselves, so that none is freed and another takes its identity

    def see(path: str, layer: Layer, params: Tree, x: Any, y: Any, residuals: Any) -> None:
        if layer.parts:
            return
        named = {id(leaf): path for path, leaf in {**paths({"y": y}), **paths({"x": x})}.items()}
        new, words = 0, []
        for leaf in jax.tree.leaves(residuals):
            shared = any(leaf is other for other in kept)
            words.append(named.get(id(leaf), show(leaf)) + (" (shared)" if shared else ""))
            new += 0 if shared else prod(leaf.shape) * leaf.dtype.itemsize
            kept.append(leaf)
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        rows.append(Row(path, layer.name, show(y), count, ", ".join(words) or "nothing", new))

    def run(params: Tree, batch: Any) -> Any:
        if loss is None:
            return tap(net, see).forward(params, batch)[0]
        y, _ = tap(net, see).forward(params, batch[0])
        with at("loss", loss):
            value, residuals = loss.forward((), (y, batch[1]))
        see("loss", loss, (), (y, batch[1]), value, residuals)
        return value

    jax.eval_shape(run, params, batch)
    return rows
