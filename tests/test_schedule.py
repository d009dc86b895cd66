"""Schedules: the same gradients whatever is kept, and as many forwards as the literature counts."""

from math import comb

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import Layer, chain, dense, map_layers, mse, repeat, skip, tanh, value_and_grad
from fbackprop.memory import scheduled
from fbackprop.memory.schedule import binomial, every, recomputed, root, steps_of

SCHEDULES = [every(5, 12), root(12), binomial(3, 12), (1, ((2,), (2, (1,)), 1), (2,), (1,), 1, 1)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("kind", ["chain", "repeat"])
@pytest.mark.usefixtures("quick_compile")
def test_gradients_do_not_depend_on_the_schedule(kind, schedule):
    parts = [chain(dense(5), tanh()) if i % 2 else skip(chain(tanh(), dense(5))) for i in range(12)]
    net = chain(*parts) if kind == "chain" else repeat(chain(dense(5), tanh()), 12)
    x = jax.random.normal(jax.random.key(0), (3, 5))
    params = net.init(jax.random.key(1), x)
    other = scheduled(net, schedule)
    assert jax.tree.structure(other.init(jax.random.key(1), x)) == jax.tree.structure(params)
    want, found = (jax.jit(value_and_grad(n, mse()))(params, (x, x[::-1])) for n in (net, other))
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 30])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_binomial_recomputes_as_little_as_is_possible(n, slots):
    """Griewank and Walther 2000, proposition 1: r n - comb(slots + r, r - 1), r the first with n <= comb(slots + r, r)."""
    r = next(r for r in range(n + 1) if comb(slots + r, r) >= n)
    fewest = r * n - comb(slots + r, r - 1) if r else 0
    schedule = binomial(slots, n)
    assert steps_of(schedule) == n
    assert recomputed(schedule) == fewest  # theirs has the first sweep in it, ours those with residuals: n - 1


def test_recomputed_is_what_runs():
    """Counted by the run itself, one number a step, in eager mode."""
    ran = []

    def counting(i):
        def forward(params, x):
            ran.append(i)
            return x + 1, x

        return Layer(f"step({i})", lambda key, x: (), forward, lambda params, kept, dy: ((), dy))

    net = chain(*(counting(i) for i in range(10)))
    for schedule in (every(2, 10), every(4, 10), (10,), every(1, 10)):
        ran.clear()
        value_and_grad(scheduled(net, schedule), mse())(((),) * 10, (jnp.ones(2), jnp.ones(2)))
        assert len(ran) == 10 + recomputed(schedule)
    assert [recomputed(s) for s in (every(2, 10), (10,), every(3, 10), root(10))] == [10, 0, 10, 10]


def test_an_input_of_every_run_is_all_that_stays():
    block, x = chain(tanh(), dense(64)), jnp.ones((1024, 64))
    kept = {}
    for name, schedule in (("all", (16,)), ("every 4", every(4, 16)), ("root of 16", root(16)), ("binomial", binomial(3, 16))):
        net = scheduled(repeat(block, 16), schedule)
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        memory = jax.jit(value_and_grad(net, mse())).lower(params, (x, x)).compile().memory_analysis()
        kept[name] = memory.temp_size_in_bytes / x.nbytes
    assert kept["all"] > 16
    assert kept["every 4"] == kept["root of 16"] < 0.7 * kept["all"]
    assert kept["binomial"] < kept["all"]


def test_wrong_schedules_are_named():
    net = chain(dense(3), tanh())
    with pytest.raises(ValueError, match=r"schedule: expected 2 steps.*got 3"):
        scheduled(net, (3,))
    with pytest.raises(TypeError, match="a chain or a repeat"):
        scheduled(dense(3), (1,))
    with pytest.raises(ValueError, match="at least 1"):
        every(0, 4)


def test_a_rewrite_below_keeps_the_schedule():
    net = scheduled(repeat(chain(dense(4), tanh()), 6), every(2, 6))
    again = map_layers(net, lambda layer: tanh() if layer.name == "tanh()" else layer)
    assert again.parts[0].name == "chain(dense(4), tanh())"
    x = jnp.ones((2, 4))
    params = again.init(jax.random.key(0), x)
    text = str(jax.make_jaxpr(value_and_grad(again, mse()))(params, (x, x)))
    assert text.count("optimization_barrier") == 1


def test_another_schedule_takes_the_place_of_the_first():
    net = scheduled(repeat(chain(dense(4), tanh()), 6), every(2, 6))
    assert scheduled(net, every(3, 6)).name == "repeat(chain(dense(4), tanh()), 6, schedule=((3,), (3,)))"
    x = jnp.ones((2, 4))
    params = net.init(jax.random.key(0), x)
    jaxpr = lambda n: str(jax.make_jaxpr(value_and_grad(n, mse()))(params, (x, x)))
    assert jaxpr(scheduled(net, every(3, 6))) == jaxpr(scheduled(repeat(chain(dense(4), tanh()), 6), every(3, 6)))


def test_single_steps_copy_no_weights():
    net, x = repeat(dense(256), 8), jnp.ones((1, 256))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    memory = jax.jit(value_and_grad(scheduled(net, every(1, 8)), mse())).lower(params, (x, x)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 256 * 256 * 4


def test_numpy_whole_numbers_are_whole_numbers():
    two, six = np.int64(2), np.int32(6)
    assert every(two, six) == every(2, 6)
    assert binomial(two, six) == binomial(2, 6)
    assert all(type(item) is int for run in every(two, six) for item in run)
