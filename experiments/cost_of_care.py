"""What does care cost: how long does a step wait for a checkpoint, what do the guard and the watch add to a step?

Rows      U5
Command   python experiments/cost_of_care.py [--seed N] [--quick] [--out DIR]
Expected  a checkpoint of 10 M parameters holds a step up for less than 0.5 s; the guard costs nothing that shows; a look at
          every layer, every 50 steps, costs at most 5 % of the steps
Time      about two minutes on two cores; --quick, one small net in few rounds, 8 s

Figure: what of a step's time the guard and the watch take, for each net.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main

from fbackprop import Layer, gpt, init_opt_state, make_step, mlp, objective, probe, softmax_cross_entropy, value_and_grad
from fbackprop.train.step.training import begin, make_training_step
from fbackprop.train.store.saver import Saver
from fbackprop.train.task.config import TrainConfig

EVERY = TrainConfig("mnist").watch_every


def checkpoint_of_ten_million(saves: int) -> dict[str, float]:
    """Adam's: 30 M numbers, 120 MB. `held`: the training waits; `written`: until it is durable and read back, meanwhile."""
    training = jax.block_until_ready(begin(tuple({"w": jnp.ones((1000, 1000))} for _ in range(10)), optax.adam(1e-3)))
    held, written = [], []
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "checkpoints").mkdir()
        with Saver(Path(directory), TrainConfig("mnist")) as saver:
            for step in range(saves):
                began = time.perf_counter()
                saver.save(step, training, {})
                held.append(time.perf_counter() - began)
                saver.wait()
                written.append(time.perf_counter() - began)
    return {"held_s": float(np.median(held)), "held_worst_s": max(held), "written_s": float(np.median(written))}


def steps_and_looks(net: Layer, loss: Layer | None, batch: tuple, rounds: int) -> dict[str, float]:
    """Medians of one step of each kind, in turn, and of a look at every layer."""
    tx, of_batch = optax.adam(1e-3), value_and_grad(net, loss)
    params = objective(net, loss).init(jax.random.key(0), batch)
    plain, guarded, look = make_step(of_batch, tx), make_training_step(of_batch, tx), probe(net, loss)
    training, copy = begin(jax.tree.map(jnp.copy, params), tx), jax.tree.map(jnp.copy, params)
    opt_state = init_opt_state(tx, copy)
    times: dict[str, list[float]] = {"plain": [], "guarded": [], "look": []}
    for turn in range(rounds + 2):
        began = time.perf_counter()
        copy, opt_state, _ = jax.block_until_ready(plain(copy, opt_state, batch))
        stepped = time.perf_counter()
        training, _ = jax.block_until_ready(guarded(training, batch))
        guard = time.perf_counter()
        jax.block_until_ready(look(params, batch)[0])
        if turn >= 2:  # the first compile
            for name, seconds in zip(times, (stepped - began, guard - stepped, time.perf_counter() - guard)):
                times[name].append(1e3 * seconds)
    ms = {name: float(np.median(values)) for name, values in times.items()}
    ratio = np.median(np.array(times["guarded"]) / np.array(times["plain"]))
    share = np.median(np.array(times["look"]) / np.array(times["guarded"])) / EVERY
    return {**{f"{name}_ms": value for name, value in ms.items()}, "guard_ratio": float(ratio), "watch_share": float(share)}


def experiment(lab: Lab) -> None:
    saved = checkpoint_of_ten_million(lab.pick(7, 1))
    print(f"a checkpoint of 10 M parameters: durable after {saved['written_s']:.2f} s, a step waits {saved['held_s']:.3f} s\n")
    lab.expect("longest wait of a step for a checkpoint of 10 M parameters, below 0.5 s", saved["held_worst_s"],
               saved["held_worst_s"] < 0.5, timed=True)
    rng = np.random.default_rng(lab.seed)
    images, digits = rng.standard_normal((128, 784)).astype(np.float32), rng.integers(0, 10, 128)
    text = rng.integers(0, 256, (4, 256))
    works = {"mlp 784-512-10, B 50": (mlp(), softmax_cross_entropy(), (images[:50], digits[:50]), 200)}
    if not lab.quick:
        works |= {"mlp 784-1024-1024-10, B 128": (mlp((1024, 1024)), softmax_cross_entropy(), (images, digits), 60),
                  "gpt D 128, 4 blocks, T 256, B 4": (gpt(256, 256, features=128, blocks=4), None, (text, text), 15)}
    costs = {name: steps_and_looks(*work[:3], lab.pick(work[3], 5)) for name, work in works.items()}
    lab.table(("net", *next(iter(costs.values()))), [(name, *cost.values()) for name, cost in costs.items()], "steps")
    lab.keep(checkpoint=saved)
    for name, cost in costs.items():
        share = cost["watch_share"]
        lab.expect(f"{name}: a look each {EVERY} steps, share of the steps' time", share, share <= 0.05, timed=True)
    draw(lab, costs)


def draw(lab: Lab, costs: dict[str, dict[str, float]]) -> None:
    figure = lab.figure(8, 3.5)
    if figure is None:
        return
    ax, rows = figure.axes[0], np.arange(len(costs))
    for shift, name, values in ((-0.2, "the guard", [100 * (cost["guard_ratio"] - 1) for cost in costs.values()]),
                                (0.2, f"a look each {EVERY} steps", [100 * cost["watch_share"] for cost in costs.values()])):
        ax.bar_label(ax.barh(rows + shift, values, 0.38, label=name), fmt="%+.1f %%", padding=3)
    ax.set_yticks(rows, costs)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("added to a step's time (%)")
    ax.set_title("What care costs")
    ax.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    sys.exit(main(experiment))
