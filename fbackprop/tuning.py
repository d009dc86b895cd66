"""Settings of layers that change what a net needs and not what it computes: tiles, chunks, segments."""

from __future__ import annotations

from collections.abc import Mapping

from .checks import expect
from .facts import Setting
from .layer import Layer
from .transform import map_layers_with_path


def halves(whole: int, least: int) -> list[int]:
    """Returns successive halvings of `whole`, rounded up, down to `least`."""
    sizes: list[int] = []
    while (whole := -(-whole // 2)) >= least and whole not in sizes:
        sizes.append(whole)
    return sizes


def with_settings(net: Layer, settings: Mapping[str, Setting]) -> Layer:
    """Returns `net` with these settings, by the path of the layer that has them, on the same params.

    Raises ValueError for a path where no layer has a setting, TypeError for a setting that the layer does not have.
    """
    found: set[str] = set()

    def adjusted(path: str, layer: Layer) -> Layer:
        if path not in settings or layer.tuning is None:
            return layer
        found.add(path)
        mapping = isinstance(settings[path], Mapping) and len(settings[path]) > 0
        expect(mapping, f"settings at {path!r}, {layer.name}", "a dict that names a setting", repr(settings[path]),
               f"Write {{{path!r}: {{{layer.tuning.names[0]!r}: 8}}}}", TypeError)
        ok = set(settings[path]) <= set(layer.tuning.names)
        expect(ok, f"settings at {path!r}, {layer.name}", f"some of {', '.join(layer.tuning.names)}",
               repr(dict(settings[path])), error=TypeError)
        return layer.tuning.apply(settings[path])

    net = map_layers_with_path(net, adjusted)
    expect(found == set(settings), "settings", "the paths of layers that have some", f"none at {sorted({*settings} - found)}",
           "A layer has none once it is scheduled, checkpointed or frozen, or its rule is replaced")
    return net
