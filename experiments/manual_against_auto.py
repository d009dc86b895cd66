"""Does a hand-written backward pass cost anything against jax.grad of the same forward, and does it compute the same?

Rows      G3
Command   python experiments/manual_against_auto.py [--seed N] [--quick] [--out DIR]
Expected  for every model, and over depth, width and batch: gradients equal to 1e-5 (plus rounding noise), temporary memory
          never more than 1.02 of jax.grad's; over all of them the geometric mean of memory at most .8, of time at most 1, of
          seconds to compile at most 1.05; 50 training steps of both arms give one loss curve to 1e-5
Time      about 4 minutes on two cores; --quick 15 s

Both arms run the same forward: jax.grad differentiates what the chain's layers compute forward, so idiomatic JAX code may be
better or worse than it; that comparison is another one. Two jitted steps take turns on the same batch. Memory is XLA's
temporary bytes, which are exact.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main

from fbackprop import (
    auto_value_and_grad,
    data,
    init_opt_state,
    make_step,
    mlp,
    objective,
    softmax_cross_entropy,
    value_and_grad,
)
from fbackprop.comparison.costs import Comparison, compare
from fbackprop.train.task.builtin import load_task
from fbackprop.train.task.config import TrainConfig

MODELS = ("mnist", "convnet", "resnet", "lstm", "gpt", "recommender")
START = {"depth": 2, "width": 256, "batch": 64}
SWEEPS = {"depth": (1, 4, 16), "width": (64, 1024), "batch": (8, 512)}


def of_model(name: str, seed: int, pairs: int) -> Comparison:
    task = load_task(TrainConfig.of(model=name, seed=seed))
    batch = task.batches(seed, 0)
    params = objective(task.net, task.loss).init(jax.random.key(seed), batch)
    return compare(task.net, task.loss, params, batch, pairs=pairs, layers=False)


def of_mlp(seed: int, pairs: int, depth: int, width: int, batch: int) -> Comparison:
    images, labels = data.digits().train
    net, rows = mlp((width,) * depth), np.random.default_rng(seed).permutation(len(images))[:batch]
    params = net.init(jax.random.key(seed), images[:1])
    return compare(net, softmax_cross_entropy(), params, (images[rows], labels[rows]), pairs=pairs, layers=False)


def curves_apart(seed: int, steps: int) -> float:
    """The largest difference of the losses of both arms from one start."""
    digits = data.digits()
    batches, net, loss, tx = data.shuffled_batches(*digits.train, 50), mlp((512,)), softmax_cross_entropy(), optax.adam(1e-3)
    start = net.init(jax.random.key(seed), digits.train[0][:1])

    def curve(how: Any) -> np.ndarray:
        params, step, losses = jax.tree.map(jnp.copy, start), make_step(how(net, loss), tx), []
        opt_state = init_opt_state(tx, params)
        for number in range(steps):
            params, opt_state, metrics = step(params, opt_state, batches(seed, number))
            losses.append(float(metrics["loss"]))
        return np.array(losses)

    return float(np.max(np.abs(curve(value_and_grad) - curve(auto_value_and_grad))))


def experiment(lab: Lab) -> None:
    pairs = lab.pick(15, 1)
    found = {name: of_model(name, lab.seed, pairs) for name in lab.pick(MODELS, MODELS[:1])}
    for axis, values in lab.pick(SWEEPS, {}).items():
        for value in values:
            found[f"mlp, {axis} {value}"] = of_mlp(lab.seed, pairs, **{**START, axis: value})
    rows = []
    for name, each in found.items():
        ratio = each.as_json["ratio"]
        rows.append((name, each.max_gradient_error, each.manual.temp_bytes / 1e6, each.auto.temp_bytes / 1e6, ratio["memory"],
                     each.manual.ms, each.auto.ms, ratio["time"], each.manual.compile_s, each.auto.compile_s, ratio["compile"]))
    lab.table(("work", "error", "MB", "jax.grad", "ratio", "ms", "jax.grad", "ratio", "compile s", "jax.grad", "ratio"), rows)
    lab.keep(works={name: each.as_json for name, each in found.items()})
    error, memory = max(row[1] for row in rows), max(row[4] for row in rows)
    lab.expect("largest gradient error, at most 1e-5", error, error <= 1e-5)
    lab.expect("largest ratio of temporary memory, at most 1.02", memory, memory <= 1.02)
    means = {name: float(np.exp(np.mean(np.log([row[i] for row in rows]))))
             for name, i in (("memory", 4), ("time", 7), ("compile", 10))}
    lab.expect("geometric mean of memory, at most .8", means["memory"], means["memory"] <= 0.8)
    lab.expect("geometric mean of time, at most 1", means["time"], means["time"] <= 1, timed=True)
    lab.expect("geometric mean of seconds to compile, at most 1.05", means["compile"], means["compile"] <= 1.05, timed=True)
    apart = curves_apart(lab.seed, lab.pick(50, 10))
    lab.expect("loss curves of both arms apart, at most 1e-5", apart, apart <= 1e-5)
    if lab.figure(wide=10, columns=3, sharey=True) is not None:
        draw(lab, rows)


def draw(lab: Lab, rows: list[tuple]) -> None:
    for ax, (title, i) in zip(lab.drawn.axes, (("temporary memory", 4), ("time", 7), ("seconds to compile", 10))):
        ax.barh([row[0] for row in rows], [row[i] for row in rows], color="#0072B2")
        ax.axvline(1, color="#D55E00")
        ax.set(title=title, xlabel="by hand over jax.grad")
    lab.drawn.axes[0].invert_yaxis()


if __name__ == "__main__":
    sys.exit(main(experiment))
