"""How well do central differences check a gradient, what do they cost, and what can they not see?

Rows      G1 G4 K4
Command   python experiments/gradient_check.py [--seed N] [--quick] [--out DIR]
Expected  the error falls as eps^2 and then rises as 1 / eps (slopes 2 and -1 in float64); float32's floor is near 2e-5; the
          right rule agrees below 1e-7, a planted bug is off by more than 1e-3; differences need 2 N forward passes, and their
          cost grows as N^2 where backpropagation's grows as N; three wrong rules pass
Time      about 15 s on two cores; --quick 5 s

The net is 2-2-tanh-1 (9 weights) on five examples, in float64, mean squared error. Relative error of a weight: |a - n| over the
larger of |a| and |n|, a by the chain, n by differences, at eps = 1e-5.
Counted: calls of the forward, and the FLOPs of the compiled programs of nets 20-H-1. Figure: the error by step size (grey: the
slopes); the cost in N.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from lab import Lab, main
from scanned import compiled

from fbackprop import Layer, chain, dense, mse, predict, tanh, value_and_grad

EPS, BOUND, BUG = 1e-5, 1e-7, 1e-3
STEPS = 10.0 ** np.arange(-14, 0.25, 0.25)
LOSS = mse()


def net_of(activation: Layer) -> Layer:
    return chain(dense(2), activation, dense(1))


def derivative_wrong() -> Layer:
    """tanh whose rule takes 1 - y for 1 - y^2."""
    return replace(tanh(), backward=lambda params, y, dy: ((), dy * (1 - y)))


class Counted:
    """A function of one vector that counts its calls."""

    def __init__(self, f: Callable[[Any], Any]) -> None:
        self.f, self.calls = f, 0

    def __call__(self, theta: Any) -> Any:
        self.calls += 1
        return self.f(theta)


def differences(f: Callable[[Any], Any], theta: np.ndarray, eps: float) -> np.ndarray:
    """The gradient at theta by moving each number up and down, in theta's dtype."""
    moves = np.eye(len(theta), dtype=theta.dtype) * theta.dtype.type(eps)
    return np.array([(float(f(theta + move)) - float(f(theta - move))) / (2 * eps) for move in moves])


def relative(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.abs(a - n) / np.maximum(np.maximum(np.abs(a), np.abs(n)), 1e-300)


class Problem:
    """A net at random weights on five examples: its value as a function of one vector, and the chain's gradient there."""

    def __init__(self, net: Layer, seed: int, dtype: Any = np.float64) -> None:
        rng = np.random.default_rng(seed)
        x, target = rng.normal(size=(5, 2)).astype(dtype), rng.normal(size=(5, 1)).astype(dtype)
        spec = jax.eval_shape(net.init, jax.random.key(0), x)
        theta, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), spec))
        self.theta = np.asarray(theta)
        self.value = Counted(compiled(lambda theta: value_of(net, unravel(theta), (x, target))))
        _, grads = compiled(value_and_grad(net, LOSS))(unravel(theta), (x, target))
        self.gradient = np.asarray(ravel_pytree(grads)[0], np.float64)


def checked(net: Layer, seed: int) -> float:
    """The largest relative error of a weight's gradient."""
    problem = Problem(net, seed)
    return float(relative(problem.gradient, differences(problem.value, problem.theta, EPS)).max())


def experiment(lab: Lab) -> None:
    with jax.enable_x64(True):
        right = Problem(net_of(tanh()), lab.seed)
        numeric = differences(right.value, right.theta, EPS)
        calls, errors = right.value.calls, relative(right.gradient, numeric)
        lab.table(("weight", "by the chain", "by differences", "relative error"),
                  list(zip(range(len(numeric)), right.gradient, numeric, errors)), "weights")
        lab.expect("forward passes for N weights are 2 N", (calls, len(numeric)), calls == 2 * len(numeric))
        lab.expect(f"largest relative error of the right rule, below {BOUND:g}", float(errors.max()), errors.max() < BOUND)
        wrong = checked(net_of(derivative_wrong()), lab.seed)
        lab.expect(f"of a rule with a wrong derivative, above {BUG:g}", wrong, wrong > BUG)
        blind_spots(lab)
        curves = {"float64": by_step(right, right.gradient)}
    single = Problem(net_of(tanh()), lab.seed, np.float32)
    curves["float32"] = by_step(single, right.gradient)
    judge_steps(lab, curves)
    draw(lab, curves, costs(lab))


def by_step(problem: Problem, truth: np.ndarray) -> np.ndarray:
    """The error of the differences at each of STEPS, relative to the norm of the gradient."""
    apart = [np.linalg.norm(differences(problem.value, problem.theta, eps) - truth) for eps in STEPS]
    return np.array(apart) / np.linalg.norm(truth)


def between(low: float, high: float) -> np.ndarray:
    return np.logical_and(0.99 * low < STEPS, 1.01 * high > STEPS)


def judge_steps(lab: Lab, curves: dict[str, np.ndarray]) -> None:
    lab.table(("step", *curves), list(zip(STEPS, *curves.values()))[::4], "steps")
    for name, ends, order, near in (("falls as eps^2", (1e-3, 1e-1), 2, 0.1), ("rises as 1 / eps", (1e-12, 1e-7), -1, 0.15)):
        use = between(*ends)
        slope = float(np.polyfit(np.log(STEPS[use]), np.log(curves["float64"][use]), 1)[0])
        lab.expect(f"float64: the error {name} (slope {order} to {near})", slope, abs(slope - order) < near)
    least = {name: float(curve.min()) for name, curve in curves.items()}
    lab.expect("float64: the least error", least["float64"], least["float64"] < 1e-9)
    lab.expect("float32: the least error, between 1e-6 and 1e-3: no match to 1e-7 is to be had there", least["float32"],
               1e-6 < least["float32"] < 1e-3)


