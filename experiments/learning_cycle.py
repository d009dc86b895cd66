"""What are the five steps of learning, and which of them moves the weights?

Rows      C1
Command   python experiments/learning_cycle.py [--seed N] [--quick] [--out DIR]
Expected  forward, loss and backward leave every weight as it is, to the bit; the optimizer alone moves them, by exactly what
          optax made of the gradients; each update lowers the loss of its own mini-batch; the next mini-batch has other digits
Time      about 8 s on two cores; --quick 4 s

One hidden layer on real digits, batches of 50, plain gradient descent at rate 0.1, each step taken by itself: net.forward, then
loss.forward, then the two backwards, then the optimizer. The same gradients given to Adam make another update, so the update is
the optimizer's and not the backward pass's. The figure: the loss of each mini-batch before and after its own update.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_runs import order, small_digits, start
from lab import Lab, main

from fbackprop import init_opt_state, mlp, softmax_cross_entropy, update, value_and_grad

RATE, SHOWN = 0.1, 3
NET, LOSS, SGD, ADAM = mlp((64,)), softmax_cross_entropy(), optax.sgd(RATE), optax.adam(1e-3)

forward, lossy = jax.jit(NET.forward), jax.jit(LOSS.forward)
whole = jax.jit(value_and_grad(NET, LOSS))


@jax.jit
def backward(params: Any, residuals: Any, kept: Any) -> Any:
    """The gradients: the loss hands the net the error p - y of its output, the net walks back with it."""
    _, (dy, _) = LOSS.backward((), kept, jnp.ones(()))
    return NET.backward(params, residuals, dy)[0], dy


def same(a: Any, b: Any) -> bool:
    """Every number the same, to the bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda u, v: np.asarray(u).tobytes() == np.asarray(v).tobytes(), a, b)))


def norm(tree: Any) -> float:
    return float(optax.tree.norm(tree))


def experiment(lab: Lab) -> None:
    x, y = small_digits().train
    rows = order(lab.seed, lab.pick(24, 4))
    params = start(NET, lab.seed)
    opt_state, held, steps, errors = init_opt_state(SGD, params), [], [], []
    for number, chosen in enumerate(rows):
        batch, before = (x[chosen], y[chosen]), jax.tree.map(np.array, params)
        logits, residuals = forward(params, batch[0])                      # 1
        value, kept = lossy((), (logits, batch[1]))                        # 2
        grads, dy = backward(params, residuals, kept)                      # 3
        held.append(same(params, before))
        errors.append(_apart(grads, whole(params, batch)[1]))
        updates, _ = SGD.update(grads, opt_state, params)
        params, opt_state = update(SGD, params, grads, opt_state)          # 4, not jitted: XLA rounds p + rate g only once
        held.append(same(params, jax.tree.map(lambda p, u: p + np.asarray(u), before, updates)))
        after = lossy((), (forward(params, batch[0])[0], batch[1]))[0]
        steps.append((float(value), float(after)))
        if number < SHOWN:
            right = int(np.sum(np.argmax(logits, axis=1) == batch[1]))
            moved = norm(jax.tree.map(lambda p, b: p - b, params, before))
            tell(number, f"{len(chosen)} digits in, {logits.size} scores out, {right} digits named right", float(value),
                 norm(dy), norm(grads), moved, float(after), rows[(number + 1) % len(rows)])
    before, after = np.array(steps).T
    lab.expect("forward, loss and backward leave every weight as it was, to the bit", sum(held[::2]), all(held[::2]))
    lab.expect("the update adds to each weight exactly what optax made of its gradient", sum(held[1::2]), all(held[1::2]))
    lab.expect("steps taken one by one give value_and_grad's gradients, relative error", max(errors), max(errors) < 1e-5)
    lab.expect("each update lowers the loss of its own mini-batch, least drop", min(before - after), np.all(after < before))
    lab.expect("no digit comes twice in an epoch, digits seen", rows.size, len(np.unique(rows)) == rows.size)
    ratio = norm(ADAM.update(grads, ADAM.init(params), params)[0]) / norm(updates)
    lab.expect("Adam makes another update of the same gradients, norm over SGD's", ratio, not 0.95 < ratio < 1.05)
    lab.keep(before=before, after=after)
    draw(lab, before, after)


def tell(number: int, went: str, loss: float, dy: float, gradient: float, moved: float, after: float, coming: Any) -> None:
    print(f"""step {number + 1}
  1 forward          {went}
  2 loss             {loss:.4f}
  3 backward         error at the output of norm {dy:.4f}, gradient of norm {gradient:.4f}; no weight has moved
  4 update           weights moved by {moved:.5f} = {RATE} x {gradient:.4f}; the loss of these digits is now {after:.4f}
  5 next mini-batch  digits number {', '.join(map(str, coming[:4]))}, ...
""")


def _apart(a: Any, b: Any) -> float:
    return max(float(jnp.max(jnp.abs(u - v)) / jnp.max(jnp.abs(v))) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def draw(lab: Lab, before: np.ndarray, after: np.ndarray) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    at = np.arange(1, len(before) + 1)
    for i in range(len(at) - 1):
        ax.plot(at[i:i + 2], [after[i], before[i + 1]], ":", color="#999999", linewidth=1.2)
    for i, high, low in zip(at, before, after):
        ax.annotate("", (i, low), (i, high), arrowprops={"arrowstyle": "-|>", "color": "#0072B2", "shrinkA": 0, "shrinkB": 0})
    ax.plot(at, before, "o", color="#D55E00", markersize=5, label="1, 2  forward and loss; 3  backward, which moves nothing")
    ax.plot([], [], color="#0072B2", label="4  update, and the same digits again")
    ax.plot([], [], ":", color="#999999", label="5  next mini-batch")
    ax.legend(loc="upper right", framealpha=0.9)
    ax.set(xlabel="step", ylabel="loss of the step's mini-batch (nats)", xticks=at[:: max(1, len(at) // 12)],
           title="Each update lowers the loss of its own mini-batch; the next one brings other digits")


if __name__ == "__main__":
    sys.exit(main(experiment))
