"""Temporary memory of a function, foretold from its jaxpr by what XLA does on a CPU: before anything is compiled or runs.

What is elementwise and cheap is fused into its users and has no bytes; what takes the place of an operand that ends there has
none of its own. The zeros a scan stacks or adds up into depend on nothing, so XLA makes them first. A result has a buffer of
its own, which may hold other values before. Arguments and results are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from operator import add
from typing import Any

import jax
from jax.extend.core import Literal
from jax.interpreters import partial_eval

from ..flops import MOVES
from ..layers.rewire import BARRIERS_FALL

RENAMED = {"reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "optimization_barrier", "device_put"}
CHEAP = {
    "add", "add_any", "sub", "mul", "neg", "max", "min", "sign", "abs", "and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt",
    "ge", "select_n", "clamp", "is_finite", "square", "integer_pow", "floor", "round"}
DEAR = {"exp", "exp2", "log", "tanh", "logistic", "div", "sqrt", "rsqrt", "erf", "pow", "log1p", "expm1", "sin", "cos", "rem"}
FUSED = (CHEAP | MOVES) - {"dynamic_update_slice"}
import os
MANY = int(os.environ.get("MANY","3"))
REDUCTIONS = ("reduce_", "argmax", "argmin")
UPDATES = {"dynamic_update_slice", "scatter", "scatter-add", "scatter_add"}
MOVED = {"transpose", "concatenate", "gather", "rev", "pad", "slice", "dynamic_slice", "broadcast_in_dim"}  # number i of the result is not made of number i of an operand




@dataclass(eq=False)
class Value:
    """A traced value. fused: it has no buffer, who reads it reads what it is made of."""

    size: int
    maker: Equation | None = None
    users: list[Equation] = field(default_factory=list)
    fused: bool = False
    stored: bool = False

    def buffers(self) -> set[Value]:
        """Those it is read from."""
        if not self.fused or self.maker is None:
            return {self}
        return self.maker.reads() | ({self} if self.stored else set())

    def aligned(self) -> set[Value]:
        """Those of which number i is read for number i."""
        if not self.fused or self.maker is None:
            return {self}
        return set() if self.maker.name in MOVED else set().union(*(v.aligned() for v in self.maker.inputs if v))


@dataclass(eq=False)
class Equation:
    name: str
    inputs: list[Value | None]  # None: a literal
    outputs: list[Value]
    params: Any

    @property
    def fusible(self) -> bool:
        return self.name in FUSED or self.name in DEAR or self.name.startswith(REDUCTIONS)

    def reads(self) -> set[Value]:
        return set().union(*(value.buffers() for value in self.inputs if value))


def peak_of(jaxpr: Any) -> int:
    """The most that is held at a time beside arguments and results."""
    return _Program(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)[0]).peak()


class _Program:
    """A jaxpr with every call written out; of a scan's body the arguments are constants, then `carried`, then slices."""

    def __init__(self, jaxpr: Any, constants: int = 0, carried: int | None = None) -> None:
        self.equations: list[Equation] = []
        self.known: dict[Any, list[Value]] = {}
        self.given: list[Value | None] = [Value(_size(var)) for var in jaxpr.invars]
        self.results = self.inline(jaxpr, self.given)
        count = carried or 0
        self.carries, self.slices = self.given[constants:constants + count], set(self.given[constants + count:])
        self.whole = carried is None
        if self.whole:
            self.slices = set()
        self.fuse()

    def inline(self, jaxpr: Any, given: list[Value | None]) -> list[Value | None]:
        values: dict[Any, Value | None] = {**dict(zip(jaxpr.invars, given)), **{var: Value(0) for var in jaxpr.constvars}}
        read = lambda var: None if isinstance(var, Literal) else values[var]
        for eqn in jaxpr.eqns:
            inputs = [read(var) for var in eqn.invars]
            body, skipped = _called(eqn)
            values.update(zip(eqn.outvars, self.made(eqn, inputs) if body is None else self.inline(body, inputs[skipped:])))
        return [read(var) for var in jaxpr.outvars]

    def made(self, eqn: Any, inputs: list[Value | None]) -> list[Value | None]:
        """What XLA sees is equal is made once, and barriers are no more than names where they fall."""
        name = eqn.primitive.name
        if name == "optimization_barrier":
            return inputs if BARRIERS_FALL else [self.add("copy", [value], [value.size], {})[0] for value in inputs]
        literals = [str(var.val) for var in eqn.invars if isinstance(var, Literal)]
        key: Any = (name, *map(id, inputs), *literals, str(eqn.params)) if any(inputs) and name not in ("scan", "while") else id(eqn)
        if key not in self.known:
            self.known[key] = self.add(name, inputs, [_size(var) for var in eqn.outvars], eqn.params)
        return list(self.known[key])

    def add(self, name: str, inputs: list[Value | None], sizes: list[int], params: Any) -> list[Value]:
        equation = Equation(name, inputs, [Value(size) for size in sizes], params)
        self.equations.append(equation)
        for value in equation.outputs:
            value.maker = equation
        for value in set(inputs) - {None}:
            value.users.append(equation)
        return equation.outputs

    def fuse(self) -> None:
        results = set(self.results)
        for equation in reversed(self.equations):
            value = equation.outputs[0]
            value.fused = value not in results and _is_fused(equation, value)
        for equation in self.equations:  # what is made of several buffers and read several times is stored
            value = equation.outputs[0]
            if value.fused and equation.name in CHEAP and len(value.users) > 1:
                value.fused = sum(v.size for v in value.buffers() - set(self.given)) < 1.5 * value.size
                value.stored = value.fused and len(value.users) >= MANY
        self.equations = [e for e in self.equations if not e.outputs[0].fused or e.outputs[0].stored]

    def peak(self) -> int:
        """Of a scan's body: what is held beside its carries."""
        end = len(self.equations)
        results = {buffer for value in self.results if value for buffer in value.buffers()}
        last = {buffer: at for at, equation in enumerate(self.equations) for buffer in equation.reads()}
        last.update(dict.fromkeys(results, end))
        buffers = {value: Buffer(value.size, 0, last.get(value, 0)) for value in self.carries if value}
        for at, equation in enumerate(self.equations):
            if not equation.fusible:  # a slice is cut out for it
                buffers.update({v: Buffer(v.size, at, last[v]) for v in equation.reads() & self.slices if v not in buffers})
        inside = [0] * (end + 1)
        stacked = set() if self.whole else {v for v in self.results[len(self.carries):] if v and v.maker and v.maker.fusible}
        for at, equation in enumerate(self.equations):
            inside[at] = self.inside(equation)
            if equation.outputs[0] in stacked:
                continue
            for value, before in zip(equation.outputs, self.predecessors(equation, at, last, buffers)):
                if before is None:
                    buffers[value] = Buffer(value.size, 0 if _is_early(equation, value) else at, last.get(value, at))
                else:
                    buffers[value] = buffers[before]
                    buffers[value].last = last.get(value, at)
        own = [buffers[value] for value in results if value in buffers] if self.whole else []
        change = [0] * (end + 2)
        for buffer in _elsewhere(own, list({id(b): b for b in buffers.values()}.values())):
            change[buffer.first] += buffer.size
            change[buffer.last + 1] -= buffer.size
        held = accumulate(change)
        return max(map(add, held, inside), default=0) - sum(value.size for value in self.carries if value)

    def predecessors(self, equation: Equation, at: int, last: dict, buffers: dict) -> list[Value | None]:
        """For every output the operand in whose place it comes, or None."""
        free = [v for v in equation.reads() if last[v] == at and v in buffers]
        aligned = set().union(*(v.aligned() for v in equation.inputs if v))
        found: list[Value | None] = []
        for number, value in enumerate(equation.outputs):
            fits: list[Value] = []
            if equation.name == "scan" and number < equation.params["num_carry"]:
                start = equation.inputs[equation.params["num_consts"] + number]
                fits = [v for v in (start.buffers() if start else ()) if v in free and v.size == value.size]
            elif equation.name in UPDATES or equation.fusible and equation.name not in MOVED:
                fits = [v for v in free if v.size == value.size and v in aligned]
            fits = sorted(fits, key=lambda v: buffers[v].first)  # who has been there longest saves most
            found.append(fits[0] if fits else None)
            free = [v for v in free if v not in fits[:1]]
        return found

    def inside(self, equation: Equation) -> int:
        """What one equation holds while it runs."""
        if equation.name == "scan":
            consts, carried = (equation.params[key] for key in ("num_consts", "num_carry"))
            return max(0, _Program(equation.params["jaxpr"].jaxpr, consts, carried).peak())
        if equation.name == "while":
            return max(0, _Program(equation.params["body_jaxpr"].jaxpr).peak())
        return 0