def blind_spots(lab: Lab) -> None:
    """Wrong rules that pass, for the difference is taken of the same forward, at the values drawn, with the shapes drawn."""
    off = lambda x: jnp.tanh(x) + 0.01 * x
    forward = replace(tanh(), forward=lambda params, x: (off(x), x),
                      backward=lambda params, x, dy: ((), dy * (1.01 - jnp.tanh(x) ** 2)))
    rare = replace(tanh(), backward=lambda params, y, dy: ((), jnp.where(jnp.abs(y) > 1 - 1e-9, 7.0, dy * (1 - y**2))))
    tiny = replace(tanh(), backward=lambda params, y, dy: ((), dy * (1 - y**2) * (1 + 1e-12)))
    for what, layer in (("a forward that is not tanh", forward), ("wrong beyond values that were drawn", rare),
                        ("wrong by less than the rounding", tiny)):
        error = checked(net_of(layer), lab.seed)
        lab.expect(f"passes though it is wrong: {what}", error, error < BOUND)


def costs(lab: Lab) -> dict[str, Any]:
    """Of all N gradients of nets 20-H-1 on five examples, both ways: FLOPs of the compiled programs, and seconds."""
    rng = np.random.default_rng(lab.seed)
    x, target = rng.normal(size=(5, 20)).astype(np.float32), rng.normal(size=(5, 1)).astype(np.float32)
    sizes, passes, flops, seconds = [], [], [], []
    for width in (8, 64, 512):
        net = chain(dense(width, bias=False), tanh(), dense(1, bias=False))
        spec = jax.eval_shape(net.init, jax.random.key(0), x)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), spec)
        forward = jax.jit(partial(value_of, net)).lower(params, (x, target)).compile()
        both = jax.jit(value_and_grad(net, LOSS)).lower(params, (x, target)).compile()
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        one, all_at_once = forward.cost_analysis()["flops"], both.cost_analysis()["flops"]
        sizes.append(count)
        passes.append(all_at_once / one)
        flops.append((all_at_once, 2 * count * one))
        seconds.append([times * median_seconds(run, params, (x, target)) for times, run in ((1, both), (2 * count, forward))])
    lab.table(("N", "FLOPs, chain", "FLOPs, differences", "seconds, chain", "seconds, differences", "chain / forward"),
              [(n, *f, *s, p) for n, f, s, p in zip(sizes, flops, seconds, passes)], "costs")
    for i, (name, order) in enumerate((("backpropagation", 1), ("differences", 2))):
        slope = float(np.polyfit(np.log(sizes), np.log([pair[i] for pair in flops]), 1)[0])
        lab.expect(f"FLOPs of all N gradients by {name} grow as N^{order} (slope to 0.1)", slope, abs(slope - order) < 0.1)
    lab.expect("backpropagation, forward included, is at most 3.5 forward passes", max(passes), max(passes) < 3.5)
    ratio = seconds[-1][1] / seconds[-1][0]
    lab.expect(f"{sizes[-1]} gradients: differences take times as long", ratio, ratio > 100, timed=True)
    return {"sizes": sizes, "backpropagation": [pair[0] for pair in flops], "differences": [pair[1] for pair in flops]}


def value_of(net: Layer, params: Any, batch: Any) -> jax.Array:
    return LOSS.forward((), (predict(net)(params, batch[0]), batch[1]))[0]


def median_seconds(run: Callable, *given: Any) -> float:
    spent = []
    for _ in range(12):
        began = time.perf_counter()
        jax.block_until_ready(run(*given))
        spent.append(time.perf_counter() - began)
    return float(np.median(spent[2:]))


def draw(lab: Lab, curves: dict[str, np.ndarray], cost: dict[str, Any]) -> None:
    figure = lab.figure(11, 4.5, 1, 2)
    if figure is None:
        return
    left, right = figure.axes
    for name, curve in curves.items():
        left.loglog(STEPS, curve, ".-", label=name)
    for power, low, high in ((2, 1e-3, 0.1), (-1, 1e-12, 1e-9)):
        here = STEPS[between(low, high)]
        beside = (6 if power < 0 else 0.1) * curves["float64"][np.abs(STEPS - high).argmin()]
        line = beside * (here / high) ** power
        left.loglog(here, line, "--", color="#777777")
        middle = len(here) // 2
        left.annotate(f"eps^{power}", (here[middle], line[middle]), xytext=(6, -4 * power), textcoords="offset points",
                      color="#777777")
    left.axhline(BOUND, color="black", linewidth=0.8)
    left.annotate("a match", (STEPS[0], BOUND), xytext=(0, -12), textcoords="offset points", fontsize=9)
    left.set_xlabel("step size eps")
    left.set_ylabel("relative error of the gradient")
    left.set_title("Differences: best at a step neither large nor small")
    left.legend(frameon=False, loc="lower left")
    for name in ("differences", "backpropagation"):
        right.loglog(cost["sizes"], cost[name], "o-", label=name)
    right.set_xlabel("weights, N")
    right.set_ylabel("FLOPs for all N gradients")
    right.set_title("All N at once, against 2 N forward passes")
    right.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(main(experiment))
