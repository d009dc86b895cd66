"""The contract: a Layer is a forward, a backward and an init.

    forward   (params, x) -> (y, residuals)
    backward  (params, residuals, dy) -> (dparams, dx)

`x y params residuals` are pytrees. `params` go into `backward` again, so weights are never residuals. The cotangent of an
integer or bool leaf is None. What a layer carries besides weights is State: see params.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, Literal, Protocol, TypeAlias, final

import jax

from .checks import expect
from .facts import CellRule, Option, Scan, Tuning, Written
from .params import Tree


class Init(Protocol):
    """How params begin. x: arrays or ShapeDtypeStructs."""

    def __call__(self, key: jax.Array, x: Any, /) -> Tree:
        """Returns params, () when there are none."""


class Forward(Protocol):
    """The values of a layer."""

    def __call__(self, params: Tree, x: Any, /) -> tuple[Any, Any]:
        """Returns (y, residuals)."""


class Backward(Protocol):
    """The reverse rule of a layer."""

    def __call__(self, params: Tree, residuals: Any, dy: Any, /) -> tuple[Tree, Any]:
        """Returns (dparams, dx)."""


class Weight(Protocol):
    """What a mean over a batch divides by."""

    def __call__(self, batch: Any, /) -> Any:
        """Returns one number."""


Role: TypeAlias = Literal["", "observes", "records", "freezes"]


@final
@dataclass(frozen=True)
class Layer:
    """One step of a network with its hand-written reverse rule. A plain layer needs the first four fields.

    A Layer is never a pytree node. A network is a Layer. A combinator takes Layers and returns one.
    `dataclasses.replace` with another init, forward or backward drops the facts that describe the
    old ones: tuning, scan and the halves of a cell; a combinator's parts then cannot be rewritten.
    The twin out of training stays what it was. `replace_rules` changes both.
    """

    kind: str                                                # "dense": the name of what makes it
    init: Init                                               # (key, x) -> params, x arrays or ShapeDtypeStructs
    forward: Forward                                         # (params, x) -> (y, residuals)
    backward: Backward                                       # (params, residuals, dy) -> (dparams, dx)
    options: tuple[Option, ...] = field(default=(), hash=False)  # what its maker was given; pairs (name, value) will do
    _: KW_ONLY
    inference: Layer | None = None                           # the twin out of training, same params
    parts: tuple[Layer, ...] = ()                            # children of a combinator
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None
    places: tuple[str, ...] | None = None                    # of the parts in paths, "0", "1", ... unless given; "": the own
    tuning: Tuning | None = None
    scan: Scan | None = None
    cell: CellRule | None = None
    role: Role = ""                                          # of a wrapper: what a walk has to know of it
    weight: Weight | None = None                             # of a loss: what its mean over a batch divides by
    _before: SimpleNamespace | None = field(default=None, repr=False, compare=False)  # the fields that replace() was given

    def __post_init__(self) -> None:
        _expect_fields(self)
        facts = dict(zip(("kind", "options"), _read_call(self.kind, self.options)))
        if self._before is not None:
            facts |= _kept_facts(self._before, self)
        for name, value in facts.items():
            object.__setattr__(self, name, value)
        now = SimpleNamespace(**{each.name: getattr(self, each.name) for each in fields(self) if each.name != "_before"})
        object.__setattr__(self, "_before", now)

    def __init_subclass__(cls) -> None:
        raise TypeError(f"class {cls.__name__}(Layer): expected no subclass, for rewrites would lose what it adds. Call "
                        f'Layer("{cls.__name__.lower()}", init, forward, backward) and give it tuning=, scan= or cell=')

    @cached_property
    def name(self) -> str:
        """Returns the call that makes the layer, for people to read."""
        return f"{self.kind}({', '.join(filter(None, (*map(repr, self.parts), *map(str, self.options))))})"

    @property
    def wraps(self) -> bool:
        """Returns whether a part has the layer's path, as in a wrapper or an objective."""
        return self.places is not None and "" in self.places

    def __repr__(self) -> str:
        return self.name


def _expect_fields(layer: Layer) -> None:
    """Raises TypeError for a field of the wrong type."""
    expect(isinstance(layer.kind, str) and layer.kind != "", "Layer kind", "a word", repr(layer.kind),
           'Write Layer("dense", init, forward, backward)', TypeError)
    parts = isinstance(layer.parts, tuple) and all(isinstance(part, Layer) for part in layer.parts)
    expect(parts, f"parts of {layer.kind}", "a tuple of Layers", repr(layer.parts), error=TypeError)
    for name, wanted in (("inference", Layer), ("tuning", Tuning), ("scan", Scan), ("cell", CellRule), ("places", tuple)):
        value = getattr(layer, name)
        ok = value is None or isinstance(value, wanted)
        expect(ok, f"{name} of {layer.kind}", f"a {wanted.__name__} or None", repr(value), error=TypeError)


