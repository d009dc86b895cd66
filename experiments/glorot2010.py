"""Does the normalised initialisation of Glorot and Bengio keep the variance of gradients from layer to layer?

Rows      L5
Command   python experiments/glorot2010.py [--seed N] [--quick] [--out DIR]
Expected  with weights in U[-1/sqrt n, 1/sqrt n] the variance of the gradient falls by 3 from layer to layer, within a fifth, so
          to about 1/81 over five tanh layers; with the normalised weights it stays within a factor of 2.5
Time      about 6 s on two cores; --quick 4 s

Repeats X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010,
section 4.2: the usual weights have n Var[W] = 1/3 (equation 15), so a layer divides the back-propagated variance by 3 where
tanh is about linear; the normalised ones, U[-sqrt 6 / sqrt(n + n'), ...] (equation 16), have n Var[W] = 1 between equal
layers. Figure 7 there shows the histograms. What differs: five tanh layers of 500 units, 500 real digits of 14 x 14 pixels
between 0 and 1. The figure: histograms of the gradient at z of each layer.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
from digit_runs import small_digits
from lab import Lab, main

from fbackprop import Layer, activation_gradients, chain, dense, flatten, softmax_cross_entropy, tanh

LAYERS = 5
ENTRIES = [str(2 * i + 1) for i in range(LAYERS)]  # paths of the hidden dense layers


def old(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -(shape[0] ** -0.5), shape[0] ** -0.5)


STARTS = {"usual: U[-1/sqrt n, 1/sqrt n]": old, "normalised": jax.nn.initializers.glorot_uniform()}


def net_of(start: Any, units: int) -> Layer:
    hidden = [layer for _ in range(LAYERS) for layer in (dense(units, w_init=start), tanh())]
    return chain(flatten(), *hidden, dense(10, w_init=start))


def gradients(units: int, examples: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Per start, at z of each hidden layer, layer 1 first; times the batch size, so per example."""
    x, y = (a[:examples] for a in small_digits().train)
    backward, found = activation_gradients(net_of(old, units), softmax_cross_entropy(), where="[13579]"), {}
    for name, start in STARTS.items():
        dz = backward(jax.jit(net_of(start, units).init)(jax.random.key(seed), x), (x, y))
        found[name] = [examples * np.asarray(dz[path], np.float64).ravel() for path in ENTRIES]
    return found


def experiment(lab: Lab) -> None:
    found = gradients(lab.pick(500, 100), lab.pick(500, 50), lab.seed)
    variances = {name: [float(np.var(dz)) for dz in each] for name, each in found.items()}
    lab.table(["variance at z of layer", *map(str, range(1, LAYERS + 1)), "layer 1 over 5"],
              [[name, *each, each[0] / each[-1]] for name, each in variances.items()], "variances")
    (usual, normalised) = variances.values()
    factors = np.divide(usual[1:], usual[:-1])
    lab.expect("usual weights: each layer divides the variance by 3, within a fifth", factors.tolist(),
               np.all(np.abs(factors / 3 - 1) < lab.pick(0.2, 0.5)))
    lab.expect("usual weights: layer 1 over layer 5, near 1/81", usual[0] / usual[-1],
               lab.quick or 1 / 130 < usual[0] / usual[-1] < 1 / 50)
    spread = max(normalised) / min(normalised)
    lab.expect("normalised weights: largest variance over smallest", spread, spread < 2.5)
    draw(lab, found)


def draw(lab: Lab, found: dict[str, list[np.ndarray]]) -> None:
    figure = lab.figure(10.0, 4.5, columns=2, sharey=True)
    if figure is None:
        return
    from matplotlib import colormaps

    for ax, (name, each) in zip(figure.axes, found.items()):
        top = float(np.std(each[-1]))
        bins = np.linspace(-3, 3, 121)
        for number, dz in enumerate(each):
            density, _ = np.histogram(dz / top, bins=bins, density=True)
            ax.stairs(density, bins, color=colormaps["viridis"](0.9 * number / (LAYERS - 1)), linewidth=1.6,
                      label=f"layer {number + 1}")
        ax.set(yscale="log", ylim=(3e-3, 20), xlabel="gradient at z, in standard deviations of layer 5's", title=name)
    figure.axes[0].set_ylabel("share of gradients per unit of width")
    figure.axes[1].legend(loc="upper right")
    figure.suptitle("Usual weights shrink the gradient towards the input, normalised ones keep it")


if __name__ == "__main__":
    sys.exit(main(experiment))
