"""The runs that experiments/alerts.py judges the alerts on: what is trained, how, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fbackprop import (
    Layer,
    batch_norm,
    chain,
    conv2d,
    dense,
    flatten,
    from_function,
    gpt,
    init_opt_state,
    lstm_classifier,
    max_pool,
    mlp,
    mse,
    objective,
    probe,
    recommender,
    relu,
    rnn,
    softmax_cross_entropy,
    split,
    value_and_grad,
)
from fbackprop.data import digits, text
from fbackprop.params import merge, paths

STEPS, EVERY = 300, 20  # of a run; a probe every so many
OPTIMIZERS = {"sgd": optax.identity(), "momentum": optax.trace(0.9), "adam": optax.scale_by_adam()}
XENT, MSE = softmax_cross_entropy(), mse()
Alter = Callable[[str, jax.Array], jax.Array]


@dataclass(frozen=True)
class Run:
    """`net` names a row of NETS. sick: the kind of alert that is right, "" for a healthy run; also: another that is. alter:
    (path, leaf) -> leaf of the params at the start. corrupt: (step, batch) -> batch. decay: of the weights, per step and unit
    of rate."""

    net: str
    optimizer: str
    rate: float
    batch: int = 64
    sick: str = ""
    also: str = ""
    why: str = ""
    alter: Alter = lambda path, leaf: leaf
    corrupt: Callable[[int, Any], Any] = lambda step, batch: batch
    decay: float = 0.0


# ---- data: (rng, batch size) -> batch


@cache
def _small_digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = digits().train
    return x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)), y  # (4000, 14, 14)


def _digits(rng: np.random.Generator, size: int, channel: bool = False) -> Any:
    x, y = _small_digits()
    rows = rng.integers(len(x), size=size)
    return (x[rows][..., None] if channel else x[rows]), y[rows]


@cache
def _tokens() -> np.ndarray:
    return text().train


def _windows(rng: np.random.Generator, size: int) -> Any:
    tokens = _tokens()
    starts = rng.integers(len(tokens) - 17, size=size)[:, None] + np.arange(17)
    return tokens[starts[:, :-1]].astype(np.int32), tokens[starts[:, 1:]].astype(np.int32)


def _curve(rng: np.random.Generator, size: int) -> Any:
    x = rng.uniform(-2, 2, (size, 4)).astype(np.float32)
    y = np.stack([np.sin(2 * x[:, 0]) + x[:, 1], x[:, 2] * x[:, 3]], axis=1)
    return x, (y + 0.1 * rng.standard_normal(y.shape)).astype(np.float32)


def _tastes(rng: np.random.Generator, size: int) -> Any:
    fixed = np.random.default_rng(0)
    u, v = fixed.standard_normal((50, 3)), fixed.standard_normal((40, 3))
    users, items = rng.integers(50, size=size), rng.integers(40, size=size)
    score = 3 + np.sum(u[users] * v[items], axis=1) + 0.3 * rng.standard_normal(size)
    return (users.astype(np.int32), items.astype(np.int32)), score.astype(np.float32)


def _picked(params: Any, x: Any) -> jax.Array:
    """Minus the mean of the right class's logit: a cross-entropy somebody forgot the softmax of."""
    logits, labels = x
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))


# ---- nets: (net, loss, batch maker)