@dataclass(eq=False)
class Buffer:
    size: int
    first: int
    last: int


def _elsewhere(own: list[Buffer], buffers: list[Buffer]) -> list[Buffer]:
    """The buffers that are temporary: neither a result's nor, with `hosts`, in the room of one before it is there."""
    rooms = {id(buffer): [buffer] for buffer in sorted(own, key=lambda b: -b.size)}
    left = []
    for buffer in sorted((b for b in buffers if id(b) not in rooms), key=lambda b: -b.size):
        room = next((r for r in rooms.values() if r[0].size >= buffer.size
                     and all(buffer.last < b.first or b.last < buffer.first for b in r)), None)
        if room is None:
            left.append(buffer)
        else:
            room.append(buffer)
    return left


def _is_early(equation: Equation, value: Value) -> bool:
    if equation.name == "scan":
        return value in equation.outputs[equation.params["num_carry"]:]
    return (equation.name == "broadcast_in_dim" and not any(equation.inputs)
            and all(user.name == "scan" for user in value.users))


def _is_fused(equation: Equation, value: Value) -> bool:
    name, users = equation.name, value.users
    if name in RENAMED:
        return True
    if name in ("dynamic_slice", "slice") and equation.inputs[0] and equation.inputs[0].size == value.size:
        return True
    if name == "transpose":
        return all(user.fusible or user.name == "dot_general" for user in users)
    return name in FUSED and all(user.fusible for user in users) or name in DEAR and len(users) == 1 and users[0].fusible


def _called(eqn: Any) -> tuple[Any, int]:
    """The jaxpr that runs in place of `eqn`, and how many of its inputs are not that one's; None where it is no call."""
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        platforms = params.get("branches_platforms") or [None] * len(params["branches"])
        here = [b for b, names in zip(params["branches"], platforms) if names is None or jax.default_backend() in names]
        return here[0].jaxpr, 1
    if name == "while" or (name == "scan" and params["length"] > 1):
        return None, 0
    body = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    return getattr(body, "jaxpr", body), 0


def _size(var: Any) -> int:
    return prod(getattr(var.aval, "shape", ())) * getattr(getattr(var.aval, "dtype", None), "itemsize", 4)
