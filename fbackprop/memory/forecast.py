"""Predicts the temporary bytes of a compiled program from its jaxpr, before XLA compiles the program.

The model is XLA on a CPU. A value has a buffer unless each of its consumers can compute the value again (fusion). The
equations of a program run in the order of its jaxpr, those of a loop's body in the order of XLA's list scheduler. An
elementwise result takes the buffer of an operand that nothing reads again. Arguments and results are not temporary, but
temporary values may take the room of a result that is not computed yet.

Source    fusion and buffers: measured on compiled programs; scheduler: XLA, xla/service/hlo_memory_scheduler.cc
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from jax.extend.core import Literal

from ..jaxprs.flops import MOVES
from ..jaxprs.walk import body_of, branches_here, live, scan_counts

RENAMES = {"reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "device_put"}
UPDATES = {"dynamic_update_slice", "scatter", "scatter-add"}  # written into their operand
CHEAP = {  # XLA computes these again in every consumer
    "add", "add_any", "sub", "mul", "neg", "max", "min", "sign", "abs", "and", "or", "not", "xor", "eq", "ne", "lt",
    "le", "gt", "ge", "select_n", "clamp", "is_finite", "square", "integer_pow", "floor", "round"}
EXPENSIVE = {  # XLA fuses these into a single consumer
    "exp", "exp2", "log", "tanh", "logistic", "div", "sqrt", "rsqrt", "erf", "pow", "log1p", "expm1", "sin", "cos", "rem"}
FUSED = CHEAP | EXPENSIVE | MOVES - UPDATES - {"concatenate"}  # the parts of a concatenation have buffers
REDUCTIONS = ("reduce_", "argmax", "argmin")
IN_PLACE = CHEAP | EXPENSIVE | UPDATES | RENAMES | {"convert_element_type", "bitcast_convert_type"}


@dataclass(eq=False)
class Value:
    """An array of a program. buffers: those that the value is read from, itself unless it is fused."""

    size: int
    consumers: list[Equation] = field(default_factory=list)
    buffers: dict[Value, None] = field(default_factory=dict)  # a set that keeps its order

    def __post_init__(self) -> None:
        self.buffers = {self: None}


@dataclass(eq=False)
class Equation:
    """An equation of a program without calls. inside: bytes that a loop's body holds; carries: of a loop."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    inside: int = 0
    carries: int = 0

    @property
    def reads(self) -> dict[Value, None]:
        """Returns the buffers of the inputs."""
        return {buffer: None for value in self.inputs for buffer in value.buffers}

    @property
    def fusible(self) -> bool:
        return self.name in FUSED or self.name.startswith(REDUCTIONS)

    @property
    def fused(self) -> bool:
        """Whether every consumer computes the outputs itself."""
        consumers = [equation for value in self.outputs for equation in value.consumers]
        if self.name in RENAMES:
            return True
        if self.name == "transpose":  # a matrix product reads its operands in either order
            return all(equation.fusible or equation.name == "dot_general" for equation in consumers)
        repeatable = self.name in FUSED and (self.name not in EXPENSIVE or len(consumers) == 1)
        return repeatable and all(equation.fusible for equation in consumers)


@dataclass
class Program:
    """The equations and results of a jaxpr whose calls are inlined; a result may be a literal."""

    equations: list[Equation] = field(default_factory=list)
    results: dict[Value, None] = field(default_factory=dict)


def forecast(jaxpr: Any) -> int:
    """Predicts the temporary bytes that a jaxpr needs beside its arguments and results."""
    jaxpr = live(jaxpr, instantiate=True)
    program = inlined(jaxpr, [Value(0) for _ in jaxpr.invars])
    return max(0, peak(program, fuse(program)) - sum(value.size for value in program.results))


def inlined(jaxpr: Any, arguments: Sequence[Value | None]) -> Program:
    """Returns the program of `jaxpr`, with every call in the place where it is made."""
    program = Program()
    results = inline(jaxpr, arguments, program.equations)
    program.results = {value: None for value in results if value}
    return program


def inline(jaxpr: Any, arguments: Sequence[Value | None], equations: list[Equation]) -> list[Value | None]:
    """Appends the equations of `jaxpr`; returns its results, None for a literal."""
    values: dict[Any, Value | None] = dict(zip(jaxpr.invars, arguments))
    values.update({var: Value(0) for var in jaxpr.constvars})
    read = lambda var: None if isinstance(var, Literal) else values[var]
    for eqn in jaxpr.eqns:
        inputs = [read(var) for var in eqn.invars]
        body, operands = called(eqn, inputs)
        if body is not None:
            outputs = inline(body, operands, equations)
        elif eqn.primitive.name == "optimization_barrier":  # other names of the same buffers
            outputs = inputs
        else:
            made = [Value(size_of(var)) for var in eqn.outvars]
            found = Equation(eqn.primitive.name, [v for v in inputs if v], made, *loop(eqn))
            for value in dict.fromkeys(found.inputs):
                value.consumers.append(found)
            equations.append(found)
            outputs = [*made]
        values.update(zip(eqn.outvars, outputs))
    return [read(var) for var in jaxpr.outvars]