image = partial(_digits, channel=True)
NETS: dict[str, Callable[[], tuple[Layer, Layer | None, Callable[[np.random.Generator, int], Any]]]] = {
    "relu": lambda: (mlp((64, 64)), XENT, _digits),
    "tanh": lambda: (mlp((64, 64), activation="tanh"), XENT, _digits),
    "sigmoid": lambda: (mlp((64, 64), activation="sigmoid"), XENT, _digits),
    "sigmoid1": lambda: (mlp((64,), activation="sigmoid"), XENT, _digits),
    "deep sigmoid": lambda: (mlp((32,) * 8, activation="sigmoid"), XENT, _digits),
    "deep relu": lambda: (mlp((32,) * 6), XENT, _digits),
    "deep tanh": lambda: (mlp((32,) * 6, activation="tanh"), XENT, _digits),
    "norm": lambda: (chain(flatten(), dense(48, bias=False), batch_norm(), relu(), dense(10)), XENT, _digits),
    "conv": lambda: (chain(conv2d(8, 3), relu(), max_pool(2), flatten(), dense(10)), XENT, image),
    "rnn": lambda: (chain(rnn(32, last=True), dense(10)), XENT, _digits),
    "lstm": lambda: (lstm_classifier(32), XENT, _digits),
    "gpt": lambda: (gpt(80, 16, features=32, heads=2, blocks=2), None, _windows),
    "recommender": lambda: (recommender(50, 40, rank=3, mean=3.0), MSE, _tastes),
    "regression relu": lambda: (mlp((32, 32), outputs=2), MSE, _curve),
    "regression tanh": lambda: (mlp((32, 32), outputs=2, activation="tanh"), MSE, _curve),
    "raw": lambda: (mlp((64,), activation="tanh"), from_function(_picked), _digits),
}


@cache
def compiled(net: str) -> tuple[Callable, Callable, Callable]:
    """(init, measure, make batch), compiled once for all runs of the net."""
    layer, loss, make = NETS[net]()
    return jax.jit(objective(layer, loss).init), probe(layer, loss), make


@cache
def stepping(net: str, optimizer: str) -> Callable:
    """step(params, state, batch, rate, decay) -> (params, state, loss, norms by layer of gradient, weights, update)."""
    layer, loss, _ = NETS[net]()
    by_hand, tx = value_and_grad(layer, loss), OPTIMIZERS[optimizer]

    def step(params: Any, state: Any, batch: Any, rate: float, decay: float) -> Any:
        value, grads = by_hand(params, batch)
        (trainable, _), (gradients, successors) = split(params), split(grads)
        updates, state = tx.update(gradients, state, trainable)
        updates = jax.tree.map(lambda u, p: -rate * (u + decay * p), updates, trainable)
        trainable = optax.apply_updates(trainable, updates)
        norms = [_by_layer(tree) for tree in (gradients, trainable, updates)]
        return merge(trainable, successors), state, value, norms

    return jax.jit(step)


def _by_layer(tree: Any) -> dict[str, jax.Array]:
    squares: dict[str, Any] = {}
    for path, leaf in paths(tree).items():
        layer = path.rpartition("/")[0]
        squares[layer] = squares.get(layer, 0.0) + jnp.sum(jnp.square(leaf))
    return {path: jnp.sqrt(total) for path, total in squares.items()}


def records(run: Run, seed: int, steps: int = STEPS) -> Iterator[tuple[int, float, dict[str, dict[str, float]], Any]]:
    """(number, loss, layers, readings or None) of every step; the probe sees the params and the batch of its step."""
    (init, measure, make), step = compiled(run.net), stepping(run.net, run.optimizer)
    rng = np.random.default_rng(seed)
    params = init(jax.random.key(seed), make(rng, run.batch))
    leaves, treedef = jax.tree.flatten(params)
    params = jax.tree.unflatten(treedef, [run.alter(path, leaf) for path, leaf in zip(paths(params), leaves)])
    state = init_opt_state(OPTIMIZERS[run.optimizer], params)
    for number in range(1, steps + 1):
        batch = run.corrupt(number, make(rng, run.batch))
        seen = measure(params, batch)[1] if number % EVERY == 1 else None
        params, state, value, norms = step(params, state, batch, run.rate, run.decay)
        value, (gradient, param, update) = jax.device_get((value, norms))
        layers = {path: {"grad_norm": float(gradient[path]), "param_norm": float(param[path]),
                         "update_norm": float(update[path])} for path in gradient}
        yield number, float(value), layers, seen


# ---- what can be wrong


def scaled(factor: float, leaf: str = "w") -> Alter:
    return lambda path, a: a * factor if path.endswith(leaf) else a


