"""Mutants: a rule whose backward has one equation changed, to test the checker with. The forward stays right.

The backward alone is traced to a jaxpr and evaluated equation by equation, so that a mutant compiles nothing but what its one
change adds. Equations inside jit, scan, while and cond are changed as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import jax
import numpy as np

from fbackprop.dtypes import partition
from fbackprop.layer import Layer
from fbackprop.params import Tree, split
from fbackprop.verify.cases import Case
from fbackprop.verify.check import draw_params
from fbackprop.verify.oracles import Evidence, Oracles, Point, quick_jit
from fbackprop.verify.subject import Subject, cast, layer_subject
from fbackprop.verify.table import fresh
from fbackprop.verify.verdict import SAFETY, judge

from .interpret import equations, evaluate
from .mutations import KINDS, Mutation, mutations

SAME = 1e-12  # a change below this share of every leaf's scale is none
POINTS = 3
AT_A_KINK = "Another value between the one-sided slopes at a kink: a convention"
ALL_NOISE = "The leaf is no larger than its noise: its true gradient is zero, what is changed is rounding"


@dataclass(frozen=True)
class Mutant:
    """Where and what: `path` is the number of the equation, or number, body, number, ... down into a scan."""

    path: tuple[int, ...]
    primitive: str
    mutation: Mutation

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))} {self.primitive}: {self.mutation.text} ({self.mutation.kind})"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. change: the largest, as a share of its leaf, at any point tried; points: how many were."""

    case: Case
    mutant: Mutant
    fate: str  # "stillborn", "equivalent", "caught", "survivor"
    change: float = 0.0
    points: int = 0
    verdict: str = ""
    leaf: str = ""
    reason: str = ""  # why a survivor may survive; "" where it may not

    def __str__(self) -> str:
        text = f"{self.case.name}  {self.mutant}: {self.verdict}, {self.leaf} changed by {self.change:.2g} of it"
        return text + (f". {self.reason}" if self.reason else "")


class Backward:
    """The backward of a layer as a jaxpr of its array arguments, with the gradient leaves in the order of theta as results."""

    def __init__(self, layer: Layer, params: Tree, x: Any) -> None:
        self._layer = layer
        y, residuals = jax.eval_shape(layer.forward, params, x)
        leaves, self._tree = jax.tree.flatten((params, residuals, partition(y)[0]))
        self.closed = jax.make_jaxpr(self._gradients)(*leaves)
        spy = layer_subject(replace(layer, backward=self._spied), params, x)[0]
        self._seen: list[Any] = []
        self.arguments = quick_jit(lambda theta, fixed, dy: (spy.rule(theta, fixed, dy), self._seen.pop())[1])

    def _spied(self, *args: Any) -> Any:
        self._seen.append(jax.tree.leaves(args))
        return self._layer.backward(*args)

    def _gradients(self, *leaves: Any) -> list[Any]:
        dparams, dx = self._layer.backward(*jax.tree.unflatten(self._tree, leaves))
        return jax.tree.leaves(partition({"params": split(dparams)[0], "x": dx})[0])

    def mutants(self) -> list[Mutant]:
        """Every mutant of every equation that a gradient depends on."""
        return [Mutant(path, eqn.primitive.name, mutation) for path, eqn, consts in equations(self.closed.jaxpr)
                for mutation in mutations(eqn, consts)]

    def run(self, arguments: list[Any], mutant: Mutant | None = None) -> np.ndarray:
        """The gradient as one vector. Raises what the changed equation raises, ValueError when it changes a shape."""
        at = (mutant.path, mutant.mutation.change) if mutant else ((), None)
        results = evaluate(self.closed, arguments, *at)
        return np.concatenate([np.ravel(np.asarray(a)) for a in results]) if results else np.zeros(0)


