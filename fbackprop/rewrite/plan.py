"""plan: checkpoints placed in a net so that its loss and gradients fit in so many bytes, and little is made again.

What every chain and repeat would keep under every schedule, and what that would cost, is counted from shapes. Then the cheapest
that should fit is compiled, not run: XLA says exactly what it will need, so a plan is never a guess. The budget is XLA's
temporary memory of the jitted value_and_grad: neither params and gradients nor the batch are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

import jax
from jax.extend.core import Literal

from ..compose import map_layers_with_path, predict, value_and_grad
from ..errors import expect
from ..flops import count_flops
from ..layer import Layer, Tree
from ..layers.repeat import Repeat
from .schedule import Schedule, can_stand, every, steps_of, with_schedules


@dataclass(frozen=True)
class Plan:
    """A net on the params of the one it is made of. schedules: by the path of the chain or repeat that has it.

    predicted_bytes: from shapes and the bytes of the plan before, temp_bytes: XLA's. again_flops: of the forwards run again.
    """

    net: Layer
    temp_bytes: int
    predicted_bytes: int
    again_flops: int = 0
    schedules: dict[str, Schedule] = field(default_factory=dict)


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

    def schedules(self) -> set[Schedule]:
        """For every size a run may have, runs as long as that allows; the last keeps all, for its backward comes at once."""
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
        return found


def spans_of(schedule: Schedule) -> Iterator[tuple[int, int, bool]]:
    """(first step, last step, whether it is made again) of every run, for runs one level deep."""
    start = 0
    for item in schedule:
        stop = start + (item if isinstance(item, int) else steps_of(item))
        yield start, stop, not isinstance(item, int)
        start = stop


def plan(net: Layer, loss: Layer | None, batch: Any, budget_bytes: float) -> Layer:
    """`net`, on the same params, whose loss and gradients on `batch` need at most `budget_bytes` of temporary memory.

    batch: arrays or ShapeDtypeStructs, (x, target) or what a net that ends in its loss takes. Raises ValueError with the least
    possible where the budget is below it, and what the layers raise on a wrong batch.
    """
    return planned(net, loss, batch, budget_bytes).net


def planned(net: Layer, loss: Layer | None, batch: Any, budget_bytes: float) -> Plan:
    """The Plan behind `plan`."""
    expect(budget_bytes > 0, "budget", "bytes, a number above 0", repr(budget_bytes))
    batch = jax.eval_shape(lambda: batch)
    x = batch if loss is None else batch[0]
    params = jax.eval_shape(lambda key: net.init(key, x), jax.random.key(0))
    needs = temp_bytes(net, loss, params, batch)
    base = least = Plan(net, needs, needs)
    sites = sites_of(net, params, x)
    while base.temp_bytes > budget_bytes and sites:
        whole = max(site.peak((len(site.own),)) for site in sites)
        options = sorted((o for site in sites for o in options_at(site, base, whole)), key=lambda o: o.again_flops)
        if not options:
            break
        thriftiest = min(options, key=lambda o: o.predicted_bytes)
        off = 1.0  # how much more than foretold was needed so far
        for option in options:
            if option.predicted_bytes * off <= budget_bytes or option is thriftiest:
                found = replace(option, temp_bytes=temp_bytes(option.net, loss, params, batch))
                if found.temp_bytes <= budget_bytes:
                    return found
                least = min(least, found, key=lambda p: p.temp_bytes)
                off = max(off, found.temp_bytes / max(1, found.predicted_bytes))
        base, sites = least, [site for site in sites if site.path not in (*least.schedules, *thriftiest.schedules)]
    expect(base.temp_bytes <= budget_bytes, "budget", f"at least {least.temp_bytes / 1e6:.2f} MB, the least found for this net "
           "and batch", f"{budget_bytes / 1e6:.2f} MB", "A smaller batch needs less; accumulate() makes one step of several")
    return base


def temp_bytes(net: Layer, loss: Layer | None, params: Tree, batch: Any) -> int:
    """XLA's temporary memory of the compiled loss and gradients. Nothing runs."""
    analysis: Any = jax.jit(value_and_grad(net, loss)).lower(params, batch).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def options_at(site: Site, base: Plan, whole: int) -> Iterator[Plan]:
    """`base` with those schedules at `site` of which none needs less and runs less again. whole: the peak foretold for the net.

    Fusion, alignment and XLA's order of execution come on top in proportion, as they do for `base`, which has been compiled.
    """
    factor, now, n = base.temp_bytes / max(1, whole), site.peak((len(site.own),)), len(site.own)
    least = now
    for schedule in sorted(site.schedules() - {(n,)}, key=lambda s: (site.again(s), site.peak(s))):
        if site.peak(schedule) >= least:
            continue
        least = site.peak(schedule)
        yield Plan(with_schedules(base.net, {site.path: schedule}), 0, round(base.temp_bytes - factor * (now - least)),
                   base.again_flops + site.again(schedule), {**base.schedules, site.path: schedule})


def sites_of(net: Layer, params: Tree, x: Any) -> list[Site]:
    """Every chain and repeat of `net`, as it is called."""
    calls: dict[str, tuple[Layer, Tree, Any]] = {}

    def noted(path: str, layer: Layer) -> Layer:
        def forward(params: Tree, x: Any) -> tuple[Any, Any]:
            calls[path] = (layer, jax.eval_shape(lambda: params), jax.eval_shape(lambda: x))
            return layer.forward(params, x)

        return replace(layer, forward=forward) if can_stand(layer) else layer

    jax.eval_shape(map_layers_with_path(net, noted).forward, params, x)
    often = {path: layer.n for path, (layer, _, _) in calls.items() if isinstance(layer, Repeat)}
    inside = lambda path, outer: path != outer and path.startswith(f"{outer}/" if outer else "")
    around = lambda path: prod(n for outer, n in often.items() if inside(path, outer))
    return [site_of(path, around(path), *call) for path, call in calls.items()]


def site_of(path: str, times: int, layer: Layer, params: Tree, x: Any) -> Site:
    steps, given = list(zip(layer.parts, params)), x
    if isinstance(layer, Repeat):
        one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params[0])
        steps = [(layer.parts[0], one)] * layer.n
    found: list[Step] = []
    for step, p in steps:
        alike = isinstance(layer, Repeat) and found
        found.append(found[0] if alike else step_of(step, p, given))
        given = found[-1].y
    x_kept = [a.keeps_x or b for a, b in zip(found, [False, *(step.keeps_y for step in found)])]
    inputs = (*(step.x_bytes for step in found), size_of(given))
    return Site(path, times, inputs, tuple(step.own for step in found), tuple(x_kept), tuple(step.flops for step in found),
                isinstance(layer, Repeat))


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
