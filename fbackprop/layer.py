"""The contract: a Layer is a forward, a backward and an init; what it carries besides weights stands in State.

    forward   (params, x) -> (y, residuals)
    backward  (params, residuals, dy) -> (dparams, dx)

`x y params residuals` are pytrees. `params` go into `backward` again, so weights are never residuals. The cotangent of an
integer or bool leaf is None. In `dparams` a `State(value)` has become `Next(value)`: its successor, not a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import NoneType, SimpleNamespace
from typing import Any, Literal, TypeAlias, final

import chex
import jax
from jax import tree_util

from .checks import expect, show
from .facts import CellRule, Option, Scan, Tuning, Written

Tree: TypeAlias = chex.ArrayTree


Role: TypeAlias = Literal["", "observes", "records", "freezes"]
FIELD_TYPES: dict[str, tuple[type, ...]] = {}  # of the optional fields, by name
FIELD_WORDS = {"parts": "a tuple of Layers", "inference": "a Layer or None", "tuning": "a Tuning or None",
               "scan": "a Scan or None", "cell": "a CellRule or None", "places": "a tuple of words, one a part, or None"}


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
    init: Callable[[jax.Array, Any], Tree]                   # (key, x) -> params, x arrays or ShapeDtypeStructs
    forward: Callable[[Tree, Any], tuple[Any, Any]]          # (params, x) -> (y, residuals)
    backward: Callable[[Tree, Any, Any], tuple[Tree, Any]]   # (params, residuals, dy) -> (dparams, dx)
    options: tuple[Option, ...] = field(default=(), hash=False)  # what its maker was given; pairs (name, value) will do
    inference: Layer | None = None                           # the twin out of training, same params
    parts: tuple[Layer, ...] = ()                            # children of a combinator
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None
    places: tuple[str, ...] | None = None                    # of the parts in paths, "0", "1", ... unless given; "": the own
    tuning: Tuning | None = None
    scan: Scan | None = None
    cell: CellRule | None = None
    role: Role = ""                                          # of a wrapper: what a walk has to know of it
    _before: SimpleNamespace | None = field(default=None, repr=False, compare=False)  # the fields that replace() was given

    def __post_init__(self) -> None:
        expect(isinstance(self.kind, str) and self.kind != "", "Layer kind", "a word", repr(self.kind),
               'Write Layer("dense", init, forward, backward)', TypeError)
        for name, wanted in FIELD_TYPES.items():
            value = getattr(self, name)
            ok = isinstance(value, wanted) and (name != "parts" or all(isinstance(part, Layer) for part in self.parts))
            expect(ok, f"{name} of {self.kind}", FIELD_WORDS[name], repr(value), error=TypeError)
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

    @property
    def name(self) -> str:
        """The call that makes the layer, for people: repr, profiler scope, errors, reports."""
        return f"{self.kind}({', '.join(filter(None, (*map(repr, self.parts), *map(str, self.options))))})"

    @property
    def wraps(self) -> bool:
        """Whether the first part stands at the layer's own path."""
        return self.places is not None and "" in self.places

    def __repr__(self) -> str:
        return self.name


FIELD_TYPES |= {"parts": (tuple,), "inference": (Layer, NoneType), "tuning": (Tuning, NoneType), "scan": (Scan, NoneType),
                "cell": (CellRule, NoneType), "places": (tuple, NoneType)}


def _read_call(kind: str, options: Any) -> tuple[str, tuple[Option, ...]]:
    """`(kind, options)` as a Layer holds them. A kind that its author wrote as a call, "mine(3)", is the kind "mine"."""
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
    """What stays true of `new`, which `replace` made of `old`; a fact that the caller gave anew stays."""
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
    """What `replace` was given beside a rule, given again to the layers that the facts of `old` make."""
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


def twinned(layer: Layer, forward: Callable, backward: Callable) -> Layer:
    """Returns `layer` with a twin out of training, on the same params, that computes this."""
    return replace(layer, inference=Layer("inference", layer.init, forward, backward, (Option("layer", layer, True),)))