def _read_call(kind: str, options: Any) -> tuple[str, tuple[Option, ...]]:
    """Returns (kind, options) as a Layer holds them. A kind "mine(3)" is the kind "mine"."""
    ok = isinstance(options, tuple) and all(
        isinstance(each, tuple) and len(each) in (2, 3) and isinstance(each[0], str) for each in options)
    expect(ok, f"options of {kind}", "pairs (name, value)", repr(options), 'Write options=(("features", 128),)', TypeError)
    word, bracket, arguments = kind.partition("(")
    ok = bool(word.strip()) and (not bracket or arguments.endswith(")"))
    expect(ok, "Layer kind", 'a word, or a call like "mine(3)"', repr(kind), 'Write Layer("mine", init, forward, backward)',
           TypeError)
    if arguments not in ("", ")"):
        return word, (Option("call", Written(arguments[:-1]), True),)
    return word, tuple(Option(*each) for each in options)


def _kept_facts(old: SimpleNamespace, new: Layer) -> dict[str, Any]:
    """Returns the fields to set on `new`, which `replace` made of `old`."""
    rule = lambda layer: (layer.init, layer.forward, layer.backward)
    untouched = lambda name: getattr(new, name) is getattr(old, name) is not None
    if rule(new) == rule(old):
        return _given_again(old, new, untouched)
    facts: dict[str, Any] = {"tuning": None} if untouched("tuning") else {}
    walked = rule(new)[1:] == rule(old)[1:] and old.scan is not None and old.scan.over == "time"
    if untouched("scan") and not walked:
        facts["scan"] = None
    if untouched("cell"):
        facts["cell"] = old.cell and CellRule(old.cell.start)
    if untouched("rebuild"):
        facts["rebuild"] = partial(_refuse, new)
    return facts


def _given_again(old: SimpleNamespace, new: Layer, untouched: Callable[[str], bool]) -> dict[str, Any]:
    """Returns facts that give the layers they make what `replace` was given beside a rule."""
    given = {name: getattr(new, name) for name in ("kind", "options", "inference", "cell", "places")
             if getattr(new, name) is not getattr(old, name) and getattr(new, name) != getattr(old, name)}
    facts: dict[str, Any] = {}
    if given and untouched("rebuild"):
        facts["rebuild"] = lambda parts: replace(old.rebuild(parts), **given)
    if given and untouched("tuning"):
        settled = {name: value for name, value in given.items() if name != "options"}  # a setting is an option
        facts["tuning"] = replace(old.tuning, apply=lambda setting: replace(old.tuning.apply(setting), **settled))
    return facts


def _refuse(layer: Layer, parts: tuple[Layer, ...]) -> Layer:
    raise TypeError(f"{layer.name}: expected parts that stay, for dataclasses.replace gave it a rule of its own, which a "
                    "layer built of other parts would not have. Give it by replace_rules(net, path, fn): that applies fn again")


def twinned(layer: Layer, forward: Forward, backward: Backward) -> Layer:
    """Returns `layer` with a twin out of training, on the same params, that computes this."""
    return replace(layer, inference=Layer("inference", layer.init, forward, backward, (Option("layer", layer, True),)))


def wrapper(part: Layer, kind: str, rebuild: Callable[[Layer], Layer], forward: Forward, backward: Backward,
            init: Init | None = None, options: tuple[Any, ...] = (), role: Role = "") -> Layer:
    """Returns a Layer around `part` that paths see through; `rebuild` puts the same around another part.

    It has no tuning, no scan and no halves: rewrites that need them find those of `part`. role:
    "observes", it computes what `part` does, so a walk over the steps of `part` may leave it out;
    "records", it writes down in a State what it sees; "freezes", it shows weights as State.
    """
    expect(isinstance(part, Layer), kind, "a Layer", getattr(part, "__name__", repr(part)),
           f"Did you mean {getattr(part, '__name__', 'dense')}()?", TypeError)
    scan, cell = (part.scan, part.cell) if role == "observes" else (None, part.cell and CellRule(part.cell.start))
    return Layer(kind, init or part.init, forward, backward, options, parts=(part,), places=("",), cell=cell, scan=scan,
                 role=role, weight=part.weight, rebuild=lambda parts: rebuild(parts[0]))
