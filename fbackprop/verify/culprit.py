"""culprits: the layers of a network that are wrong by themselves, each judged at its own input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..dtypes import is_floating
from ..layer import Layer
from ..observe.record import beside_records, recording, records, without_records
from ..params import Next, Static, Tree, is_carried
from ..transform import layers_by_path, map_layers_with_path
from .oracles import Point, quick_jit
from .subject import cast, layer_subject
from .uses import agrees_with_jax
from .verdict import Finding, Report

KIND = "input"


class Step(NamedTuple):
    """What a layer was given in a pass; in a scan, at one step of it."""

    path: str
    layer: Layer
    x: Any
    params: Tree


def culprits(net: Layer, params: Tree, x: Any, check: Callable[[Layer, Any, Tree], Report]) -> Report | None:
    """Returns what is WRONG about the parts of `net`, each by `check(part, x, params)`; None where all are right.

    Parts are judged before the whole, and a whole with a wrong part is not judged. Inside a repeat or a
    recurrence, the first and the last step are judged. Parts whose rule agrees with jax.vjp are judged
    only if no other part is WRONG. Inside `jax.enable_x64(True)`.
    """
    try:
        given = steps(net, params, x)
        suspect = _suspects(given)
    except Exception:  # a combinator with a rule of its own, or one that reads what its part keeps, shows no parts
        return None
    first = [step for step, is_suspect in zip(given, suspect) if is_suspect]
    others = [step for step, is_suspect in zip(given, suspect) if not is_suspect]
    return _blamed(first, check) or _blamed(others, check)


def _blamed(given: Sequence[Step], check: Callable[[Layer, Any, Tree], Report]) -> Report | None:
    found: dict[str, tuple[Finding, ...]] = {}
    for path, layer, x, params in given:
        below = f"{path}/" if path else ""
        if path in found or any(other.startswith(below) for other in found):
            continue
        wrong = []
        with suppress(Exception):  # a part that runs only inside its whole cannot be judged by itself
            wrong = [finding for finding in check(layer, x, params).findings if finding.verdict == "WRONG"]
        if wrong:
            found[path] = tuple(replace(finding, layer=f"{path} {finding.layer}".strip()) for finding in wrong)
    return Report(sum(found.values(), ())) if found else None


def _suspects(given: Sequence[Step]) -> list[bool]:
    """Returns which rules differ from jax.vjp of their forward, or cannot be compared with it."""
    rng = np.random.default_rng(0)
    subjects, points = [], []
    for _, layer, x, params in given:
        subject, theta, fixed = layer_subject(layer, *cast((params, x), np.float64))
        subjects.append(subject)
        points.append(Point.drawn(subject, theta, fixed, rng))

    @quick_jit
    def alike(points: list[tuple[Any, Any, Any]]) -> list[Any]:
        return [agrees_with_jax(subject, *point) for subject, point in zip(subjects, points)]

    return [not same for same in alike([(point.theta, point.fixed, point.dy) for point in points])]


def steps(net: Layer, params: Tree, x: Any) -> list[Step]:
    """Returns what every part of `net` is given, at the first and at the last step of scans; parts before the whole.

    It leaves scans, checkpoints and ties as the Next of a State.
    """
    noted = map_layers_with_path(net, lambda _, layer: _noted(layer if layer.parts else _silent(layer)))

    @quick_jit
    def run(params: Tree, x: Any) -> dict[str, Any]:
        y, residuals = noted.forward(params, x)
        dparams, _ = noted.backward(params, residuals, _zeros(y))
        return {path: record.value for path, record in records(dparams, KIND).items()}

    seen = run(beside_records(noted, None, params, x), x)
    return [Step(path, layer, x, without_records(layer, params, x))
            for path, layer in layers_by_path(net).items() if path in seen and layer is not net
            for x, params in _ends(*seen[path])]


def _noted(layer: Layer) -> Layer:
    """Returns `layer` with a Record of the x and the params that it is given."""
    return recording(layer, KIND, jnp.zeros(()), _read, lambda x, y: x)


def _read(params: Tree, x: Any, residuals: Any, dy: Any, dparams: Tree, dx: Any) -> tuple[Static, list[Any]]:
    leaves, treedef = jax.tree.flatten((x, params))
    return Static((treedef, tuple(map(jnp.ndim, leaves)))), leaves


def _ends(structure: Static, leaves: list[Any]) -> list[tuple[Any, Tree]]:
    """Returns what was recorded at the first and at the last step of the scans around a layer."""
    treedef, ndims = structure.value
    scans = max((np.ndim(leaf) - ndim for leaf, ndim in zip(leaves, ndims)), default=0)
    ends = (0, -1) if scans else (0,)
    return [jax.tree.unflatten(treedef, [leaf[(end,) * scans] for leaf in leaves]) for end in ends]


def _silent(layer: Layer) -> Layer:
    """Returns `layer` with a rule that gives zeros: a wrong rule cannot raise."""
    def backward(params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        return _zeros(params), _zeros(x)

    return replace(layer, forward=lambda params, x: (layer.forward(params, x)[0], x), backward=backward)


def _zeros(tree: Tree) -> Tree:
    """Returns zeros for floating leaves, None for others, and the Next of every State."""
    def one(node: Any) -> Any:
        if is_carried(node):
            return Next(node.value)
        return jnp.zeros_like(node) if is_floating(node) else None

    return jax.tree.map(one, tree, is_leaf=is_carried)
