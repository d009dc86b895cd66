"""The whole verification: every case by every oracle, every planted bug, and draws that may not raise a false alarm."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat

import jax
import numpy as np

from ..params import Tree, merge, split
from .cases import CASES, Case
from .check import check_point, draw, draw_params
from .oracles import Oracles, Point
from .planted import planted_results
from .subject import cast, layer_subject
from .verdict import Finding, Report, judge

ALL_DTYPES = ("float64", "float32", "bfloat16", "float16")
CHANGES = 1e-9  # a planted bug counts when it moves some leaf by more than this share of it


@dataclass
class Result:
    """What one case gave: `missed` are the planted bugs that were not called WRONG."""

    case: Case
    report: Report
    planted: int = 0
    missed: list[str] = field(default_factory=list)
    draws: int = 0
    alarms: list[Finding] = field(default_factory=list)

    @property
    def as_expected(self) -> bool:
        return self.report.verdict == self.case.verdict and not self.missed and not self.alarms


def verify_case(case: Case, draws: int = 0, seed: int = 0) -> Result:
    """Checks one case, plants every bug in it, then checks it at `draws` more points of the same shape."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = cast(case.x(rng), np.float64)
        params = draw_params(case.layer, x, rng)
        subject, theta, fixed = layer_subject(case.layer, params, x, strict=True)
        oracles, point = Oracles(subject), Point.drawn(subject, theta, fixed, rng)
        result = Result(case, check_point(oracles, point, rng, ALL_DTYPES))
        if case.verdict == "OK":
            _plant_all(result, oracles, point, params, x, rng)
        for _ in range(draws):
            report = check_point(oracles, fresh(case, params, point.dy.size, rng), rng)
            result.draws += 1
            result.alarms += [finding for finding in report.findings if finding.verdict == "WRONG"]
    return result


def fresh(case: Case, params: Tree, size: int, rng: np.random.Generator) -> Point:
    """Draws another point of the same shape; y has `size` numbers."""
    x = cast(case.x(rng), np.float64)
    trainable, state = split(params)
    redrawn = merge(draw(trainable, rng, always=True), state)
    _, theta, fixed = layer_subject(case.layer, redrawn, x)
    return Point(np.asarray(theta), fixed, rng.standard_normal(size))


def _plant_all(result: Result, oracles: Oracles, point: Point, params: Tree, x: object, rng: np.random.Generator) -> None:
    leaves = oracles.subject.leaves
    if not leaves:
        return
    wrongs = planted_results(result.case.layer, params, x, point)
    right, evidence = oracles.rule(point), oracles.evidence(point, rng)
    for name, wrong in wrongs.items():
        moved = [np.max(np.abs(wrong - right)[leaf.slice]) > CHANGES * np.max(np.abs(right[leaf.slice])) for leaf in leaves]
        if any(moved):
            result.planted += 1
            if all(finding.verdict != "WRONG" for finding in judge(oracles, evidence, wrong, result.case.name)):
                result.missed.append(name)


def verify_table(cases: Sequence[Case] = CASES, draws: int = 3000, seed: int = 0,
                 on_result: Callable[[Result], None] | None = None) -> dict:
    """Runs the table; `draws` points more are spread over at most 20 OK cases that have a gradient. Returns the counts."""
    fit = [case for case in cases if case.verdict == "OK" and "empty" not in case.note]
    drawn = fit[:: -(-len(fit) // 20)]  # of every family
    shares = [-(-draws // len(drawn)) if case in drawn else 0 for case in cases]
    results, pool = [], ThreadPoolExecutor(os.cpu_count())  # half the time is XLA compiling, which threads share
    try:
        for result in pool.map(verify_case, cases, shares, repeat(seed)):
            results.append(result)
            if on_result is not None:
                on_result(result)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return summary(results)


def summary(results: Sequence[Result]) -> dict:
    """Returns the counts of a run as one JSON object; `worst` is its most harmful finding."""
    verdicts = Counter(result.report.verdict for result in results)
    alarms = [finding for result in results for finding in result.alarms]
    judged = [finding for result in results for finding in result.report.findings
              if not result.case.verdict == result.report.verdict == "KINK"]
    worst = Report((*judged, *alarms)).worst
    return {
        "layers": len({result.case.of for result in results}), "cases": len(results),
        **{name.lower(): verdicts[name] for name in ("OK", "WRONG", "KINK", "NOISY")},
        "planted": sum(result.planted for result in results),
        "caught": sum(result.planted - len(result.missed) for result in results),
        "draws": sum(result.draws for result in results), "false_alarms": len(alarms),
        "worst": {} if worst is None else worst.summary,
    }
