"""uses: the same rule used otherwise has to give the same gradient.

Other sizes of dy, without jit, under vmap, traced once more: none of them needs an oracle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..jaxprs.walk import primitives
from ..layer import Layer
from ..params import Tree
from .oracles import Oracles, Point, quick_jit
from .subject import Subject, WrongStructure

FACTORS = (-1024.0, 2.0**-10)  # of dy: a power of two rounds nothing
TRACES = 3  # more of them
ADDRESS = re.compile("0x[0-9a-f]+")

INDEXED = ("gather", "scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "dynamic_slice",
           "dynamic_update_slice")
ALIKE = 1e-10  # of a leaf's largest element: a rule this near to jax.vjp needs no other oracle

Array = Any


def agrees_with_jax(subject: Subject, theta: Array, fixed: Any, dy: Array) -> Any:
    """Returns whether the rule is that of jax.vjp within ALIKE in every leaf, False where it cannot be compared. Traceable."""
    if subject.auto is None or not subject.leaves:
        return True
    try:
        got = subject.rule(theta, fixed, dy)
    except (WrongStructure, TypeError, ValueError):
        return False
    wanted = subject.auto(theta, fixed, dy)
    errors, sizes = jnp.abs(got - wanted), jnp.abs(wanted)
    return jnp.all(jnp.stack([
        jnp.all(errors[leaf.slice] <= ALIKE * jnp.max(sizes[leaf.slice])) for leaf in subject.leaves]))


def batch_of_one(layer: Layer, params: Tree, x: Any) -> Any:
    """Returns the first example of x as a batch; None unless the layer treats every example by itself.

    Then the first row of y stays what it was. A layer with an index inside is left out: an index that is out of range
    at a batch of one gives a number, not an error.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes & {(), (0,), (1,)}:
        return None
    first = jax.tree.map(lambda leaf: leaf[:1], x)

    forward = lambda x: layer.forward(params, x)[0]
    if any(name in INDEXED for name in primitives(forward, first)):
        return None
    pairs = zip(jax.tree.leaves(forward(x)), jax.tree.leaves(forward(first)), strict=True)
    alike = all(one.shape == (1, *whole.shape[1:]) and jnp.allclose(one[0], whole[0], rtol=1e-9, atol=0)
                for whole, one in pairs)
    return first if alike else None


def uses(oracles: Oracles, point: Point, narrow: bool) -> Iterator[tuple[str, Array]]:
    """Yields `(use, gradient)`; each gradient has to be that of the rule at `point`.

    narrow: the function computes in a narrow dtype inside, where a factor may overflow. A use that
    the rule refuses is left out, and of large leaves all but the sizes of dy.
    """
    rule, at = oracles.subject.rule, (point.theta, point.fixed, point.dy)
    for factor in FACTORS if not narrow else (-1.0,):
        got = oracles.rule(Point(*at[:2], factor * point.dy)) / factor
        if np.all(np.isfinite(got)):  # else the factor itself overflows
            yield f"dy times {factor:g}", got
    if oracles.large:
        return
    for use, gradient in (("without jit", _eagerly), ("under vmap", _under_vmap), ("traced again", _traced_again)):
        with suppress(Exception):
            got = np.asarray(gradient(rule, *at))
            if got.shape == point.theta.shape:
                yield use, got


def _eagerly(rule: Callable, theta: Array, fixed: Any, dy: Array) -> Array:
    return rule(*jax.tree.map(jnp.asarray, (theta, fixed, dy)))  # arrays of NumPy could be changed in place


def _under_vmap(rule: Callable, theta: Array, fixed: Any, dy: Array) -> Array:
    """Returns the second row of two: a rule that reads the first row alone gives another."""
    both = quick_jit(jax.vmap(rule, in_axes=(0, None, 0)))(np.stack([theta, theta]), fixed, np.stack([2 * dy, dy]))
    return both[1]


def _traced_again(rule: Callable, theta: Array, fixed: Any, dy: Array) -> Array:
    """Returns the gradient of the last of a few traces, if one differs from the first."""
    trace = lambda: jax.make_jaxpr(lambda *at: rule(*at))(theta, fixed, dy)
    first, *others = (trace() for _ in range(TRACES))
    program = lambda traced: ADDRESS.sub("", str(traced))
    same = lambda traced: program(traced) == program(first) and all(map(np.array_equal, traced.consts, first.consts))
    return np.zeros(0) if all(map(same, others)) else jax.jit(lambda *at: rule(*at))(theta, fixed, dy)
