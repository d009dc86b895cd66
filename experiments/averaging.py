"""How much calmer does a gradient get when it is the mean over more examples, and what does an example cost then?

Rows      C7
Command   python experiments/averaging.py [--seed N] [--quick] [--out DIR]
Expected  the scatter of the mini-batch gradient falls as B^-.5 for B from 1 to 256: a slope of -.5 to .05 on log axes. A
          batch of 256 trains at least 5 times the examples per second of a batch of 1
Time      about 15 s on two cores; --quick 5 s

Fixed weights of a net 784-32-10, trained for one epoch on the digits. Scatter: the distance of a mini-batch's gradient from the
whole training set's, root mean square over many mini-batches drawn with replacement, relative to the latter's norm. The slope
of -.5 is that of the standard deviation of a mean (1 / sqrt B). Speed: training steps of Adam on a net 784-512-10.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main
from scanned import compiled, start, train

from fbackprop import init_opt_state, make_step, mlp, softmax_cross_entropy, value_and_grad
from fbackprop.data import digits, shuffled_batches

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
LOSS = softmax_cross_entropy()


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def fixed_weights(net: Any, data: Any, seed: int) -> Any:
    batches = shuffled_batches(*data, 50)
    steps = [batches(seed, step) for step in range(batches.steps_per_epoch)]
    stacked = tuple(np.stack(part) for part in zip(*steps))
    return train(value_and_grad(net, LOSS), optax.adam(1e-3), start(net, seed, data[0][:1]), stacked)[0]


def scatters(lab: Lab, data: Any, sizes: np.ndarray) -> np.ndarray:
    """Of the gradient of a mini-batch of each of `sizes`, relative to the norm of the whole gradient."""
    net = mlp((32,))
    params, (x, y) = fixed_weights(net, data, lab.seed), map(jnp.asarray, data)
    gradient = lambda batch: flat(value_and_grad(net, LOSS)(params, batch)[1])
    whole = gradient((x, y))
    apart = lambda rows: jnp.sum((gradient((x[rows], y[rows])) - whole) ** 2)
    rng, found = np.random.default_rng(lab.seed), []
    for size in sizes:
        draws = lab.pick(200, 60) + lab.pick(4000, 1500) // size  # few examples have most of the scatter of B = 1
        squares = compiled(lambda rows: jax.lax.map(apart, rows))(rng.integers(len(x), size=(draws, size)))
        found.append(float(jnp.sqrt(jnp.mean(squares))))
    return np.array(found) / float(jnp.linalg.norm(whole))


def speeds(lab: Lab, data: Any, sizes: np.ndarray) -> np.ndarray:
    """Examples per second of training steps with batches of each of `sizes`: the median of many steps."""
    net, tx = mlp((512,)), optax.adam(1e-3)
    step, found = make_step(value_and_grad(net, LOSS), tx), []
    first = start(net, lab.seed, data[0][:1])
    for size in sizes:
        batch = jax.device_put((data[0][:size], data[1][:size]))
        params = jax.tree.map(jnp.copy, first)
        opt_state, times = init_opt_state(tx, params), []
        for _ in range(lab.pick(60, 10)):
            began = time.perf_counter()
            params, opt_state, metrics = jax.block_until_ready(step(params, opt_state, batch))
            times.append(time.perf_counter() - began)
        found.append(size / float(np.median(times[2:])))  # the first compile
    return np.array(found)


def experiment(lab: Lab) -> None:
    data, sizes = digits().train, SIZES[:: lab.pick(1, 4)]
    scatter, speed = scatters(lab, data, sizes), speeds(lab, data, sizes)
    lab.table(("B", "scatter / norm", "examples per second"), list(zip(sizes, scatter, speed)), "sizes")
    slope = float(np.polyfit(np.log(sizes), np.log(scatter), 1)[0])
    lab.expect("slope of the scatter in B on log axes is -.5 to .05", slope, abs(slope + 0.5) < 0.05)
    lab.expect("a batch of 1 scatters about 16 times as much as one of 256", scatter[0] / scatter[-1],
               12 < scatter[0] / scatter[-1] < 21)
    lab.expect("256 at a time: times the examples per second of one at a time", speed[-1] / speed[0], speed[-1] > 5 * speed[0],
               timed=True)
    draw(lab, sizes, scatter, slope, speed)


def draw(lab: Lab, sizes: np.ndarray, scatter: np.ndarray, slope: float, speed: np.ndarray) -> None:
    figure = lab.figure(10, 4.5, 1, 2)
    if figure is None:
        return
    left, right = figure.axes
    left.loglog(sizes, scatter, "o", label="measured")
    left.loglog(sizes, scatter[0] * sizes.astype(float) ** -0.5, "-", color="#777777", linewidth=1, label="1 / sqrt B")
    left.set_ylabel("scatter / norm of the whole gradient")
    left.set_title(f"Averaging calms: slope {slope:.3f}")
    left.legend(frameon=False)
    right.loglog(sizes, speed, "o-", color="#D55E00")
    right.set_ylabel("examples per second")
    right.set_title(f"and is cheaper: {speed[-1] / speed[0]:.0f} times as many a second")
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, map(str, sizes))
        ax.set_xlabel("examples in a mini-batch, B")


if __name__ == "__main__":
    sys.exit(main(experiment))
