"""Are the gradients of a first layer's weights large and chaotic early in training, small and steady late?

Rows      C6
Command   python experiments/first_layer.py [--seed N] [--quick] [--out DIR]
Expected  between the first tenth of training and the last, the norm of the gradient of 24 chosen weights falls to less than a
          third, and so does its scatter from step to step
Time      about 15 s on two cores; --quick 4 s

A net 784-64-10 learns 4,000 real digits with Adam at a constant rate, 30 times over. Chosen, before training, are 24 weights of
the first layer: those of 12 middle pixels in 2 units. At every step their gradient on that step's mini-batch is kept.
Norm: the mean over the steps of a tenth of the norm of these 24 numbers. Scatter: the standard deviation of each of them over
the same steps, root mean square over the 24. Figure: both over the ten tenths, the chosen gradients step by step, and the
weights and gradients of eight units as images at six moments.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import optax
from lab import Lab, main
from scanned import start, train

from fbackprop import mlp, softmax_cross_entropy, value_and_grad
from fbackprop.data import digits, shuffled_batches
from fbackprop.report.first_layer import COLORS, picture

HIDDEN, BATCH, RATE, TENTHS = 64, 50, 1e-3, 10
PIXELS = [28 * row + column for row in (10, 13, 16) for column in (10, 13, 15, 18)]
CHOSEN = np.array([(pixel, unit) for pixel in PIXELS for unit in (0, HIDDEN // 2)])
MOMENTS, UNITS = 6, 8
NET, LOSS = mlp((HIDDEN,)), softmax_cross_entropy()


def seen(params: Any, grads: Any) -> dict[str, jax.Array]:
    weights, gradients = params[1]["w"], grads[1]["w"]  # (784, units)
    return {"chosen": gradients[CHOSEN[:, 0], CHOSEN[:, 1]], "weights": weights[:, :UNITS], "gradients": gradients[:, :UNITS]}


def experiment(lab: Lab) -> None:
    batches = shuffled_batches(*digits().train, BATCH)
    steps = lab.pick(30, 8) * batches.steps_per_epoch
    x, y = (np.stack(part) for part in zip(*(batches(lab.seed, step) for step in range(steps))))
    params = start(NET, lab.seed, x[0])
    _, losses, kept = train(value_and_grad(NET, LOSS), optax.adam(RATE), params, (x, y), seen)
    chosen = np.asarray(kept["chosen"])
    tenths = chosen.reshape(TENTHS, -1, len(CHOSEN))
    norms = np.linalg.norm(tenths, axis=-1).mean(axis=1)
    scatters = np.sqrt(np.mean(tenths.std(axis=1) ** 2, axis=-1))

    lab.table(("tenth", "loss", "norm", "scatter"),
              list(zip(range(1, TENTHS + 1), losses.reshape(TENTHS, -1).mean(axis=1).tolist(), norms, scatters)), "tenths")
    for name, values in (("norm", norms), ("scatter", scatters)):
        ratio = float(values[-1] / values[0])
        bound = lab.pick(1 / 3, 2 / 3)
        lab.expect(f"{name} of the chosen gradients, last tenth over first, is below {bound:.2f}", ratio, ratio < bound)
    largest = np.abs(chosen).max(axis=1).reshape(TENTHS, -1)
    lab.keep(spikes=largest.max(axis=1).tolist())
    moments = np.linspace(0, steps - 1, MOMENTS).astype(int)
    draw(lab, chosen, norms, scatters, moments, {name: np.asarray(kept[name])[moments] for name in ("weights", "gradients")})


def draw(lab: Lab, chosen: np.ndarray, norms: np.ndarray, scatters: np.ndarray, moments: np.ndarray, images: Any) -> None:
    figure = lab.figure(13, 6, MOMENTS, 3, width_ratios=[1.1, 1, 1])
    if figure is None:
        return
    axes = np.array(figure.axes).reshape(MOMENTS, 3)
    figure.suptitle("A first layer's gradients: large and chaotic early, small and steady late")
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, 0]:
        ax.remove()
    above, below = figure.add_subplot(grid[:MOMENTS // 2, 0]), figure.add_subplot(grid[MOMENTS // 2:, 0])
    above.plot(chosen, linewidth=0.4)
    above.set_xlabel("step")
    above.set_ylabel("gradient (nats per weight)")
    above.set_title(f"{chosen.shape[1]} chosen weights, a line each", fontsize=10)
    tenths = np.arange(1, TENTHS + 1)
    below.plot(tenths, norms / norms[0], "o-", color="#0072B2", label="norm")
    below.plot(tenths, scatters / scatters[0], "s--", color="#D55E00", label="scatter from step to step")
    below.set_ylim(0, 1.1)
    below.set_xticks(tenths)
    below.set_xlabel("tenth of the training")
    below.set_ylabel("relative to the first tenth")
    below.legend(frameon=False)
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
    for column, (name, values) in zip(axes[:, 1:].T, images.items()):
        scale = float(np.percentile(np.abs(values), 99.5))
        for ax, moment, image in zip(column, moments, values):
            drawn = ax.imshow(picture(image, (28, 28)), cmap=COLORS, vmin=-scale, vmax=scale, interpolation="nearest")
            ax.grid(False)
            ax.set_axis_off()
            ax.set_title(f"{name} of {UNITS} units, step {moment}", fontsize=9)
        figure.colorbar(drawn, ax=list(column), location="bottom", shrink=0.7, aspect=40)


if __name__ == "__main__":
    sys.exit(main(experiment))
