"""precision: the network computed in a narrow dtype, its weights kept and stepped in a wide one (Micikevicius et al. 2018).

Every layer without parts is put between two casts: params and x are rounded to `compute` as it uses them, dparams and dx
return in the dtypes params and x came in. A cast is linear, so its cotangent is the cast back: that is all the backward adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .checks import expect
from .dtypes import is_floating
from .layer import Layer, wrapper
from .params import Static, Tree, is_carried
from .transform import layers_by_path, map_layers_with_path, matching

Cast = Callable[[Tree], Tree]


@dataclass(frozen=True)
class Precision:
    """Dtypes: of the weights the optimizer steps, of what the layers compute, of what the network returns.

    Raises ValueError for a dtype that is not floating.
    """

    params: DTypeLike
    compute: DTypeLike
    output: DTypeLike

    def __post_init__(self) -> None:
        for field in fields(self):
            dtype = jnp.dtype(getattr(self, field.name))
            expect(jnp.issubdtype(dtype, jnp.floating), f"Precision {field.name}", "a floating dtype", str(dtype))
            object.__setattr__(self, field.name, dtype)


PRECISIONS = {name: Precision("float32", name, "float32") for name in ("float32", "bfloat16", "float16")}


def with_precision(net: Layer, policy: Precision, *, keep: Sequence[str] = ()) -> Layer:
    """Returns `net` computing in `policy.compute`, on params of one structure in `policy.params`.

    Integers and State are never cast. A layer that widens, as a loss does for its value, still does. Layers whose path matches
    a glob of `keep`, and all below them, compute in `policy.params`: x is cast on the way in, y (a scalar excepted) on the way
    out. Twins out of training follow. Raises TypeError for a policy that is none, ValueError for a glob that matches nothing.
    """
    expect(isinstance(policy, Precision), "policy", "a Precision", repr(policy),
           f"PRECISIONS has those with a name: {', '.join(PRECISIONS)}", TypeError)
    expect(not isinstance(keep, str) and keep is not None, "keep",
           "globs of layer paths, as (\"4\", \"2/*\")", repr(keep), error=TypeError)
    layers = layers_by_path(net)
    kept = {path for glob in keep for path in matching(layers, glob, "keep")}

    def rewritten(path: str, layer: Layer) -> Layer:
        if not kept.isdisjoint(_above(path)):
            return layer
        wide, narrow = partial(_cast, policy.params), partial(_cast, policy.compute)
        if path in kept:
            return _between(layer, wide, wide, partial(_cast, policy.compute, scalars=False), wide)
        return layer if layer.parts else _between(layer, narrow, narrow, _same, wide)

    inside = map_layers_with_path(net, rewritten)
    narrow = partial(_cast, policy.compute)
    whole = lambda layer: _between(layer, _same, narrow, partial(_cast, policy.output), narrow)
    if len(inside.parts) > 1 and inside.wraps:  # an objective: its loss takes the target as it is
        return inside.rebuild((whole(inside.parts[0]), *inside.parts[1:]))  # type: ignore[misc]
    return whole(inside)


def _between(layer: Layer, of_params: Cast, of_x: Cast, of_y: Cast, at_init: Cast) -> Layer:
    """Returns `layer` between casts. at_init: of the x that init sees, which decides its dtype.

    A wrapper, so that a rule or a tap that is put in later meets the layer itself, with the residuals it knows. It stands
    inside of `frozen`, which shows its weights as State, and State is not cast.
    """
    again = lambda part: _between(part, of_params, of_x, of_y, at_init)
    if _has_frozen(layer):
        return layer.rebuild((again(layer.parts[0]), *layer.parts[1:]))  # type: ignore[misc]

    def init(key: jax.Array, x: Any) -> Tree:
        params = layer.init(key, jax.eval_shape(at_init, x))
        return params if of_params is _same else at_init(params)  # an embedding sees no floating x to take a dtype from

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        y, residuals = layer.forward(of_params(params), of_x(x))
        return of_y(y), (residuals, _dtypes(x), _dtypes(y))

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        residuals, dtypes_of_x, dtypes_of_y = residuals
        dparams, dx = layer.backward(of_params(params), residuals, _returned(dy, dtypes_of_y))
        return _like(dparams, params), _returned(dx, dtypes_of_x)

    return wrapper(layer, "cast", again, forward, backward, init)


def _has_frozen(layer: Layer) -> bool:
    """Returns whether one of the wrappers of `layer` shows its weights as State."""
    return layer.wraps and (layer.role == "freezes" or _has_frozen(layer.parts[0]))


def _above(path: str) -> list[str]:
    """Returns the paths of all layers around the one at `path`: of 2/0/1 the root, 2 and 2/0."""
    steps = path.split("/") if path else []
    return ["/".join(steps[:count]) for count in range(len(steps))]


def _same(tree: Tree) -> Tree:
    return tree


def _cast(dtype: Any, tree: Tree, scalars: bool = True) -> Tree:
    """Casts floating leaves, not State. A leaf of that dtype stays the same object, kept once."""
    def one(leaf: Any) -> Any:
        if is_carried(leaf) or not is_floating(leaf) or jnp.result_type(leaf) == dtype or not (scalars or jnp.ndim(leaf)):
            return leaf
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(one, tree, is_leaf=is_carried)


def _dtypes(tree: Tree) -> Static:
    """Returns the dtypes of the floating leaves: those that have a cotangent."""
    return Static(tuple(jnp.result_type(leaf) for leaf in jax.tree.leaves(tree) if is_floating(leaf)))


def _returned(cotangents: Tree, dtypes: Static) -> Tree:
    leaves, treedef = jax.tree.flatten(cotangents)
    return jax.tree.unflatten(treedef, [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes.value, strict=True)])


def _like(dparams: Tree, params: Tree) -> Tree:
    stop = lambda node: node is None or is_carried(node)
    return jax.tree.map(lambda d, p: d if stop(d) else d.astype(p.dtype), dparams, params, is_leaf=stop)
