"""Functions drawn by a seed, most of NumPy, with right gradients that no check may accuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Drawn = tuple[Callable, Callable | None, Any]  # (fn, gradient_fn, where)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def regression(rng: np.random.Generator) -> Drawn:
    x, y, ridge = rng.standard_normal((6, 4)), rng.standard_normal(6), rng.uniform(0, 1)
    return (
        lambda w: np.sum(np.square(x @ w - y)) + ridge * np.sum(np.square(w)),
        lambda w: 2 * x.T @ (x @ w - y) + 2 * ridge * w,
        rng.standard_normal(4),
    )


def logistic(rng: np.random.Generator) -> Drawn:
    """1 - sigmoid cancels."""
    x, y = 3 * rng.standard_normal((20, 4)), rng.integers(0, 2, 20)
    return (
        lambda w: -np.sum(y * np.log(sigmoid(x @ w)) + (1 - y) * np.log(1 - sigmoid(x @ w))),
        lambda w: x.T @ (sigmoid(x @ w) - y),
        rng.standard_normal(4),
    )


def logistic_of_large_features(rng: np.random.Generator) -> Drawn:
    x, y = 100 * rng.standard_normal((20, 4)), rng.integers(0, 2, 20)
    return (
        lambda w: np.sum(np.logaddexp(0, x @ w) - y * (x @ w)),
        lambda w: x.T @ (sigmoid(np.clip(x @ w, -700, 700)) - y),
        rng.standard_normal(4),
    )


def network_of_sigmoids(rng: np.random.Generator) -> Drawn:
    x, y = rng.standard_normal((5, 3)), rng.integers(0, 2, 5)

    def forward(p: dict) -> tuple:
        h = np.tanh(x @ p["a"])
        g = sigmoid(h @ p["b"])
        return h, g, sigmoid(g @ p["c"])

    def loss(p: dict) -> Any:
        s = forward(p)[-1]
        return -np.mean(y * np.log(s) + (1 - y) * np.log(1 - s))

    def gradient(p: dict) -> dict:
        h, g, s = forward(p)
        dz = (s - y) / len(y)
        dg = np.outer(dz, p["c"]) * g * (1 - g)
        dh = dg @ p["b"].T * (1 - h * h)
        return {"a": x.T @ dh, "b": h.T @ dg, "c": g.T @ dz}

    return (
        loss,
        gradient,
        {
            "a": rng.standard_normal((3, 4)),
            "b": rng.standard_normal((4, 3)),
            "c": rng.standard_normal(3),
        },
    )


def network_of_relus(rng: np.random.Generator) -> Drawn:
    x, y = rng.standard_normal((5, 3)), rng.integers(0, 3, 5)
    rows = np.arange(5)

    def forward(p: dict) -> tuple:
        h = x @ p["a"] + p["b"]
        h[h < 0] = 0
        return h, softmax(h @ p["c"])

    def gradient(p: dict) -> dict:
        h, s = forward(p)
        s[rows, y] -= 1
        dh = s @ p["c"].T
        dh[h <= 0] = 0
        return {"a": x.T @ dh, "b": dh.sum(0), "c": h.T @ s}

    return (
        lambda p: -np.log(forward(p)[1][rows, y]).sum(),
        gradient,
        {
            "a": rng.standard_normal((3, 6)),
            "b": rng.standard_normal(6),
            "c": rng.standard_normal((6, 3)),
        },
    )


def one_pass_variance(rng: np.random.Generator) -> Drawn:
    return (
        (lambda x: np.mean(x**2) - np.mean(x) ** 2),
        (lambda x: 2 * (x - x.mean()) / x.size),
        100 + rng.standard_normal(8),
    )


def largest_squares(rng: np.random.Generator) -> Drawn:
    def value(x: np.ndarray) -> Any:
        x.sort()
        return np.sum(x[-3:] ** 2)

    return value, lambda x: np.where(x >= np.sort(x)[-3], 2 * x, 0), rng.standard_normal(9)


def median(rng: np.random.Generator) -> Drawn:
    return (
        lambda x: np.median(x) ** 3,
        lambda x: np.where(x == np.median(x), 3 * x**2, 0),
        rng.standard_normal(7),
    )


def masked(rng: np.random.Generator) -> Drawn:
    def value(x: np.ndarray) -> Any:
        x[x < 0] *= 0.1
        return np.sum(np.sin(x))

    return (
        value,
        lambda x: np.where(x < 0, 0.1 * np.cos(0.1 * x), np.cos(x)),
        rng.standard_normal((3, 4)),
    )


def put(rng: np.random.Generator) -> Drawn:
    at = rng.permutation(8)[:3]

    def value(x: np.ndarray) -> Any:
        y = np.exp(x)
        np.put(y, at, 1.0)
        return np.prod(y)

    return (
        value,
        lambda x: np.where(np.isin(np.arange(8), at), 0.0, value(x)),
        rng.standard_normal(8),
    )


def log_determinant(rng: np.random.Generator) -> Drawn:
    return (
        (lambda a: np.linalg.slogdet(np.asarray(a, float))[1]),
        (lambda a: np.linalg.inv(a).T),
        rng.standard_normal((4, 4)),
    )


def cosine(rng: np.random.Generator) -> Drawn:
    b = rng.standard_normal(6)

    def gradient(a: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return b / size - (a @ b) * a / (size * (a @ a))

    return (
        lambda a: float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        gradient,
        rng.standard_normal(6),
    )


def log_sum_exp(rng: np.random.Generator) -> Drawn:
    """Without the maximum taken out."""
    return lambda z: np.log(np.sum(np.exp(z))), softmax, 5 * rng.standard_normal(6)


def convolution(rng: np.random.Generator) -> Drawn:
    x, t = rng.standard_normal(9), rng.standard_normal(7)
    return (
        lambda w: 0.5 * np.sum((np.convolve(x, w, "valid") - t) ** 2),
        lambda w: np.convolve(x[::-1], np.convolve(x, w, "valid") - t, "valid"),
        rng.standard_normal(3),
    )


def recurrence(rng: np.random.Generator) -> Drawn:
    """A loop over time in plain Python, and its rule by hand."""
    x, t = rng.standard_normal(6), rng.standard_normal()

    def states(w: np.ndarray) -> list:
        h = [0.0]
        for x_t in x:
            h.append(np.tanh(w[0] * h[-1] + w[1] * x_t))
        return h

    def gradient(w: np.ndarray) -> np.ndarray:
        h, dw = states(w), np.zeros(2)
        dh = h[-1] - t
        for k in reversed(range(6)):
            dz = dh * (1 - h[k + 1] ** 2)
            dw += dz * np.array([h[k], x[k]])
            dh = dz * w[0]
        return dw

    return lambda w: 0.5 * (states(w)[-1] - t) ** 2, gradient, rng.standard_normal(2)


def of_jax(rng: np.random.Generator) -> Drawn:
    """1 - sigmoid cancels, and is flat from z = 30 on."""
    return (
        (lambda z: -jnp.sum(jnp.log(1 - 1 / (1 + jnp.exp(-z))))),
        (lambda z: 1 / (1 + jnp.exp(-z))),
        rng.uniform(-5, 15, 3),
    )


FLOAT64 = (
    regression,
    logistic,
    logistic_of_large_features,
    network_of_sigmoids,
    network_of_relus,
    one_pass_variance,
    largest_squares,
    median,
    masked,
    put,
    log_determinant,
    cosine,
    log_sum_exp,
    convolution,
    recurrence,
    of_jax,
)
KINKED = (network_of_relus, masked)


# ---- in float32 inside


def single_numpy(rng: np.random.Generator) -> Drawn:
    x = rng.standard_normal((5, 4)).astype(np.float32)
    return (
        (lambda w: np.sum(np.tanh(x @ w.astype(np.float32)))),
        (lambda w: x.T @ (1 - np.tanh(x @ w.astype(np.float32)) ** 2)),
        rng.standard_normal(4),
    )


def single_sum(rng: np.random.Generator) -> Drawn:
    return lambda x: np.sum(np.sin(x).astype(np.float32)), np.cos, rng.standard_normal(7)


def single_gradient(rng: np.random.Generator) -> Drawn:
    return (
        lambda x: np.sum(np.sin(x)),
        lambda x: np.cos(x.astype(np.float32)),
        rng.standard_normal(7),
    )


def single_jax(rng: np.random.Generator) -> Drawn:
    x = rng.standard_normal((5, 4)).astype(np.float32)
    return (
        (lambda w: jnp.sum(jnp.sin(x @ w.astype(jnp.float32)))),
        (lambda w: x.T @ jnp.cos(x @ w.astype(jnp.float32))),
        rng.standard_normal(4),
    )


def single_rule(rng: np.random.Generator) -> Drawn:
    """The norm of LLaMA, which computes its scale in float32."""

    def scale_of(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        return (1 / jnp.sqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype(x.dtype)

    @jax.custom_vjp
    def norm(x: jax.Array) -> jax.Array:
        return x * scale_of(x)

    def backward(x: jax.Array, dy: jax.Array) -> tuple:
        scale = scale_of(x)
        return (scale * dy - x * scale**3 * jnp.mean(x * dy, -1, keepdims=True),)

    norm.defvjp(lambda x: (norm(x), x), backward)
    return norm, None, rng.standard_normal((3, 4))


FLOAT32_INSIDE = (single_numpy, single_sum, single_gradient, single_jax, single_rule)
