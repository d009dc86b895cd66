"""rewire: the same layer with another way of keeping, training or sharing. Paths stay those of the layer inside.

Shapes    those of the layer
Dtypes    those of the layer
Units     none
Forward   y = f(params, x)
Backward  checkpoint: f's, on residuals recomputed from x; frozen: dx alone; tied: the target's cotangent is added to the
          source's, for one weight used twice
Keeps     checkpoint: x alone; the others what f keeps
At kinks  those of the layer
Raises    ValueError: a tied path that is not there, of another shape, or State
Source    checkpoint: Chen et al. 2016, section 4; derivation in docs/derivations/rewire.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import expect, show
from ..dtypes import is_floating
from ..layer import Layer, wrapper
from ..params import Next, State, Tree, Wrapped, merge, named_leaves, paths, split

BARRIERS_FALL = jax.__version_info__ < (0, 11)  # later ones keep them on a CPU, where the zero would cost a copy of x


@by_name()
def checkpoint(layer: Layer) -> Layer:
    """Keeps only x and runs the forward again in the backward; residuals no rule reads are not recomputed."""

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        return layer.forward(params, x)[0], x

    def backward(params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        x, dy = after(x, dy)
        _, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, dy)

    return wrapper(layer, "checkpoint", checkpoint, forward, backward)


def after(x: Any, dy: Any) -> tuple[Any, Any]:
    """x, as a value that cannot be had before dy, and dy: what is made of it is not merged with what the forward made.

    A barrier says so, but on a CPU XLA drops barriers, then merges what it sees is equal. So a zero made of dy is added, which
    XLA cannot foresee; where dy is NaN the gradients are NaN anyway.
    """
    x, dy = lax.optimization_barrier((x, dy))
    floats = [leaf for leaf in jax.tree.leaves(dy) if is_floating(leaf) and leaf.size]
    if not floats or not BARRIERS_FALL:
        return x, dy
    zero = jnp.maximum(-jnp.abs(floats[0][(0,) * floats[0].ndim]), 0)
    return jax.tree.map(lambda a: a + jnp.broadcast_to(zero.astype(a.dtype), a.shape) if is_floating(a) else a, x), dy


@by_name()
def frozen(layer: Layer) -> Layer:
    """Trains nothing: the trainable half of the params is State that passes unchanged, so it costs no weight gradient."""

    def init(key: jax.Array, x: Any) -> Tree:
        trainable, state = split(layer.init(key, x))
        return Wrapped(State(trainable), state)

    def inside(params: Tree) -> Tree:
        expect(isinstance(params, Wrapped), "params", "those of a frozen layer", params, "Use graft()", TypeError)
        return merge(params.inner.value, params.outer)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        return layer.forward(inside(params), x)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dx = layer.backward(inside(params), residuals, dy)
        return Wrapped(Next(params.inner.value), split(dparams)[1]), dx  # the gradients are dead code

    return wrapper(layer, "frozen", frozen, forward, backward, init, role="freezes")


@by_name()
def tied(net: Layer, ties: Mapping[str, str]) -> Layer:
    """One leaf in two places: `{"1/w": "0/0/w"}` makes 1/w the same weight as 0/0/w, which keeps it (target: source).

    The target's leaf leaves the params, its cotangent is added to the source's. Raises ValueError in init when a path is not
    there, when the shapes differ, when a leaf is State or a source is itself a target.
    """

    expect(isinstance(ties, Mapping), "ties", 'a dict {target path: source path}', repr(ties),
           'Write tied(net, {"1/w": "0/w"})', TypeError)

    def init(key: jax.Array, x: Any) -> Tree:
        params = net.init(key, x)
        have = paths(params)
        trained = paths(split(params)[0])
        for target, source in ties.items():
            for path in (target, source):
                expect(path in have, f"tied path {path!r}", f"one of {', '.join(have)}", "none of them")
                expect(path in trained, f"tied path {path!r}", "a trainable leaf", "State, which has one successor and not two",
                       "Tie first and freeze what is tied: frozen(tied(net, ties))")
            expect(source not in ties, f"tied source {source!r}", "a leaf that is not tied itself",
                   f"tied to {ties.get(source)}")
            expect(show(have[target]) == show(have[source]), f"tied path {target!r}", f"{show(have[source])} of {source!r}",
                   have[target], "A head tied to an embedding has w (V, D), as the embedding has")
        return _with(params, dict.fromkeys(ties))

    def whole(params: Tree) -> Tree:
        have = paths(params)
        for target, source in ties.items():
            expect(source in have and target not in have, f"params with {target!r} tied to {source!r}",
                   f"{source!r} alone", f"{list(have)}", error=TypeError)
        return _with(params, {target: have[source] for target, source in ties.items()})

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        return net.forward(whole(params), x)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dx = net.backward(whole(params), residuals, dy)
        gradients = paths(dparams)
        sums: dict[str, Any] = {}
        for target, source in ties.items():
            sums[source] = sums.get(source, gradients[source]) + gradients[target]
        return _with(dparams, {**sums, **dict.fromkeys(ties)}), dx

    options = (("ties", tuple(ties.items())),)
    return wrapper(net, "tied", lambda part: tied(part, ties), forward, backward, init, options)


def _with(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """`tree` with these leaves, by path; None takes a leaf out, and an empty place counts as a leaf to put one in."""
    _, treedef = jax.tree.flatten(tree, is_leaf=lambda n: n is None)
    return jax.tree.unflatten(treedef, [leaves.get(path, leaf) for path, leaf in named_leaves(tree)])
