"""tap: look at every layer's forward as it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..compose import map_layers_with_path
from ..layer import Layer, Tree

See = Callable[[str, Layer, Tree, Any, Any, Any], object]


def tap(net: Layer, see: See) -> Layer:
    """`net` that calls `see(path, layer, params, x, y, residuals)` after each layer's forward, parts before the whole.

    `see` runs in Python: on arrays when nothing is jitted, on tracers under jit or eval_shape. The results are untouched.
    """

    def tapped(path: str, layer: Layer) -> Layer:
        def forward(params: Tree, x: Any) -> tuple[Any, Any]:
            y, residuals = layer.forward(params, x)
            see(path, layer, params, x, y, residuals)
            return y, residuals

        return replace(layer, forward=forward)

    return map_layers_with_path(net, tapped)
