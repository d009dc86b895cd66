"""watch: a probe at every layer without parts, that measures y, dy and dparams in the pass that makes them.

Where a layer runs n times in a `repeat`, there is one Reading for each: `2/0[3]/1` is layer 2/0/1 in its block 3, from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compose import map_layers_with_path, value_and_grad
from ..dtypes import is_floating
from ..layer import Layer, Tree, graft, paths, split
from ..layers.recurrent import Cell
from .record import Record, beside_records, recording, records

# Per tree: how many numbers; the sum of their squares over the square of the largest, so that neither 1e-30 nor 1e30 is lost
# in it; the largest magnitude; how many are zero; how many are not finite, which no other column counts
COLUMNS = ("size", "squares", "max", "zeros", "nonfinite")
# Where the slope is below 4 % of its largest: 4 y (1 - y) < 0.04 beyond 0.01 and 0.99, 1 - y^2 < 0.04 beyond 0.98
SHARES = 3  # of units or outputs: alike, dead, saturated
SATURATED = {"sigmoid": (0.01, 0.99), "tanh": (-0.98, 0.98), "rnn_cell": (-0.98, 0.98)}


@partial(jax.tree_util.register_dataclass, data_fields=["norm", "rms", "max", "zeros", "nonfinite", "size"], meta_fields=[])
@dataclass(frozen=True)
class Norms:
    """Of the floating numbers of a tree. norm, rms and max are of those that are finite; `zeros` is a share, 0 to 1."""

    norm: Any
    rms: Any
    max: Any  # of the magnitudes
    zeros: Any
    nonfinite: Any  # how many
    size: Any  # how many in all


@partial(jax.tree_util.register_dataclass, meta_fields=["layer"],
         data_fields=["y", "dy", "dparams", "nonfinite_residuals", "nonfinite_dx", "alike", "dead", "saturated"])
@dataclass(frozen=True)
class Reading:
    """What a probe saw of one layer in one pass; of a `recurrent` cell, all steps together, its carry left out."""

    layer: str  # its name
    y: Norms
    dy: Norms
    dparams: Norms
    nonfinite_residuals: Any  # how many
    nonfinite_dx: Any
    alike: Any  # 1 where all units (last axis, two or more) say the same of every example, and not the same of all, else 0
    dead: Any = None  # relu: the share of units (last axis) whose y is 0 in the whole batch
    saturated: Any = None  # sigmoid, tanh, rnn_cell: the share of y where the slope is below 4 % of its largest


def watch(net: Layer) -> Layer:
    """`net` with a probe at every layer without parts; values and gradients stay, and so do all paths.

    A probe's State holds sums, its Next those of this pass: `readings(grads)`. `graft(params, watch(net).init(key, x))`
    carries params over; `probe` does it all.
    """
    def watched(path: str, layer: Layer) -> Layer:
        if layer.parts:
            place = len(path.split("/")) if path else 0
            return replace(layer, init=lambda key, x: _marked(layer.init(key, x), place))
        start = {"sums": jnp.zeros((3, len(COLUMNS))), "counts": jnp.zeros(2 + SHARES)}
        return recording(layer, "statistics", start, partial(_read, _output_of(layer)), partial(_note, layer))

    return map_layers_with_path(net, watched)


def probe(net: Layer, loss: Layer | None = None) -> Callable[..., tuple[jax.Array, dict[str, Reading], Tree]]:
    """`measure(params, batch, seed=1.0) -> (value, readings, grads)`: `value_and_grad` and, by layer path, what it looked like inside.

    Compiled once. State moves in `grads` as ever; `params` are those of `net`, and nothing changes them.
    """
    watched = watch(net)

    @jax.jit
    def run(params: Tree, batch: Any, seed: Any) -> tuple[jax.Array, dict[str, Record], Tree]:
        value, grads = value_and_grad(watched, loss)(beside_records(watched, loss, params, batch), batch, seed)
        _, plain = jax.eval_shape(value_and_grad(net, loss), params, batch)
        return value, records(grads, "statistics"), graft(grads, plain) if paths(plain) else plain

    def measure(params: Tree, batch: Any, seed: Any = 1.0) -> tuple[jax.Array, dict[str, Reading], Tree]:
        value, seen, grads = run(params, batch, seed)
        return value, _readings(jax.device_get(seen)), grads

    return measure


def readings(tree: Tree) -> dict[str, Reading]:
    """A Reading by layer path, in the order the layers run, from params or grads of a watched net: Python numbers outside jit.

    Inside, scalars; a dict that jit hands out is in alphabetical order. Raises nothing: a tree without probes gives {}.
    """
    found = records(tree, "statistics")
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(found))
    return _readings(found if traced else jax.device_get(found))


def turn(path: str) -> list[tuple[int, str, int]]:
    """Sorts layer paths, blocks included, into the order they run in; names come after numbers."""
    parts = [re.fullmatch(r"(\d*)(.*?)(?:\[(\d+).*\])?", part) for part in path.split("/") if part]
    return [(int(m[1]) if m[1] else 1 << 30, m[2], int(m[3] or 0)) for m in parts if m]


# ---- what a probe does


def _output_of(layer: Layer) -> Callable[[Any], Any]:
    """Of a cell's (carry, y_t) the second: its carry comes back to it, so a cotangent it spoils would look like a given one."""
    return (lambda y: y[1]) if isinstance(layer, Cell) else lambda y: y


