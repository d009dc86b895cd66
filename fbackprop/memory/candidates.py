"""Where a schedule can stand in a net, and what every step there keeps and costs: counted from shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import jax
from jax.extend.core import Literal

from ..gradients import predict
from ..jaxprs.flops import count_flops
from ..layer import Layer
from ..params import Tree
from ..transform import map_layers_with_path
from .schedule import Schedule, can_stand, every, length, steps_of


@dataclass(frozen=True)
class Site:
    """A chain or repeat where a schedule can stand, and what each of its steps costs.

    times: how often it runs, in a scan around it. inputs: bytes of x of every step, and of the last y. own: bytes a step keeps
    beside x. x_kept: whether x is kept anyway. flops: of a step's forward. alike: the steps are one, scanned.
    """

    path: str
    times: int
    inputs: tuple[int, ...]
    own: tuple[int, ...]
    x_kept: tuple[bool, ...]
    flops: tuple[int, ...]
    alike: bool

    def run(self, a: int, b: int) -> int:
        """Bytes kept of the steps from a to b but for the x of the first."""
        return sum(self.own[a:b]) + sum(size for size, kept in zip(self.inputs[a + 1:b], self.x_kept[a + 1:b]) if kept)

    def peak(self, schedule: Schedule) -> int:
        """The most bytes held while the backward walks back: inputs and residuals of the steps before, a run made again, the
        cotangents of the step at hand. What a scan has stacked stays until the scan is over.
        """
        spans, held = list(spans_of(schedule)), []
        for a, b, again in spans:
            first = self.inputs[a] if self.x_kept[a] or again else 0
            held.append(first if again else first + self.run(a, b))
        if self.alike or self.times > 1:
            most = max((self.run(a, b) for a, b, again in spans if again), default=0)
            return self.times * sum(held) + most + 2 * max(self.inputs)
        peaks = []
        for number, (a, b, again) in enumerate(spans):
            before, first = sum(held[:number]), self.inputs[a] if self.x_kept[a] or again else 0
            peaks += [before + first + self.run(a, i + 1) + self.inputs[i] + self.inputs[i + 1] for i in range(a, b)]
        return max(peaks)

    def again(self, schedule: Schedule) -> int:
        """FLOPs of the forwards that run again."""
        return self.times * sum(sum(self.flops[a:b]) for a, b, again in spans_of(schedule) if again)

    def thriftier(self) -> list[Schedule]:
        """Of `schedules` those of which none needs less and makes less again, the one that makes least again first."""
        least, found = self.peak((len(self.own),)), []
        for schedule in sorted(self.schedules(), key=lambda s: (self.again(s), self.peak(s))):
            if self.peak(schedule) < least:
                least = self.peak(schedule)
                found.append(schedule)
        return found

    def schedules(self) -> set[Schedule]:
        """For every size a run may have, runs as long as that allows; the last keeps all, for its backward comes at once.

        In a scan around it no run's does, so there any one of them may be made again.
        """
        n = len(self.own)
        if self.alike:  # a scan wants equal runs
            return {every(k, n) for k in range(1, n + 1) if n % k == 0}
        found: set[Schedule] = set()
        for most in {self.run(a, b) for a in range(n) for b in range(a + 1, n + 1)}:
            cuts = [0]
            while cuts[-1] < n:
                a = cuts[-1]
                cuts.append(max((b for b in range(a + 1, n + 1) if self.run(a, b) <= most), default=a + 1))
            sizes = [b - a for a, b in pairwise(cuts)]
            found.add((*((size,) for size in sizes[:-1]), sizes[-1]))
            if self.times > 1:
                found |= {(*sizes[:i], (size,), *sizes[i + 1:]) for i, size in enumerate(sizes)}
        return found


def spans_of(schedule: Schedule) -> Iterator[tuple[int, int, bool]]:
    """(first step, last step, whether it is made again) of every run, for runs one level deep."""
    start = 0
    for item in schedule:
        stop = start + (item if isinstance(item, int) else steps_of(item))
        yield start, stop, not isinstance(item, int)
        start = stop


def sites_of(net: Layer, params: Tree, x: Any) -> list[Site]:
    """Every chain and repeat of `net`, as it is called."""
    calls: dict[str, tuple[Layer, Tree, Any]] = {}

    def noted(path: str, layer: Layer) -> Layer:
        def forward(params: Tree, x: Any) -> tuple[Any, Any]:
            calls[path] = (layer, jax.eval_shape(lambda: params), jax.eval_shape(lambda: x))
            return layer.forward(params, x)

        return replace(layer, forward=forward) if can_stand(layer) else layer

    jax.eval_shape(map_layers_with_path(net, noted).forward, params, x)
    often = {path: length(layer) for path, (layer, _, _) in calls.items() if alike(layer)}
    inside = lambda path, outer: path != outer and path.startswith(f"{outer}/" if outer else "")
    around = lambda path: prod(n for outer, n in often.items() if inside(path, outer))
    return [site_of(path, around(path), *call) for path, call in calls.items()]


def site_of(path: str, times: int, layer: Layer, params: Tree, x: Any) -> Site:
    steps, given = list(zip(layer.parts, params)), x
    if alike(layer):
        one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params[0])
        steps = [(layer.parts[0], one)] * length(layer)
    found: list[Step] = []
    for step, p in steps:
        found.append(found[0] if alike(layer) and found else step_of(step, p, given))
        given = found[-1].y
    x_kept = [a.keeps_x or b for a, b in zip(found, [False, *(step.keeps_y for step in found)])]
    inputs = (*(step.x_bytes for step in found), size_of(given))
    return Site(path, times, inputs, tuple(step.own for step in found), tuple(x_kept), tuple(step.flops for step in found),
                alike(layer))


def alike(layer: Layer) -> bool:
    """Whether the steps of a chain or repeat are one part, scanned."""
    return layer.scan is not None and layer.scan.over == "params"


@dataclass(frozen=True)
class Step:
    """One layer as it is called: bytes of x, whether it keeps x or y, bytes of what it keeps beside, FLOPs of its forward."""

    x_bytes: int
    keeps_x: bool
    keeps_y: bool
    own: int
    flops: int
    y: Any


def step_of(layer: Layer, params: Tree, x: Any) -> Step:
    traced = jax.make_jaxpr(layer.forward)(params, x).jaxpr
    y = jax.eval_shape(predict(layer), params, x)
    given, count = len(jax.tree.leaves(params)), len(jax.tree.leaves(y))
    kept = {var for var in traced.outvars[count:] if not isinstance(var, Literal)}.difference(traced.invars[:given])
    xs = set(traced.invars[given:])
    ys = {var for var in traced.outvars[:count] if not isinstance(var, Literal)}
    own = sum(size_of(var.aval) for var in kept - xs - ys)
    return Step(size_of(x), bool(kept & xs), bool(kept & (ys - xs)), own, count_flops(predict(layer), params, x), y)


def size_of(tree: Any) -> int:
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
