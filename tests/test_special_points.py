"""Forwards and rules at special points: 0, ties, edges of pieces, large and infinite values.

There autodiff of a forward can be wrong though it is right everywhere around. One-sided slopes
decide: where they agree, the gradient has to equal them; where they differ, it has to lie between
them. The slopes along one element of a tie say little, those along all elements of a leaf at once
say what the tie gets in all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fbackprop import (
    Layer,
    binary_cross_entropy_with_logits,
    from_function,
    huber,
    linear_cross_entropy,
    max_pool,
    relu,
    softmax_cross_entropy,
    softplus,
    tanh,
    value_and_grad,
)
from fbackprop.verify.cases import CASES, Case
from fbackprop.verify.cases.case import normal
from fbackprop.verify.check import draw_params
from fbackprop.verify.oracles import quick_jit
from fbackprop.verify.subject import cast, layer_subject

EVERYWHERE = (0.0, -0.0, 1.0, -1.0, 1e3, -1e3)
HALF_THE_LARGEST = float(np.finfo(np.float64).max) / 2  # there are numbers to each side
HUGE = (HALF_THE_LARGEST, -HALF_THE_LARGEST, np.inf, -np.inf)
SIMPLE = ("elementwise", "softmax", "pool", "losses")  # families without products that overflow
STEP = 1e-6  # times max(1, |theta_i|); half of it says how far a slope can be trusted
ELEMENTS = 12  # that slopes are taken along at a point, at most
TOLERANCE = 1e-5
SETTLED = 0.01  # share of a slope that it may change by at half the step
FLOOR = 1e-9  # of the largest slope at the point: it may cancel inside
EPS = float(np.finfo(np.float64).eps)


class Wrong(NamedTuple):
    """A gradient that is none: `of` is "autodiff" or "rule", `along` an element or a leaf."""

    case: str
    point: str
    of: str
    along: str
    got: float
    slopes: tuple[float, float]


def special_values(layer: Layer) -> tuple[float, ...]:
    """Returns the values of every search, and the options of a layer, where its pieces may meet."""
    options = [option.value for option in layer.options]
    edges = [value for value in options if isinstance(value, float)]
    return (*EVERYWHERE, *edges, *(-edge for edge in edges))


def points(case: Case, theta: np.ndarray, leaves) -> dict[str, np.ndarray]:
    """Returns the special points of a case.

    One element, a leaf or everything in x is at a value, or the params are zeros.
    """
    of_x = [leaf for leaf in leaves if leaf.path.startswith("x")]
    of_params = [leaf for leaf in leaves if leaf.path.startswith("params")]
    found = {}

    def put(name, where, value):
        found[name] = theta.copy()
        found[name][where] = value

    for leaf in of_x:
        # elsewhere products of such numbers overflow inside, and 0 times infinity is NaN
        for value in (*special_values(case.layer), *(HUGE if case.family in SIMPLE else ())):
            put(f"{leaf.path} one {value}", leaf.start + min(1, leaf.stop - leaf.start - 1), value)
    for value in special_values(case.layer):
        for leaf in of_x:
            put(f"{leaf.path} all {value}", leaf.slice, value)
        if len(of_x) > 1:
            put(f"x all {value}", slice(of_x[0].start, of_x[-1].stop), value)
    if of_params:
        put("params all 0", slice(of_params[0].start, of_params[-1].stop), 0.0)
    for leaf in of_x if of_params else ():
        put(f"params and {leaf.path} all 0", slice(of_params[0].start, of_params[-1].stop), 0.0)
        found[f"params and {leaf.path} all 0"][leaf.slice] = 0.0
    return found


def directions(leaves, size: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Returns the first elements of every leaf and some others, and every leaf at once."""
    first = [leaf.start + i for leaf in leaves for i in range(min(2, leaf.stop - leaf.start))]
    picked = np.unique([*first, *rng.permutation(size)])[: len(first)]
    picked = np.unique([*first, *picked, *rng.permutation(size)[: max(0, ELEMENTS - len(first))]])
    names = [f"element {i}" for i in picked] + [f"all of {leaf.path}" for leaf in leaves]
    rows = np.zeros((len(names), size))
    rows[np.arange(len(picked)), picked] = 1.0
    for row, leaf in zip(rows[len(picked) :], leaves):
        row[leaf.slice] = 1.0
    return names, rows