def shifted(by: float, but: str = "") -> Alter:
    """Biases of hidden layers moved; those of the layer `but` stay."""
    return lambda path, a: a + by if path.endswith("/b") and not path.startswith(f"{but}/") else a


def constant(value: float) -> Alter:
    return lambda path, a: jnp.full_like(a, value)


def once(at: int, change: Callable[[Any, Any], Any]) -> Callable[[int, Any], Any]:
    """The batch of step `at` is change(x, target)."""
    return lambda step, batch: change(*batch) if step == at else batch


SICK = [
    Run("deep sigmoid", "sgd", 0.1, sick="vanishing", why="eight sigmoid layers"),
    Run("deep sigmoid", "adam", 0.001, sick="vanishing", why="eight sigmoid layers, Adam"),
    Run("deep relu", "sgd", 0.05, sick="vanishing", why="weights a tenth of He's", alter=scaled(0.1)),
    Run("deep tanh", "momentum", 0.01, sick="vanishing", why="weights a tenth of Xavier's", alter=scaled(0.1)),
    Run("deep relu", "sgd", 1e-6, sick="exploding", why="weights six times He's", alter=scaled(6)),
    Run("deep relu", "adam", 0.001, sick="exploding", why="weights eight times He's, Adam", alter=scaled(8)),
    Run("rnn", "sgd", 0.001, sick="exploding", why="recurrent weights four times orthogonal, no clipping",
        alter=lambda path, a: 4 * a if path == "0/1/0/w" else a),
    Run("rnn", "adam", 0.001, sick="exploding", why="recurrent weights four times orthogonal, Adam",
        alter=lambda path, a: 4 * a if path == "0/1/0/w" else a),
    Run("relu", "sgd", 0.1, sick="dead relu", why="hidden biases at -5", alter=shifted(-5, "5")),
    Run("relu", "adam", 0.001, sick="dead relu", why="hidden biases at -4, Adam", alter=shifted(-4, "5")),
    Run("conv", "momentum", 0.01, 32, sick="dead relu", why="the convolution's biases at -5", alter=shifted(-5, "4")),
    Run("relu", "sgd", 3.0, sick="dead relu", also="rate too high", why="a rate that throws the units out, or the loss to NaN"),
    Run("sigmoid", "sgd", 0.1, sick="saturated sigmoid", why="weights thirty times Xavier's", alter=scaled(30)),
    Run("tanh", "adam", 0.001, sick="saturated sigmoid", why="weights thirty times Xavier's, Adam", alter=scaled(30)),
    Run("sigmoid1", "momentum", 0.01, sick="saturated sigmoid", why="pixels 0 to 255",
        corrupt=lambda step, batch: (batch[0] * 255, batch[1])),
    Run("regression tanh", "sgd", 0.02, sick="saturated sigmoid", why="inputs of size 100",
        corrupt=lambda step, batch: (batch[0] * 100, batch[1])),
    Run("relu", "sgd", 5.0, sick="rate too high", why="fifty times too high"),
    Run("tanh", "momentum", 1.0, sick="rate too high", why="fifty times too high"),
    Run("relu", "adam", 0.3, sick="rate too high", why="Adam at 0.3"),
    Run("gpt", "adam", 0.3, 16, sick="rate too high", why="Adam at 0.3"),
    Run("regression tanh", "sgd", 1.5, sick="rate too high", why="bounces, never settles"),
    Run("regression relu", "sgd", 1.0, sick="rate too high", why="diverges"),
    Run("relu", "sgd", 1e-5, sick="rate too low", why="ten thousand times too low"),
    Run("tanh", "adam", 1e-7, sick="rate too low", why="Adam at 1e-7"),
    Run("conv", "momentum", 1e-6, 32, sick="rate too low", why="ten thousand times too low"),
    Run("gpt", "adam", 1e-7, 16, sick="rate too low", why="Adam at 1e-7"),
    Run("relu", "sgd", 0.1, sick="loss spike", why="one batch with pixels times 50",
        corrupt=once(200, lambda x, y: (50 * x, y))),
    Run("conv", "adam", 0.002, 32, sick="loss spike", why="one batch with other labels",
        corrupt=once(250, lambda x, y: (x, (y + 1) % 10))),
    Run("regression tanh", "adam", 0.01, sick="loss spike", why="one batch in other units",
        corrupt=once(150, lambda x, y: (x, 30 * y))),
    Run("recommender", "adam", 0.02, 128, sick="loss spike", why="one batch of ratings in per cent",
        corrupt=once(220, lambda x, y: (x, 20 * y))),
    Run("relu", "sgd", 0.1, sick="early plateau", why="all weights zero", alter=constant(0.0)),
    Run("tanh", "adam", 0.003, sick="early plateau", why="all weights zero, Adam", alter=constant(0.0)),
    Run("deep tanh", "momentum", 0.02, sick="early plateau", why="all weights zero, momentum", alter=constant(0.0)),
    Run("relu", "sgd", 0.1, sick="units alike", why="all weights 0.01", alter=constant(0.01)),
    Run("tanh", "adam", 0.003, sick="units alike", why="all weights 0.02, Adam", alter=constant(0.02)),
    Run("conv", "momentum", 0.02, 32, sick="units alike", why="all weights 0.05, momentum", alter=constant(0.05)),
    Run("relu", "momentum", 0.02, sick="early plateau", why="labels that have nothing to do with the images",
        corrupt=lambda step, batch: (batch[0], np.random.default_rng(step).permutation(batch[1]))),
    Run("raw", "sgd", 0.02, sick="weights growing", why="a loss without a floor: raw logits"),
    Run("raw", "adam", 0.003, sick="weights growing", why="a loss without a floor: raw logits, Adam"),
    Run("relu", "sgd", 0.05, sick="weights growing", why="weight decay with the wrong sign", decay=-0.3),
    Run("regression tanh", "momentum", 0.02, sick="weights growing", why="weight decay with the wrong sign", decay=-0.5),
    Run("relu", "sgd", 0.1, sick="non-finite", why="a NaN among the pixels",
        corrupt=once(100, lambda x, y: (np.where(x > 0.9, np.nan, x).astype(np.float32), y))),
    Run("conv", "adam", 0.002, 32, sick="non-finite", why="a class number that does not exist",
        corrupt=once(60, lambda x, y: (x, np.where(y == 3, 10, y)))),
    Run("recommender", "adam", 0.02, 128, sick="non-finite", why="a rating that is infinite",
        corrupt=once(150, lambda x, y: (x, np.where(y == y.max(), np.inf, y).astype(np.float32)))),
]

HEALTHY = [
    Run("relu", "sgd", 0.1), Run("relu", "adam", 0.001, 16), Run("relu", "momentum", 0.02), Run("relu", "sgd", 0.02, 16),
    Run("tanh", "sgd", 0.1), Run("tanh", "adam", 0.003), Run("tanh", "momentum", 0.02),
    Run("sigmoid1", "sgd", 0.5), Run("sigmoid1", "momentum", 0.1), Run("sigmoid", "adam", 0.003),
    Run("deep relu", "adam", 0.001), Run("deep tanh", "sgd", 0.05),
    Run("norm", "momentum", 0.02), Run("norm", "adam", 0.003),
    Run("conv", "momentum", 0.02, 32), Run("conv", "adam", 0.002, 32),
    Run("rnn", "adam", 0.002), Run("lstm", "adam", 0.003), Run("lstm", "momentum", 0.1),
    Run("gpt", "adam", 0.003, 16),
    Run("recommender", "adam", 0.02, 128), Run("recommender", "adam", 0.005, 128),
    Run("regression relu", "sgd", 0.05), Run("regression relu", "adam", 0.003), Run("regression tanh", "adam", 0.01),
    Run("regression tanh", "momentum", 0.02),
]
