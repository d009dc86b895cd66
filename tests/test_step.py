"""make_step and update: metrics, one compile, donation, every kind of optax transformation, State, the same curve as auto."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    Layer,
    Next,
    State,
    as_custom_vjp,
    auto_value_and_grad,
    chain,
    dense,
    dropout,
    init_opt_state,
    make_step,
    mse,
    skip,
    softmax_cross_entropy,
    split,
    tanh,
    update,
    value_and_grad,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((32, 5)), jnp.float32)
TARGET = jnp.sin(X[:, :2]) + X[:, 2:4] * X[:, 1:3]
LABELS = jnp.asarray(X[:, 0] > 0, jnp.int32)
BATCH = X, TARGET


def counter():
    """Passes x on and counts in its State how often it ran; what it counts stands beside a frozen number."""
    init = lambda key, x: {"ran": State(jnp.int32(0)), "fixed": State(jnp.float32(7))}
    backward = lambda params, _, dy: ({"ran": Next(params["ran"].value + 1), "fixed": Next(params["fixed"].value)}, dy)
    return Layer("counter()", init, lambda params, x: (x, ()), backward)


def waves(key, shape, dtype):
    """Weights that cost no compilation."""
    return jnp.asarray(np.sin(1 + np.arange(np.prod(shape))).reshape(shape) / np.sqrt(shape[0]), dtype)


thin = partial(dense, w_init=waves)
NET = chain(counter(), thin(8), tanh(), skip(thin(8)), thin(2))
LOSS, CLASSES = mse(), softmax_cross_entropy()
ADAM = optax.adam(0.02)
BY_HAND = jax.jit(value_and_grad(NET, LOSS))


def start(tx, net=NET):
    params = net.init(KEY, X)
    return params, init_opt_state(tx, params)


def counted(value_and_grad):
    """`(value_and_grad, traces)`: a list that grows by one with each trace."""
    traces = []

    def run(params, batch):
        traces.append(None)
        return value_and_grad(params, batch)

    return run, traces


def train(step, params, opt_state, batch, steps):
    """`(params, losses)`."""
    losses = []
    for _ in range(steps):
        params, opt_state, metrics = step(params, opt_state, batch)
        losses.append(float(metrics["loss"]))
    return params, losses


@cache
def adam_step(run, loss):
    """Compiled once for all tests that only need some step."""
    return make_step(run(NET, loss), ADAM)


def assert_close(got, wanted, rtol):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.max(np.abs(b)))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


# ---- one step


def test_metrics_are_loss_and_norms():
    tx = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.5))
    params, opt_state = start(tx)
    value, grads = BY_HAND(params, BATCH)
    stepped, _, metrics = make_step(value_and_grad(NET, LOSS), tx)(params, opt_state, BATCH)
    wanted = {
        "loss": float(value),
        "grad_norm": norm(split(grads)[0]),  # before clipping
        "update_norm": 0.5 * 0.01,  # after
        "param_norm": norm(split(stepped)[0]),  # after the step, without State
    }
    assert metrics.keys() == wanted.keys()
    assert {name: float(metric) for name, metric in metrics.items()} == pytest.approx(wanted, rel=1e-5)
    assert all(metric.shape == () for metric in metrics.values())
    assert metrics["grad_norm"] > 0.02


def test_twenty_steps_are_one_compile_and_old_buffers_are_given_back():
    by_hand, traces = counted(value_and_grad(NET, LOSS))
    step = make_step(by_hand, ADAM)
    params, opt_state = start(ADAM)
    for _ in range(20):
        old = jax.tree.leaves((params, opt_state))
        params, opt_state, _ = step(params, opt_state, BATCH)
        assert all(leaf.is_deleted() for leaf in old)
    assert len(traces) == 1
    assert not X.is_deleted()
    assert not TARGET.is_deleted()


def test_another_batch_size_needs_no_other_params():
    step = adam_step(value_and_grad, LOSS)
    params, opt_state = start(ADAM)
    for size in (32, 5):
        params, opt_state, metrics = step(params, opt_state, (X[:size], TARGET[:size]))
    assert np.isfinite(metrics["loss"])


def test_a_step_is_the_optimizer_on_the_trainable_half_and_the_next_state():
    params, opt_state = start(optax.sgd(0.3))
    _, grads = BY_HAND(params, BATCH)
    wanted = jax.tree.map(lambda p, g: p - 0.3 * g, params[1:], grads[1:])
    stepped, _, _ = make_step(value_and_grad(NET, LOSS), optax.sgd(0.3))(params, opt_state, BATCH)
    assert_close(stepped, ({"ran": State(1), "fixed": State(7)}, *wanted), 1e-6)


def test_update_by_hand_in_a_loop_is_make_step():
    stepped, losses = train(adam_step(value_and_grad, LOSS), *start(ADAM), BATCH, 5)
    once = jax.jit(partial(update, ADAM))
    (params, opt_state), values = start(ADAM), []
    for _ in range(5):
        value, grads = BY_HAND(params, BATCH)
        params, opt_state = once(params, grads, opt_state)
        values.append(float(value))
    assert_close(params, stepped, 1e-5)
    assert losses == pytest.approx(values, rel=1e-5)


def test_update_hands_on_what_the_transformation_asks_for():
    tx = optax.polyak_sgd(max_learning_rate=0.5)
    params, opt_state = start(tx)
    value, grads = BY_HAND(params, BATCH)
    stepped, _ = jax.jit(partial(update, tx))(params, grads, opt_state, value=value)
    rate = min(0.5, float(value) / norm(split(grads)[0]) ** 2)
    assert_close(stepped[1]["w"], params[1]["w"] - rate * grads[1]["w"], 1e-5)
    assert stepped[0]["ran"].value == 1


@pytest.mark.parametrize("run", [value_and_grad, auto_value_and_grad])
def test_labels_that_do_not_exist_show_as_nan(run):
    _, _, metrics = adam_step(run, CLASSES)(*start(ADAM), (X, LABELS.at[3].set(2)))
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["grad_norm"])


# ---- many steps


@pytest.mark.parametrize(("loss", "target"), [(LOSS, TARGET), (CLASSES, LABELS)], ids=["mse", "classes"])
def test_by_hand_and_auto_have_the_same_loss_curve(loss, target):
    params, losses = train(adam_step(value_and_grad, loss), *start(ADAM), (X, target), 50)
    params_auto, losses_auto = train(adam_step(auto_value_and_grad, loss), *start(ADAM), (X, target), 50)
    assert losses == pytest.approx(losses_auto, rel=1e-5)
    assert losses[-1] < 0.6 * losses[0]
    assert_close(params, params_auto, 1e-3)
    assert params[0]["ran"].value == 50


def by_name(params):
    """Labels for optax.partition: leaves of State never show up."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params)


