"""The network at a glance: one row per layer, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from ..checks import show
from ..compose import objective
from ..layer import Layer
from ..params import Tree, paths
from .taps import tap


@dataclass
class Row:
    """One layer: its output for a batch, its parameters, its residuals and their bytes.

    An array or a weight that an earlier layer has counts once, there. A layer that runs several
    times (`repeat`, `recurrent`) has one row for all of them. What a `checkpoint` recomputes counts
    as nothing kept, its own x stands in the first row.
    """

    path: str
    layer: str
    output: str
    parameters: int
    keeps: str
    kept_bytes: int


def summarize(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> list[Row]:
    """Returns a Row per layer without parts, in the order they run, the loss last.

    Traces shapes and computes nothing. Raises what the layers raise on wrong inputs.
    """
    seen = _Seen()
    jax.eval_shape(tap(objective(net, loss), seen.see).forward, params, batch)
    merged: dict[str, Row] = {}
    for row in seen.rows:
        first = merged.setdefault(row.path, row)
        if first is not row:  # a repeat written out
            first.parameters += row.parameters
            first.kept_bytes += row.kept_bytes
    return list(merged.values())


class _Seen:
    """Rows as the layers run. Arrays are told apart by identity, so all are held: none is freed and its identity used again."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.kept: list[list[Any]] = []  # of each row, the arrays that count there
        self.wholes: list[set[tuple[str, Layer]]] = []  # of each row, the combinators it has been seen in
        self.weights: list[Any] = []

    def see(self, path: str, layer: Layer, params: Tree, x: Any, y: Any, residuals: Any) -> None:
        if layer.parts:
            self._see_whole(path, layer, params, residuals)
            return
        named = {id(leaf): path for path, leaf in {**paths({"y": y}), **paths({"x": x})}.items()}
        weights = jax.tree.leaves(params)  # the backward is given them again: a rule made by jax.vjp keeps them at no cost
        leaves = [leaf for leaf in jax.tree.leaves(residuals) if not _among(leaf, weights)]
        shared = [_among(leaf, [other for kept in self.kept for other in kept]) for leaf in leaves]
        words = [named.get(id(leaf), show(leaf)) + (" (shared)" if again else "") for leaf, again in zip(leaves, shared)]
        new = [leaf for leaf, again in zip(leaves, shared) if not again]
        count = _size([leaf for leaf in weights if not _among(leaf, self.weights)])
        self.weights += weights
        self.rows.append(Row(path, layer.name, show(y), count, ", ".join(words) or "nothing", _bytes(new)))
        self.kept.append(new)
        self.wholes.append(set())

    def _see_whole(self, path: str, layer: Layer, params: Tree, residuals: Any) -> None:
        """Corrects the rows of the parts of a combinator that keeps other things or is a loop."""
        leaves = jax.tree.leaves(residuals)
        inside = lambda row: row.path == path or row.path.startswith(f"{path}/" if path else "")
        below = [i for i, row in enumerate(self.rows) if inside(row) and (path, layer) not in self.wholes[i]]
        for i in below:
            self.wholes[i].add((path, layer))
        if not below or all(_among(leaf, leaves) for i in below for leaf in self.kept[i]):
            return  # they are handed on
        if layer.wraps:  # a checkpoint
            earlier = [leaf for i, kept in enumerate(self.kept) if i not in below for leaf in kept]
            own = [leaf for leaf in leaves if not _among(leaf, earlier)]
            for i in below:
                self.rows[i].keeps, self.rows[i].kept_bytes, self.kept[i] = "nothing: recomputed", 0, []
            first = self.rows[below[0]]
            first.keeps, first.kept_bytes, self.kept[below[0]] = "x" if own else "x (shared)", _bytes(own), own
            return
        # a scan: what was seen is one step, the last time it was traced; its weights are one step's too where they are stacked
        last = {self.rows[i].path: i for i in below}
        for i in set(below).difference(last.values()):
            row, final = self.rows[i], self.rows[last[self.rows[i].path]]
            final.parameters = max(final.parameters, row.parameters)  # a weight that is not stacked counts when first seen
            row.parameters, row.kept_bytes, self.kept[i] = 0, 0, []
        below = sorted(last.values())
        steps = _bytes(leaves) / max(1, sum(self.rows[i].kept_bytes for i in below))
        stacked = _size(jax.tree.leaves(params)) // max(1, sum(self.rows[i].parameters for i in below))
        for i in below:
            self.rows[i].kept_bytes = round(steps * self.rows[i].kept_bytes)
            self.rows[i].parameters *= max(1, stacked)
            self.kept[i] = leaves if i == below[0] else []  # what stands for them outside


def _among(leaf: Any, others: Sequence[Any]) -> bool:
    return any(leaf is other for other in others)


def _size(leaves: Sequence[Any]) -> int:
    return sum(prod(leaf.shape) for leaf in leaves)


def _bytes(leaves: Sequence[Any]) -> int:
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