def _note(layer: Layer, y: Any) -> jax.Array:
    """(5 + 3,): the columns of y, then its SHARES."""
    y = _output_of(layer)(y)
    kind, shares = layer.name.partition("(")[0], [jnp.zeros(())] * SHARES
    if isinstance(y, jax.Array) and is_floating(y) and y.ndim > 1 and y.shape[-1] > 1:
        shares[0] = jnp.all(y == y[..., :1]) & jnp.any(y != jnp.ravel(y)[0])
    if kind == "relu":
        shares[1] = jnp.mean(jnp.all(y == 0, axis=tuple(range(y.ndim - 1))))
    if kind in SATURATED:
        low, high = SATURATED[kind]
        shares[2] = jnp.mean((y < low) | (y > high))
    return jnp.concatenate([_sums(y), jnp.stack(shares).astype(jnp.result_type(float))])


def _read(output: Callable[[Any], Any], noted: jax.Array, residuals: Any, dy: Any, dparams: Tree, dx: Any) -> Tree:
    noted = noted.reshape(-1, len(COLUMNS) + SHARES)  # a row for each step of a recurrence
    of_y, shares = _combined(noted[:, :-SHARES]), jnp.mean(noted[:, -SHARES:], axis=0)
    sums = jnp.stack([of_y, _sums(output(dy)), _sums(split(dparams)[0])])
    return {"sums": sums, "counts": jnp.concatenate([jnp.stack([_nonfinite(residuals), _nonfinite(dx)]), shares])}


def _floats(tree: Tree) -> list[jax.Array]:
    dtype = jnp.result_type(float)  # float32, or float64 where x64 is on
    return [jnp.asarray(leaf, dtype) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]


def _nonfinite(tree: Tree) -> jax.Array:
    return sum((jnp.sum(~jnp.isfinite(leaf), dtype=leaf.dtype) for leaf in _floats(tree)), start=jnp.zeros(()))


def _sums(tree: Tree) -> jax.Array:
    """(5,): COLUMNS of all floating leaves together."""
    rows = [jnp.zeros(len(COLUMNS))]
    for leaf in _floats(tree):
        finite = jnp.isfinite(leaf)
        size = jnp.where(finite, jnp.abs(leaf), 0)
        largest = jnp.max(size, initial=0.0)
        squares = jnp.sum(jnp.square(size / jnp.where(largest > 0, largest, 1)))
        bad = jnp.sum(~finite, dtype=leaf.dtype)
        rows.append(jnp.stack([jnp.full((), leaf.size), squares, largest, jnp.sum(leaf == 0, dtype=leaf.dtype), bad]))
    return _combined(jnp.stack(rows))


def _combined(rows: jax.Array) -> jax.Array:
    """(n, 5) -> (5,)."""
    size, squares, largest, zeros, bad = rows.T
    top = jnp.max(largest)
    squares = squares * jnp.square(largest / jnp.where(top > 0, top, 1))
    return jnp.stack([jnp.sum(size), jnp.sum(squares), top, jnp.sum(zeros), jnp.sum(bad)])


# ---- reading


def _marked(params: Tree, place: int) -> Tree:
    """Records that the combinator of this depth has put a leading axis on are told where their path divides into blocks."""
    is_record = lambda n: isinstance(n, Record) and n.kind == "statistics"

    def mark(node: Any) -> Any:
        if not is_record(node):
            return node
        new = jnp.ndim(node.value["counts"]) - 1 - len(node.axes)
        return replace(node, axes=(place,) * new + node.axes)

    return jax.tree.map(mark, params, is_leaf=is_record)


def _readings(found: dict[str, Record]) -> dict[str, Reading]:
    each: dict[str, Reading] = {}
    for path, record in found.items():
        sums, counts = record.value["sums"], record.value["counts"]
        for block in np.ndindex(*counts.shape[:-1]):
            each[_in_block(path, record.axes, block)] = _reading(record.layer, sums[block], counts[block])
    return {path: each[path] for path in sorted(each, key=turn)}


def _in_block(path: str, axes: tuple[int, ...], block: tuple[int, ...]) -> str:
    """An axis nobody has marked (of a vmap) counts as one of the layer itself."""
    parts = path.split("/")
    for place, k in zip((*axes, *(-1 for _ in block[len(axes):])), block):
        parts[place] += f"[{k}]"
    return "/".join(parts)


def _reading(layer: str, sums: Any, counts: Any) -> Reading:
    kind = layer.partition("(")[0]
    y, dy, dparams = (_norms(row) for row in sums)
    residuals, dx, alike, dead, saturated = _numbers(counts)
    return Reading(layer, y, dy, dparams, residuals, dx, alike, dead if kind == "relu" else None,
                   saturated if kind in SATURATED else None)


def _numbers(row: Any) -> list[Any]:
    return row.tolist() if isinstance(row, np.ndarray) else list(row)


def _norms(row: Any) -> Norms:
    size, squares, largest, zeros, bad = _numbers(row)
    most = max if isinstance(size, float) else jnp.maximum
    rms = largest * (squares / most(size - bad, 1.0))**0.5
    return Norms(largest * squares**0.5, rms, largest, zeros / most(size, 1.0), bad, size)
