"""Params are pytrees: what is trained, what is carried beside it (State), and the path of every leaf.

In `dparams` a `State(value)` has become `Next(value)`: its successor, not a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax import tree_util

from .checks import expect, show
from .dtypes import combine, is_floating, partition

Tree: TypeAlias = Any  # a pytree of arrays: params, gradients, a batch


@dataclass(frozen=True)
class Hidden:
    """A key that `paths` leaves out."""

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


class _Carried:
    """A node with one child, `value`, that no optimizer touches."""

    def __init__(self, value: Tree) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({show(self.value)})"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Hidden, Tree]], None]:
        return ((Hidden("value"), self.value),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Tree]) -> _Carried:
        return cls(*children)


@tree_util.register_pytree_with_keys_class
class State(_Carried):
    """In `params`: a leaf that is carried, not trained (a dropout key, running statistics)."""


@tree_util.register_pytree_with_keys_class
class Next(_Carried):
    """In what `backward` returns: the successor of a State. Another node type on purpose: `params - lr * grads` raises."""


@tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Wrapped:
    """Params of what a wrapper wraps, and of the wrapper itself. Paths show only the inner."""

    inner: Tree
    outer: Tree

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Hidden, Tree], ...], None]:
        return ((Hidden("inner"), self.inner), (Hidden("outer"), self.outer)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Tree, Tree]) -> Wrapped:
        return cls(*children)


@tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A residual that is no array (a shape, an axis): part of the tree's structure, constant under jit. Hashable."""

    value: Any


def is_carried(node: Any) -> bool:
    return isinstance(node, _Carried)


def split(tree: Tree) -> tuple[Tree, Tree]:
    """Splits params into (trainable, state), or grads into (gradients, next).

    Each has the whole structure, with None for the other's leaves.
    """
    carried, trained = partition(tree, is_carried, is_leaf=is_carried)
    return trained, carried


def merge(trainable: Tree, state: Tree) -> Tree:
    """Returns the params that `split` took apart. `state` may hold State or Next."""
    return combine(trainable, jax.tree.map(lambda n: State(n.value), state, is_leaf=is_carried))


def expect_gradients(grads: Tree, params: Tree) -> None:
    """Raises TypeError or ValueError, with the leaf's path, unless every trainable leaf has a gradient of its shape and dtype.

    Without this, broadcasting would train on a gradient of another shape.
    """
    floats = lambda tree: {path: leaf for path, leaf in paths(split(tree)[0]).items() if is_floating(leaf)}
    wanted, got = floats(params), floats(grads)
    for path in {**wanted, **got}:
        what = f"gradient {path}".rstrip()
        hint = "The backward of the layer that has this leaf returns it"
        both = path in wanted and path in got
        expect(both, what, show(wanted.get(path)), show(got.get(path)), hint, TypeError)
        expect(show(got[path]) == show(wanted[path]), what, show(wanted[path]), show(got[path]), hint)
    carried = lambda tree: sum(map(is_carried, jax.tree.leaves(tree, is_leaf=is_carried)))
    expect(carried(params) == carried(grads), "gradients", f"{carried(params)} Next, one for every State of params",
           str(carried(grads)), "Give all that value_and_grad returns", TypeError)


def paths(tree: Tree) -> dict[str, Any]:
    """Returns every leaf by its path: `{"0/w": ...}`. State and Wrapped add nothing to a path."""
    return {path: leaf for path, leaf in named_leaves(tree) if leaf is not None}


def by_layer(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns leaves by the path of their layer, each with its own path, in order."""
    layers: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        layers.setdefault(path.rpartition("/")[0], {})[path] = leaf
    return layers


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] = lambda n: n is None) -> list[tuple[str, Any]]:
    """Returns (path, leaf) of every leaf, None if empty, or of what `is_leaf` stops at."""
    def name(key: Any) -> str:
        return str(next(getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field)))

    leaves = tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [("/".join(name(key) for key in keys if not isinstance(key, Hidden)), leaf) for keys, leaf in leaves]


def graft(params: Tree, into: Tree) -> Tree:
    """Returns `into` with every leaf that `params` also has, by path: weights for a rewritten net.

    Raises ValueError when a leaf has another shape or dtype there, or when no path agrees.
    """
    have = paths(params)
    shared = [path for path in paths(into) if path in have]
    expect(bool(shared) or not have, "graft", f"a path among {list(have)[:5]}", f"{list(paths(into))[:5]}")
    leaves, treedef = jax.tree.flatten(into)
    grafted = []
    for path, leaf in zip(paths(into), leaves):
        new = have.get(path, leaf)
        expect(show(new) == show(leaf), f"graft {path}", show(leaf), new)
        grafted.append(new)
    return jax.tree.unflatten(treedef, grafted)
