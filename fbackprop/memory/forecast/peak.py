"""Temporary memory of a program, foretold from its jaxpr by what XLA does on a CPU: before anything is compiled or runs.

Cheap elementwise values are fused into who reads them and have no buffer. A value takes the place of an operand of its size
that ends there. What XLA sees is equal is made once. The zeros that a scan stacks or adds up into depend on nothing and are
made first; its body runs in the `order` of XLA's scheduler. A result has a buffer of its own, in whose room others may be
before. Neither arguments nor results are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import add
from typing import Any

from jax.extend.core import Literal

from ...jaxprs.walk import body_of, branches_here, live, scan_counts
from ...layers.rewire import BARRIERS_FALL
from .order import listed
from .traced import CHEAP, MANY, MOVED, UPDATES, Equation, Value, can_fuse


@dataclass(eq=False)
class Buffer:
    """Held from the equation `first` to the equation `last`."""

    size: int
    first: int
    last: int


def peak_of(jaxpr: Any) -> int:
    """The most bytes held at a time beside arguments and results."""
    return _Program(live(jaxpr, instantiate=True)).peak()


class _Program:
    """A jaxpr with every call written out, or a loop's body, whose arguments are constants, then carries, then slices."""

    def __init__(self, jaxpr: Any, constants: int = 0, carried: int | None = None, length: int = 1) -> None:
        self.length = length
        self.equations: list[Equation] = []
        self.known: dict[Any, list[Value]] = {}
        given = [Value(_size(var)) for var in jaxpr.invars]
        self.results = self.inline(jaxpr, list(given))
        self.in_loop, count = carried is not None, carried or 0
        self.carries = given[constants:constants + count]
        self.slices = set(given[constants + count:]) if self.in_loop else set()
        ys = self.results[count:] if self.in_loop else []
        self.stacked = {y for y in ys if y and y.maker and y.maker.fusible}  # written where they are stacked
        self.fixed = set(given[:constants])  # the same in every turn: XLA makes it before the loop
        self.fuse(set(given))

    def inline(self, jaxpr: Any, given: list[Value | None]) -> list[Value | None]:
        values: dict[Any, Value | None] = {**dict(zip(jaxpr.invars, given)), **{var: Value(0) for var in jaxpr.constvars}}
        read = lambda var: None if isinstance(var, Literal) else values[var]
        for eqn in jaxpr.eqns:
            inputs = [read(var) for var in eqn.invars]
            body, skipped = _called(eqn)
            values.update(zip(eqn.outvars, self.made(eqn, inputs) if body is None else self.inline(body, inputs[skipped:])))
        return [read(var) for var in jaxpr.outvars]

    def made(self, eqn: Any, inputs: list[Value | None]) -> list[Value | None]:
        name = eqn.primitive.name
        if name == "optimization_barrier":  # no more than a name where barriers fall
            held = [value for value in inputs if value]
            if BARRIERS_FALL or not held:
                return inputs
            outputs = iter(self.added(name, held, [value.size for value in held], {}))
            return [value and next(outputs) for value in inputs]
        found, sizes = [value for value in inputs if value], [_size(var) for var in eqn.outvars]
        if name in ("scan", "while") or not found:
            return [*self.added(name, found, sizes, eqn.params)]
        literals = [str(var.val) if isinstance(var, Literal) else "" for var in eqn.invars]
        key = (name, *map(id, inputs), *literals, str(eqn.params))
        if key not in self.known:
            self.known[key] = self.added(name, found, sizes, eqn.params)
            for var, value in zip(eqn.outvars, self.known[key]):
                value.slim = 1 in getattr(var.aval, "shape", ())
        return [*self.known[key]]

    def added(self, name: str, inputs: list[Value], sizes: list[int], params: Any) -> list[Value]:
        equation = Equation(name, inputs, [Value(size) for size in sizes], params, _inside(name, params))
        for value in equation.outputs:
            value.maker = equation
        for value in dict.fromkeys(inputs):
            value.readers.append(equation)
        self.equations.append(equation)
        return equation.outputs

    def fuse(self, given: set[Value]) -> None:
        """Decides who has a buffer; the equations that are left make one each."""
        results, left = set(self.results), []
        wanted: set[Equation] = set()
        for equation in self.equations:
            if not results & {*equation.outputs} and all(can_fuse(equation, value, wanted) for value in equation.outputs):
                wanted.add(equation)
        for equation in self.equations:
            value, roots = equation.outputs[0], equation.reads()
            if roots and roots.keys() <= self.fixed and value.size <= sum(root.size for root in roots):
                self.fixed.add(value)
            shared = equation.name in CHEAP and len(value.readers) > 1
            several = sum(root.size for root in roots if root not in given) >= 1.5 * value.size
            if equation not in wanted or (shared and several):
                left.append(equation)
                continue
            stored = shared and len(value.readers) >= MANY and not _is_of_a_number(equation)
            moved = equation.name in MOVED
            for value in equation.outputs:
                value.roots = {**roots, **({value: None} if stored else {})}
                value.aligned = {} if moved else {root: None for operand in equation.inputs for root in operand.aligned}
            left += [equation] * stored
        self.equations = self.in_turn(left) if self.in_loop else left

    def in_turn(self, equations: list[Equation]) -> list[Equation]:
        """A loop's body in XLA's order, what is cut out of stacks for who cannot fuse that among it."""
        cut = dict.fromkeys(root for e in equations if not e.fusible for root in e.reads() if root in self.slices)
        equations = [*(Equation("cut", [], [value], {}, 0) for value in cut), *equations]
        written = lambda value: value.size * (self.length if value in self.stacked else 1)  # XLA counts the whole stack
        takes = {e: e.inside + sum(map(written, e.outputs)) for e in equations}
        return listed(equations, takes, {root for value in self.results if value for root in value.roots})

    def peak(self) -> int:
        """The most held at a time; of a loop's body, beside its carries."""
        buffers, own = self.buffers()
        end = len(self.equations)
        change = [0] * (end + 2)
        for buffer in _placed(buffers, own):
            change[buffer.first] += buffer.size
            change[buffer.last + 1] -= buffer.size
        inside = [*(equation.inside for equation in self.equations), 0]
        return max(map(add, accumulate(change), inside)) - sum(value.size for value in self.carries)

    def buffers(self) -> tuple[list[Buffer], list[Buffer]]:
        """All, and those of results."""
        end = len(self.equations)
        last = {root: at for at, equation in enumerate(self.equations) for root in equation.reads()}
        last.update({root: end for value in self.results if value for root in value.roots})
        of = {value: Buffer(value.size, 0, last.get(value, 0)) for value in self.carries}
        for at, equation in enumerate(self.equations):
            if equation.name == "optimization_barrier":  # another name of a buffer
                for one, value in zip(equation.inputs, equation.outputs):
                    root = next(iter(one.roots), None)
                    if root in of:
                        of[value] = of[root]
                        of[root].last = max(of[root].last, last.get(value, at))
                continue
            free = [root for root in equation.reads() if root in of and of[root].last == at]
            for number, value in enumerate(equation.outputs):
                if value in self.stacked:
                    continue
                if value in self.fixed:
                    of[value] = Buffer(value.size, 0, end)
                    continue
                fits = [v for v in _replaced(equation, number) if v in free and v.size == value.size]
                before = min(fits, key=lambda v: of[v].first, default=None)  # who has been there longest saves most
                if before is None:
                    of[value] = Buffer(value.size, 0 if _is_early(equation, value) else at, last.get(value, at))
                else:
                    free.remove(before)
                    of[value] = of[before]
                    of[value].last = last.get(value, at)
        results = [] if self.in_loop else [of[v] for value in self.results if value for v in value.roots if v in of]
        return list(dict.fromkeys(of.values())), list(dict.fromkeys(results))


