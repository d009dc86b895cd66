"""Does a net of 30 relu layers learn from He's weights where Xavier's let it stall?

Rows      L5, P5
Command   python experiments/he2015.py [--seed N] [--quick] [--out DIR]
Expected  from He's weights (n var = 2) over 80 % of the test digits are named right, from Xavier's (n var = 1) the loss stays
          at log 10 and 10 % are right; at the start Xavier's gradient at layer 1 is below 1/1000 of He's
Time      about 35 s on two cores; --quick, fewer steps, 5 s

Repeats K. He, X. Zhang, S. Ren and J. Sun, Delving Deep into Rectifiers, ICCV 2015, section 2.2 and figure 3: a 30-layer relu
net converges with their initialisation, while Xavier's completely stalls, for its gradients diminish by sqrt(1/2) a layer.
What differs: theirs has 27 convolutions and 3 dense layers on ImageNet; ours has 30 dense layers of 64 units on real digits of
14 x 14 pixels, batches of 50, gradient descent at 0.02 down a cosine with momentum 0.9, clipped to norm 1. Xavier here is as
there: variance 1/n. The two nets have the same random numbers, Xavier's divided by sqrt 2. The figure: both losses.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import optax
from digit_runs import accuracy, order, small_digits, start, trained
from lab import Lab, main

from fbackprop import Layer, chain, dense, flatten, relu, repeat, softmax_cross_entropy, value_and_grad
from fbackprop.params import paths
from fbackprop.report.figures import CYCLE, smooth

STARTS = {"He, n var = 2": 1.0, "Xavier, n var = 1": 0.5**0.5}


def net_of(layers: int) -> Layer:
    """`layers` layers with weights, all but the last with relu."""
    return chain(flatten(), dense(64), relu(), repeat(chain(dense(64), relu()), layers - 2), dense(10))


def descent(steps: int) -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(0.02, steps), momentum=0.9))


def experiment(lab: Lab) -> None:
    net, steps = net_of(30), lab.pick(1600, 60)
    by_hand, tx = value_and_grad(net, softmax_cross_entropy()), descent(steps)
    rows, curves, scores, first = order(lab.seed, steps), {}, {}, {}
    for name, scale in STARTS.items():
        params = jax.tree.map(lambda w, scale=scale: scale * w, start(net, lab.seed))
        first[name] = at_layer_1(by_hand, params, rows[0])
        params, curves[name] = trained(by_hand, tx, params, rows)
        scores[name] = accuracy(net, params)
    lab.table(["weights", "gradient at layer 1", "first loss", "last loss", "test accuracy"],
              [[name, first[name], float(curve[0]), float(np.mean(curve[-50:])), scores[name]]
               for name, curve in curves.items()], "runs")
    he, xavier = STARTS
    share = first[xavier] / first[he]
    lab.expect("Xavier's gradient at layer 1 over He's at the start", share, share < 1e-3)
    moved = float(np.max(np.abs(curves[xavier] - np.log(10))))
    lab.expect("Xavier: the loss stays near log 10, largest distance", moved, moved < 0.1)
    if not lab.quick:
        lab.expect("Xavier: no better than a guess", scores[xavier], scores[xavier] < 0.2)
        lab.expect("He: most digits named right", scores[he], scores[he] > 0.8)
    lab.keep(losses=curves)
    draw(lab, curves, scores)


def at_layer_1(by_hand: Any, params: Any, rows: np.ndarray) -> float:
    x, y = small_digits().train
    return float(np.linalg.norm(paths(jax.jit(by_hand)(params, (x[rows], y[rows]))[1])["1/w"]))


def draw(lab: Lab, curves: dict[str, np.ndarray], scores: dict[str, float]) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    at = np.arange(1, len(next(iter(curves.values()))) + 1)
    for (name, curve), color in zip(curves.items(), CYCLE):
        ax.plot(at, smooth(curve.tolist(), 20), color=color, linewidth=2)
        ax.annotate(f"{name}: {100 * scores[name]:.0f} % of test digits right", (at[-1], np.mean(curve[-50:])), xytext=(0, 26),
                    textcoords="offset points", ha="right", color=color)
    ax.axhline(np.log(10), color="#777777", linewidth=1, linestyle="--")
    ax.annotate("log 10: knows nothing", (0.3, np.log(10)), xycoords=("axes fraction", "data"), xytext=(0, -12),
                textcoords="offset points", color="#777777", fontsize=9)
    ax.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, 2.8),
           title="30 relu layers learn from He's weights and stall from Xavier's")


if __name__ == "__main__":
    sys.exit(main(experiment))
