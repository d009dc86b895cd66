"""traced: a program's values and equations, as the forecast of its bytes sees them: fused, or with a buffer of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ...jaxprs.flops import MOVES

RENAMED = {"reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "device_put"}
UPDATES = {"dynamic_update_slice", "scatter", "scatter-add"}
MOVED = {  # places change
    "transpose", "concatenate", "gather", "rev", "pad", "slice", "split", "dynamic_slice", "broadcast_in_dim"}
CHEAP = {
    "add", "add_any", "sub", "mul", "neg", "max", "min", "sign", "abs", "and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt",
    "ge", "select_n", "clamp", "is_finite", "square", "integer_pow", "floor", "round"}
DEAR = {"exp", "exp2", "log", "tanh", "logistic", "div", "sqrt", "rsqrt", "erf", "pow", "log1p", "expm1", "sin", "cos", "rem"}
FUSED = (CHEAP | MOVES) - UPDATES - {"concatenate", "optimization_barrier"}  # a concatenation's parts have buffers
REDUCTIONS = ("reduce_", "argmax", "argmin")
MANY = 3  # readers of a cheap value for which XLA makes it a buffer, and still fuses it into some


@dataclass(eq=False, repr=False)
class Value:
    """A traced value. roots: the buffers it is read from, itself unless it is fused; aligned: those read place by place.

    slim: it has an axis of 1, which a product wants away: what is made for one is then made in no operand's place.
    """

    size: int
    slim: bool = False
    readers: list[Equation] = field(default_factory=list)
    maker: Equation | None = None
    roots: dict[Value, None] = field(default_factory=dict)  # dicts as sets that have an order
    aligned: dict[Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roots = self.aligned = {self: None}


@dataclass(eq=False, repr=False)
class Equation:
    """inputs: without the literals. inside: the bytes that a loop holds beside what goes in and comes out."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    params: Any
    inside: int

    @property
    def fusible(self) -> bool:
        return self.name in FUSED or self.name in DEAR or self.name.startswith(REDUCTIONS)

    def reads(self) -> dict[Value, None]:
        return {root: None for value in self.inputs for root in value.roots}


def can_fuse(equation: Equation, value: Value, fused: Collection[Equation]) -> bool:
    """Whether the readers of `value` can make it themselves; fused: of the equations before, those of which that is so."""
    name, readers = equation.name, value.readers
    stored = _is_stored(equation, fused)
    if stored and _renames(equation):
        return True
    if name == "transpose":  # a product reads what is stored along rows or columns alike
        return all(reader.fusible or (stored and reader.name == "dot_general") for reader in readers)
    return all(reader.fusible for reader in readers) and (name in FUSED or (name in DEAR and len(readers) == 1))


def _renames(equation: Equation) -> bool:
    whole = [value.size for value in equation.inputs] == [equation.outputs[0].size]
    return equation.name in RENAMED or (whole and equation.name in ("slice", "dynamic_slice", "pad", "concatenate"))


def _is_stored(equation: Equation, fused: Collection[Equation]) -> bool:
    """Whether what it reads first is a buffer, under whatever name."""
    maker = equation.inputs[0].maker if equation.inputs else None
    return maker is None or maker not in fused or (_renames(maker) and _is_stored(maker, fused))
