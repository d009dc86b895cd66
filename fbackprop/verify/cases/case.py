"""A case: a layer and how to draw its input; a mistake: a wrong gradient made from a right rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...layer import Layer
from ...names import names_of
from ...params import Tree


@dataclass(frozen=True)
class Right:
    """A right rule and what it is called with: the start of every mistake."""

    layer: Layer
    params: Tree
    x: Any
    dy: Any

    @cached_property
    def gradients(self) -> tuple[Tree, Any]:
        residuals = self.layer.forward(self.params, self.x)[1]
        return self.layer.backward(self.params, residuals, self.dy)

    @property
    def dparams(self) -> Tree:
        return self.gradients[0]

    @property
    def dx(self) -> Any:
        return self.gradients[1]

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the call that made the layer, by name."""
        return {option.name: option.value for option in self.layer.options}

    def given(self, **changes: Any) -> Right:
        """Returns the same call with another layer, params, x or dy."""
        return replace(self, **changes)

    def with_params(self, **changes: Any) -> Right:
        """Returns the same call with some of the params changed."""
        return self.given(params={**self.params, **changes})

    def remade(self, maker: Callable[..., Layer], **changes: Any) -> Right:
        """Returns the same call of the layer that `maker` makes of the same options and changes."""
        return self.given(layer=maker(**{**self.options, **changes}))


Wrong = Callable[[Right], tuple[Tree, Any]]  # -> (dparams, dx)
Bugs = dict[str, dict[str, Wrong]]  # kind of layer -> description -> mistake
Draw = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Case:
    """A layer and how to draw its x. `of`: the public name it stands for; `verdict`: what the checker has to say."""

    of: str
    layer: Layer
    x: Draw
    note: str = ""
    verdict: str = "OK"

    @property
    def family(self) -> str:
        """The file its layer is written in."""
        return names_of("")[self.of].rpartition(".")[2]

    @property
    def name(self) -> str:
        return f"{self.layer.name} {self.note}".strip()


def normal(*sizes: int, scale: float = 1.0, mean: float = 0.0) -> Draw:
    """Draws an array of normal numbers."""
    return lambda rng: mean + scale * rng.standard_normal(sizes)


def several(*shapes: Any) -> Draw:
    """Draws a tuple of arrays of normal numbers; a tuple of shapes becomes a tuple again."""
    draws = [several(*shape) if isinstance(shape[0], tuple) else normal(*shape) for shape in shapes]
    return lambda rng: tuple(draw(rng) for draw in draws)


def pinned(*sizes: int) -> Draw:
    """Draws normal numbers with a zero among them."""
    def draw(rng: np.random.Generator) -> Any:
        x = rng.standard_normal(sizes)
        x.flat[1] = 0.0
        return x

    return draw