def wrapper(part: Layer, kind: str, rebuild: Callable[[Layer], Layer], forward: Callable, backward: Callable,
            init: Callable | None = None, options: tuple[Any, ...] = (), role: Role = "") -> Layer:
    """Returns a Layer around `part` that paths see through; `rebuild` puts the same around another part.

    It has no tuning, no scan and no halves: rewrites that need them find those of `part`. role:
    "observes", it computes what `part` does, so a walk over the steps of `part` may leave it out;
    "records", it writes down in a State what it sees; "freezes", it shows weights as State.
    """
    expect(isinstance(part, Layer), kind, "a Layer", getattr(part, "__name__", repr(part)),
           f"Did you mean {getattr(part, '__name__', 'dense')}()?", TypeError)
    scan, cell = (part.scan, part.cell) if role == "observes" else (None, part.cell and CellRule(part.cell.start))
    return Layer(kind, init or part.init, forward, backward, options, parts=(part,), places=("",), cell=cell, scan=scan,
                 role=role, rebuild=lambda parts: rebuild(parts[0]))


@dataclass(frozen=True)
class Hidden:
    """A key that `paths` leaves out: told by its type, never by its name."""

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


class _Carried:
    """A node with one child, `value`, that no optimizer touches."""

    def __init__(self, value: Tree) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({show(self.value)})"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Hidden, Tree]], None]:
        return ((Hidden("value"), self.value),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Tree]) -> _Carried:
        return cls(*children)


@tree_util.register_pytree_with_keys_class
class State(_Carried):
    """In `params`: a leaf that is carried, not trained (a dropout key, running statistics)."""


@tree_util.register_pytree_with_keys_class
class Next(_Carried):
    """In what `backward` returns: the successor of a State. Another node type on purpose: `params - lr * grads` raises."""


@tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Wrapped:
    """Params of a wrapper that needs some of its own: paths show what is inside as if nothing were around it."""

    inner: Tree
    own: Tree

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Hidden, Tree], ...], None]:
        return ((Hidden("inner"), self.inner), (Hidden("own"), self.own)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Tree, Tree]) -> Wrapped:
        return cls(*children)


@tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A residual that is no array (a shape, an axis): part of the tree's structure, constant under jit. Hashable."""

    value: Any


def is_carried(node: Any) -> bool:
    return isinstance(node, _Carried)


def split(tree: Tree) -> tuple[Tree, Tree]:
    """params -> (trainable, state), or grads -> (gradients, next): whole structure each, None for the other's leaves."""
    trained = jax.tree.map(lambda n: None if is_carried(n) else n, tree, is_leaf=is_carried)
    carried = jax.tree.map(lambda n: n if is_carried(n) else None, tree, is_leaf=is_carried)
    return trained, carried


def join(trained: Tree, carried: Tree) -> Tree:
    stop = lambda n: n is None or is_carried(n)
    return jax.tree.map(lambda t, c: t if c is None else c, trained, carried, is_leaf=stop)


def merge(trainable: Tree, state: Tree) -> Tree:
    """The inverse of `split` for params; `state` may hold State or Next, the result holds State."""
    return join(trainable, jax.tree.map(lambda n: State(n.value), state, is_leaf=is_carried))


def paths(tree: Tree) -> dict[str, Any]:
    """Every leaf by its path, in order: `{"0/w": ..., "0/b": ...}`; what State, Next and Wrapped add to a path is left out."""
    return {path: leaf for path, leaf in named_leaves(tree) if leaf is not None}


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] = lambda n: n is None) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf and, with None for a leaf, of every empty place; or of what `is_leaf` stops at."""
    def name(key: Any) -> str:
        return str(next(getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field)))

    leaves = tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [("/".join(name(key) for key in keys if not isinstance(key, Hidden)), leaf) for keys, leaf in leaves]


def graft(params: Tree, into: Tree) -> Tree:
    """`into` with every leaf that `params` also has, by path: carries weights to a rewritten net.

    Raises ValueError when a leaf has another shape or dtype there, or when no path agrees.
    """
    have = paths(params)
    shared = [path for path in paths(into) if path in have]
    expect(bool(shared) or not have, "graft", f"a path among {list(have)[:5]}", f"{list(paths(into))[:5]}")
    leaves, treedef = jax.tree.flatten(into)
    grafted = []
    for path, leaf in zip(paths(into), leaves):
        new = have.get(path, leaf)
        expect(show(new) == show(leaf), f"graft {path}", show(leaf), new)
        grafted.append(new)
    return jax.tree.unflatten(treedef, grafted)
