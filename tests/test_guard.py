"""The step that changes nothing where the numbers are not finite, and its scale of the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import PRECISIONS, batch_norm, chain, dense, dropout, make_step, mse, split, tanh, value_and_grad, with_precision
from fbackprop.train.step.training import NORMS, begin, make_training_step, trained_layers

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3)).astype(np.float32)
GOOD, BAD = (X, X[:, :1]), (X * np.nan, X[:, :1])
NET, LOSS = chain(dense(4), batch_norm(), tanh(), dropout(0.2), dense(1)), mse()
TX = optax.adam(0.05)


def first(net=NET, scaled=False):
    return begin(net.init(jax.random.key(0), X), TX, scaled)


def bits(tree):
    leaves = [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in jax.tree.leaves(tree)]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def steps(step, training, batches):
    seen = []
    for batch in batches:
        training, metrics = step(training, batch)
        seen.append(jax.device_get(metrics))
    return training, seen


def test_a_good_step_is_the_plain_one():
    step, plain = make_training_step(value_and_grad(NET, LOSS), TX), make_step(value_and_grad(NET, LOSS), TX)
    training, seen = steps(step, first(), [GOOD] * 5)
    params, opt_state = first()[:2]
    for _ in range(5):
        params, opt_state, metrics = plain(params, opt_state, GOOD)
    for a, b in zip(jax.tree.leaves(split(training.params)[0]), jax.tree.leaves(split(params)[0])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert seen[-1]["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    layers = seen[-1]["layers"]
    assert layers.shape == (3, len(trained_layers(training.params))) == (3, 3)
    assert trained_layers(training.params) == ["0", "1", "4"]
    for name, row in zip(NORMS, layers):
        assert np.linalg.norm(row) == pytest.approx(float(metrics[name]), rel=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_step_changes_no_bit(skip):
    """Neither weights, nor running statistics, nor keys, nor the optimizer's state; without skip, none after it does either."""
    step = make_training_step(value_and_grad(NET, LOSS), TX, skip)
    training, _ = steps(step, first(), [GOOD] * 3)
    before = bits(training[:2])
    training, (bad,) = steps(step, training, [BAD])
    assert bits(training[:2]) == before
    assert not bad["finite"]
    assert bad["halted"] == (not skip)
    training, (after,) = steps(step, training, [GOOD])
    assert (bits(training[:2]) != before) == skip
    assert after["finite"] == skip or after["halted"]


def test_steps_left_out_in_a_row_are_counted():
    step = make_training_step(value_and_grad(NET, LOSS), TX, skip=True)
    training, _ = steps(step, first(), [GOOD, BAD, BAD, BAD])
    assert training.guard.skipped == 3
    training, _ = steps(step, training, [GOOD])
    assert training.guard.skipped == 0


def test_weights_that_overflow_are_told():
    """Finite gradients, a rate beyond everything: the params are lost, and the guard says so before anybody saves them."""
    tx = optax.sgd(1e38)
    training = begin(NET.init(jax.random.key(0), X), tx)
    step = make_training_step(value_and_grad(NET, LOSS), tx, skip=True)
    training, seen = steps(step, training, [(X, 1e6 * X[:, :1])])
    assert seen[0]["lost"]
    assert seen[0]["halted"]
    assert not seen[0]["finite"]


def test_one_compile():
    traces = []

    def counted(params, batch, seed):
        traces.append(None)
        return value_and_grad(NET, LOSS)(params, batch, seed)

    steps(make_training_step(counted, TX, skip=True), first(), [GOOD, BAD, GOOD, GOOD])
    assert len(traces) == 1


def test_a_scale_too_high_is_halved_and_training_goes_on():
    net = with_precision(chain(dense(8), tanh(), dense(1)), PRECISIONS["float16"])
    step = make_training_step(value_and_grad(net, LOSS), TX)
    training, seen = steps(step, first(net, scaled=True), [(X, 40 * X[:, :1])] * 30)
    overflows = [bool(metrics["overflow"]) for metrics in seen]
    count = sum(overflows)
    assert 1 <= count <= 10
    assert overflows == [True] * count + [False] * (30 - count)
    assert training.guard.scale.scale == 2.0 ** (15 - count)
    assert not training.guard.halted
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"]
    assert seen[count]["grad_norm"] < 1e3  # divided by the scale


def test_a_loss_that_is_nan_is_no_matter_of_scale():
    net = with_precision(chain(dense(8), tanh(), dense(1)), PRECISIONS["float16"])
    step = make_training_step(value_and_grad(net, LOSS), TX)
    training, (metrics,) = steps(step, first(net, scaled=True), [BAD])
    assert not metrics["overflow"]
    assert training.guard.halted
