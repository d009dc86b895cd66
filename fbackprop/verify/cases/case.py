"""A case: a layer and how to draw its input; a planted bug: a wrong gradient made from a right layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _MODULE_OF
from ...layer import Layer
from ...params import Tree

Wrong = Callable[[Layer, Tree, Any, Any], tuple[Tree, Any]]  # (right layer, params, x, dy) -> (dparams, dx)
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
        return _MODULE_OF[self.of].rpartition(".")[2]

    @property
    def name(self) -> str:
        return f"{self.layer.name} {self.note}".strip()


def normal(*sizes: int) -> Draw:
    """Normal numbers."""
    return lambda rng: rng.standard_normal(sizes)


def pinned(*sizes: int) -> Draw:
    """Normal numbers with a zero among them."""
    def draw(rng: np.random.Generator) -> Any:
        x = rng.standard_normal(sizes)
        x.flat[1] = 0.0
        return x

    return draw


def right(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    """What the right rule gives: the start of most mistakes."""
    return layer.backward(params, layer.forward(params, x)[1], dy)


def options_of(layer: Layer) -> dict[str, Any]:
    """Returns what the maker of `layer` was given, by name."""
    return {option.name: option.value for option in layer.options}


def call(layer: Layer) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments and options of the call that made `layer`."""
    return ([option.value for option in layer.options if option.positional],
            {option.name: option.value for option in layer.options if not option.positional})
