"""Does each cure by itself help a net that does not learn?

Rows      P5
Command   python experiments/cures.py [--seed N] [--quick] [--out DIR]
Expected  six sick starts name at most half of the test digits right; each of eleven cures, alone, on the same seed and with
          everything else as it was, adds at least 30 points
Time      about 60 s on two cores; --quick, one sick start and its cure, 4 s

Digits of 14 x 14 pixels, 400 steps of 50. Vanishing: eight sigmoid layers; six relu or tanh layers at a tenth of He's or
Xavier's weights. Exploding: four relu layers at 1.3 times He's weights, squared error, rate 3. Dead: biases at -3. Slow: plain
gradient descent at rate 0.0003. A cure changes one thing; with relu for sigmoid even the numbers in the weights stay as they
are. Weights: He et al. 2015, Glorot and Bengio 2010; skips: He et al. 2016; batch norm: Ioffe and Szegedy 2015; clipping:
Pascanu, Mikolov and Bengio 2013. The figure: test accuracy without and with each cure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
from digit_runs import accuracy, order, small_digits, start
from lab import Lab, main

from fbackprop import (
    Layer,
    batch_norm,
    chain,
    dense,
    flatten,
    init_opt_state,
    leaky_relu,
    map_layers,
    mlp,
    mse,
    relu,
    sigmoid,
    skip,
    softmax_cross_entropy,
    update,
    value_and_grad,
)
from fbackprop.params import paths
from fbackprop.report.figures import CYCLE

XAVIER = jax.nn.initializers.glorot_uniform()


def deep(middle: Layer, first: Layer) -> Layer:
    return chain(flatten(), dense(64, w_init=XAVIER), first, *[middle] * 7, dense(10, w_init=XAVIER))


def block(*after: Layer) -> Layer:
    return chain(dense(64, w_init=XAVIER), *after)


NETS = {
    "sigmoid": lambda: deep(block(sigmoid()), sigmoid()),
    "relu": lambda: deep(block(relu()), relu()),
    "skips": lambda: deep(skip(block(sigmoid())), sigmoid()),
    "batch norm": lambda: deep(block(batch_norm(), sigmoid()), sigmoid()),
    "six relu": lambda: mlp((64,) * 6),
    "six tanh": lambda: mlp((64,) * 6, activation="tanh"),
    "four relu": lambda: mlp((64,) * 4),
    "two relu": lambda: mlp((64,) * 2),
    "two leaky": lambda: map_layers(mlp((64,) * 2), lambda layer: leaky_relu(0.3) if layer.kind == "relu" else layer),
}


@dataclass(frozen=True)
class Run:
    """scale: of the weights at the start; shift: of the hidden biases."""

    net: str
    rate: float = 0.1
    optimizer: str = "sgd"
    clip: float = np.inf
    scale: float = 1.0
    shift: float = 0.0
    squared: bool = False


CASES = {  # problem: what is sick, then each cure by name
    "vanishing: eight sigmoid layers": (Run("sigmoid"), {
        "relu for sigmoid": Run("relu"), "skips": Run("skips"), "batch norm": Run("batch norm")}),
    "vanishing: relu, weights a tenth": (Run("six relu", scale=0.1), {"He's weights": Run("six relu")}),
    "vanishing: tanh, weights a tenth": (Run("six tanh", scale=0.1), {"Xavier's weights": Run("six tanh")}),
    "exploding: weights and rate too high": (Run("four relu", 3.0, scale=1.3, squared=True), {
        "clipping to norm 1": Run("four relu", 3.0, scale=1.3, squared=True, clip=1.0),
        "rate 3 to 0.3": Run("four relu", 0.3, scale=1.3, squared=True)}),
    "dead: biases at -3": (Run("two relu", shift=-3.0), {
        "leaky relu": Run("two leaky", shift=-3.0), "biases at 0": Run("two relu")}),
    "slow: rate 0.0003": (Run("two relu", 3e-4), {
        "rate 0.1": Run("two relu"), "Adam at 0.0003": Run("two relu", 3e-4, "adam")}),
}


@cache
def net_of(name: str) -> Layer:
    return NETS[name]()


@cache
def program(name: str, optimizer: str, squared: bool) -> Any:
    """One compiled run for every rate, bound and start of a net."""
    by_hand = value_and_grad(net_of(name), mse() if squared else softmax_cross_entropy())

    @jax.jit
    def run(params: Any, batches: Any, rate: float, clip: float) -> Any:
        tx = optax.chain(optax.clip_by_global_norm(clip), getattr(optax, optimizer)(rate))

        def step(carry: Any, batch: Any) -> Any:
            params, opt_state = carry
            value, grads = by_hand(params, batch)
            return update(tx, params, grads, opt_state), value

        (params, _), losses = jax.lax.scan(step, (params, init_opt_state(tx, params)), batches)
        return params, losses

    return run


def test_accuracy(run: Run, seed: int, steps: int) -> float:
    """Share of the test digits; 0.1, a guess, where the run ends in NaN."""
    net, rows, (x, y) = net_of(run.net), order(seed, steps), small_digits().train
    params, last = start(net, seed), f"{len(net.parts) - 1}/b"
    leaves, treedef = jax.tree.flatten(params)
    hidden = lambda path: path.endswith("/b") and path != last
    params = jax.tree.unflatten(treedef, [leaf * (run.scale if path.endswith("/w") else 1) + (run.shift if hidden(path) else 0)
                                          for path, leaf in zip(paths(params), leaves)])
    targets = np.eye(10, dtype=np.float32)[y] if run.squared else y
    params, losses = program(run.net, run.optimizer, run.squared)(params, (x[rows], targets[rows]), run.rate, run.clip)
    return accuracy(net, params) if np.isfinite(losses[-1]) else 0.1


def experiment(lab: Lab) -> None:
    steps, rows = lab.pick(400, 100), []
    for problem, (sick, cures) in lab.pick([*CASES.items()], [[*CASES.items()][-1]]):
        before = test_accuracy(sick, lab.seed, steps)
        lab.expect(f"{problem}: at most half right", before, before <= 0.5)
        for cure, run in lab.pick([*cures.items()], [("rate 0.1", cures.get("rate 0.1"))]):
            after = test_accuracy(run, lab.seed, steps)
            rows.append([problem, cure, before, after])
            lab.expect(f"{problem}, {cure}: 30 points more", after, after >= before + 0.3)
    print()
    lab.table(["problem", "cure", "accuracy without", "with"], rows, "cures")
    draw(lab, rows)


def draw(lab: Lab, rows: list[list[Any]]) -> None:
    figure = lab.figure(8.0, 4.8)
    if figure is None:
        return
    ax, problems = figure.axes[0], list(dict.fromkeys(row[0] for row in rows))
    at, ticks = 0.0, []
    for problem in problems:
        ax.annotate(problem, (10, at), xytext=(6, 0), textcoords="offset points", va="center", fontweight="bold", fontsize=9)
        for _, cure, before, after in [row for row in rows if row[0] == problem]:
            at += 1
            ticks.append((at, cure))
            ax.annotate("", (100 * after, at), (100 * before, at), arrowprops={"arrowstyle": "-|>", "color": "#999999"})
            ax.plot(100 * before, at, "o", color=CYCLE[1], markersize=8)
            ax.plot(100 * after, at, "o", color=CYCLE[0], markersize=8)
        at += 1
    ax.plot([], [], "o", color=CYCLE[1], label="sick")
    ax.plot([], [], "o", color=CYCLE[0], label="with this cure alone")
    ax.axvline(10, color="#777777", linewidth=1, linestyle="--", label="a guess")
    ax.set_yticks(*zip(*ticks))
    ax.grid(False, axis="y")
    ax.set(xlim=(0, 100), ylim=(at - 0.4, -0.8), xlabel="test digits named right (%)", title="Each cure helps by itself")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)


if __name__ == "__main__":
    sys.exit(main(experiment))
