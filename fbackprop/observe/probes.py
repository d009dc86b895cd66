"""watch: a probe at every layer without parts, that measures y, dy and dparams in the pass that makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ..checks import expect
from ..dtypes import is_floating
from ..gradients import value_and_grad
from ..layer import Layer
from ..params import Tree, graft, paths, split
from ..transform import map_layers, map_layers_with_path
from .reading import COLUMNS, SATURATED, SHARES, Reading, of_records
from .record import Record, beside_records, recording, records

KIND = "statistics"


def watch(net: Layer) -> Layer:
    """Returns `net` with a probe at every layer without parts. Values, gradients and paths stay.

    A probe's State holds sums, its Next those of this pass: `readings(grads)`. `graft(params, watch(net).init(key, x))`
    carries params over; `probe` does it all. Raises ValueError for a net that is watched already.
    """
    def watched(path: str, layer: Layer) -> Layer:
        if layer.parts:
            place = len(path.split("/")) if path else 0
            return replace(layer, init=lambda key, x: _marked(layer.init(key, x), place))
        start = {"sums": jnp.zeros((3, len(COLUMNS))), "counts": jnp.zeros(2 + SHARES)}
        return recording(layer, KIND, start, partial(_read, _output_of(layer)), partial(_note, layer))

    map_layers(net, _unwatched, wrappers=True)
    return map_layers_with_path(net, watched)


class Measure(Protocol):
    """One pass with a reading of every layer."""

    def __call__(self, params: Tree, batch: Tree, /, seed: Any = 1.0) -> tuple[jax.Array, dict[str, Reading], Tree]:
        """Returns (value, readings, grads). seed: the value's cotangent."""


def probe(net: Layer, loss: Layer | None = None) -> Measure:
    """Returns `measure(params, batch, seed=1.0) -> (value, readings, grads)`.

    The same as `value_and_grad`, with a Reading by layer path. Compiled once. `params` are those of
    `net` and stay; State moves in `grads` as ever.
    """
    watched = watch(net)

    @jax.jit
    def run(params: Tree, batch: Tree, seed: Any) -> tuple[jax.Array, dict[str, Record], Tree]:
        value, grads = value_and_grad(watched, loss)(beside_records(watched, loss, params, batch), batch, seed)
        _, plain = jax.eval_shape(value_and_grad(net, loss), params, batch)
        return value, records(grads, KIND), graft(grads, plain) if paths(plain) else plain

    def measure(params: Tree, batch: Tree, seed: Any = 1.0) -> tuple[jax.Array, dict[str, Reading], Tree]:
        value, seen, grads = run(params, batch, seed)
        return value, of_records(jax.device_get(seen)), grads

    return measure


# ---- what a probe does


def _unwatched(layer: Layer) -> Layer:
    watched = layer.role == "records" and layer.options[0].value == KIND
    expect(not watched, "watch", "a net without probes", layer.name)
    return layer


def _output_of(layer: Layer) -> Callable[[Any], Any]:
    """Returns what selects y: of a cell's (carry, y_t) the second.

    The carry comes back to the cell, so that a cotangent which the cell spoils would look given.
    """
    return (lambda y: y[1]) if layer.cell is not None else lambda y: y


def _note(layer: Layer, x: Any, y: Any) -> jax.Array:
    """Returns (5 + 3,): the columns of y, then its SHARES."""
    y = _output_of(layer)(y)
    kind, shares = layer.kind, [jnp.zeros(())] * SHARES
    if isinstance(y, jax.Array) and is_floating(y) and y.ndim > 1 and y.shape[-1] > 1:
        shares[0] = jnp.all(y == y[..., :1]) & jnp.any(y != jnp.ravel(y)[0])
    if kind == "relu":
        shares[1] = jnp.mean(jnp.all(y == 0, axis=tuple(range(y.ndim - 1))))
    if kind in SATURATED:
        low, high = SATURATED[kind]
        shares[2] = jnp.mean((y < low) | (y > high))
    return jnp.concatenate([_sums(y), jnp.stack(shares).astype(jnp.result_type(float))])


def _read(output: Callable[[Any], Any], params: Tree, noted: jax.Array, residuals: Any, dy: Any,
          dparams: Tree, dx: Any) -> Tree:
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
    """Returns (5,): COLUMNS of all floating leaves together."""
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
    """Returns (5,): the columns of all rows (n, 5) together."""
    size, squares, largest, zeros, bad = rows.T
    top = jnp.max(largest)
    squares = squares * jnp.square(largest / jnp.where(top > 0, top, 1))
    return jnp.stack([jnp.sum(size), jnp.sum(squares), top, jnp.sum(zeros), jnp.sum(bad)])


def _marked(params: Tree, place: int) -> Tree:
    """Marks the Records that the combinator at this place of the path has put a leading axis on."""
    is_record = lambda n: isinstance(n, Record) and n.kind == KIND

    def mark(node: Any) -> Any:
        if not is_record(node):
            return node
        new = jnp.ndim(node.value["counts"]) - 1 - len(node.axes)
        return replace(node, axes=(place,) * new + node.axes)

    return jax.tree.map(mark, params, is_leaf=is_record)
