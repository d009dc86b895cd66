"""tap: look at every layer's forward as it runs."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from ..layer import Layer, wrapper
from ..params import Tree
from ..transform import map_layers_with_path

KIND = "tap"


class See(Protocol):
    """What a tap calls after each forward."""

    def __call__(self, path: str, layer: Layer, params: Tree, x: Any, y: Any, residuals: Any, /) -> object:
        """Takes what the layer was given and returned. The result is not used."""


def tap(net: Layer, see: See) -> Layer:
    """Returns a `net` that calls `see(path, layer, params, x, y, residuals)` after each forward.

    The parts of a layer come before the whole. `see` runs in Python: on arrays when nothing is
    jitted, on tracers under jit or eval_shape. The results are untouched.
    A wrapper around a layer (checkpoint, a cast) is seen too, after the layer, at the layer's path. A layer that never runs
    as a whole, a recurrent one that is taken in segments, is not seen.
    """
    return map_layers_with_path(net, partial(_tapped, see), wrappers=True)


def _tapped(see: See, path: str, layer: Layer) -> Layer:
    if layer.role == "observes":
        return layer

    def forward(params: Tree, x: Any) -> tuple[Any, Any]:
        y, residuals = layer.forward(params, x)
        see(path, layer, params, x, y, residuals)
        return y, residuals

    return wrapper(layer, KIND, partial(_tapped, see, path), forward, layer.backward, role="observes")