def search(case: Case, seed: int = 0) -> tuple[int, list[Wrong]]:
    """Returns how many special points have a finite value, and every wrong gradient at them."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = cast(case.x(rng), np.float64)
        params = draw_params(case.layer, x, rng)
        subject, theta, fixed = layer_subject(case.layer, params, x)
        theta = np.asarray(theta)
        if not subject.leaves:
            return 0, []
        at = points(case, theta, subject.leaves)
        names, rows = directions(subject.leaves, theta.size, rng)
        size = jax.eval_shape(subject.f, theta, fixed).size
        # of one sign: what several windows say of an element adds up
        dy = rng.uniform(0.25, 1, size) / max(1, size)
        steps = np.array([STEP, STEP / 2, -STEP, -STEP / 2])
        moves = np.stack(np.meshgrid(np.arange(len(rows)), steps, indexing="ij"), -1).reshape(-1, 2)

        def look(theta):
            y = subject.f(theta, fixed)
            scale = jnp.where(jnp.isfinite(theta), jnp.maximum(1.0, jnp.abs(theta)), 1.0)

            def change(move):
                along = jnp.asarray(rows)[move[0].astype(int)] * scale
                moved = subject.f(theta + move[1] * along, fixed)
                _, moves = jax.jvp(lambda t: subject.f(t, fixed), (theta,), (along,))
                still = (moved == y) & (moves == 0)
                rounding = EPS * jnp.abs(dy) * (jnp.abs(y) + jnp.abs(moved))
                parts = jnp.where(moved == y, 0.0, dy * (moved - y))
                return jnp.sum(parts), jnp.sum(jnp.where(still, 0.0, rounding))

            gradients = jnp.stack([subject.auto(theta, fixed, dy), subject.rule(theta, fixed, dy)])
            terms = jnp.where(rows == 0, 0.0, rows * scale * gradients[:, None])
            sums = jnp.sum(terms, -1), jnp.sum(jnp.abs(terms), -1)
            return jnp.all(jnp.isfinite(y)), *sums, *lax.map(change, moves)

        seen = quick_jit(lambda thetas: lax.map(look, thetas))(np.stack(list(at.values())))
    finite, along, terms, changes, rounding = (np.asarray(each) for each in seen)
    changes, rounding = (each.reshape(len(at), len(rows), 2, 2) for each in (changes, rounding))
    wrong = []
    for p, point in enumerate(at):
        floor = FLOOR * min(1e3, np.max(terms[p], where=np.isfinite(terms[p]), initial=0.0))
        for d, name in enumerate(names if finite[p] else ()):
            slopes, bound = one_sided(changes[p, d], rounding[p, d])
            for got, of in zip(along[p, :, d].tolist(), ("autodiff", "rule")):
                if not between(got, slopes, bound + floor):
                    wrong.append(Wrong(case.name, point, of, name, got, slopes))
    return int(np.sum(finite)), wrong


def one_sided(changes: np.ndarray, rounding: np.ndarray) -> tuple[tuple[float, float], float]:
    """Returns the slopes to the right and to the left, NaN where unknown, and their bound."""
    steps = np.array([[STEP, STEP / 2], [-STEP, -STEP / 2]])
    with np.errstate(all="ignore"):
        slopes = changes / steps
        limits = 2 * slopes[:, 1] - slopes[:, 0]  # what the step contributes falls out
        noise = 8 * np.max(rounding, axis=1) / STEP
        apart = np.abs(slopes[:, 1] - slopes[:, 0])
        # else the step is too wide for a function of huge numbers
        known = apart <= noise + SETTLED * np.abs(slopes[:, 1])
        bound = np.max(apart + noise + TOLERANCE * np.abs(limits), where=known, initial=0.0)
    limits = np.where(known, limits, np.nan)
    return (float(limits[0]), float(limits[1])), float(bound)


def between(got: float, slopes: tuple[float, float], bound: float) -> bool:
    """Returns whether a gradient is one of these slopes or between them.

    Where none is known, any finite number is.
    """
    known = [slope for slope in slopes if np.isfinite(slope)]
    if not known or not np.isfinite(bound):
        return np.isfinite(got)
    return min(known) - bound <= got <= max(known) + bound


# ---- the search finds what is planted


def of_max_and_abs(batch):
    """The forward that binary cross-entropy had.

    At 0 autodiff takes one half of one slope and all of the other.
    """
    x, t = batch
    return jnp.mean(jnp.maximum(x, 0) - t * x + jnp.log1p(jnp.exp(-jnp.abs(x))))


def with_rule(layer, backward):
    return replace(layer, forward=lambda params, x: (layer.forward(params, x)[0], x),
                   backward=lambda params, x, dy: ((), backward(x, dy)))


def spoiled(layer, where):
    """Returns the layer with a rule that is wrong where `where` says so of x."""
    def backward(x, dy):
        residuals = layer.forward((), x)[1]
        dx = layer.backward((), residuals, dy)[1]
        return jax.tree.map(lambda d, bad: jnp.where(bad, 3 * d + 1, d), dx, where(x))

    return with_rule(layer, backward)


def at_the_edge(x):
    y, target = x
    return jnp.abs(y - target) == 0.3, jnp.zeros(y.shape, bool)


def lost_ties(x, dy):
    """A cotangent for the only winner of a window, and none at a tie."""
    windows = x.reshape(x.shape[0], -1, 2, x.shape[-1])
    hot = windows == jnp.max(windows, 2, keepdims=True)
    return jnp.where(jnp.sum(hot, 2, keepdims=True) > 1, 0, hot * dy[:, :, None]).reshape(x.shape)


pairs = lambda rng: (rng.standard_normal((3, 5)), rng.random((3, 5)))
pairs_with_0 = lambda rng: (rng.standard_normal((3, 5)), np.zeros((3, 5)))
by_exp = with_rule(softplus(), lambda x, dy: dy * jnp.exp(x) / (1 + jnp.exp(x)))
of_bce = from_function(lambda params, x: of_max_and_abs(x))
bent = huber(delta=0.3)
ZERO, MINUS_ZERO = "x one 0.0", "x one -0.0"
PLANTED = {
    "autodiff at 0": (Case("mse", of_bce, pairs), "autodiff", {"x/0 one 0.0"}),
    "rule at 0": (
        Case("relu", spoiled(relu(), lambda x: x == 0), normal(3, 5)), "rule", {ZERO, MINUS_ZERO}),
    "rule at -0": (
        Case("tanh", spoiled(tanh(), lambda x: (x == 0) & jnp.signbit(x)), normal(3, 5)),
        "rule", {MINUS_ZERO}),
    "an edge": (
        Case("huber", replace(spoiled(bent, at_the_edge), options=bent.options), pairs_with_0),
        "rule", {"x/0 all 0.3"}),
    "ties": (
        Case("max_pool", with_rule(max_pool((2,)), lost_ties), normal(2, 6, 3)),
        "rule", {"x all 0.0", "x all 1.0"}),
    "large": (
        Case("softplus", by_exp, normal(3, 5)),
        "rule", {"x one 1000.0", f"x one {HALF_THE_LARGEST}"}),
    "infinite": (
        Case("tanh", spoiled(tanh(), jnp.isinf), normal(3, 5)),
        "rule", {"x one inf", "x one -inf"}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_at_a_special_point_is_found(fault):
    case, of, where = PLANTED[fault]
    _, found = search(case)
    assert where <= {wrong.point for wrong in found if wrong.of == of}


# ---- and nothing else

# beyond 1.3e154 (1.8e19 in float32) the square of x overflows in the slope of the tanh form;
# that of jax.nn.gelu is NaN there too
KNOWN = {("gelu()", f"x one {value}") for value in (HALF_THE_LARGEST, -HALF_THE_LARGEST)}


def searched(quick):
    """The cases whose gradient says something: that of a bias before a batch norm is rounding."""
    cases = [case for case in CASES if "empty" not in case.note and case.verdict != "NOISY"]
    fast = lambda case: case.family in SIMPLE and case.of != "linear_cross_entropy"
    return [pytest.param(case, id=case.name) for case in cases if fast(case) is quick]


def look(case):
    count, found = search(case)
    known = {(case.name, point) for name, point in KNOWN if name == case.name}
    assert {(wrong.case, wrong.point) for wrong in found} == known, found[:5]
    return count


@pytest.mark.parametrize("case", searched(quick=True))
def test_gradients_at_special_points_are_between_the_slopes(case):
    assert look(case) > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", searched(quick=False))
def test_gradients_of_all_other_layers_at_special_points_are_between_the_slopes(case):
    look(case)


# ---- what the search found


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_autodiff_of_binary_cross_entropy_is_right_at_logit_0(zero):
    x = (jnp.full(1, zero), jnp.zeros(1))
    value = lambda y: binary_cross_entropy_with_logits().forward((), (y, x[1]))[0]
    assert jax.grad(value)(x[0]) == 0.5
    assert value(x[0]) == np.log(2, dtype=np.float32)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_nothing_in_an_ignored_row_gets_into_a_gradient(bad):
    """A loss of rows that are ignored is as if they were not there; their own gradient is 0."""
    rng, target = np.random.default_rng(0), np.array([-1, 2, 0], np.int32)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    x[0] = bad
    loss = softmax_cross_entropy(ignore_index=-1)
    value, residuals = loss.forward((), (x, target))
    dx = loss.backward((), residuals, jnp.ones(()))[1][0]
    whole, others = loss.forward((), (x[1:], target[1:]))
    expected = loss.backward((), others, jnp.ones(()))[1][0]
    np.testing.assert_array_equal(dx, np.vstack([np.zeros((1, 4)), expected]))
    assert value == whole
    np.testing.assert_array_equal(jax.grad(lambda x: loss.forward((), (x, target))[0])(x)[0], 0)


@pytest.mark.parametrize("axis", ["tokens", "vocabulary"])
def test_nothing_in_an_ignored_row_gets_into_the_gradient_of_a_head(axis):
    rng, target = np.random.default_rng(0), np.array([-1, 2, 0], np.int32)
    h = rng.standard_normal((3, 4)).astype(np.float32)
    h[0] = np.inf
    head = linear_cross_entropy(5, chunk=2, axis=axis, ignore_index=-1)
    params = head.init(jax.random.key(0), (h, target))
    value, grads = value_and_grad(head)(params, (h, target))
    expected, right = value_and_grad(head)(params, (h[1:], target[1:]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], right["w"], rtol=1e-5, atol=1e-7)
