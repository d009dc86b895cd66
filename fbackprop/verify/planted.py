"""Planted bugs: the mistakes people make in backward rules, put into right rules to test the checker with.

A bug is a function from a right Layer to a wrong one, or None where the mistake cannot be made. The checker has to call every
one of them WRONG that changes the result; a WRONG rule of a user is compared with them to name the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Layer
from ..layers.function import from_function
from ..params import Tree
from ..transform import replace_rules
from .cases import KIND_BUGS
from .cases.case import Right, Wrong
from .oracles import Point, quick_jit
from .subject import WrongStructure, layer_subject

# of one leaf g of the result; n is the size of the batch axis
LEAF_BUGS: dict[str, Callable[[np.ndarray, int], np.ndarray | None]] = {
    "twice the right one": lambda g, n: 2 * g,
    "half the right one": lambda g, n: g / 2,
    "the right one with the wrong sign": lambda g, n: -g,
    "left at zero": lambda g, n: np.zeros_like(g),
    "the right one transposed": lambda g, n: g.T if g.ndim == 2 and g.shape[0] == g.shape[1] else None,
    "the right one shifted by one along the last axis": lambda g, n: np.roll(g, 1, -1) if g.ndim else None,
    "the right one shifted by one along the first axis": lambda g, n: np.roll(g, 1, 0) if g.ndim > 1 else None,
    "the right one divided by the batch size": lambda g, n: g / n if n else None,
    "the right one times the batch size": lambda g, n: g * n,
}


def _only_first(right: Right) -> tuple[Tree, Any]:
    first = jax.tree.map(lambda d: jnp.zeros_like(d).at[:1].set(d[:1]) if d.ndim else d, right.dy)
    return right.given(dy=first).dparams, right.dx


def _neighbour(right: Right) -> tuple[Tree, Any]:
    rolled = lambda a: jnp.roll(a, 1, 0) if jnp.ndim(a) else a
    return right.given(x=jax.tree.map(rolled, right.x)).gradients


def _weights_transposed(right: Right) -> tuple[Tree, Any]:
    square = lambda w: w.T if jnp.ndim(w) == 2 and w.shape[0] == w.shape[1] else w
    return right.dparams, right.given(params=jax.tree.map(square, right.params)).dx


# of the whole result
RULE_BUGS: dict[str, Wrong] = {
    "the gradient of the first example alone: the sum over the batch is missing": _only_first,
    "made without dy: every cotangent taken for 1":
        lambda right: right.given(dy=jax.tree.map(jnp.ones_like, right.dy)).gradients,
    "made with the neighbouring example's residuals: an index is off by one": _neighbour,
    "made with the square weight where its transpose belongs": _weights_transposed,
}


def _plant(layer: Layer, wrong: Wrong) -> Layer:
    """Returns `layer` with a backward that makes this mistake; it keeps x to be able to."""
    return replace(layer, forward=lambda params, x: (layer.forward(params, x)[0], x),
                   backward=lambda params, x, dy: wrong(Right(layer, params, x, dy)))


def bugs(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """Yields (description, wrong layer) for every mistake in the rule of `layer` or of a part."""
    for text, wrong in {**RULE_BUGS, **_kind_bugs(layer)}.items():
        yield text, _plant(layer, wrong)
    for i, part in enumerate(layer.parts if layer.rebuild else ()):
        for text, wrong in _kind_bugs(part).items():
            yield f"layer {i}: {text}", replace_rules(layer, str(i), partial(_plant, wrong=wrong))


def _kind_bugs(layer: Layer) -> dict[str, Wrong]:
    return KIND_BUGS.get(layer.kind, {})


def planted_results(layer: Layer, params: Tree, x: Any, point: Point) -> dict[str, np.ndarray]:
    """Returns `{description: wrong gradient}` of every mistake. One compiled program makes all."""
    wrong = dict(bugs(layer))
    subjects = [layer_subject(each, params, x)[0] for each in (layer, *wrong.values())]
    batch = next((a.shape[0] for a in jax.tree.leaves(x) if jnp.ndim(a)), 1)

    @quick_jit
    def run(theta: Any, fixed: Any, dy: Any) -> Any:
        return jnp.stack([subject.rule(theta, fixed, dy) for subject in subjects])

    right, *rows = np.asarray(run(point.theta, point.fixed, point.dy))
    found = {}
    for leaf in subjects[0].leaves:
        for text, change in LEAF_BUGS.items():
            changed = change(right[leaf.slice].reshape(leaf.shape), batch)
            if changed is not None:
                pieces = [right[: leaf.start], changed.ravel(), right[leaf.stop :]]
                found[f"{leaf.path}: {text}"] = np.concatenate(pieces)
    return {**found, **dict(zip(wrong, rows))}


def nearest_bug(layer: Layer, params: Tree, x: Any, rng: np.random.Generator) -> dict[str, str]:
    """Returns the nearest known mistake for each leaf of a wrong rule that has one."""
    subject, theta, fixed = layer_subject(layer, params, x)
    point = Point.drawn(subject, theta, fixed, rng)
    try:
        got = np.asarray(subject.rule(point.theta, point.fixed, point.dy))
        return named_mistakes(layer, params, x, point, got)
    except (WrongStructure, TypeError, ValueError):
        return {}


def named_mistakes(layer: Layer, params: Tree, x: Any, point: Point,
                   got: np.ndarray) -> dict[str, str]:
    """Returns the same for a gradient `got` at a point.

    Only the forward of `layer` is run: jax.vjp makes the right rule.
    """
    by_jax = from_function(lambda params, x: layer.forward(params, x)[0])
    right = replace(by_jax, kind=layer.kind, options=layer.options, parts=layer.parts)
    subject = layer_subject(right, params, x)[0]
    wrongs = planted_results(right, params, x, point)
    rights = np.asarray(subject.rule(point.theta, point.fixed, point.dy))
    hints: dict[str, str] = {}
    for name, wrong in wrongs.items():
        for leaf in subject.leaves:
            a, b, r = got[leaf.slice], wrong[leaf.slice], rights[leaf.slice]
            near = lambda u, v: np.max(np.abs(u - v), initial=0.0) <= 1e-6 * np.max(np.abs(v), initial=0.0)
            if near(a, b) and not near(b, r):
                text = name.removeprefix(f"{leaf.path}: ")
                hints.setdefault(leaf.path, f"Nearest known mistake: {leaf.path} is {text}")
    return hints
