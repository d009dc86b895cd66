"""What do the learning rate, the size of the mini-batch and the optimizer do to a training?

Rows      C2
Command   python experiments/learning_rate.py [--seed N] [--quick] [--out DIR]
Expected  SGD at .0003 has hardly begun when at .1 it has learned, and at 30 it never does; batches of 32 to 256 all learn at a
          rate that grows with the batch; Adam at its usual rate needs fewer steps than SGD at that very rate; the gradient of a
          batch is the mean of its examples' gradients to 1e-6; squared error learns digits too
Time      about 30 s on two cores; --quick 6 s

Dense nets of 64 relus on real digits of 14 x 14 pixels; the same start and the same order of the examples in every run.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import accuracy, order, small_digits, start, trained
from lab import Lab, main

from fbackprop import Layer, chain, dense, flatten, mse, relu, softmax, softmax_cross_entropy, value_and_grad

NET, LOSS = chain(flatten(), dense(64), relu(), dense(10)), softmax_cross_entropy()
RATES = {"too low": 0.0003, "right": 0.1, "too high": 30.0}
BY_HAND = value_and_grad(NET, LOSS)


def one_hot_mse() -> Layer:
    """(probabilities, label) -> mean squared error against the label's unit vector."""
    inner = mse()

    def forward(params: Any, x: Any) -> tuple[Any, Any]:
        y, label = x
        return inner.forward((), (y, jax.nn.one_hot(label, y.shape[-1], dtype=y.dtype)))

    def backward(params: Any, residuals: Any, dvalue: Any) -> tuple[Any, Any]:
        dparams, (dy, _) = inner.backward((), residuals, dvalue)
        return dparams, (dy, None)

    return Layer("one_hot_mse()", lambda key, x: (), forward, backward)


def mean_of_examples(lab: Lab) -> None:
    """The loss is a mean over the mini-batch, and so is its gradient."""
    params, (x, y) = start(NET, lab.seed), small_digits().train
    rows = order(lab.seed, 1, 32)[0]
    _, whole = BY_HAND(params, (x[rows], y[rows]))
    _, each = jax.vmap(lambda x, y: BY_HAND(params, (x[None], y[None])))(x[rows], y[rows])
    apart = max(float(jnp.max(jnp.abs(jnp.mean(one, 0) - all_)) / jnp.max(jnp.abs(all_)))
                for one, all_ in zip(jax.tree.leaves(each), jax.tree.leaves(whole)))
    lab.expect("gradient of a batch of 32 against the mean of 32 gradients, relative, at most 1e-6", apart, apart <= 1e-6)


def experiment(lab: Lab) -> None:
    mean_of_examples(lab)
    steps, begin = lab.pick(600, 150), start(NET, lab.seed)

    def curve(tx: Any, batch: int = 50, count: int = steps) -> tuple[np.ndarray, float]:
        params, losses = trained(BY_HAND, tx, begin, order(lab.seed, count, batch))
        return losses, accuracy(NET, params)

    rates = {f"{name}, {rate:g}": curve(optax.sgd(rate)) for name, rate in RATES.items()}
    sizes = {f"batch {size}, rate {0.1 * size / 50:.2g}": curve(optax.sgd(0.1 * size / 50), size)
             for size in lab.pick((32, 64, 128, 256), (32, 256))}
    optimizers = {"SGD, .003": curve(optax.sgd(0.003)), "Adam, .003": curve(optax.adam(0.003))}
    runs = {**rates, **sizes, **optimizers}
    last = {name: float(np.mean(losses[-30:])) for name, (losses, _) in runs.items()}
    lab.table(("run", "loss at first", "loss at last", "accuracy"),
              [(name, losses[0], last[name], right) for name, (losses, right) in runs.items()], "runs")
    low, right, high = rates
    lab.expect("too low: the loss has not halved", last[low], last[low] > rates[low][0][0] / 2)
    lab.expect("right: the loss is a third of the first at most", last[right], last[right] < rates[right][0][0] / 3)
    lab.expect("too high: no better than guessing (log 10) at the end", last[high], not last[high] < np.log(10))
    worst = min(right for _, right in sizes.values())
    lab.expect("batches of 32 to 256: the lowest accuracy, at least .8", worst, worst >= 0.8)
    lab.expect("Adam's loss at .003 over SGD's, at most .7", last["Adam, .003"] / last["SGD, .003"],
               last["Adam, .003"] <= 0.7 * last["SGD, .003"])
    squares = chain(*NET.parts, softmax())
    params, _ = trained(value_and_grad(squares, one_hot_mse()), optax.adam(0.003), start(squares, lab.seed),
                        order(lab.seed, steps))
    right = accuracy(squares, params)
    lab.expect("mean squared error on softmax: accuracy, at least .8", right, right >= 0.8)
    if lab.figure(wide=11, columns=3, sharey=True) is not None:
        draw(lab, {"learning rate": rates, "size of the mini-batch": sizes, "optimizer": optimizers})


def draw(lab: Lab, panels: dict[str, dict[str, tuple[np.ndarray, float]]]) -> None:
    for ax, (title, runs) in zip(lab.drawn.axes, panels.items()):
        for name, (losses, _) in runs.items():
            smooth = np.convolve(losses, np.ones(15) / 15, "valid")
            ax.semilogy(np.arange(len(smooth)) + 8, smooth, label=name)
        ax.set(title=title, xlabel="step", ylim=(0.05, 30))
        ax.legend(fontsize=8)
    lab.drawn.axes[0].set_ylabel("loss, mean of 15 steps")


if __name__ == "__main__":
    sys.exit(main(experiment))
