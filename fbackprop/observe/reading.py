"""readings: what the probes of a watched net have seen, by layer.

Where a layer runs n times in a `repeat`, there is one Reading for each: `2/0[3]/1` is layer 2/0/1 in its block 3, from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..params import Tree
from .record import Record, records

# Per tree: how many numbers; the sum of their squares over the square of the largest, so that neither 1e-30 nor 1e30 is lost
# in it; the largest magnitude; how many are zero; how many are not finite, which no other column counts
COLUMNS = ("size", "squares", "max", "zeros", "nonfinite")
SHARES = 3  # of units or outputs: alike, dead, saturated
# Where the slope is below 4 % of its largest: 4 y (1 - y) < 0.04 beyond 0.01 and 0.99, 1 - y^2 < 0.04 beyond 0.98
SATURATED = {"sigmoid": (0.01, 0.99), "tanh": (-0.98, 0.98), "rnn_cell": (-0.98, 0.98)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norms:
    """Of the floating numbers of a tree. norm, rms and max are of those that are finite; `zeros` is a share, 0 to 1."""

    norm: Any
    rms: Any
    max: Any  # of the magnitudes
    zeros: Any
    nonfinite: Any  # how many
    size: Any  # how many in all


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """What a probe saw of one layer in one pass; of a `recurrent` cell, all steps together, its carry left out."""

    layer: str = field(metadata={"static": True})  # its name
    y: Norms
    dy: Norms
    dparams: Norms
    nonfinite_residuals: Any  # how many
    nonfinite_dx: Any
    alike: Any  # 1 where all units (last axis, two or more) say the same of every example, and not the same of all, else 0
    dead: Any = None  # relu: the share of units (last axis) whose y is 0 in the whole batch
    saturated: Any = None  # sigmoid, tanh, rnn_cell: the share of y where the slope is below 4 % of its largest


def readings(tree: Tree) -> dict[str, Reading]:
    """Returns a Reading by layer path from params or grads of a watched net.

    The layers are in the order they run, but a dict that jit hands out is in alphabetical order.
    The numbers are Python's outside jit, scalars inside. A tree without probes gives {}.
    """
    found = records(tree, "statistics")
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(found))
    return of_records(found if traced else jax.device_get(found))


def turn(path: str) -> list[tuple[int, str, int]]:
    """Returns the sort key of a layer path, in the order layers run; names come after numbers."""
    parts = [re.fullmatch(r"(\d*)(.*?)(?:\[(\d+).*\])?", part) for part in path.split("/") if part]
    return [(int(m[1]) if m[1] else 1 << 30, m[2], int(m[3] or 0)) for m in parts if m]


def of_records(found: dict[str, Record]) -> dict[str, Reading]:
    """Returns the same from Records by path, their values NumPy arrays or tracers."""
    each: dict[str, Reading] = {}
    for path, record in found.items():
        sums, counts = record.value["sums"], record.value["counts"]
        for block in np.ndindex(*counts.shape[:-1]):
            each[_in_block(path, record.axes, block)] = _reading(record, sums[block], counts[block])
    return {path: each[path] for path in sorted(each, key=turn)}


def _in_block(path: str, axes: tuple[int, ...], block: tuple[int, ...]) -> str:
    """Puts the block into the path. An axis that is not marked (of a vmap) is the layer's own."""
    parts = path.split("/")
    for place, k in zip((*axes, *(-1 for _ in block[len(axes):])), block):
        parts[place] += f"[{k}]"
    return "/".join(parts)


def _reading(record: Record, sums: Any, counts: Any) -> Reading:
    y, dy, dparams = (_norms(row) for row in sums)
    residuals, dx, alike, dead, saturated = _numbers(counts)
    return Reading(record.layer, y, dy, dparams, residuals, dx, alike, dead if record.of == "relu" else None,
                   saturated if record.of in SATURATED else None)


def _numbers(row: Any) -> list[Any]:
    return row.tolist() if isinstance(row, np.ndarray) else list(row)


def _norms(row: Any) -> Norms:
    size, squares, largest, zeros, bad = _numbers(row)
    most = max if isinstance(size, float) else jnp.maximum
    rms = largest * (squares / most(size - bad, 1.0))**0.5
    return Norms(largest * squares**0.5, rms, largest, zeros / most(size, 1.0), bad, size)
