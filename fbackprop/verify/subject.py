"""A Subject is anything with a gradient to be judged, seen as one vector: f(theta) -> y and rule(theta, dy) -> dtheta.

theta holds every floating leaf of the trainable params and of x, y every floating leaf of the output; State and integer
leaves are `fixed`. All oracles and verdicts are written once, on vectors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import expect, show
from ..dtypes import combine, is_floating, partition, same_structure
from ..layer import Layer
from ..params import Next, Tree, is_carried, merge, paths, split

Vector = Any


class WrongStructure(Exception):
    """What a rule returned cannot be compared: another tree, another shape, another dtype."""


@dataclass(frozen=True)
class Leaf:
    """A stretch of theta: where it comes from and how to name an element of it."""

    path: str  # "params/0/w", "x"
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def index(self, position: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(position - self.start, self.shape))


@dataclass(frozen=True)
class Subject:
    """f, rule and auto are pure functions of (theta, fixed) and (theta, fixed, dy); auto is None without an oracle by jax."""

    name: str
    leaves: tuple[Leaf, ...]
    f: Callable[[Vector, Any], Vector]
    rule: Callable[[Vector, Any, Vector], Vector]
    auto: Callable[[Vector, Any, Vector], Vector] | None
    unchecked: tuple[str, ...] = ()  # leaves that have no gradient, in words
    on_host: bool = False  # f is called as it is, never traced
    rule_on_host: bool = False


def cast(tree: Any, dtype: Any) -> Any:
    """Returns floating leaves as numpy arrays of `dtype`; integers and keys as they are."""
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype) if is_floating(a) else a, tree)


def ravel(tree: Any) -> Vector:
    """Returns the floating leaves as one vector, in tree order. Raises ValueError for complex ones."""
    complexes = [leaf for leaf in jax.tree.leaves(tree) if jnp.iscomplexobj(leaf)]
    expect(not complexes, "a value or argument", "real numbers", complexes[:1])
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(partition(tree)[0])]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def leaves_of(tree: Any) -> tuple[Leaf, ...]:
    """Returns the stretches of `ravel(tree)` that are not empty."""
    found, start = [], 0
    for path, leaf in paths(tree).items():
        if is_floating(leaf) and leaf.size:
            found.append(Leaf(path, leaf.shape, start, start + leaf.size))
            start += leaf.size
    return tuple(found)


def layer_subject(layer: Layer, params: Tree, x: Any, strict: bool = False) -> tuple[Subject, Vector, Any]:
    """Returns `(subject, theta, fixed)` of a Layer at (params, x).

    strict: trace it without any implicit broadcast or promotion.
    """
    trainable, state = split(params)
    inputs, others = partition({"params": trainable, "x": x})
    unravel = unraveller(inputs)
    context = _strictly if strict else contextlib.nullcontext

    def rebuild(theta: Vector, fixed: Any) -> tuple[Tree, Any]:
        state, others = fixed
        both = combine(unravel(theta), others)
        return merge(both["params"], state), both["x"]

    def f(theta: Vector, fixed: Any) -> Vector:
        with context():
            y, _ = layer.forward(*rebuild(theta, fixed))
        return ravel(y)

    def rule(theta: Vector, fixed: Any, dy: Vector) -> Vector:
        params, x = rebuild(theta, fixed)
        with context():
            y, residuals = layer.forward(params, x)
            returned = layer.backward(params, residuals, unraveller(partition(y)[0], cast=True)(dy))
        if theta.dtype == np.float32 and ravel(y).dtype == np.float64:
            returned = _narrowed(returned)  # a float64 constant in the layer widens everything while x64 is on
        return ravel(_checked(returned, params, x))

    def auto(theta: Vector, fixed: Any, dy: Vector) -> Vector:
        y, pullback = jax.vjp(lambda t: f(t, fixed), theta)
        return pullback(dy.astype(y.dtype))[0]

    return Subject(layer.name, leaves_of(inputs), f, rule, auto), ravel(inputs), (state, others)


def unraveller(tree: Any, cast: bool = False) -> Callable[[Vector], Any]:
    """Returns the inverse of `ravel`, in the dtype of the vector.

    cast: in the dtype of each leaf instead, for a loss widens its value.
    """
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])[:-1]

    def unravel(vector: Vector) -> Any:
        pieces = [piece.reshape(leaf.shape) for piece, leaf in zip(jnp.split(vector, ends), leaves)]
        return jax.tree.unflatten(treedef, [p.astype(leaf.dtype) for p, leaf in zip(pieces, leaves)] if cast else pieces)

    return unravel


def _narrowed(returned: Any) -> Any:
    """Returns float64 leaves in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if getattr(leaf, "dtype", None) == np.float64 else leaf, returned)


def _checked(returned: Any, params: Tree, x: Any) -> Any:
    """Returns the gradients of `backward` as the tree that the leaves of theta come from."""
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise WrongStructure(f"backward: expected a pair (dparams, dx), got {show(returned)}")
    dparams, dx = returned
    trainable, state = split(params)
    gradients, successors = split(dparams)
    _same_tree(gradients, partition(trainable)[0], "dparams", "params")
    _same_tree(dx, partition(x)[0], "dx", "x")
    as_next = jax.tree.map(lambda s: Next(s.value), state, is_leaf=is_carried)
    spec = lambda leaf: (np.shape(leaf), getattr(leaf, "dtype", None))
    if not _alike(successors, as_next, spec):
        raise WrongStructure("dparams: expected a Next for every State of params, of its shape and dtype, "
                             f"got {show(dparams)} for {show(params)}")
    return {"params": gradients, "x": dx}


def _same_tree(got: Any, wanted: Any, what: str, of: str) -> None:
    if not _alike(got, wanted, lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf))):
        raise WrongStructure(f"{what}: expected structure, shapes and dtypes of {of}, "
                             f"{show(wanted)}, got {show(got)}")


def _alike(got: Any, wanted: Any, spec: Callable[[Any], Any]) -> bool:
    """Returns whether two trees have one structure and, leaf by leaf, the same spec."""
    specs = lambda tree: [spec(leaf) for leaf in jax.tree.leaves(tree)]
    return same_structure(got, wanted) and specs(got) == specs(wanted)


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
