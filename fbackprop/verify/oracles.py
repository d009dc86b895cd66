"""Independent sources of the right answer, measured once per point, for any Subject.

    jax.vjp of the same forward; <dy, J v> by jax.jvp; central differences; the order of the Taylor remainder

None of them sees the rule under test. `noise` is what rounding alone does to the oracle: the largest change of a leaf when
every floating input, param and cotangent moves by one unit in the last place, up or down at random, in three draws; or the
oracle's own error in float32 against float64, whichever is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..jaxprs.rounding import rounded_otherwise
from ..jaxprs.walk import narrowest_dtype
from .subject import Leaf, Subject, cast

STEP = 1e-6  # of central differences, times max(1, |theta_i|)
TAYLOR_STEPS = 4.0 ** -np.arange(3, 14)  # 1.6e-2 to 1.5e-8: below the distance to any kink, nearly always
KINK_STEPS = 10.0 ** -np.arange(6, 1, -1)  # 1e-6 to 1e-2
EPS = float(np.finfo(np.float64).eps)
ROWS = 12  # of a call of jax's gradient
LINE_STEPS = (1e-10, 1e-8, 1e-6, 1e-5)  # between the points of a line that rounding is measured on
WIDER_STEPS = (1e-5, 1e-4, 1e-3, 1e-2)  # where a result looks wrong: a value may be flat over less
ROUGH = 1e-9  # rounding of a value, relative, from which on differences take a larger step
LARGE = 2**18  # numbers in theta, from which on gradients are made one at a time and fewer differences taken
SAMPLE = 1024  # elements of a leaf whose gradient is followed along a line
TIED = 2**14  # elements of a leaf among which ties are looked for
LINES = 6  # more of them, where a result of a NumPy function looks wrong
SALTS = 8  # ways to round every operation otherwise
COORDINATES = 64  # that differences are taken for, at most, unless there are more leaves

Array = Any


@dataclass(frozen=True)
class Point:
    """Where a gradient is taken: theta, what is fixed, and the cotangent of y."""

    theta: Array
    fixed: Any
    dy: Array

    @classmethod
    def drawn(cls, subject: Subject, theta: Array, fixed: Any, rng: np.random.Generator) -> Point:
        """Returns the point theta with a random cotangent."""
        size = 1 if subject.on_host else jax.eval_shape(subject.f, theta, fixed).size
        return cls(np.asarray(theta), fixed, rng.standard_normal(size))

    def astype(self, dtype: Any) -> Point:
        with np.errstate(over="ignore"):
            return Point(self.theta.astype(dtype), cast(self.fixed, dtype), self.dy.astype(dtype))


# A point around theta: element `index` moved by `by`, leaf `leaf` by `along` times its stretch of v
MOVE = np.dtype([("index", np.int32), ("by", float), ("leaf", np.int32), ("along", float)])


@dataclass(frozen=True)
class Evidence:
    """What the float64 oracles say at a point. Per leaf l: its stretch of `v` is the direction the leaf was moved in."""

    point: Point
    auto: Array | None  # (n,)
    noise: Array  # (leaves,)
    single: tuple[Array, Array] | None  # the same two in float32, at the nearest float32 point
    rounding: float  # of the value sum(dy y), absolute
    coordinates: Array  # (k,) the elements differences were taken for
    differences: Array  # (k,)
    truncation: Array  # (k,) how far the differences at twice the step are from them
    steps: Array  # (k,)
    v: Array  # (n,)
    jvp: Array | None  # (leaves,) <dy, J v_l>
    jvp_terms: Array | None  # (leaves,) sum of |dy_i (J v_l)_i|
    increments: Array  # (leaves, steps) value(theta + h v_l) - value(theta)
    line: Array  # (n,) the direction that rounding was measured along
    inner: Any  # the narrowest dtype inside the function, None if it is float64


QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True,
                         "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # later XLA has no others
    QUICK["xla_cpu_use_fusion_emitters"] = False


def quick_jit(fn: Callable, **options: Any) -> Callable:
    """Returns `jax.jit` of a program that runs a few times: on a CPU compiled in half the time."""
    return jax.jit(fn, compiler_options=QUICK if jax.default_backend() == "cpu" else None, **options)


def line_noise(rows: Array) -> Array:
    """Returns the rounding of each column, whose rows are values at equally spaced points of a line; else 0.

    By a difference table, as in Moré and Wild, Estimating computational noise (2011): the k-th differences of rounding keep
    their size for every k, those of a smooth function fall with the step. The median is blind to a kink on the line.
    """
    sizes, table = [], rows
    for k in range(1, 7):
        table = np.diff(table, axis=0)
        if k > 2:
            sizes.append(np.median(np.abs(table), axis=0) * np.sqrt(factorial(k) ** 2 / factorial(2 * k)) / 0.6745)
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    return np.where(np.isfinite(high) & (high <= 4 * low), high, 0.0)


def _wide(a: Array) -> Array:
    return np.asarray(a, np.float64)


def _moved(vector: Array, rng: np.random.Generator) -> Iterator[Array]:
    """Yields the vector and three copies, every element one unit in the last place up or down."""
    yield vector
    for _ in range(3):
        up = rng.integers(0, 2, vector.size, np.uint8).astype(bool)
        narrow = vector.dtype.itemsize < 4  # there jax.grad's own error is the measure, not noise
        yield vector if narrow else np.nextafter(vector, np.where(up, np.inf, -np.inf).astype(vector.dtype))


class Oracles:
    """The compiled oracles of one Subject: made once, asked at many points of the same shape."""

    def __init__(self, subject: Subject) -> None:
        self.subject, count = subject, len(subject.leaves)
        sizes = [leaf.stop - leaf.start for leaf in subject.leaves]
        self.large = sum(sizes) > LARGE
        self.rows = 1 if self.large else ROWS
        self.starts, self.stops = (np.array([getattr(leaf, end) for leaf in subject.leaves]) for end in ("start", "stop"))
        self.per_leaf = max(1, (COORDINATES // 4 if self.large else COORDINATES) // max(1, count))
        self.sample = np.concatenate([np.zeros(0, int), *(
            np.unique(np.linspace(leaf.start, leaf.stop - 1, SAMPLE).astype(int)) for leaf in subject.leaves)])
        probes = sum(min(size, self.per_leaf) for size in sizes)
        self.length = 1 + max(4 * probes + count * len(TAYLOR_STEPS), 2 * len(KINK_STEPS))
        self._narrowest: tuple[Any] | None = None
        self._last_widened: tuple[Evidence, Evidence] | None = None
        self._rule = subject.rule if subject.rule_on_host else jax.jit(subject.rule)
        self._auto = self._host_values if subject.on_host else quick_jit(self._auto_and_values)
        self._values = self._host_values_at if subject.on_host else quick_jit(self._values_at)
        self._tangents = quick_jit(self._jvp_by_leaf)
        self._rounded_otherwise = quick_jit(rounded_otherwise(self._auto_and_value))

    def rule(self, point: Point) -> Array:
        """Returns the gradient by the rule under test. Raises WrongStructure."""
        return np.asarray(self._rule(point.theta, point.fixed, point.dy))

    def auto(self, point: Point, rng: np.random.Generator) -> tuple[Array | None, Array, float]:
        """Returns `(gradient by jax, its noise per leaf, noise of the value)` in its dtype."""
        rows = self._each(zip(_moved(point.theta, rng), _moved(point.dy, rng)), point.fixed)
        grad, value = next(rows)
        noise, value_noise = np.zeros(len(self.subject.leaves)), 0.0
        with np.errstate(invalid="ignore"):
            for moved, moved_value in rows:
                value_noise = max(value_noise, abs(moved_value - value))
                if grad is not None:
                    noise = np.maximum(noise, self._largest(_wide(moved) - _wide(grad)))
        return grad, noise, value_noise

    def _each(self, points: Iterable[tuple[Array, Array]], fixed: Any) -> Iterator[tuple[Array | None, float]]:
        """Yields jax's gradient and the value at every (theta, dy); several in a call where they are small."""
        points = iter(points)
        while rows := list(islice(points, self.rows)):
            full = rows if self.subject.on_host else (rows * self.rows)[: self.rows]  # one length: one compile
            thetas, dys = (column[0][None] if len(column) == 1 else np.stack(column) for column in zip(*full))
            grads, values = self._auto(thetas, fixed, dys)
            del thetas, dys, full
            for row, value in zip(range(len(rows)), np.asarray(values, np.float64)):
                yield None if grads is None else np.asarray(grads[row]), float(value)

    def _largest(self, row: Array) -> Array:
        """Returns the largest finite size of an element per leaf."""
        sizes = (np.abs(row[leaf.slice]) for leaf in self.subject.leaves)
        return np.array([np.max(size, initial=0.0, where=np.isfinite(size)) for size in sizes])

    def evidence(self, point: Point, rng: np.random.Generator) -> Evidence:
        """Returns everything that the float64 oracles say at a float64 point."""
        theta, leaves = point.theta, self.subject.leaves
        auto, noise, value_noise = self.auto(point, rng)
        single = None
        if auto is not None:
            single, own = self._single(point, rng)
            noise = np.maximum(noise, own)
        line = self._line(point, rng)
        inner = None if self.subject.on_host else self._inner(point)
        rough = () if inner is None else (4 * float(jnp.finfo(inner).eps),)  # what shows the rounding of that dtype
        steps = LINE_STEPS[1:3] if self.large else LINE_STEPS
        seen = [self._roughness(point, line, steps), *(self._on_line(point, line, step) for step in rough)]
        noise = np.max([noise, *(grad for grad, _ in seen)], axis=0)
        value_noise = max(value_noise, self._against_wider(point), *(value for _, value in seen))
        v = rng.standard_normal(theta.size)
        picked = [self._picked(leaf, auto, rng) for leaf in leaves]
        coordinates = np.sort(np.concatenate(picked)) if picked else np.zeros(0, int)
        jvp, jvp_terms = self.tangents(point, v)
        measured = self._measured(point, v, coordinates, value_noise)
        return Evidence(point=point, auto=auto, noise=noise, single=single, coordinates=coordinates, v=v, jvp=jvp,
                        jvp_terms=jvp_terms, line=line, inner=inner, **measured)

    def _measured(self, point: Point, v: Array, coordinates: Array, value_noise: float) -> dict[str, Any]:
        """Returns what values near the point say: rounding, differences and Taylor increments."""
        found, terms = self._near(point, v, coordinates, STEP, value_noise)
        if terms > 0 and ROUGH * terms <= value_noise < np.inf:
            step = float(np.clip(np.cbrt(value_noise / terms), STEP, 1e-2))  # rounding over step has to be small
            found, _ = self._near(point, v, coordinates, step, value_noise)
        return found

    def _near(self, point: Point, v: Array, coordinates: Array, step: float,
              value_noise: float) -> tuple[dict[str, Any], float]:
        """Returns the same for differences of one relative step, and the sum of absolute terms of the value."""
        count = len(self.subject.leaves)
        steps = step * np.maximum(1.0, np.abs(point.theta[coordinates]))
        k, rows = len(coordinates), count * len(TAYLOR_STEPS)
        moves = np.zeros(1 + 4 * k + rows, MOVE)
        _, elements, stretches = np.split(moves, [1, 1 + 4 * k])
        elements["index"] = np.tile(coordinates, 4)
        elements["by"] = np.concatenate([steps, -steps, 2 * steps, -2 * steps])
        stretches["leaf"] = np.repeat(np.arange(count), len(TAYLOR_STEPS))
        stretches["along"] = np.tile(TAYLOR_STEPS, count)
        values, terms = self.values(point, v, moves)
        plus, minus, plus2, minus2, increments = np.split(values[1:], [k, 2 * k, 3 * k, 4 * k])
        near = np.abs(values[1 : 1 + 4 * k])
        terms = max(terms, float(np.max(near[np.isfinite(near)], initial=0.0)))  # at a minimum of 0 the steps round
        with np.errstate(invalid="ignore", over="ignore"):
            differences, wider = (plus - minus) / (2 * steps), (plus2 - minus2) / (4 * steps)
            return {"rounding": EPS * terms + value_noise, "differences": differences, "steps": steps,
                    "truncation": np.abs(differences - wider),
                    "increments": (increments - values[0]).reshape(count, len(TAYLOR_STEPS))}, terms

    def widened(self, evidence: Evidence) -> Evidence:
        """Returns the evidence with more rounding: what shows in larger steps, or inside.

        A value may be flat over small steps, and what saturates may be flat over any.
        """
        if self._last_widened is None or self._last_widened[0] is not evidence:
            noise, rounding = self._roughness(evidence.point, evidence.line, WIDER_STEPS)
            measure = self._around if self.subject.on_host else self.inner_noise
            inside, of_value = measure(evidence.point)
            rounding = max(evidence.rounding, rounding, of_value)
            measured = self._measured(evidence.point, evidence.v, evidence.coordinates, rounding)
            noise = np.max([evidence.noise, noise, inside], axis=0)
            self._last_widened = evidence, replace(evidence, noise=noise, **measured)
        return self._last_widened[1]

    def inner_noise(self, point: Point) -> tuple[Array, float]:
        """Returns how far jax's gradient per leaf, and the value, move as operations round otherwise.

        A value that is not finite then has no digits.
        """
        noise, of_value = np.zeros(len(self.subject.leaves)), 0.0
        at = (point.theta, point.fixed, point.dy)
        grad, value = next(self._each(iter([(point.theta, point.dy)]), point.fixed))
        salts = np.random.default_rng(0).integers(0, 2**64, SALTS, np.uint64)
        with np.errstate(invalid="ignore"):
            for moved, moved_value in (self._rounded_otherwise(salt, *at) for salt in salts):
                error = abs(float(moved_value) - value)
                of_value = max(of_value, error if np.isfinite(error) else abs(value))
                if grad is not None:
                    noise = np.maximum(noise, self._largest(_wide(moved) - _wide(grad)))
        return noise, of_value

    def _roughness(self, point: Point, line: Array, steps: tuple[float, ...]) -> tuple[Array, float]:
        """Returns the rounding of jax's gradient per leaf, and of the value, that two neighbouring steps show.

        Rounding does not depend on the step; what kinks between the points leave grows with it.
        """
        grads, values = zip(*(self._on_line(point, line, step) for step in steps))
        confirmed = lambda sizes: np.max(np.minimum(sizes[1:], sizes[:-1]), axis=0)
        return confirmed(np.array(grads)), float(confirmed(np.array(values)))

    def _on_line(self, point: Point, line: Array, step: float) -> tuple[Array, float]:
        """Returns the rounding of jax's gradient per leaf, and of the value, seen on a line of points."""
        with np.errstate(invalid="ignore", over="ignore"):
            rows = self._each(((point.theta + step * i * line, point.dy) for i in range(ROWS)), point.fixed)
            grads, values = zip(*((None if grad is None else grad[self.sample], value) for grad, value in rows))
            sizes = np.zeros(len(self.sample)) if grads[0] is None else line_noise(np.array(grads))
            value = float(line_noise(np.array(values)[:, None])[0])
        each = [sizes[(leaf.start <= self.sample) & (self.sample < leaf.stop)] for leaf in self.subject.leaves]
        return np.array([np.max(size, initial=0.0) for size in each]), value

    def _inner(self, point: Point) -> Any:
        """Returns the narrowest dtype inside, if it is not that of theta."""
        if self._narrowest is None:
            self._narrowest = (narrowest_dtype(self.subject.f, point.theta, point.fixed),)
        return self._narrowest[0]

    def _around(self, point: Point) -> tuple[Array, float]:
        """Returns no noise, and the rounding of a NumPy function's value around the point.

        On one line it may happen not to show.
        """
        rng, errors = np.random.default_rng(0), [0.0]
        for _ in range(LINES):
            line = self._line(point, rng)
            errors.append(self._roughness(point, line, LINE_STEPS + WIDER_STEPS[1:])[1])
            moved = replace(point, theta=point.theta + WIDER_STEPS[-1] * line)
            errors.append(self._against_wider(moved))
        return np.zeros(len(self.subject.leaves)), max(errors)

    def _line(self, point: Point, rng: np.random.Generator) -> Array:
        """Returns a direction along which every element moves, large ones more."""
        size = point.theta.size
        steps = rng.uniform(0.5, 1, size) * rng.choice([-1.0, 1.0], size)
        return steps * np.maximum(1.0, np.abs(point.theta))

    def _against_wider(self, point: Point) -> float:
        """Returns the error of a NumPy function's value against its value in extended precision, if it has one."""
        if not self.subject.on_host:
            return 0.0
        try:
            exact = self.subject.f(point.theta.astype(np.longdouble), point.fixed)
            error = float(np.abs(np.sum(point.dy * (exact - self.subject.f(point.theta, point.fixed)))))
        except Exception:
            return 0.0
        return error if np.isfinite(error) else 0.0

    def _picked(self, leaf: Leaf, auto: Array | None, rng: np.random.Generator) -> Array:
        """Returns the elements of a leaf to take differences for; first those where jax's gradient is not finite."""
        order = rng.permutation(np.arange(leaf.start, leaf.stop))
        if auto is not None:
            order = order[np.argsort(np.isfinite(auto[order]), kind="stable")]
        return order[: self.per_leaf]

    def _single(self, point: Point, rng: np.random.Generator) -> tuple[tuple[Array, Array], Array]:
        """Returns the float32 oracle with its noise, and its error there, scaled to float64.

        Moving the inputs cannot show a cancellation that moves with them (a saturated softmax); the oracle's own error does.
        """
        narrow = point.astype(np.float32)
        auto, noise, _ = self.auto(narrow, rng)
        own = self.own_error(narrow, rng)
        return (auto, np.maximum(noise, own)), own * EPS / float(np.finfo(np.float32).eps)

    def own_error(self, narrow: Point, rng: np.random.Generator) -> Array:
        """Returns jax's largest error per leaf over a dozen cotangents: one can be lucky."""
        dys = (narrow.dy * rng.uniform(0.5, 1.5, (12, narrow.dy.size))).astype(narrow.dy.dtype)
        wide = narrow.astype(np.float64)
        rounded = self._each(((narrow.theta, dy) for dy in dys), narrow.fixed)
        exact = self._each(((wide.theta, _wide(dy)) for dy in dys), wide.fixed)
        largest = np.zeros(len(self.subject.leaves))
        with np.errstate(invalid="ignore"):
            for (got, _), (truth, _) in zip(rounded, exact):
                largest = np.maximum(largest, self._largest(_wide(got) - _wide(truth)))
        return largest

    def values(self, point: Point, v: Array, moves: Array) -> tuple[Array, float]:
        """Returns the value sum(dy y) at every MOVE, and the sum of |dy y| where nothing moved."""
        padded = np.zeros(len(moves) if self.subject.on_host else self.length, MOVE)  # one length: one compile
        padded[: len(moves)] = moves
        fields = {name: padded[name] for name in ("index", "by", "leaf", "along")}
        values, terms = self._values(point.theta, point.fixed, point.dy, v, fields)
        return np.asarray(values)[: len(moves)], float(terms)

    def bends(self, evidence: Evidence, got: float, element: int | None = None, leaf: int | None = None) -> bool:
        """Returns whether the one-sided slopes differ and `got` lies between them.

        They are taken along an element, or along v in a leaf.

        The slopes of a smooth function approach each other as fast as the step shrinks; across a kink they do not.
        """
        right, left, bent = self._slopes(evidence, evidence.v, element, leaf)
        low, high = np.min([right, left]), np.max([right, left])
        slack = 1e-3 * (high - low)
        return bool(bent and low - slack <= got <= high + slack)

    def bending(self, evidence: Evidence, leaf: Leaf) -> tuple[Array, Array]:
        """Returns the elements of a leaf whose one-sided slopes differ, and the sign of the move along the steeper slope.

        They are the ties, and other kinks. In a tie of absolute values the signs are those of the elements.
        """
        h, base = KINK_STEPS[0], evidence.point
        elements, found, signs = np.arange(leaf.start, min(leaf.stop, leaf.start + TIED)), [np.zeros(0, int)], [np.zeros(0)]
        for chunk in np.split(elements, np.arange(0, len(elements), (self.length - 1) // 2)[1:]):
            moves = np.zeros(1 + 2 * len(chunk), MOVE)
            moves["index"][1:], moves["by"][1:] = np.tile(chunk, 2), np.repeat([h, -h], len(chunk))
            values, _ = self.values(base, evidence.v, moves)
            right, left = np.split((values[1:] - values[0]) / moves["by"][1:], 2)
            size = np.maximum(np.abs(right), np.abs(left))
            bent = np.abs(right - left) > 1e-3 * size + 100 * evidence.rounding / h
            found.append(chunk[bent])
            signs.append(np.where(np.abs(right) >= np.abs(left), 1.0, -1.0)[bent])
        return np.concatenate(found), np.concatenate(signs)

    def shared(self, evidence: Evidence, rule: Array, elements: Array, signs: Array, leaf: int) -> bool:
        """Returns whether a tie is not shared out.

        The elements moved together, each along its sign, then do not bend, and the rule's slope along them is another.

        At a tie each winner bends by itself; what they get together is no convention.
        """
        together = np.zeros_like(evidence.v)
        together[elements] = signs
        right, left, bent = self._slopes(evidence, together, None, leaf)
        got, size = float(signs @ rule[elements]), float(np.max(np.abs([*right, *left])))
        near = 1e-3 * size + 100 * evidence.rounding / KINK_STEPS[0]
        return not bent and bool(abs(right[0] - left[0]) <= near < abs(got - (right[0] + left[0]) / 2))

    def _slopes(self, evidence: Evidence, v: Array, element: int | None, leaf: int | None) -> tuple[Array, Array, bool]:
        """Returns the slopes to the right and to the left at every step, and if they differ."""
        h = KINK_STEPS[:3] if leaf is None else KINK_STEPS  # an element is judged next to the kink only
        moves = np.zeros(1 + 2 * len(h), MOVE)
        moves["index"], moves["leaf"] = element or 0, leaf or 0
        moves["by" if leaf is None else "along"][1:] = np.concatenate([h, -h])
        values, _ = self.values(evidence.point, v, moves)
        right, left = np.split(values[1:] - values[0], 2) / np.array([h, -h])
        gap = np.abs(right - left)
        return right, left, bool(np.any((gap[:-1] > 0.5 * gap[1:]) & (gap[:-1] > 100 * evidence.rounding / h[:-1])))

    def tangents(self, point: Point, v: Array) -> tuple[Array | None, Array | None]:
        """Returns <dy, J v_l> per leaf and the sum of its absolute terms.

        Both are None where jax has no forward mode: a custom_vjp.
        """
        if self.subject.on_host:
            return None, None
        try:
            jvp, terms = self._tangents(point.theta, point.fixed, point.dy, v)
        except (TypeError, ValueError, NotImplementedError):
            return None, None
        return np.asarray(jvp), np.asarray(terms)

    def _auto_and_values(self, thetas: Array, fixed: Any, dys: Array) -> tuple[Array | None, Array]:
        return lax.map(lambda at: self._auto_and_value(at[0], fixed, at[1]), (thetas, dys))

    def _auto_and_value(self, theta: Array, fixed: Any, dy: Array) -> tuple[Array | None, Array]:
        grad = None if self.subject.auto is None else self.subject.auto(theta, fixed, dy)
        return grad, jnp.sum(dy * self.subject.f(theta, fixed))

    def _values_at(self, theta: Array, fixed: Any, dy: Array, v: Array,
                   moves: dict[str, Array]) -> tuple[Array, Array]:
        def value(move: dict[str, Array]) -> Array:
            moved = theta.at[move["index"]].add(move["by"]) if theta.size else theta
            moved += move["along"] * jnp.where(self._within(move["leaf"], theta), v, 0)
            return jnp.sum(dy * self.subject.f(moved, fixed))

        return lax.map(value, moves), jnp.sum(jnp.abs(dy * self.subject.f(theta, fixed)))

    def _host_values(self, thetas: Array, fixed: Any, dys: Array) -> tuple[None, Array]:
        return None, np.array([np.sum(dy * self.subject.f(theta, fixed)) for theta, dy in zip(thetas, dys)])

    def _host_values_at(self, theta: Array, fixed: Any, dy: Array, v: Array,
                        moves: dict[str, Array]) -> tuple[Array, Array]:
        values = []
        for index, by, leaf, along in zip(*(moves[name] for name in MOVE.names or ())):
            moved, stretch = theta.copy(), self.subject.leaves[leaf].slice
            moved[stretch] += along * v[stretch]
            moved[index] += by
            values.append(np.sum(dy * self.subject.f(moved, fixed)))
        return np.array(values), np.sum(np.abs(dy * self.subject.f(theta, fixed)))

    def _within(self, leaf: Array, theta: Array) -> Array:
        """Returns where theta belongs to a leaf."""
        if not self.subject.leaves:
            return jnp.zeros(theta.shape, bool)
        at = jnp.arange(theta.size)
        return (jnp.asarray(self.starts)[leaf] <= at) & (at < jnp.asarray(self.stops)[leaf])

    def _jvp_by_leaf(self, theta: Array, fixed: Any, dy: Array, v: Array) -> tuple[Array, Array]:
        def one(leaf: Array) -> tuple[Array, Array]:
            tangent = jnp.where(self._within(leaf, theta), v, 0)
            terms = dy * jax.jvp(lambda t: self.subject.f(t, fixed), (theta,), (tangent,))[1]
            return jnp.sum(terms), jnp.sum(jnp.abs(terms))

        return lax.map(one, jnp.arange(len(self.subject.leaves)))
