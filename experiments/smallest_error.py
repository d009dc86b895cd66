"""How small an error of a backward rule does the checker see, in each dtype?

Rows      G3
Command   python experiments/smallest_error.py [--every 2] [--seed N] [--quick] [--out DIR]
Expected  one leaf multiplied by 1 + e is called WRONG: in float64 for every e of 1e-8 and more, whatever the leaf
Time      about 4 minutes on one core, --every 1 twice that; --quick, every 80th case, 6 s

For every leaf of every case with the verdict OK: e is searched between 1e-16 and 1 by halving the range of its exponent. A
leaf no larger than its own noise (a bias in front of a batch mean) or all zeros has no error to see and is left out. The seed
says with which case the every-n-th begins. Figure: the smallest error seen of all leaves, in order, for each dtype.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import jax
import ml_dtypes
import numpy as np
from lab import Lab, main

from fbackprop.verify.cases import CASES, Case
from fbackprop.verify.check import draw_params
from fbackprop.verify.oracles import Oracles, Point
from fbackprop.verify.subject import cast, layer_subject
from fbackprop.verify.table import ALL_DTYPES
from fbackprop.verify.verdict import SAFETY, judge, judge_narrow, judge_single

NARROW = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=2, help="every n-th case: %(default)s")


def experiment(lab: Lab) -> None:
    every = lab.pick(lab.options.every, 80)
    cases = [case for case in CASES if case.verdict == "OK" and "empty" not in case.note][lab.seed % every :: every]
    found: dict[str, list[tuple[float, str]]] = {dtype: [] for dtype in ALL_DTYPES}
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for case in cases:
            for dtype, leaf, error in smallest(case, lab.seed):
                found[dtype].append((error, f"{case.name} {leaf}"))
    rows = []
    for dtype, errors in found.items():
        values, (worst, leaf) = [error for error, _ in errors], max(errors)
        rows.append((dtype, len(errors), min(values), float(np.median(values)), worst, leaf))
    lab.table(("dtype", "leaves", "best", "median", "worst", "worst leaf"), rows, "dtypes")
    lab.keep(cases=len(cases), found=found)
    worst = max(found["float64"])[0]
    lab.expect("in float64 the smallest error seen, of the worst leaf", worst, worst <= 1e-8)
    draw(lab, found)


def draw(lab: Lab, found: dict[str, list[tuple[float, str]]]) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    for dtype, errors in found.items():
        ax.semilogy(np.linspace(0, 100, len(errors)), sorted(error for error, _ in errors), ".-", label=dtype)
    ax.set_xlabel("leaves, in order (%)")
    ax.set_ylabel("smallest relative error called WRONG")
    ax.set_title("How small an error of one leaf is seen")
    ax.legend(frameon=False)


def smallest(case: Case, seed: int) -> Iterator[tuple[str, str, float]]:
    """(dtype, leaf, smallest error that is called WRONG) of every leaf of a case."""
    rng = np.random.default_rng(seed)
    x = cast(case.x(rng), np.float64)
    subject, theta, fixed = layer_subject(case.layer, draw_params(case.layer, x, rng), x)
    oracles, point = Oracles(subject), Point.drawn(subject, theta, fixed, rng)
    evidence = oracles.evidence(point, rng)
    sizes = [np.max(np.abs(evidence.auto[leaf.slice]), initial=0.0) for leaf in subject.leaves]
    for dtype in ALL_DTYPES:
        right, judged = _judged(oracles, evidence, point, dtype, rng)

        def seen(leaf: slice, error: float, right=right, judged=judged) -> bool:
            wrong = right.astype(np.float64)
            wrong[leaf] *= 1 + error
            return any(finding.verdict == "WRONG" for finding in judged(wrong.astype(right.dtype)))

        for number, leaf in enumerate(subject.leaves):
            if sizes[number] > SAFETY * evidence.noise[number]:
                yield dtype, leaf.path, bisected(partial(seen, leaf.slice))


def _judged(oracles: Oracles, evidence, point: Point, dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, Callable]:
    """The right gradient in this dtype and `judged(gradient) -> findings`."""
    if dtype == "float64":
        return oracles.rule(point), lambda g: judge(oracles, evidence, g, "")
    if dtype == "float32":
        return oracles.rule(point.astype(np.float32)), lambda g: judge_single(oracles, evidence, g, "")
    narrow = point.astype(NARROW[dtype])
    auto, truth = oracles.auto(narrow, rng)[0], oracles.auto(narrow.astype(np.float64), rng)[0]
    own = oracles.own_error(narrow, rng)
    return oracles.rule(narrow), lambda g: judge_narrow(oracles, dtype, g, auto, truth, own, "")


def bisected(seen: Callable[[float], bool]) -> float:
    """The smallest error seen, between 1e-16 and 1; infinite where none is."""
    low, high = -16.0, 0.0
    if not seen(1.0):
        return np.inf
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(10.0**middle) else (middle, high)
    return 10.0**high


if __name__ == "__main__":
    sys.exit(main(experiment, add_options=add_options))