TRANSFORMATIONS = {
    "sgd": optax.sgd(0.2),
    "momentum": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.03),
    "adamw with a mask": optax.adamw(0.03, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "clip and a schedule": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.05, 30))),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.5),
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.2), learning_rate=0.2),
    "MultiSteps": optax.MultiSteps(optax.sgd(0.3), every_k_schedule=2),
    "partition": optax.partition({"w": optax.adam(0.03), "b": optax.sgd(0.2)}, by_name),
    "plateau, which asks for value": optax.chain(optax.sgd(0.2), optax.contrib.reduce_on_plateau(patience=5)),
    "cocob, which keeps the first params": optax.contrib.cocob(),  # two leaves, one buffer
}


@pytest.mark.parametrize("tx", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_every_kind_of_transformation_learns_in_one_compile(tx):
    by_hand, traces = counted(value_and_grad(NET, LOSS))
    params, losses = train(make_step(by_hand, tx), *start(tx), BATCH, 30)
    assert losses[-1] < 0.7 * losses[0]
    assert len(traces) == 1
    assert params[0]["ran"].value == 30
    assert params[0]["fixed"].value == 7


def test_lbfgs_learns_with_a_value_fn_of_hand_written_rules():
    # its first opt_state has each buffer of two trees twice, and a buffer can be donated once
    net = chain(counter(), thin(4), tanh(), thin(2))
    f, loss = as_custom_vjp(net), as_custom_vjp(LOSS)
    value_fn = lambda params, batch: loss((), (f(params, batch[0]), batch[1]))
    tx = optax.lbfgs(memory_size=3, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=8))
    params, losses = train(make_step(value_and_grad(net, LOSS), tx, value_fn=value_fn), *start(tx, net), BATCH, 10)
    assert losses[-1] < 0.5 * losses[0]
    assert params[0]["ran"].value == 10  # the line search reads State and does not advance it


WRONG_GRADIENTS = {
    "a shape that would broadcast": (lambda p, x, dy: ({"w": dy.sum(0), "b": dy.sum(0)}, dy @ p["w"].T),
                                     "gradient 0/w: expected float32[6,3], got float32[3]"),
    "another dtype": (lambda p, x, dy: ({"w": x.T @ dy, "b": dy.sum(0).astype(jnp.float16)}, dy @ p["w"].T),
                      "gradient 0/b: expected float32[3], got float16[3]"),
    "a leaf left out": (lambda p, x, dy: ({"w": x.T @ dy}, dy @ p["w"].T), "gradient 0/b: expected float32[3], got None"),
}


@pytest.mark.parametrize("kind", WRONG_GRADIENTS)
def test_a_wrong_gradient_does_not_reach_the_optimizer(kind):
    backward, words = WRONG_GRADIENTS[kind]
    net, x = chain(replace(dense(3), backward=backward)), jnp.ones((4, 6))
    params, tx = net.init(jax.random.key(0), x), optax.adam(0.1)
    step = make_step(value_and_grad(net, mse()), tx)
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        step(params, init_opt_state(tx, params), (x, jnp.ones((4, 3))))


def test_update_refuses_half_of_the_gradients():
    net, x = chain(dense(3), dropout(0.5)), jnp.ones((4, 6))
    params, tx = net.init(jax.random.key(0), x), optax.sgd(0.1)
    _, grads = value_and_grad(net, mse())(params, (x, jnp.ones((4, 3))))
    with pytest.raises(TypeError, match="expected 1 Next, one for every State of params, got 0"):
        update(tx, params, split(grads)[0], init_opt_state(tx, params))
