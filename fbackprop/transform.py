"""From one network to another: a function on every layer, or on those at a path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeAlias

from .checks import expect
from .facts import CellRule
from .layer import Layer

Rewrite: TypeAlias = Callable[[Layer], Layer]


def parts_with_path(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yields (path, part) of the parts of a layer. Raises TypeError for what is no Layer."""
    expect(isinstance(layer, Layer), f"layer {path}".rstrip(), "a Layer", getattr(layer, "__name__", repr(layer)),
           f"Did you mean {getattr(layer, '__name__', 'dense')}()?", TypeError)
    for i, part in enumerate(layer.parts):
        place = str(i) if layer.places is None else layer.places[i]
        yield "/".join(filter(None, (path, place))), part


def layers_by_path(layer: Layer, path: str = "") -> dict[str, Layer]:
    """Returns every layer by its path, children first. A wrapper counts as what it wraps."""
    found: dict[str, Layer] = {}
    for below, part in parts_with_path(layer, path):
        found |= layers_by_path(part, below)
    return found if layer.wraps else {**found, path: layer}


def matching(paths: Iterable[str], glob: str, what: str) -> list[str]:
    """Returns the layer paths that match `glob`. Raises ValueError where none does."""
    matches = [path for path in paths if fnmatchcase(path, glob)]
    expected = f"a match among the layer paths {sorted(paths)}"
    expect(bool(matches), f"{what} {glob!r}", expected, "none")
    return matches


def map_layers_with_path(net: Layer, fn: Callable[[str, Layer], Layer], *, path: str = "",
                         wrappers: bool = False) -> Layer:
    """Returns `net` with `fn(path, layer)` in place of every layer, children first, the root (path "") included.

    `fn` is applied again to whatever the layer becomes later: with other parts, another setting, or
    out of training. So rewrites commute. wrappers: also visit what is around a layer at the
    layer's own path (checkpoint, frozen, a tap); without, wrappers are put back around the result.
    """
    parts = tuple(map_layers_with_path(part, fn, path=below, wrappers=wrappers) for below, part in parts_with_path(net, path))
    if any(new is not old for new, old in zip(parts, net.parts)):
        expect(net.rebuild is not None, net.name, "a combinator with rebuild", "none, and a part of it changed",
               "Give its Layer rebuild=lambda parts: ...", TypeError)
        net = net.rebuild(parts)  # type: ignore[misc]
    return _rewritten(net, partial(fn, path)) if wrappers or not net.wraps else net


def _rewritten(layer: Layer, fn: Rewrite) -> Layer:
    """Returns `fn(layer)`, with facts that apply `fn` again to the layers they make."""
    new = fn(layer)
    expect(isinstance(new, Layer), f"a rewrite of {layer.name}", "a Layer", repr(new), "Give a function from Layer to Layer",
           TypeError)
    if new is layer:
        return new
    if new.wraps and new.parts is not layer.parts:  # a wrapper leaves what it wraps to later rewrites
        if core(new) is core(layer):
            return new
        return inside(new, lambda _: _rewritten(layer, lambda other: core(fn(other))))
    again = lambda other: _rewritten(other, fn)
    facts: dict[str, Any] = {}
    if layer.inference is not None and new.inference is layer.inference:
        facts["inference"] = again(layer.inference)
    if layer.tuning is not None and new.tuning is None and (new.kind == layer.kind or new is layer.inference):
        apply = layer.tuning.apply
        facts["tuning"] = replace(layer.tuning, apply=lambda setting: again(apply(setting)))
    if layer.cell is not None and new.cell is None:
        facts["cell"] = CellRule(layer.cell.start)
    if layer.parts and new.parts is layer.parts:
        rebuild, scan = layer.rebuild, layer.scan
        if rebuild is not None:
            facts["rebuild"] = lambda parts: again(rebuild(parts))
        if new.scan is None and scan is not None and scan.over != "time":
            facts["scan"] = replace(scan, again=lambda other: again(scan.again(other)))
    return replace(new, **facts)


def map_layers(net: Layer, fn: Rewrite, *, wrappers: bool = False) -> Layer:
    """Returns `net` with `fn(layer)` in place of every layer, as `map_layers_with_path`."""
    return map_layers_with_path(net, lambda _, layer: fn(layer), wrappers=wrappers)


def inside(layer: Layer, fn: Rewrite) -> Layer:
    """Returns `fn` of the layer inside the wrappers of `layer`, with the wrappers around it."""
    if not layer.wraps:
        return fn(layer)
    return layer.rebuild((inside(layer.parts[0], fn), *layer.parts[1:]))  # type: ignore[misc]


def core(layer: Layer) -> Layer:
    """Returns the layer inside the wrappers of `layer`."""
    return core(layer.parts[0]) if layer.wraps else layer


def replace_rules(net: Layer, where: str, fn: Rewrite) -> Layer:
    """Returns `net` with `fn(layer)` at every path that matches the glob `where`.

    `2` is that layer, `2/*` all below it, `""` the root.

    Raises ValueError when nothing matches.
    """
    return with_rules(net, {where: fn})


def with_rules(net: Layer, rules: Mapping[str, Rewrite]) -> Layer:
    """Returns `net` with the rules of all patterns, in one walk, children first."""
    for where, fn in rules.items():
        ok = isinstance(where, str) and callable(fn) and not isinstance(fn, Layer)
        expect(ok, "rules", "a glob of layer paths and a function from Layer to Layer", f"{where!r} and {fn!r}",
               'Write replace_rules(net, "2/*", lambda layer: ...)', TypeError)

    def replaced(path: str, layer: Layer) -> Layer:
        for where, fn in rules.items():
            layer = fn(layer) if fnmatchcase(path, where) else layer
        return layer

    rewritten = map_layers_with_path(net, replaced)
    for where in rules:
        matching(layers_by_path(net), where, "rules pattern")
    return rewritten


def inference(net: Layer) -> Layer:
    """Replaces every layer by its twin out of training, on the same params."""
    return map_layers(net, lambda layer: layer.inference or layer)
