"""What does one misread digit tell every weight of the network?

Rows      C5
Command   python experiments/one_digit.py [--seed N] [--quick] [--out DIR]
Expected  a real 7 is taken for a 3 at 80 % with a loss of 2.5: p - y is +.80 at 3 and -.918 at 7, to 1e-6; the error signals of
          the layers and the gradient of every weight are those of the equations and of jax.grad to 1e-6; a step in their
          direction raises the 7's probability
Time      about 10 s on two cores; --quick 5 s

A net of 14 x 14 pixels, 32 hidden units and 10 digits is trained for a few steps, and of the real 7s that which it most takes
for a 3 is chosen. Its last biases are then shifted so that p(3) = .8 and p(7) = exp(-2.5) = .0821: the logits of 3 and 7 move,
the others keep their proportions and share what is left. Nothing else is made up.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import order, small_digits, start, trained
from lab import Lab, main

from fbackprop import (
    activation_gradients,
    auto_value_and_grad,
    chain,
    dense,
    flatten,
    predict,
    relu,
    softmax_cross_entropy,
    value_and_grad,
)

SEEN, TRUE, SURE, LOSS = 3, 7, 0.8, 2.5
NET, OBJECTIVE = chain(flatten(), dense(32), relu(), dense(10)), softmax_cross_entropy()


def misread(seed: int, steps: int) -> tuple[Any, np.ndarray]:
    """(params, image): a net of `steps` steps, and the real 7 it most takes for a 3, at the wanted probabilities."""
    params, _ = trained(value_and_grad(NET, OBJECTIVE), optax.adam(3e-3), start(NET, seed), order(seed, steps))
    images, labels = small_digits().test
    sevens = images[labels == TRUE]
    logits = np.asarray(predict(NET)(params, sevens), np.float64)
    chosen = int(np.argmax(logits[:, SEEN] - logits[:, TRUE]))
    others = np.delete(logits[chosen], [SEEN, TRUE])
    rest = np.log(np.sum(np.exp(others)) / (1 - SURE - np.exp(-LOSS)))  # log of the sum of all exps, as it shall be
    shift = np.zeros(10)
    shift[SEEN] = rest + np.log(SURE) - logits[chosen, SEEN]
    shift[TRUE] = rest - LOSS - logits[chosen, TRUE]
    last = {"w": params[3]["w"], "b": params[3]["b"] + shift}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (*params[:3], last)), sevens[chosen : chosen + 1]


def by_equations(params: Any, x: np.ndarray) -> dict[str, Any]:
    """Forward and backward of this very net, written out."""
    (w1, b1), (w2, b2) = ((params[i]["w"], params[i]["b"]) for i in (1, 3))
    z1 = x.reshape(1, -1) @ w1 + b1
    a1 = jnp.maximum(z1, 0)
    p = jax.nn.softmax(a1 @ w2 + b2)
    delta2 = p.at[0, TRUE].add(-1.0)
    delta1 = (delta2 @ w2.T) * (z1 > 0)
    return {"p": p[0], "delta2": delta2, "delta1": delta1, "dw2": a1.T @ delta2, "dw1": x.reshape(-1, 1) @ delta1}


def experiment(lab: Lab) -> None:
    with jax.enable_x64(True):
        params, image = misread(lab.seed, lab.pick(60, 30))
        image = np.asarray(image, np.float64)
        batch = image, np.array([TRUE])
        value, grads = jax.jit(value_and_grad(NET, OBJECTIVE))(params, batch)
        signals = activation_gradients(NET, OBJECTIVE)(params, batch)
        mine = by_equations(params, image)
        wrong = np.asarray(signals["3"][0])
        rows = [(n, float(p), float(d)) for n, (p, d) in enumerate(zip(mine["p"], wrong))]
        lab.table(("digit", "p", "p - y"), rows, "logits")
        lab.expect("loss 2.5, so p(7) = .0821", float(value), abs(value - LOSS) < 1e-6)
        lab.expect("p - y at 3: +.80", wrong[SEEN], abs(wrong[SEEN] - SURE) < 1e-6)
        lab.expect("p - y at 7: -.918", wrong[TRUE], abs(wrong[TRUE] - (np.exp(-LOSS) - 1)) < 1e-6)
        lab.expect("p - y sums to 0", float(np.sum(wrong)), abs(np.sum(wrong)) < 1e-12)
        _, auto = jax.jit(auto_value_and_grad(NET, OBJECTIVE))(params, batch)
        pairs = {"error signal of the hidden layer": (signals["1"], mine["delta1"]), "dw1": (grads[1]["w"], mine["dw1"]),
                 "dw2": (grads[3]["w"], mine["dw2"]), "every gradient by jax.grad": (flat(grads), flat(auto))}
        for name, (a, b) in pairs.items():
            apart = float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            lab.expect(f"{name} against {'the chain' if 'jax' in name else 'the equations'}, relative", apart, apart < 1e-6)
        after = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        p_after = jax.nn.softmax(predict(NET)(after, image))[0]
        lab.expect("p(7) after one step at rate .05, before it .0821", float(p_after[TRUE]), p_after[TRUE] > 0.0821)
        if lab.figure(wide=11, high=5.2, rows=2, columns=4) is not None:
            draw(lab, params, image, mine, grads)


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def draw(lab: Lab, params: Any, image: np.ndarray, mine: dict[str, Any], grads: Any) -> None:
    """The image, p and p - y, the hidden layer's signal, and the gradients of the units that are told most."""
    told = np.argsort(-np.abs(np.asarray(mine["delta1"][0])))[:4]
    picture, chances, errors, hidden, *units = lab.drawn.axes
    picture.imshow(image[0], cmap="gray")
    picture.set_title("a real 7")
    chances.bar(range(10), mine["p"], color=["#D55E00" if n == SEEN else "#0072B2" for n in range(10)])
    chances.set(title="p: a 3 at 80 %", xlabel="digit", xticks=range(10))
    errors.bar(range(10), mine["delta2"][0], color=["#D55E00" if n == SEEN else "#0072B2" for n in range(10)])
    errors.set(title="p - y: +.80 at 3, -.918 at 7", xlabel="digit", xticks=range(10))
    hidden.bar(range(32), mine["delta1"][0])
    hidden.set(title="error signals, hidden layer", xlabel="unit")
    top = float(np.max(np.abs(np.asarray(grads[1]["w"])[:, told])))
    for ax, unit in zip(units, told):
        ax.imshow(np.asarray(grads[1]["w"])[:, unit].reshape(14, 14), cmap="coolwarm", vmin=-top, vmax=top)
        ax.set_title(f"gradient of unit {unit}'s weights", fontsize=9)
    for ax in (picture, *units):
        ax.grid(False)
        ax.set(xticks=[], yticks=[])


if __name__ == "__main__":
    sys.exit(main(experiment))
