"""Three thousand right gradients that nobody chose: none may be called WRONG.

With one leaf off by a thousandth it has to be.

Of a smooth function the verdict may not be KINK either. On the newest jax a tenth of them is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from random_functions import FLOAT32_INSIDE, FLOAT64, KINKED
from random_networks import has_kinks, network

from fbackprop import Layer, check_gradient
from fbackprop.params import merge, split
from fbackprop.verify.check import draw, draw_params, stream
from fbackprop.verify.oracles import Oracles, Point
from fbackprop.verify.subject import cast, layer_subject
from fbackprop.verify.verdict import Report, judge, judge_single

pytestmark = pytest.mark.usefixtures("quick_compile")

OFF = 1.001
ROUNDING = 1e-10  # a leaf below this share of the gradient is rounding: a bias in front of a mean
TRACED = (
    "one_pass_variance",
    "of_jax",
    "single_jax",
    "single_rule",
)  # JAX compiles them at every draw


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_three_thousand_draws(part):
    """750 a part: 50 networks at 6 points each, and functions."""
    right, off = _draws(range(50 * part, 50 * part + 50), 6, host=26, traced=3, part=part)
    assert right.total() >= 750
    assert right["NOISY"] <= 0.03 * right.total(), right
    assert off["WRONG"] >= 0.99 * off.total(), off


def test_a_tenth_of_them():
    right, off = _draws(range(200, 210), 8, host=13, traced=1, part=4)
    assert right.total() >= 300
    assert right["NOISY"] <= 0.05 * right.total(), right
    assert off["WRONG"] >= 0.98 * off.total(), off


def _draws(seeds: range, points: int, host: int, traced: int, part: int) -> tuple[Counter, Counter]:
    """Returns the verdicts of right gradients, and in float64 of the same with one leaf off."""
    of_networks, networks_off = _networks(seeds, points)
    of_functions, functions_off = _functions(FLOAT64, host, traced, part)
    inside, _ = _functions(FLOAT32_INSIDE, host, traced, part)  # a thousandth is rounding there
    return of_networks + of_functions + inside, networks_off + functions_off


def _networks(seeds: range, draws: int) -> tuple[Counter, Counter]:
    right, off = Counter(), Counter()
    with jax.enable_x64(True):
        for seed in seeds:
            net, batch = network(seed)
            for report, wrong in _points(net, batch, draws, stream(seed)):
                assert report.verdict in _allowed(has_kinks(net)), f"{seed} {net}\n{report}"
                right[report.verdict] += 1
                off[wrong] += 1
            if seed % 50 == 49:
                jax.clear_caches()
    return right, off


def _points(
    net: Layer, batch: Callable, draws: int, rng: np.random.Generator
) -> Iterator[tuple[Report, str]]:
    """Yields the report at fresh params and batches, and the verdict with a leaf off."""
    x = cast(batch(rng), np.float64)
    params = draw_params(net, x, rng)
    trainable, state = split(params)
    subject, theta, fixed = layer_subject(net, params, x)
    oracles = Oracles(subject)
    for _ in range(draws):
        point = Point(np.asarray(theta), fixed, rng.standard_normal(1))
        evidence, gradient = oracles.evidence(point, rng), oracles.rule(point)
        single = oracles.rule(point.astype(np.float32))
        report = Report(
            (*judge(oracles, evidence, gradient, ""), *judge_single(oracles, evidence, single, ""))
        )
        wrong, least = gradient.copy(), ROUNDING * np.max(np.abs(gradient))
        live = [leaf for leaf in subject.leaves if np.max(np.abs(gradient[leaf.slice])) > least]
        wrong[live[rng.integers(len(live))].slice] *= OFF
        yield report, Report(tuple(judge(oracles, evidence, wrong, ""))).verdict
        x = cast(batch(rng), np.float64)
        _, theta, fixed = layer_subject(net, merge(draw(trainable, rng, always=True), state), x)


def _functions(
    makers: tuple[Callable, ...], host: int, traced: int, part: int
) -> tuple[Counter, Counter]:
    """Returns the verdicts of right gradients, and of the same with one leaf off."""
    right, off = Counter(), Counter()
    for make in makers:
        draws = traced if make.__name__ in TRACED else host
        for seed in range(draws * part, draws * part + draws):
            fn, gradient, at = make(np.random.default_rng(seed))
            report = check_gradient(fn, gradient, at, seed=seed)
            assert report.verdict in _allowed(make in KINKED), f"{make.__name__} {seed}\n{report}"
            right[report.verdict] += 1
            if gradient is not None:
                off[check_gradient(fn, _off(gradient, seed), at, seed=seed).verdict] += 1
    return right, off


def _off(gradient: Callable, seed: int) -> Callable:
    """Returns a gradient function with one leaf off."""

    def wrong(at: Any) -> Any:
        leaves, treedef = jax.tree.flatten(gradient(at))
        leaves[seed % len(leaves)] *= OFF
        return jax.tree.unflatten(treedef, leaves)

    return wrong


def _allowed(kinks: bool) -> tuple[str, ...]:
    return ("OK", "NOISY", "KINK") if kinks else ("OK", "NOISY")
