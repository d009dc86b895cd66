"""Finds the chains and repeats of a net where a schedule can be set, and counts from shapes what each step keeps."""

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
class Step:
    """One step as it is called. Bytes of x, bytes of the residuals beside x and y, FLOPs of its forward."""

    x_bytes: int
    residual_bytes: int
    flops: int
    keeps_x: bool
    keeps_y: bool
    y: Any


@dataclass(frozen=True)
class Candidate:
    """A chain or a repeat where a schedule can be set.

    times: how often it runs, in a scan around it. x_bytes: of every step, and of the last y. residual_bytes: what each
    step keeps beside x. x_kept: whether each x is kept. flops: of each forward. scanned: the steps are one part, scanned.
    """

    path: str
    times: int
    x_bytes: tuple[int, ...]
    residual_bytes: tuple[int, ...]
    x_kept: tuple[bool, ...]
    flops: tuple[int, ...]
    scanned: bool

    def kept(self, a: int, b: int) -> int:
        """Returns the bytes that the steps from a to b keep, without the x of the first."""
        inputs = sum(size for size, kept in zip(self.x_bytes[a + 1:b], self.x_kept[a + 1:b]) if kept)
        return sum(self.residual_bytes[a:b]) + inputs

    def peak(self, schedule: Schedule) -> int:
        """Returns the most bytes that the backward holds.

        These are the inputs and residuals of the steps before, a recomputed run, and the cotangents of one step. What
        a scan has stacked is held until the scan ends.
        """
        spans, held = list(spans_of(schedule)), []
        for a, b, recomputed in spans:
            first = self.x_bytes[a] if self.x_kept[a] or recomputed else 0
            held.append(first if recomputed else first + self.kept(a, b))
        if self.scanned or self.times > 1:
            most = max((self.kept(a, b) for a, b, recomputed in spans if recomputed), default=0)
            return self.times * sum(held) + most + 2 * max(self.x_bytes)
        peaks = []
        for number, (a, b, recomputed) in enumerate(spans):
            before = sum(held[:number])
            first = self.x_bytes[a] if self.x_kept[a] or recomputed else 0
            peaks += [before + first + self.kept(a, i + 1) + self.x_bytes[i] + self.x_bytes[i + 1] for i in range(a, b)]
        return max(peaks)

    def saved(self, schedule: Schedule) -> int:
        """Returns the bytes that `schedule` saves at the peak."""
        return self.peak((len(self.flops),)) - self.peak(schedule)

    def recomputed(self, schedule: Schedule) -> int:
        """Returns the FLOPs of the forwards that run again."""
        return self.times * sum(sum(self.flops[a:b]) for a, b, again in spans_of(schedule) if again)

    def pareto_optimal(self) -> list[Schedule]:
        """Returns the schedules that no other beats in bytes and FLOPs, the fewest FLOPs first."""
        found: list[Schedule] = []
        for schedule in sorted(self.schedules(), key=lambda s: (self.recomputed(s), self.peak(s))):
            if self.saved(schedule) > max(map(self.saved, found), default=0):
                found.append(schedule)
        return found

    def schedules(self) -> set[Schedule]:
        """Returns for every size of a run the schedule whose runs are as long as the size allows.

        The last run keeps its residuals, because its backward comes at once. In a scan around it no backward comes at
        once, so there any single run may be recomputed. A scan needs runs of equal length.
        """
        n = len(self.flops)
        if self.scanned:
            return {every(k, n) for k in range(1, n + 1) if n % k == 0}
        found: set[Schedule] = set()
        for most in {self.kept(a, b) for a in range(n) for b in range(a + 1, n + 1)}:
            cuts = [0]
            while cuts[-1] < n:
                a = cuts[-1]
                cuts.append(max((b for b in range(a + 1, n + 1) if self.kept(a, b) <= most), default=a + 1))
            sizes = [b - a for a, b in pairwise(cuts)]
            found.add((*((size,) for size in sizes[:-1]), sizes[-1]))
            if self.times > 1:
                found |= {(*sizes[:i], (size,), *sizes[i + 1:]) for i, size in enumerate(sizes)}
        return found


def spans_of(schedule: Schedule) -> Iterator[tuple[int, int, bool]]:
    """Yields (first step, last step, whether it is recomputed) of every run, one level deep."""
    start = 0
    for item in schedule:
        stop = start + (item if isinstance(item, int) else steps_of(item))
        yield start, stop, not isinstance(item, int)
        start = stop


def candidates_of(net: Layer, params: Tree, x: Any) -> list[Candidate]:
    """Returns every chain and repeat of `net` with several steps, as it is called."""
    calls: dict[str, tuple[Layer, Tree, Any]] = {}

    def recorded(path: str, layer: Layer) -> Layer:
        def forward(params: Tree, x: Any) -> tuple[Any, Any]:
            calls[path] = (layer, jax.eval_shape(lambda: params), jax.eval_shape(lambda: x))
            return layer.forward(params, x)

        return replace(layer, forward=forward) if can_stand(layer) else layer

    jax.eval_shape(map_layers_with_path(net, recorded).forward, params, x)
    lengths = {path: length(layer) for path, (layer, _, _) in calls.items() if is_scanned(layer)}
    within = lambda path, outer: path != outer and path.startswith(f"{outer}/" if outer else "")
    times = lambda path: prod(n for outer, n in lengths.items() if within(path, outer))
    return [candidate_of(path, times(path), *call) for path, call in calls.items()]


def candidate_of(path: str, times: int, layer: Layer, params: Tree, x: Any) -> Candidate:
    if is_scanned(layer):
        one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params[0])
        steps = [step_of(layer.parts[0], one, x)] * length(layer)
    else:
        steps = []
        for part, p in zip(layer.parts, params):
            steps.append(step_of(part, p, steps[-1].y if steps else x))
    x_kept = [step.keeps_x or before for step, before in zip(steps, [False, *(step.keeps_y for step in steps)])]
    x_bytes = (*(step.x_bytes for step in steps), size_of(steps[-1].y))
    return Candidate(path, times, x_bytes, tuple(step.residual_bytes for step in steps), tuple(x_kept),
                     tuple(step.flops for step in steps), is_scanned(layer))


def is_scanned(layer: Layer) -> bool:
    """Returns whether the steps of a chain or repeat are one part, scanned."""
    return layer.scan is not None and layer.scan.over == "params"


def step_of(layer: Layer, params: Tree, x: Any) -> Step:
    traced = jax.make_jaxpr(layer.forward)(params, x).jaxpr
    y = jax.eval_shape(predict(layer), params, x)
    given, count = len(jax.tree.leaves(params)), len(jax.tree.leaves(y))
    variables = lambda outputs: {var for var in outputs if not isinstance(var, Literal)}
    kept = variables(traced.outvars[count:]).difference(traced.invars[:given])
    xs, ys = set(traced.invars[given:]), variables(traced.outvars[:count])
    residual_bytes = sum(size_of(var.aval) for var in kept - xs - ys)
    return Step(size_of(x), residual_bytes, count_flops(predict(layer), params, x), bool(kept & xs), bool(kept & (ys - xs)), y)


def size_of(tree: Any) -> int:
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
