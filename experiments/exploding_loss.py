"""Does clipping the gradient save a run whose loss runs away, and what does it cost a run that is healthy?

Rows      P3, P6
Command   python experiments/exploding_loss.py [--seed N] [--quick] [--out DIR]
Expected  without clipping the loss of a recurrent net climbs and is NaN within 60 steps; with the same seed, clipped to norm
          1.0 or each number to 0.02, it ends below a tenth of its first value; on healthy runs, recurrent at norm 1.0 and a
          transformer at 5.0, clipping costs under 1 % of the loss; min(g, 1) leaves -50 at -50, optax's clip makes it -1
Time      about 60 s on two cores; --quick, without the healthy runs, 5 s

The sick run: an rnn of 32 units reads digits row by row and says ten numbers, mean squared error to one-hot targets, its last
layer started at nearly three times Xavier's weights, plain gradient descent at rate 1. The healthy ones, four starts each: the
same net with weights as they should be at rate 0.1, and a transformer of one block on plays by Adam at 0.003, whose gradient
never reaches 5.0. At three times these rates another rounding alone moves the final loss by up to 1 %, clipping or not, and no
cost can be told. Clipping by norm is that of Pascanu, Mikolov and Bengio 2013, section 3.2. The figure: the losses of the sick
run.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import order, small_digits, start
from lab import Lab, main

from fbackprop import chain, dense, gpt, init_opt_state, mse, objective, rnn, value_and_grad
from fbackprop.data import text
from fbackprop.report.figures import CYCLE

CLIPS = {"no clipping": optax.identity(), "norm 1.0": optax.clip_by_global_norm(1.0), "value 0.02": optax.clip(0.02)}
TOP = 3000.0  # of the figure
STARTS, STEPS = 4, 800  # of the healthy runs
WORDS = {"norm 1.0": "the whole gradient to norm 1", "value 0.02": "each number to -0.02 .. 0.02"}


def losses(by_hand: Any, tx: Any, params: Any, batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """(loss, norm of the gradient before clipping) of each run and step; params: stacked by run, batches: by run and step."""

    @jax.jit
    @jax.vmap
    def run(params: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, opt_state = carry
            value, grads = by_hand(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (value, optax.tree.norm(grads))

        return jax.lax.scan(step, (params, init_opt_state(tx, params)), batches)[1]

    return tuple(map(np.asarray, run(params, batches)))


def sick(lab: Lab) -> dict[str, np.ndarray]:
    net = chain(rnn(32, last=True), dense(10, w_init=jax.nn.initializers.variance_scaling(8.0, "fan_avg", "normal")))
    batches, params = jax.tree.map(lambda a: a[None], (digit_batches(lab.seed, lab.pick(600, 200)), start(net, lab.seed)))
    sgd = lambda clip: optax.chain(clip, optax.sgd(1.0))
    return {name: losses(value_and_grad(net, mse()), sgd(clip), params, batches)[0][0]
            for name, clip in CLIPS.items() if not lab.quick or name != "value 0.02"}


def healthy(lab: Lab) -> list[list[Any]]:
    """Rows of net, bound, final loss without and with clipping, cost, share of steps clipped; of STARTS runs each."""
    rnn_net, gpt_net = chain(rnn(32, last=True), dense(10)), gpt(80, 32, features=32, heads=2, blocks=1)
    sgd, adam = (f(optax.cosine_decay_schedule(rate, STEPS)) for f, rate in ((optax.sgd, 0.1), (optax.adam, 3e-3)))
    found = [healthy_row("rnn on digits", 1.0, rnn_net, mse(), sgd, digit_batches, lab.seed),
             healthy_row("transformer on plays", 5.0, gpt_net, None, adam, windows, lab.seed)]
    lab.table(["healthy run", "to norm", "final loss without", "with", "cost in %", "steps clipped in %"], found, "healthy")
    return found


def healthy_row(words: str, bound: float, net: Any, loss: Any, tx: Any, make: Any, seed: int) -> list[Any]:
    seeds = range(STARTS * seed, STARTS * (seed + 1))
    batches = jax.tree.map(lambda *each: np.stack(each), *[make(each, STEPS) for each in seeds])
    first = jax.tree.map(lambda a: a[0, 0], batches)
    init = lambda seed: objective(net, loss).init(jax.random.key(seed), first)
    params = jax.jit(jax.vmap(init))(np.array(seeds))
    run, final = partial(losses, value_and_grad(net, loss)), lambda curves: float(np.mean(curves[:, -100:]))
    plain, norms = run(tx, params, batches)
    clipped, _ = run(optax.chain(optax.clip_by_global_norm(bound), tx), params, batches)
    cost = 100 * (final(clipped) / final(plain) - 1)
    return [words, bound, final(plain), final(clipped), cost, 100 * float(np.mean(norms > bound))]


def digit_batches(seed: int, steps: int) -> Any:
    """Digits and their classes as ten numbers, 0 or 1."""
    (x, y), rows = small_digits().train, order(seed, steps)
    return x[rows], np.eye(10, dtype=np.float32)[y[rows]]


def windows(seed: int, steps: int, size: int = 16, length: int = 32) -> Any:
    """Batches of the plays: ids and the ids that follow them, each (steps, size, length)."""
    ids = text().train
    starts = np.random.default_rng(seed).integers(len(ids) - length - 1, size=(steps, size, 1)) + np.arange(length + 1)
    return ids[starts[..., :-1]], ids[starts[..., 1:]]


def one_sided(lab: Lab) -> None:
    g = jnp.array([-50.0, -0.5, 0.5, 50.0])
    texts, optaxs, norm = jnp.minimum(g, 1.0), optax.clip(1.0).update(g, ())[0], optax.clip_by_global_norm(1.0).update(g, ())[0]
    lab.table(["gradient", *map(str, g.tolist())], [["min(g, 1)", *texts.tolist()], ["clip(-1, 1)", *optaxs.tolist()],
                                                    ["to norm 1", *norm.tolist()]], "one sided")
    lab.expect("min(g, 1) leaves -50 as it is", float(texts[0]), texts[0] == -50)
    lab.expect("optax.clip(1) makes -50 to -1 and 50 to 1", optaxs.tolist(), optaxs.tolist() == [-1, -0.5, 0.5, 1])
    turned = float(jnp.vdot(norm, g) / (jnp.linalg.norm(norm) * jnp.linalg.norm(g)))
    lab.expect("clipping by norm keeps the direction, cosine", turned, abs(turned - 1) < 1e-6)


def experiment(lab: Lab) -> None:
    runs = sick(lab)
    wild = runs["no clipping"]
    nan = int(np.argmax(np.isnan(wild)))
    print("without clipping:", ", ".join(f"{value:.3g}" for value in wild[:nan + 1]), "\n")
    lab.expect("without clipping the loss is NaN from step", nan + 1, 0 < nan <= 60 and np.all(np.isnan(wild[nan:])))
    climb = int(np.argmax(wild > 10 * wild[0]))
    lab.expect("it climbs before: ten times the first loss at step", climb + 1, 0 < climb < nan - 5)
    for name, curve in [*runs.items()][1:]:
        end = float(np.mean(curve[-50:]))
        lab.expect(f"same seed, clipped, {name}: last loss over the first", end / wild[0], end < 0.1 * wild[0])
    for words, bound, _, _, cost, share in [] if lab.quick else healthy(lab):
        lab.expect(f"{words}, clipped to norm {bound}: cost in % of the final loss", cost, cost < 1)
        lab.expect(f"{words}, norm {bound}: most steps need no clipping, clipped in %", share, share < 10)
    one_sided(lab)
    lab.keep(losses=runs, nan=nan)
    draw(lab, runs, nan)


def draw(lab: Lab, runs: dict[str, np.ndarray], nan: int) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax, wild = figure.axes[0], runs["no clipping"]
    at = np.arange(1, len(wild) + 1)
    ax.plot(at, np.where(np.isfinite(wild), wild, np.nan), "o-", color=CYCLE[1], markersize=4)
    last = np.flatnonzero(wild > TOP)[0] - 1
    ax.annotate(f"no clipping:\n{', '.join(f'{value:.2g}' for value in wild[:8])}, ...\nNaN from step {nan + 1} on",
                (at[last], wild[last]), xytext=(30, 0), textcoords="offset points", va="center", color=CYCLE[1])
    for (name, curve), color in zip([*runs.items()][1:], (CYCLE[0], CYCLE[2])):
        ax.plot(at, curve, color=color, linewidth=1.6, label="clipped: " + WORDS[name])
    ax.legend(loc="center right")
    ax.set(xscale="log", yscale="log", ylim=(0.02, TOP), xlabel="step", ylabel="loss (mean squared error)",
           title="A loss that runs away, and the same seed with its gradient clipped")


if __name__ == "__main__":
    sys.exit(main(experiment))