def _placed(buffers: list[Buffer], own: list[Buffer]) -> list[Buffer]:
    """The buffers that find no room where a result will be: the largest are asked first."""
    rooms = [[buffer] for buffer in sorted(own, key=lambda b: -b.size)]
    left: list[Buffer] = []
    results = set(own)
    for buffer in sorted((b for b in buffers if b not in results), key=lambda b: -b.size):
        apart = lambda other, buffer=buffer: buffer.last < other.first or other.last < buffer.first
        room = next((room for room in rooms if room[0].size >= buffer.size and all(map(apart, room))), left)
        room.append(buffer)
    return left


def _replaced(equation: Equation, number: int) -> Iterable[Value]:
    """The buffers in whose place the output of that number may come."""
    if equation.name == "scan":
        carry = number < scan_counts(equation.params)[1]
        return [root for value in equation.inputs for root in value.aligned] if carry else ()
    value = equation.outputs[number]
    product = value.slim and any(reader.name == "dot_general" for reader in value.readers)
    in_place = equation.name in UPDATES or (equation.fusible and equation.name not in MOVED and not product)
    return [root for value in equation.inputs for root in value.aligned] if in_place else ()


def _is_of_a_number(equation: Equation) -> bool:
    """Of a value and one number, as the zero of `after`: made again by however many read it place by place."""
    makers = [value.maker for value in equation.inputs]
    number = any(m and m.name == "broadcast_in_dim" and m.inputs and m.inputs[0].size <= 8 for m in makers)
    return number and not any(reader.name in MOVED for reader in equation.outputs[0].readers)


def _is_early(equation: Equation, value: Value) -> bool:
    if equation.name == "scan":
        return value in equation.outputs[scan_counts(equation.params)[1]:]
    return equation.name == "broadcast_in_dim" and not equation.inputs and all(e.name == "scan" for e in value.readers)


def _inside(name: str, params: Any) -> int:
    """What a loop holds beside what goes in and comes out."""
    if name == "scan":
        return max(0, _Program(params["jaxpr"].jaxpr, *scan_counts(params), params["length"]).peak())
    if name == "while":
        body, constants = params["body_jaxpr"].jaxpr, params["body_nconsts"]
        return max(0, _Program(body, constants, len(body.invars) - constants).peak())
    return 0


def _called(eqn: Any) -> tuple[Any, int]:
    """The jaxpr that runs in place of `eqn`, and how many inputs come before its own; None where it is no call."""
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return params["branches"][branches_here(eqn)[0]].jaxpr, 1
    if name == "while" or (name == "scan" and params["length"] > 1):  # XLA takes a loop of one turn apart
        return None, 0
    return body_of(eqn), 0


def _size(var: Any) -> int:
    return prod(getattr(var.aval, "shape", ())) * getattr(getattr(var.aval, "dtype", None), "itemsize", 4)
