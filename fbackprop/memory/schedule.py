"""schedule: which inputs a run of steps keeps, and which forwards run again.

A Schedule of n steps is a tuple that tells them in order: a number, that many steps with their residuals kept; a tuple, a run
of steps of which the input alone is kept, and which by itself goes by that schedule when its turn in the backward comes.
((5,), (5,)) keeps every fifth input of ten; (10,) keeps all.

every: Chen, Xu, Zhang and Guestrin 2016, section 3; root: the same, section 4.1; binomial: Griewank and Walther 2000, Revolve,
the fewest forwards for a number of inputs held at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from math import isqrt
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ..checks import expect, expect_whole
from ..compose import chain
from ..facts import Option, Scan
from ..layer import Layer
from ..layers.repeat import repeat
from ..layers.rewire import checkpoint
from ..params import Tree
from ..transform import inside, map_layers_with_path

Schedule: TypeAlias = "tuple[int | Schedule, ...]"


def every(k: int, n: int) -> Schedule:
    """The input of every k-th of n steps."""
    k, n = expect_whole("schedule", k), expect_whole("steps of a schedule", n)
    return ((k,),) * (n // k) + (((n % k,),) if n % k else ())


def root(n: int) -> Schedule:
    """Runs of about sqrt(n) steps: sqrt(n) inputs, and sqrt(n) steps' residuals at a time."""
    return every(max(1, isqrt(n)), n)


def binomial(slots: int, n: int) -> Schedule:
    """At most `slots` inputs held at a time, the first included, one step's residuals, and as few forwards as that allows."""
    slots, n = expect_whole("schedule", slots), expect_whole("steps of a schedule", n)
    return _reversed_in(n, slots - 1)


@cache
def _again(n: int, slots: int) -> int:
    """Forwards without residuals to reverse n steps from their input with so many slots more."""
    if n == 1:
        return 0
    if slots == 0:
        return n * (n - 1) // 2
    return min(_split(n, slots, m) for m in range(1, n))


def _split(n: int, slots: int, m: int) -> int:
    """m steps on to an input that is held, the rest reversed from there, then the m, whose input has been held all along."""
    return m + _again(n - m, slots - 1) + _again(m, slots)


@cache
def _reversed_in(n: int, slots: int) -> Schedule:
    if n == 1:
        return (1,)
    m = n - 1 if slots == 0 else min(range(1, n), key=lambda m: _split(n, slots, m))
    return (_reversed_in(m, slots), *_reversed_in(n - m, max(slots - 1, 0)))


def steps_of(schedule: Schedule) -> int:
    return sum(item if isinstance(item, int) else steps_of(item) for item in schedule)


def recomputed(schedule: Schedule) -> int:
    """How many forwards of a step run in the backward: those with residuals, and those on the way to an input."""
    def again(run: Schedule) -> int:
        on_the_way = sum(steps_of(item) for item in run[:-1] if not isinstance(item, int))
        return on_the_way + sum(item if isinstance(item, int) else again(item) for item in run)

    return sum(again(item) for item in schedule if not isinstance(item, int))


def scheduled(layer: Layer, schedule: Schedule) -> Layer:
    """Returns a chain or a repeat that keeps what `schedule` says, whatever it kept before, on the same params.

    Wrappers (checkpoint, frozen, tied, a cast) stay around it. Raises ValueError for a schedule of another number of steps,
    TypeError for a layer that is neither.
    """
    return inside(layer, lambda layer: _scheduled(layer, schedule))


def _scheduled(layer: Layer, schedule: Schedule) -> Layer:
    steps, scan = length(layer), layer.scan
    assert scan is not None
    expect(_is_schedule(schedule), "schedule", "a tuple of runs, whole numbers of at least 1 or tuples of such",
           repr(schedule), "Write ((2,), 2), or every(2, 4)", TypeError)
    expect(steps_of(schedule) == steps, "schedule", f"{steps} steps, as {layer.name} has", f"{steps_of(schedule)}: {schedule}")
    plain = repeat(layer.parts[0], steps) if scan.over == "params" else chain(*layer.parts)
    if scan.over == "params":
        inner = _of_repeat(layer.parts[0], schedule)
        whole = Layer("run", layer.init, lambda params, x: inner.forward(params[0], x),
                      lambda params, residuals, dy: _paired(inner.backward(params[0], residuals, dy)))
    else:
        whole = _of_chain(layer.parts, schedule)
    rebuild = layer.rebuild
    assert rebuild is not None
    options = (*(each for each in layer.options if each.name not in ("schedule", "unroll")), Option("schedule", schedule))
    made = scan.again(replace(
        plain, kind=layer.kind, options=options, forward=whole.forward, backward=whole.backward,
        scan=Scan(scan.over, steps), inference=layer.inference, rebuild=None))
    return replace(made, rebuild=lambda parts: _scheduled(rebuild(parts), schedule))