class Trial:
    """Mutants of one case, judged at up to three points: the evidence of each is gathered when it is first asked for."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case, self._rng = case, np.random.default_rng(seed)
        x = cast(case.x(self._rng), np.float64)
        self._params = draw_params(case.layer, x, self._rng)
        self.subject, theta, fixed = layer_subject(case.layer, self._params, x)
        self.backward = Backward(case.layer, self._params, x)
        self._oracles = Oracles(self.subject)
        points = [Point.drawn(self.subject, theta, fixed, self._rng)]
        size = points[0].dy.size
        points += [fresh(case, self._params, size, self._rng) for _ in range(POINTS - 1)]
        self._points = points
        self._arguments = [self.backward.arguments(p.theta, p.fixed, p.dy) for p in points]
        self._right = [self.backward.run(arguments) for arguments in self._arguments]
        self._evidence: dict[int, Evidence] = {}

    def verdict(self, gradient: np.ndarray, number: int) -> str:
        """What the checker says of this gradient at a point."""
        if number not in self._evidence:
            self._evidence[number] = self._oracles.evidence(self._points[number], self._rng)
        found = judge(self._oracles, self._evidence[number], gradient, self.case.name)
        return max((f.verdict for f in found), key=("OK", "NOISY", "KINK", "WRONG").index, default="OK")

    def right_verdict(self, number: int = 0) -> str:
        return self.verdict(self._right[number], number)

    def outcome(self, mutant: Mutant) -> Outcome:
        """Caught at the first point that shows it; equivalent when it changes nothing at any of them."""
        found = Outcome(self.case, mutant, "equivalent", points=POINTS)
        for number in range(POINTS):
            try:
                got = self.backward.run(self._arguments[number], mutant)
            except Exception:  # whatever a primitive says of operands it was not made for
                return replace(found, fate="stillborn")
            change, where = changed(self.subject, self._right[number], got)
            if change <= SAME:
                continue
            verdict = self.verdict(got, number)
            if verdict == "WRONG":
                return Outcome(self.case, mutant, "caught", change, number + 1, verdict, where)
            if change > found.change:
                found = Outcome(self.case, mutant, "survivor", change, POINTS, verdict, where,
                                AT_A_KINK if verdict == "KINK" else self._all_noise(where, number))
        return found

    def _all_noise(self, path: str, number: int) -> str:
        """The reason, where it holds."""
        evidence = self._evidence[number]
        at = next(i for i, leaf in enumerate(self.subject.leaves) if leaf.path == path)
        size = np.max(np.abs(self._right[number][self.subject.leaves[at].slice]), initial=0.0)
        return ALL_NOISE if size <= SAFETY * evidence.noise[at] else ""


def changed(subject: Subject, right: np.ndarray, got: np.ndarray) -> tuple[float, str]:
    """The largest change of an element as a share of the largest in its leaf, and the leaf; a NaN counts as infinite."""
    largest, where = 0.0, ""
    for leaf in subject.leaves:
        a, b = right[leaf.slice], got[leaf.slice]
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        change = np.max(np.where(same, 0.0, np.abs(np.where(same, 0.0, b - a))), initial=0.0)
        if change != 0:
            share = float(np.nan_to_num(change / np.max(np.abs(a), initial=0.0), nan=np.inf, posinf=np.inf))
            largest, where = max((largest, where), (share, leaf.path))
    return largest, where


def chosen(mutants: list[Mutant], count: int, rng: np.random.Generator) -> list[Mutant]:
    """Up to `count` of them, of every kind in turn."""
    shuffled = [mutants[i] for i in rng.permutation(len(mutants))]
    by_kind = [[m for m in shuffled if m.mutation.kind == kind] for kind in KINDS]
    return [m for m in chain.from_iterable(zip_longest(*by_kind)) if m is not None][:count]


def try_mutants(case: Case, count: int, seed: int = 0) -> list[Outcome]:
    """Up to `count` mutants of a case, judged."""
    with jax.enable_x64(True), np.errstate(all="ignore"):
        trial = Trial(case, seed)
        if trial.right_verdict() == "WRONG":
            raise ValueError(f"{case.name}: the rule itself is called WRONG; run fbackprop verify --layer {case.of}")
        picked = chosen(trial.backward.mutants(), count, np.random.default_rng(seed))
        return [trial.outcome(mutant) for mutant in picked]
