"""What can a net without a non-linearity learn, and what not?

Rows      L6
Command   python experiments/linear_nets.py [--seed N] [--quick] [--out DIR]
Expected  one weight and one bias find the line of least squares to 1e-5; five linear layers are one linear map to 1e-12, and no
          training lifts them above 75 % on XOR, where the same net with tanh has 100 %
Time      about 15 s on two cores; --quick 5 s

Regression in one variable comes first: y = 2 x - 1 with noise, where least squares says what the best line is. XOR is false
where both inputs agree and true where they differ; a straight line has three of its four points at most on the right side
(Minsky and Papert 1969).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lab import Lab, main

from fbackprop import (
    Layer,
    binary_cross_entropy_with_logits,
    chain,
    dense,
    identity,
    init_opt_state,
    mse,
    predict,
    tanh,
    update,
    value_and_grad,
)

CORNERS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
DIFFER = np.array([[0.0], [1.0], [1.0], [0.0]])
WIDTHS = (16, 16, 16, 16, 1)


def trained(net: Layer, loss: Layer, batch: tuple, rate: float, steps: int, seeds: Sequence[int]) -> Any:
    """Params of each seed after full-batch Adam, stacked; by the hand-written chain, all in one program."""
    gradients, tx = value_and_grad(net, loss), optax.adam(rate)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state = carry
        return update(tx, params, gradients(params, batch)[1], opt_state), None

    def of_seed(seed: Any) -> Any:
        params = net.init(jax.random.key(seed, impl="unsafe_rbg"), batch[0])
        return jax.lax.scan(step, (params, init_opt_state(tx, params)), length=steps)[0][0]

    return jax.jit(lambda seeds: jax.lax.map(of_seed, seeds))(jnp.array(seeds))


def deep(activation: Layer) -> Layer:
    parts = [part for width in WIDTHS for part in (dense(width), activation)]
    return chain(*parts[:-1])


def line(lab: Lab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the (slope, intercept) that training found."""
    rng = np.random.default_rng(lab.seed)
    x = rng.uniform(-1, 1, (50, 1))
    y = 2 * x - 1 + 0.2 * rng.standard_normal(x.shape)
    params = trained(dense(1), mse(), (x, y), 0.05, 1500, [lab.seed])
    found = np.array([params["w"].item(), params["b"].item()])
    right = np.polyfit(x[:, 0], y[:, 0], 1)
    lab.table(("", "slope", "intercept"), [("by gradients", *found), ("by least squares", *right)], "line")
    apart = float(np.max(np.abs(found - right)))
    lab.expect("one weight and one bias: apart from least squares, at most 1e-5", apart, apart <= 1e-5)
    return x, y, found


def one_map(lab: Lab) -> None:
    net, x = deep(identity()), np.random.default_rng(lab.seed).standard_normal((100, 2))
    params = net.init(jax.random.key(lab.seed), x)
    drawn = [{"w": p["w"], "b": jax.random.normal(jax.random.key(i), p["b"].shape)} for i, p in enumerate(params[::2])]
    params = tuple(drawn[i // 2] if i % 2 == 0 else () for i in range(len(params)))
    w = reduce(jnp.matmul, [p["w"] for p in drawn])
    b = reduce(lambda b, p: b @ p["w"] + p["b"], drawn, jnp.zeros(2))
    y = predict(net)(params, x)
    apart = float(jnp.max(jnp.abs(y - (x @ w + b))) / jnp.max(jnp.abs(y)))
    lab.expect("five linear layers against the product of their weights, relative, at most 1e-12", apart, apart <= 1e-12)


def xor(lab: Lab) -> dict[str, tuple[Layer, tuple]]:
    loss, found = binary_cross_entropy_with_logits(), {}
    starts = range(lab.pick(20, 3) * lab.seed, lab.pick(20, 3) * (lab.seed + 1))
    for name, net in {"linear": deep(identity()), "tanh": deep(tanh())}.items():
        params = trained(net, loss, (CORNERS, DIFFER), 0.01, 400, starts)
        right = jnp.mean((jax.vmap(predict(net), (0, None))(params, CORNERS) > 0) == (DIFFER > 0.5), axis=(1, 2))
        best = int(jnp.argmax(right))
        found[name] = net, jax.tree.map(lambda leaf, best=best: leaf[best], params)
        if name == "linear":
            lab.expect(f"XOR, linear: the best of {len(starts)} starts, at most .75", right[best], right[best] <= 0.75)
        else:
            lab.expect(f"XOR, tanh: share of {len(starts)} starts that get all of it, at least .9",
                       jnp.mean(right == 1), jnp.mean(right == 1) >= 0.9)
    return found


def experiment(lab: Lab) -> None:
    with jax.enable_x64(True):
        x, y, found = line(lab)
        one_map(lab)
        nets = xor(lab)
        if lab.figure(wide=10, high=3.4, columns=3) is None:
            return
        fit, *planes = lab.drawn.axes
        fit.plot(x, y, ".", color="#777777")
        fit.plot([-1, 1], [found[1] - found[0], found[1] + found[0]])
        fit.set(xlabel="x", ylabel="y", title="one weight, one bias: the best line")
        grid = np.stack(np.meshgrid(np.linspace(-2, 2, 101), np.linspace(-2, 2, 101)), axis=-1)
        for ax, (name, (net, params)) in zip(planes, nets.items()):
            p = jax.nn.sigmoid(predict(net)(params, grid))[..., 0]
            ax.imshow(p, origin="lower", extent=(-2, 2, -2, 2), cmap="coolwarm", vmin=0, vmax=1)
            for corner, differ in zip(CORNERS, DIFFER[:, 0]):
                ax.plot(*corner, "o", color="white" if differ else "black", markeredgecolor="black")
            ax.grid(False)
            ax.set(title=f"XOR, five layers, {name}", xlabel="x1", ylabel="x2")


if __name__ == "__main__":
    sys.exit(main(experiment))