def with_schedules(net: Layer, schedules: Mapping[str, Schedule]) -> Layer:
    """Returns `net` with a schedule for the chain or repeat at each of these paths, on the same params.

    Raises ValueError for a path without a layer, TypeError for a layer that is neither, one in segments too.
    """
    placed: set[str] = set()

    def place(path: str, layer: Layer) -> Layer:
        if path not in schedules:
            return layer
        placed.add(path)
        return _scheduled(layer, schedules[path])

    net = map_layers_with_path(net, place)
    missing = sorted({*schedules} - placed)
    expect(not missing, "schedules", "the paths of chains and repeats", f"no layer at {missing}")
    return net


def can_stand(layer: Layer) -> bool:
    """Whether a schedule makes a difference here: several steps."""
    return _steps(layer) > 1 or (layer.scan is not None and layer.scan.over == "params")


def _steps(layer: Layer) -> int:
    """Steps of a chain or a repeat, 0 of another layer."""
    if layer.scan is None:
        return 0
    return {"params": layer.scan.times, "parts": len(layer.parts)}.get(layer.scan.over, 0)


def length(layer: Layer) -> int:
    """Steps of a chain or a repeat. Raises TypeError for another layer."""
    ok = layer.scan is not None and layer.scan.over in ("parts", "params")
    hint = "with_settings put it in segments: leave the setting or the schedule out" if layer.kind == "in_segments" else (
        "Its rule was replaced, or it is another layer; map_layers finds chains and repeats in a net")
    expect(ok, "scheduled", "a chain or a repeat", layer.name, hint, TypeError)
    return _steps(layer)


def _is_schedule(schedule: Any) -> bool:
    return isinstance(schedule, tuple) and bool(schedule) and all(
        item >= 1 if isinstance(item, int) else _is_schedule(item) for item in schedule)


def _paired(found: tuple[Tree, Any]) -> tuple[Tree, Any]:
    return (found[0],), found[1]


def _of_chain(parts: tuple[Layer, ...], schedule: Schedule) -> Layer:
    """On the flat tuple of params."""
    layers, spans, start = [], [], 0
    for item in schedule:
        stop = start + (item if isinstance(item, int) else steps_of(item))
        run = parts[start:stop]
        layers.append(chain(*run) if isinstance(item, int) else checkpoint(_of_chain(run, item)))
        spans.append((start, stop))
        start = stop
    whole = chain(*layers)
    cut = lambda params: tuple(params[a:b] for a, b in spans)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dx = whole.backward(cut(params), residuals, dy)
        return tuple(each for run in dparams for each in run), dx

    return Layer("run", whole.init, lambda params, x: whole.forward(cut(params), x), backward)


def _of_repeat(layer: Layer, schedule: Schedule) -> Layer:
    """On params stacked over all steps. Runs that are alike are one scan: compile time grows with the kinds of runs."""
    layers: list[Layer] = []
    spans: list[tuple[int, int, tuple[int, ...]]] = []  # first and last step, axes in place of the steps' one
    start = 0
    for item, alike in groupby(schedule):
        count, size = len(list(alike)), item if isinstance(item, int) else steps_of(item)
        if isinstance(item, int):
            layers.append(repeat(layer, count * size))
        else:
            inner = layer if size == 1 else _of_repeat(layer, item)
            layers.append(repeat(checkpoint(inner), count))
        # an axis of one step would be an axis XLA lays out its own way: a copy of all weights
        spans.append((start, start + count * size, () if isinstance(item, int) or size == 1 else (count, size)))
        start += count * size
    whole = chain(*layers)

    def run_of(p: jax.Array, span: tuple[int, int, tuple[int, ...]]) -> jax.Array:
        first, last, axes = span
        mine = p if last - first == start else p[first:last]  # a slice would be a copy
        return mine.reshape(*axes, *p.shape[1:]) if axes else mine

    def cut(params: Tree) -> Tree:
        return tuple((jax.tree.map(lambda p, span=span: run_of(p, span), params),) for span in spans)

    def backward(params: Tree, residuals: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dx = whole.backward(cut(params), residuals, dy)
        flat = [jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), run) if axes else run
                for (run,), (_, _, axes) in zip(dparams, spans)]
        return flat[0] if len(flat) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *flat), dx

    return Layer("run", whole.init, lambda params, x: whole.forward(cut(params), x), backward)
