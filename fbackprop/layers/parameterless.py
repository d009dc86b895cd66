"""A layer without params: its rule is a function of x and its pullback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..checks import expect_floating, expect_params
from ..facts import Option, Tuning
from ..layer import Layer, Weight
from ..params import Tree


def floating(x: Any) -> None:
    """Raises unless x is one floating array."""
    expect_floating(x=x)


def anything(x: Any) -> None:
    """Raises nothing."""


def parameterless(kind: str, forward: Callable[[Any], tuple[Any, Any]],
                  backward: Callable[[Any, Any], Any], options: tuple[Option, ...] = (),
                  check: Callable[[Any], object] = floating, tuning: Tuning | None = None,
                  weight: Weight | None = None) -> Layer:
    """Returns the Layer of `forward(x) -> (y, residuals)` and `backward(residuals, dy) -> dx`.

    check: raises for an x that does not fit, in init and in front of `forward`. weight: of a loss.
    """

    def init(key: jax.Array, x: Any) -> Tree:
        check(x)
        return ()

    def with_params(params: Tree, x: Any) -> tuple[Any, Any]:
        expect_params(params)
        check(x)
        return forward(x)

    with_dparams = lambda _, residuals, dy: ((), backward(residuals, dy))
    return Layer(kind, init, with_params, with_dparams, options, tuning=tuning, weight=weight)
