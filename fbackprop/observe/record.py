"""record: a layer writes down, in the Next of a State of its own, what its backward sees; activation_gradients reads dy.

State is the one way out of a scan, a checkpoint or a tie that every combinator already keeps open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import tree_util

from ..checks import expect
from ..compose import objective
from ..gradients import value_and_grad
from ..layer import Layer, wrapper
from ..params import Next, State, Tree, Wrapped, graft, named_leaves, paths
from ..transform import core, replace_rules


@tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Record:
    """What was written down at a layer. Everything but `value` is part of the tree's structure.

    kind: who wrote it. layer, of: the layer's name and kind. axes: for each leading axis that a `repeat` put in front of
    `value`, the place in the layer's path of the component that is repeated.
    """

    value: Tree
    kind: str
    layer: str
    of: str
    axes: tuple[int, ...] = ()

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Tree]], tuple[str, str, str, tuple[int, ...]]]:
        return ((tree_util.DictKey(f"recorded {self.kind}"), self.value),), (self.kind, self.layer, self.of, self.axes)

    @classmethod
    def tree_unflatten(cls, aux: tuple[str, str, str, tuple[int, ...]], children: tuple[Tree]) -> Record:
        return cls(children[0], *aux)


Note = Callable[[Any, Any], Tree]  # (x, y) -> what is kept of them for the backward
# (params, note, residuals, dy, dparams, dx) -> what is recorded
Read = Callable[[Tree, Tree, Any, Any, Tree, Any], Tree]


def recording(layer: Layer, kind: str, start: Tree, read: Read, note: Note = lambda x, y: ()) -> Layer:
    """Returns `layer` with a Record beside its params.

    The State holds `start`, the Next what `read` returns. Paths stay.
    """

    def init(key: jax.Array, x: Any) -> Tree:
        return Wrapped(layer.init(key, x), State(Record(start, kind, core(layer).name, core(layer).kind)))

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect(isinstance(params, Wrapped), "params", f"those of a layer with its {kind} recorded", params, "Use graft()",
               TypeError)
        y, residuals = layer.forward(params.inner, x)
        return y, (note(x, y), residuals)

    def backward(params: Tree, noted: Any, dy: Any) -> tuple[Tree, Any]:
        note_of_xy, residuals = noted
        dparams, dx = layer.backward(params.inner, residuals, dy)
        seen = read(params.inner, note_of_xy, residuals, dy, dparams, dx)
        record = replace(params.outer.value, value=seen)
        return Wrapped(dparams, Next(record)), dx

    return wrapper(layer, "recording", lambda part: recording(part, kind, start, read, note), forward, backward, init,
                   (("what", kind),), "records")


def records(tree: Tree, kind: str) -> dict[str, Record]:
    """Returns the Records of a kind in params or grads, by layer path."""
    found = named_leaves(tree, is_leaf=lambda n: isinstance(n, Record))
    return {path: node for path, node in found if isinstance(node, Record) and node.kind == kind}


def beside_records(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> Tree:
    """Adds the Records of `net`, as at the start, to `params` of the same net without Records."""
    keys = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)]
    key = jax.random.key(0, impl=jax.random.key_impl(keys[0]) if keys else None)  # of the kind that State holds
    spec = _in_dtypes_of(params, jax.eval_shape(objective(net, loss).init, key, batch))
    fill = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return jax.tree.map(fill, graft(params, spec))


def without_records(layer: Layer, params: Tree, x: Tree) -> Tree:
    """Returns the params of `layer` out of those of the same layer with Records inside."""
    spec = jax.eval_shape(layer.init, jax.random.key(0), x)
    return graft(params, _in_dtypes_of(params, spec)) if paths(spec) else spec


def _in_dtypes_of(params: Tree, spec: Tree) -> Tree:
    """Returns `spec` with the dtypes of `params`, leaf by leaf: under x64 another init may choose others."""
    given = {path: leaf.dtype for path, leaf in paths(params).items() if hasattr(leaf, "dtype")}
    leaves, treedef = jax.tree.flatten(spec)
    kept = [jax.ShapeDtypeStruct(leaf.shape, given.get(path, leaf.dtype)) for path, leaf in zip(paths(spec), leaves)]
    return jax.tree.unflatten(treedef, kept)


class ActivationGradients(Protocol):
    """The gradients of the outputs of layers."""

    def __call__(self, params: Tree, batch: Tree, /) -> dict[str, Any]:
        """Returns {layer path: dy}."""


def activation_gradients(net: Layer, loss: Layer | None = None, *, where: str = "*") -> ActivationGradients:
    """Returns `(params, batch) -> {layer path: dy}`, jitted: the gradient of each layer's output.

    `where` is a glob of layer paths, combinators included: `2` that layer, `*` all. dy has the structure and shapes of the
    layer's output, None for integers; inside `repeat` a leading axis of n, for the cell of a `recurrent` one of T.
    Raises ValueError when nothing matches.
    """
    read: Read = lambda params, noted, residuals, dy, dparams, dx: dy
    recorded = replace_rules(net, where, lambda layer: recording(layer, "dy", jnp.zeros(()), read))

    @jax.jit
    def run(params: Tree, batch: Tree) -> dict[str, Any]:
        _, grads = value_and_grad(recorded, loss)(beside_records(recorded, loss, params, batch), batch)
        return {path: record.value for path, record in records(grads, "dy").items()}

    return run
