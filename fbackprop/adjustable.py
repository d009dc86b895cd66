"""A layer with a setting that changes what it needs and not what it computes: tiles, chunks, segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .compose import map_layers_with_path
from .errors import expect
from .layer import Layer

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Adjustable(Layer):
    """A Layer that can be made again with another setting, on the same params and with the same result."""

    adjusted: Callable[..., Layer] | None = None  # adjusted(chunk=256): this layer with that setting
    settings: Callable[[Any], Iterable[Setting]] | None = None  # spec of x -> thriftier settings, the quickest first

    def __repr__(self) -> str:
        return self.name


def halves(whole: int, least: int) -> list[int]:
    """Half of it, rounded up, a quarter and so on, no less than `least`."""
    sizes: list[int] = []
    while (whole := -(-whole // 2)) >= least and whole not in sizes:
        sizes.append(whole)
    return sizes


def with_settings(net: Layer, settings: Mapping[str, Setting]) -> Layer:
    """`net` with these settings, by the path of the layer that has them, on the same params.

    Raises ValueError for a path where no layer has a setting, TypeError for a setting it does not have.
    """
    found: set[str] = set()

    def adjust(path: str, layer: Layer) -> Layer:
        if path not in settings or not isinstance(layer, Adjustable) or layer.adjusted is None:
            return layer
        found.add(path)
        return layer.adjusted(**settings[path])

    net = map_layers_with_path(net, adjust)
    expect(found == set(settings), "settings", "the paths of layers that have some", f"none at {sorted({*settings} - found)}")
    return net
