"""repeat: one layer n times in a row with its own params each time, as one scan: compile time does not grow with n.

Shapes    x and y alike; params of the layer with a leading axis n, as a tuple of one tree
Dtypes    those of the layer
Units     none
Forward   x_0 = x; x_{k+1} = f(params_k, x_k); y = x_n
Backward  dparams_k, dx_k = f's rule at k, from n - 1 down to 0: the same scan in reverse
Keeps     what f keeps, n times; a residual that is one traced value with another is stored once, one that is a param is read
          again from the params
At kinks  those of the layer
Raises    ValueError: n < 1, y unlike x
Source    elementary; derivation in docs/derivations/repeat.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import at, expect_like, expect_whole
from ..compose import expect_layers, expect_parts
from ..facts import Option, Scan
from ..layer import Layer
from ..params import Static, Tree


@by_name()
def repeat(layer: Layer, n: int, *, unroll: bool = False) -> Layer:
    """`layer` n times. unroll=True writes the steps out: longer to compile, more for XLA to fuse."""
    expect_layers("repeat", (layer,))
    n = expect_whole("repeat n", n)

    def init(key: jax.Array, x: Any) -> Tree:
        with at(0, layer):
            params = jax.vmap(lambda k: layer.init(k, x))(jax.random.split(key, n))
            y, _ = jax.eval_shape(layer.forward, jax.tree.map(lambda a: a[0], params), x)
        expect_like(y, jax.eval_shape(lambda: x), "y of a layer inside repeat")
        return (params,)

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_parts(params, (layer,))

        def step(x: Any, params: Tree) -> tuple[Any, None, Any]:
            with at(0, layer):
                y, residuals = layer.forward(params, x)
            expect_like(y, x, "y of a layer inside repeat")
            return y, None, residuals

        if unroll:
            kept = []
            for k in range(n):
                x, _, residuals = step(x, _slice(params[0], k))
                kept.append(residuals)
            return x, tuple(kept)
        y, _, residuals = scan_keeping(step, x, params[0])
        return y, residuals

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        def step(dy: Any, params: Tree, residuals: Any) -> tuple[Any, Tree]:
            with at(0, layer):
                dparams, dx = layer.backward(params, residuals, dy)
            return dx, dparams

        if unroll:
            grads = []
            for k in reversed(range(n)):
                dy, dparams = step(dy, _slice(params[0], k), residuals[k])
                grads.append(dparams)
            return (jax.tree.map(lambda *g: jnp.stack(g), *reversed(grads)),), dy
        kept, plan = residuals
        body = lambda dy, at_k: step(dy, at_k[0], restore(plan, at_k[0], at_k[1]))
        dx, dparams = lax.scan(body, dy, (params[0], kept), reverse=True)
        return (dparams,), dx

    options = (Option("n", n, positional=True), Option("unroll", unroll))[: 1 + unroll]
    return Layer("repeat", init, forward, backward, options, parts=(layer,), scan=Scan("params", n),
                 rebuild=lambda parts: repeat(parts[0], n, unroll=unroll))


def _slice(tree: Tree, k: int) -> Tree:
    return jax.tree.map(lambda a: a[k], tree)


Plan = Static  # (treedef of the residuals, per leaf ("param", which) or ("kept", which))


def scan_keeping(step: Callable[[Any, Any], tuple[Any, Any, Any]], carry: Any, xs: Any,
                 reverse: bool = False) -> tuple[Any, Any, tuple[Any, Plan]]:
    """`lax.scan` of `step(carry, x) -> (carry, y, residuals)`: `(carry, ys, (kept, plan))`, every traced value kept once.

    A residual that is a leaf of `x` itself is not kept: `restore(plan, x, kept)` reads it from there.
    """
    found: list[Plan] = []

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y, residuals = step(carry, x)
        kept, plan = set_apart(residuals, x)
        found.append(plan)
        return carry, (y, kept)

    carry, (ys, kept) = lax.scan(body, carry, xs, reverse=reverse)
    return carry, ys, (kept, found[-1])


def set_apart(residuals: Any, given: Any) -> tuple[list[Any], Plan]:
    """`(kept, plan)`: every traced value once, and none that is a leaf of `given`, which the backward will have."""
    leaves, treedef = jax.tree.flatten(residuals)
    there = jax.tree.leaves(given)
    kept: list[Any] = []
    sources: list[tuple[str, int]] = []
    for leaf in leaves:
        which = next((i for i, other in enumerate(there) if other is leaf), None)
        if which is not None:
            sources.append(("given", which))
            continue
        which = next((i for i, other in enumerate(kept) if other is leaf), len(kept))
        if which == len(kept):
            kept.append(leaf)
        sources.append(("kept", which))
    return kept, Static((treedef, tuple(sources)))


def restore(plan: Plan, given: Any, kept: Any) -> Any:
    """The residuals of one step (or, on stacked leaves, of all) from what `scan_keeping` kept."""
    treedef, sources = plan.value
    pools = {"given": jax.tree.leaves(given), "kept": kept}
    return jax.tree.unflatten(treedef, [pools[pool][which] for pool, which in sources])
