"""Clipping, schedules and rules by name: what each does to a gradient, and that a config reaches it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop.errors import Problem
from fbackprop.train.step.optimizer import CLIPS, OPTIMIZERS, SCHEDULES, clipping, optimizer, schedule
from fbackprop.train.task.config import CHOICES, TrainConfig

pytestmark = pytest.mark.usefixtures("quick_compile")
PARAMS = ({"w": jnp.full((2, 3), 2.0), "b": jnp.zeros(3)}, (), {"w": jnp.full((3, 1), 0.5)})
GRADS = ({"w": jnp.full((2, 3), 30.0), "b": jnp.array([0.2, -50.0, 3.0])}, (), {"w": jnp.array([[0.1], [0.2], [-0.2]])})


def clipped(kind):
    tx = clipping(kind)
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


def norm(*leaves):
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves)))


def test_by_value_every_number_both_ways():
    """optax's is symmetric: -50 becomes -1; the one-sided min(g, 1) found in texts leaves it at -50."""
    got = clipped("value:1.0")
    np.testing.assert_allclose(got[0]["b"], [0.2, -1.0, 1.0])
    np.testing.assert_allclose(got[0]["w"], np.ones((2, 3)))
    np.testing.assert_allclose(jnp.minimum(GRADS[0]["b"], 1.0), [0.2, -50.0, 1.0])


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_by_global_norm_the_direction_stays(bound):
    got = clipped(f"norm:{bound}")
    assert norm(*jax.tree.leaves(got)) == pytest.approx(bound, rel=1e-6)
    share = bound / norm(*jax.tree.leaves(GRADS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, share * b, rtol=1e-6), got, GRADS)


def test_by_layer_each_for_itself():
    """The large first layer is cut down and the small last one left as it is; one norm for all would all but stop it."""
    got = clipped("layer:1.0")
    assert norm(*jax.tree.leaves(got[0])) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_array_equal(got[2]["w"], GRADS[2]["w"])
    assert norm(clipped("norm:1.0")[2]["w"]) < 0.02 * norm(GRADS[2]["w"])
    assert jax.tree.structure(got) == jax.tree.structure(GRADS)


def test_adaptive_is_relative_to_the_weights_of_a_unit():
    got = clipped("adaptive:0.1")
    of_units = np.sqrt(np.sum(np.square(got[0]["w"]), axis=0))
    np.testing.assert_allclose(of_units, 0.1 * np.full(3, np.sqrt(8.0)), rtol=1e-5)


@pytest.mark.parametrize("kind", CLIPS)
def test_a_gradient_within_the_bound_stays(kind):
    small = jax.tree.map(lambda g: g * 1e-6, GRADS)
    tx = clipping(f"{kind}:1.0")
    got, _ = jax.jit(tx.update)(small, tx.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, got, small)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_begin_high_and_warmup_comes_first(name):
    plain = schedule(TrainConfig("m", schedule=name, lr=0.1), 100)
    assert float(plain(0)) == pytest.approx(0.1)
    ends = {"constant": 0.1, "cosine": 0.0, "linear": 0.0, "exponential": 0.001}
    assert float(plain(100)) == pytest.approx(ends[name], abs=1e-6)
    warm = schedule(TrainConfig("m", schedule=name, lr=0.1, warmup=10), 100)
    assert [float(warm(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 0.05, 0.1])
    assert float(warm(100)) == pytest.approx(ends[name], abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_steps_downhill_after_clipping(name):
    tx = optimizer(TrainConfig("m", optimizer=name, lr=0.1, clip="norm:1.0", schedule="constant"), 10)
    value = lambda p: jnp.sum(jnp.square(p["x"] - 3.0))
    params = {"x": jnp.zeros(4)}
    state = tx.init(params)
    for _ in range(60):
        updates, state = tx.update(jax.grad(value)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert value(params) < 0.2 * value({"x": jnp.zeros(4)})


def test_names_of_the_config_are_those_there_are():
    """The config knows no jax, so it writes the names a second time."""
    assert set(CHOICES["optimizer"]) == set(OPTIMIZERS)
    assert set(CHOICES["schedule"]) == set(SCHEDULES)
    assert all(TrainConfig("m", clip=f"{kind}:1") for kind in CLIPS)


@pytest.mark.parametrize("clip", ["norm", "norm:", "norm:-1", "norm:nan", "norm:inf", "l2:1", ":1", "norm:1:2"])
def test_a_clip_that_makes_no_sense(clip):
    with pytest.raises(Problem, match=r"for example norm:1\.0"):
        TrainConfig("m", clip=clip)


def test_weight_decay_reaches_the_rule():
    none, some = (optimizer(TrainConfig("m", optimizer="adamw", weight_decay=decay), 10) for decay in (0.0, 0.5))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    still, shrunk = (tx.update(zeros, tx.init(PARAMS), PARAMS)[0] for tx in (none, some))
    assert norm(*jax.tree.leaves(still)) == 0
    np.testing.assert_allclose(shrunk[0]["w"], -0.003 * 0.5 * PARAMS[0]["w"], rtol=1e-5)
