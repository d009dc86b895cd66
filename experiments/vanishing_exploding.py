"""How fast do gradients shrink or grow on their way back, and do the weights at the start foretell it?

Rows      P1, P2, L5
Command   python experiments/vanishing_exploding.py [--seed N] [--quick] [--out DIR]
Expected  8 halving layers leave .5 .25 ... .00390625, 0.3^4 = .0081, 3^4 = 81, .25^10 = 9.54e-7, each to 1e-15; in twelve nets
          the factor per layer is as foretold within 5 %; over 12 layers only relu with He's weights and tanh with Xavier's or
          He's keep the gradient within a factor of 10
Time      about 15 s on two cores; --quick 4 s

The prediction, for n units, weights of variance v and mean 0, biases 0, and z normal with mean 0 and variance q:
1. forward, z = sum of n products w a: q of a layer = n v E[f(z)^2] of the layer before;
2. backward, da = sum of n products w dz with dz = f'(z) da: E[da^2] of the layer before = n v E[f'(z)^2] E[da^2];
3. so a layer multiplies the norm of da by sqrt(n v E[f'(z)^2]): sqrt(n v / 2) for relu, at most sqrt(n v) / 4 for sigmoid.
It takes weights and gradients for independent: He et al. 2015, section 2.2; with the expectations over z, Poole et al. 2016 and
Schoenholz et al. 2017. He: n v = 2. Xavier (Glorot and Bengio 2010): n v = 1 where layers are equally wide. Inputs: 100 real
digits, each scaled to mean square 1. The figure: measured norms as dots, the prediction as lines.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from digit_runs import small_digits
from lab import Lab, main

from fbackprop import (
    Layer,
    activation_gradients,
    chain,
    dense,
    flatten,
    relu,
    repeat,
    sigmoid,
    softmax_cross_entropy,
    tanh,
    vjp,
)
from fbackprop.report.figures import CYCLE

UNITS, DEPTH = 196, 12
FUNCTIONS = {"sigmoid": sigmoid(), "tanh": tanh(), "relu": relu()}
STARTS = {"three times Xavier": 9.0, "He": 2.0, "Xavier": 1.0, "a tenth of Xavier": 0.01}  # n v
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(200)  # an even number: none at relu's kink


# ---- exact figures, scalar layers in float64


def through(layers: list[Layer], params: list[Any], x: float) -> list[float]:
    """What is left of a gradient of 1 behind the last layer, the last two, ..., all of them."""
    left = []
    for k in range(len(layers)):
        inputs = np.array([x])
        for layer, p in zip(layers[:-1 - k], params):
            inputs = layer.forward(p, inputs)[0]
        _, pullback = vjp(chain(*layers[-1 - k:]), tuple(params[-1 - k:]), inputs)
        left.append(float(pullback(np.ones(1))[1][0]))
    return left


def exact(lab: Lab) -> None:
    weight = lambda w: {"w": np.array([[w]])}
    linear = lambda w, n: through([dense(1, bias=False)] * n, [weight(w)] * n, 1.0)
    halves, small, large = linear(0.5, 8), linear(0.3, 4), linear(3.0, 4)
    at_best = chain(dense(1), sigmoid())  # z = a - 1/2 = 0 in every layer, where the slope is largest
    slopes = through([at_best] * 10, [({**weight(1.0), "b": np.array([-0.5])}, ())] * 10, 0.5)
    lab.table(["8 halving layers", *map(str, range(8, 0, -1))], [["gradient", *halves]])
    for words, got, right in (
            ("8 layers that halve, layer 8 (at the output) to 1", halves, 0.5 ** np.arange(1, 9)),
            ("4 layers of 0.3", small[-1:], [0.0081]), ("4 layers of 3", large[-1:], [81.0]),
            ("10 sigmoid layers at their steepest", slopes[-1:], [0.25**10])):
        apart = np.max(np.abs(np.divide(got, right) - 1))
        lab.expect(f"{words}: {', '.join(f'{value:.9g}' for value in right)}; relative error", apart, apart <= 1e-15)
    lab.keep(halves=halves, small=small, large=large, sigmoids=slopes)


# ---- twelve nets


def measured(name: str, seed: int, examples: int) -> dict[str, np.ndarray]:
    """Norms of da by start, layer 1 first."""
    block = chain(dense(UNITS, w_init=jax.nn.initializers.normal(1.0)), FUNCTIONS[name])
    net = chain(flatten(), repeat(block, DEPTH), dense(10))
    x, y = (a[100 * seed:][:examples] for a in small_digits().train)
    x = x / np.sqrt(np.mean(x**2, axis=(1, 2), keepdims=True))
    params = jax.jit(net.init)(jax.random.key(seed), x)
    backward = activation_gradients(net, softmax_cross_entropy(), where="1/0/1")

    @jax.jit
    @jax.vmap
    def norms(scale: jax.Array) -> jax.Array:
        deep = jax.tree.map(lambda p: p * scale, params[1])
        da = backward((params[0], deep, params[2]), (x, y))["1/0/1"]
        largest = jnp.max(jnp.abs(da), axis=(1, 2), keepdims=True)  # squares of 1e-20 are too small for float32
        return jnp.linalg.norm(da / largest, axis=(1, 2)) * largest[:, 0, 0]

    rows = norms(jnp.sqrt(jnp.array([*STARTS.values()]) / UNITS))
    return dict(zip(STARTS, np.asarray(rows, np.float64)))


def predicted(name: str, nv: float) -> np.ndarray:
    """The factor of layers 2 to DEPTH on the norm of da, from the formulas above and nothing else."""
    f = {"sigmoid": lambda z: 1 / (1 + np.exp(-z)), "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}[name]
    slope = {"sigmoid": lambda z: f(z) * (1 - f(z)), "tanh": lambda z: 1 - np.tanh(z)**2, "relu": lambda z: 1.0 * (z > 0)}[name]
    mean = lambda values: float(np.sum(WEIGHTS * values) / np.sum(WEIGHTS))
    q, factors = nv, []
    for _ in range(DEPTH):
        z = np.sqrt(q) * NODES
        factors.append(np.sqrt(nv * mean(slope(z)**2)))
        q = nv * mean(f(z)**2)
    return np.array(factors[1:])


def experiment(lab: Lab) -> None:
    with jax.enable_x64(True):
        exact(lab)
    rows, curves = [], {}
    for name in lab.pick([*FUNCTIONS], ["relu"]):
        for start, norms in measured(name, lab.seed, lab.pick(100, 50)).items():
            factors = predicted(name, STARTS[start])
            spread, foretold = norms[0] / norms[-1], np.prod(factors)
            got, expected = spread ** (1 / (DEPTH - 1)), foretold ** (1 / (DEPTH - 1))
            rows.append([name, start, got, expected, spread, foretold])
            curves[name, start] = norms / norms[-1], np.append(np.cumprod(factors[::-1])[::-1], 1.0)
    lab.table(["activation", "weights", "factor per layer", "foretold", f"layer 1 over {DEPTH}", "foretold "], rows, "nets")
    apart = max(abs(row[2] / row[3] - 1) for row in rows)
    lab.expect("the factor per layer is as foretold, largest relative difference", apart, apart < 0.05)
    healthy = {(row[0], row[1]) for row in rows if 0.1 < row[4] < 10}
    right = {("tanh", "Xavier"), ("tanh", "He"), ("relu", "He")} & {(row[0], row[1]) for row in rows}
    lab.expect(f"only He's weights, and Xavier's before tanh, keep layer 1 within a factor of 10 of layer {DEPTH}",
               sorted(map(" ".join, healthy)), healthy == right)
    draw(lab, curves)


def draw(lab: Lab, curves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]) -> None:
    names = list(dict.fromkeys(name for name, _ in curves))
    figure = lab.figure(12.0, 4.5, columns=len(names), sharey=True, sharex=True)
    if figure is None:
        return
    layers = np.arange(1, DEPTH + 1)
    for ax, name in zip(figure.axes, names):
        for start, color in zip(STARTS, CYCLE):
            norms, foretold = curves[name, start]
            ax.plot(layers, foretold, color=color, linewidth=1.5, label=f"{start}, foretold")
            ax.plot(layers, norms, "o", color=color, markersize=5)
        ax.axhspan(0.1, 10, color="#009E73", alpha=0.12, linewidth=0)
        ax.set(title=name, xlabel="layer, 1 = at the input", yscale="log", xticks=layers[::2] + 1)
    figure.axes[0].set_ylabel(f"norm of the gradient, over that of layer {DEPTH}")
    figure.axes[-1].annotate("green: within a factor of 10\ndots: measured, lines: foretold", (0.04, 0.04), fontsize=9,
                             xycoords="axes fraction", color="#444444")
    figure.legend(*[[*part] for part in zip(*[(h, s) for h, s in zip(figure.axes[0].lines[::2], STARTS)])],
                  loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("The weights at the start foretell whether gradients vanish or explode on their way back")


if __name__ == "__main__":
    sys.exit(main(experiment))
