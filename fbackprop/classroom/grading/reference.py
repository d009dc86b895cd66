"""The judge of one exercise: its own forward, the points at which a submission is asked, and what the oracles say there.

A submission is judged by its numbers alone; none of its code runs here. Two batch sizes, so that none can be written into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ...layer import Layer
from ...params import Tree
from ...verify.check import draw, draw_params
from ...verify.oracles import Evidence, Oracles, Point
from ...verify.planted import named_mistakes
from ...verify.subject import Subject, cast, layer_subject
from ...verify.verdict import Finding, Report, judge, judge_single

SAME = 1e-9  # two programs of one forward differ by rounding, relative to the largest output
MORE = 2  # rows of the second batch beyond the first


@dataclass(frozen=True)
class Judgement:
    """A verdict, its reason where it is not a finding, the worst finding and the nearest known mistake."""

    verdict: str
    reason: str = ""
    worst: Finding | None = None
    hint: str = ""


class Reference:
    """An exercise, ready to judge. Raises TypeError or ValueError where its forward does not take its x."""

    def __init__(self, layer: Layer, x: Any, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        with jax.enable_x64(True):
            self.sizes = [_Size(layer, x, self.rng)]
            with suppress(TypeError, ValueError):  # of a layer for one batch size only
                self.sizes.append(_Size(layer, jax.tree.map(_longer, x), self.rng))
        self.rows = [size.rows for size in self.sizes]

    @property
    def asked(self) -> list[Any]:
        """Returns the points, as numpy."""
        return [(*jax.tree.map(np.asarray, (s.params, s.x)), s.point.theta, s.point.fixed, s.point.dy) for s in self.sizes]

    @property
    def length(self) -> int:
        """Returns the length of an answer, in bytes."""
        return sum((size.y.size + size.point.theta.size) * (8 + 4) for size in self.sizes)

    def judge(self, answer: bytes) -> Judgement:
        """Judges an answer of the right length."""
        with jax.enable_x64(True):
            return self._judge(_cut(answer, self.sizes))

    def _judge(self, answers: list[Any]) -> Judgement:
        for size, (y, *_) in zip(self.sizes, answers):
            if not np.max(np.abs(y - size.y), initial=0.0) <= SAME * np.max(np.abs(size.y), initial=0.0):
                return Judgement("ERROR", "the forward is not the exercise's: its output differs")
        found = [size.report(wide, narrow) for size, (_, wide, narrow) in zip(self.sizes, answers)]
        number = next((i for i, report in enumerate(found) if report.verdict == "WRONG"), 0)
        report = found[number]
        if report.verdict == "WRONG":
            report = report.with_hints(self.sizes[number].hints(answers[number][1]))
        reason = f"right for a batch of {self.rows[0]}, wrong for one of {self.rows[1]}" if number else ""
        whole = sum(found, Report(()))
        shown = report if report.verdict == "WRONG" else whole
        return Judgement(whole.verdict, reason, shown.worst, shown.hint)


class _Size:
    """An exercise at one batch size."""

    def __init__(self, layer: Layer, x: Any, rng: np.random.Generator) -> None:
        self.layer, self.rng = layer, rng
        self.x = cast(draw(x, rng), np.float64)
        self.params: Tree = draw_params(layer, self.x, rng)
        self.subject: Subject
        self.subject, theta, fixed = layer_subject(layer, self.params, self.x)
        self.y = np.asarray(self.subject.f(theta, fixed))
        self.point = Point(np.asarray(theta), jax.tree.map(np.asarray, fixed), rng.standard_normal(self.y.size))
        self.oracles = Oracles(self.subject)

    @property
    def rows(self) -> int:
        return next((leaf.shape[0] for leaf in jax.tree.leaves(self.x) if np.ndim(leaf)), 1)

    @cached_property
    def evidence(self) -> Evidence:
        return self.oracles.evidence(self.point, self.rng)

    def report(self, wide: np.ndarray, narrow: np.ndarray) -> Report:
        against = self.oracles, self.evidence
        return Report((*judge(*against, wide, self.layer.name), *judge_single(*against, narrow, self.layer.name)))

    def hints(self, got: np.ndarray) -> dict[str, str]:
        """Returns the nearest known mistake of each leaf that has one."""
        return named_mistakes(self.layer, self.params, self.x, self.point, got)


def _longer(leaf: Any) -> Any:
    """Returns a spec, or values repeated from the beginning, with more rows."""
    if not np.ndim(leaf):
        return leaf
    shape = (leaf.shape[0] + MORE, *leaf.shape[1:])
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    return np.resize(np.asarray(leaf), shape)


def _cut(answer: bytes, sizes: list[_Size]) -> list[Any]:
    """Returns (y, gradient, gradient in float32) of every size; the float32 y is left out."""
    def pieces() -> Iterator[np.ndarray]:
        start = 0
        for size in sizes:
            for dtype in (np.float64, np.float32):
                for count in (size.y.size, size.point.theta.size):
                    yield np.frombuffer(answer, dtype, count, start)
                    start += count * np.dtype(dtype).itemsize

    cut = list(pieces())
    return [(y, wide, narrow) for y, wide, _, narrow in zip(*[iter(cut)] * 4)]
