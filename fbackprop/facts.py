"""Facts about a layer: the options its maker was given, and what else it could be.

No fact changes what a layer computes. Rewrites, the planner and the summary read them; nobody reads
a layer's name to decide anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from .layer import Layer

Setting: TypeAlias = Mapping[str, Any]


class Option(NamedTuple):
    """One argument of the call that made a layer. positional: the call gives it without its name."""

    name: str
    value: Any
    positional: bool = False

    def __str__(self) -> str:
        """Shows the argument as the call writes it; a function given by name is left out."""
        if self.positional:
            return _shown(self.value)
        return "" if callable(self.value) else f"{self.name}={_shown(self.value)}"


class Written(str):
    """Arguments as the author of a layer wrote them."""


def _shown(value: Any) -> str:
    if isinstance(value, (Written, np.integer)):
        return str(value)
    if getattr(value, "shape", ()):
        return "..."
    if callable(value):  # a function or a class
        return getattr(value, "__name__", type(value).__name__)
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _differs(value: Any, default: Any) -> bool:
    return value is not default and (hasattr(value, "shape") or value != default)


def given(maker: Callable[..., Any], *positional: Any, **by_name: Any) -> tuple[Option, ...]:
    """Returns the options of the call `maker(*positional, **by_name)`, without those at their default."""
    parameters = inspect.signature(maker).parameters
    names = list(parameters)
    first = [Option(names[min(i, len(names) - 1)], value, True) for i, value in enumerate(positional)]
    rest = [Option(name, value) for name, value in by_name.items() if _differs(value, parameters[name].default)]
    return (*first, *rest)


@dataclass(frozen=True)
class Tuning:
    """Settings that change what a layer needs and not what it computes: tiles, chunks, segments.

    names: what a setting may name. settings: from a spec of x to settings that need less memory, the
    fastest first.
    apply: from a setting to the layer with that setting, on the same params.
    """

    names: tuple[str, ...]
    settings: Callable[[Any], Sequence[Setting]]
    apply: Callable[[Setting], Layer]


@dataclass(frozen=True)
class Scan:
    """What a combinator walks over, one step after the other.

    over: "parts", each part once; "params", the one part `times` times, step k with the params at
    k of their leading axis; "time", the one part, a cell, at every step of axis 1 of x.
    last, reverse: of a walk over time, as `recurrent` takes them.
    again: the rewrite that replaced this layer's rule; a layer built from the same parts needs it too.
    """

    over: Literal["parts", "params", "time"]
    times: int = 1
    last: bool = False
    reverse: bool = False
    again: Callable[[Layer], Layer] = lambda layer: layer


@dataclass(frozen=True)
class CellRule:
    """How a cell begins, and its backward in two halves, which a scan asks for at different times.

    start: from a spec of x_t to the first carry.
    pull: `(params, residuals, dy) -> (dcarry, dx)` of one step. gradients: `(residuals, dx) ->
    dparams` of all steps, stacked. Without them the cell's backward is asked twice.
    again: `(params, carry, firsts, x, reverse) -> residuals` of all steps, for a cell whose product
    reads only the first part of its carry: from that part at every step and the whole first carry.
    """

    start: Callable[[Any], Any]
    pull: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    gradients: Callable[[Any, Any], Any] | None = None
    again: Callable[[Any, Any, Any, Any, bool], Any] | None = None