def called(eqn: Any, inputs: list[Value | None]) -> tuple[Any, list[Value | None]]:
    """Returns the jaxpr that runs in place of `eqn` and its operands, (None, inputs) for no call."""
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return params["branches"][branches_here(eqn)[0]].jaxpr, inputs[1:]
    if name == "while" or (name == "scan" and params["length"] > 1):  # XLA inlines a loop of one turn
        return None, inputs
    return body_of(eqn), inputs


def loop(eqn: Any) -> tuple[int, int]:
    """Returns the bytes that the body of a loop holds, and how many values it carries; 0, 0 for no loop."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        body, (constants, carries) = params["jaxpr"].jaxpr, scan_counts(params)
    elif name == "while":
        body, constants = params["body_jaxpr"].jaxpr, params["body_nconsts"]
        carries = len(body.invars) - constants
    else:
        return 0, 0
    outside = constants + carries
    arguments = [Value(0 if at < outside else size_of(var)) for at, var in enumerate(body.invars)]
    program = inlined(body, arguments)
    slices = [Equation("dynamic_slice", [], [value]) for value in arguments[outside:]]
    program.equations = [*slices, *program.equations]
    return peak(program, scheduled(fuse(program), program)), carries


def fuse(program: Program) -> list[Equation]:
    """Gives each fused value the buffers of its operands; returns the equations that are left."""
    left = []
    for equation in program.equations:
        if equation.fused and not any(value in program.results for value in equation.outputs):
            for value in equation.outputs:
                value.buffers = equation.reads
        else:
            left.append(equation)
    return left


def scheduled(equations: list[Equation], program: Program) -> list[Equation]:
    """Returns the order of XLA's list scheduler: of the equations that are ready, the one that frees most bytes."""
    makers = {value: equation for equation in equations for value in equation.outputs}
    reads = {equation: [value for value in equation.reads if value in makers] for equation in equations}
    consumers: dict[Value, list[Equation]] = {value: [] for value in makers}
    for equation, values in reads.items():
        for value in values:
            consumers[value].append(equation)
    kept = {buffer for value in program.results for buffer in value.buffers}
    unread = {value: len(found) + (value in kept) for value, found in consumers.items()}
    missing = {equation: len({makers[value] for value in values}) for equation, values in reads.items()}
    following = {equation: dict.fromkeys(e for value in equation.outputs for e in consumers[value]) for equation in equations}

    def worth(equation: Equation) -> tuple[int, int]:
        freed = sum(value.size for value in reads[equation] if unread[value] == 1)
        taken = equation.inside + sum(value.size for value in equation.outputs)
        return freed - taken, len(following[equation])

    ready = [equation for equation in equations if not missing[equation]]
    found = []
    while ready:
        best = max(reversed(ready), key=worth)  # of equals, the one that became ready last
        ready.remove(best)
        found.append(best)
        for value in reads[best]:
            unread[value] -= 1
        for equation in following[best]:
            missing[equation] -= 1
        ready += [equation for equation in following[best] if not missing[equation]]
    return found


def peak(program: Program, equations: list[Equation]) -> int:
    """Returns the most bytes of buffers held at one time, results included."""
    last = {buffer: at for at, equation in enumerate(equations) for buffer in equation.reads}
    last.update({buffer: len(equations) for value in program.results for buffer in value.buffers})
    stacks = {value for equation in equations if equation.name == "scan" for value in equation.outputs[equation.carries:]}
    held = most = sum(value.size for value in stacks)  # XLA fills them with zeros when the program starts
    for at, equation in enumerate(equations):
        ending = [buffer.size for buffer in equation.reads if last[buffer] == at]
        held += sum(value.size for value in equation.outputs if value not in stacks)
        most = max(most, held - reused(equation, ending) + equation.inside)
        held -= sum(ending) + sum(value.size for value in equation.outputs if value not in last)
    return most


def reused(equation: Equation, ending: list[int]) -> int:
    """Returns the bytes of outputs that take the buffer of an operand of equal size that ends here."""
    free, bytes_reused = [*ending], 0
    in_place = equation.name in IN_PLACE or equation.name.startswith(REDUCTIONS)
    for value in equation.outputs[:equation.carries or int(in_place)]:
        if value.size in free:
            free.remove(value.size)
            bytes_reused += value.size
    return bytes_reused


def size_of(var: Any) -> int:
    return prod(getattr(var.aval, "shape", ())) * getattr(getattr(var.aval, "dtype", None), "itemsize", 4)
