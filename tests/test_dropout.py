"""dropout: the same mask both ways, a new one every step, its share and its mean; the twin; bad input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    Next,
    State,
    chain,
    dense,
    dropout,
    inference,
    init_opt_state,
    make_step,
    merge,
    mse,
    predict,
    split,
    value_and_grad,
    vjp,
)
from fbackprop.verify.oracles import quick_jit as jit

KEY = jax.random.key(0)
ONES = np.ones((50, 40), np.float32)


def pulled(layer, params, x, dy):
    """`(y, dparams, dx)` by the layer's rule."""
    y, pullback = vjp(layer, params, x)
    return (y, *pullback(dy))


run = jit(pulled, static_argnums=0)


def bits(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_is_kept_is_scaled_the_rest_is_zero_and_the_backward_has_the_same_mask(rate):
    layer = dropout(rate)
    y, dparams, dx = run(layer, layer.init(KEY, ONES), ONES, 3 * ONES)
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(y, kept / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(dx, 3 * kept / (1 - rate), rtol=1e-6)
    spread = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(np.mean(kept) - (1 - rate)) < 4 * spread
    assert abs(np.mean(y) - 1) < 4 * spread / (1 - rate)
    assert not np.all(kept == kept[0])  # every example has a mask of its own


def test_a_recompute_has_the_same_mask_and_the_next_step_another():
    layer, masks = dropout(0.5), []
    params = layer.init(KEY, ONES)
    for _ in range(3):
        y, dparams, _ = run(layer, params, ONES, ONES)
        np.testing.assert_array_equal(y, run(layer, params, ONES, 0 * ONES)[0])
        masks.append(np.asarray(y) != 0)
        params = merge(split(params)[0], split(dparams)[1])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.mean(masks[a] == masks[b]) - 0.5) < 0.06  # independent: they agree on half


def test_two_dropouts_of_a_net_and_two_seeds_have_other_masks():
    net = chain(dropout(0.5), dropout(0.5))
    first, second = net.init(KEY, ONES)
    assert not np.array_equal(bits(first["key"].value), bits(second["key"].value))
    kept = np.mean(np.asarray(jit(predict(net))((first, second), ONES)) != 0)
    assert abs(kept - 0.25) < 0.05
    assert not np.array_equal(bits(first["key"].value), bits(net.init(jax.random.key(1), ONES)[0]["key"].value))


def test_the_callers_key_is_not_in_the_params():
    assert not np.array_equal(bits(dropout(0.5).init(KEY, ONES)["key"].value), bits(KEY))  # params are donated


def test_nothing_is_kept():
    layer = dropout(0.5)
    assert jax.tree.leaves(layer.forward(layer.init(KEY, ONES), ONES)[1]) == []


def test_rate_zero_is_the_identity_with_a_key_that_moves_on():
    layer, x = dropout(0), np.float32([[1, np.inf, np.nan]])
    params = layer.init(KEY, x)
    y, dparams, dx = run(layer, params, x, x)
    np.testing.assert_array_equal((y, dx), (x, x))
    assert not np.array_equal(bits(dparams["key"].value), bits(params["key"].value))


def test_what_is_dropped_hides_inf_and_nan():
    layer = dropout(0.5)
    y, _, dx = run(layer, layer.init(KEY, ONES), np.inf * ONES, np.nan * ONES)
    np.testing.assert_array_equal(np.asarray(y) == 0, np.asarray(dx) == 0)
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.5, abs=0.06)


def test_the_twin_is_the_identity_on_the_same_params_and_its_key_stays():
    layer, twin = dropout(0.5), inference(dropout(0.5))
    params = layer.init(KEY, ONES)
    assert jax.tree.structure(twin.init(KEY, ONES)) == jax.tree.structure(params)
    y, dparams, dx = run(twin, params, ONES, 2 * ONES)
    np.testing.assert_array_equal(y, ONES)
    np.testing.assert_array_equal(dx, 2 * ONES)
    assert isinstance(dparams["key"], Next)
    np.testing.assert_array_equal(bits(dparams["key"].value), bits(params["key"].value))


def test_the_mask_does_not_depend_on_the_precision():
    layer = dropout(0.3)
    params = layer.init(KEY, ONES)
    masks = [np.asarray(run(layer, params, jnp.asarray(ONES, t), jnp.asarray(ONES, t))[0] != 0)
             for t in (jnp.float32, jnp.bfloat16, jnp.float16)]
    with jax.enable_x64(True):
        masks.append(np.asarray(run(layer, params, ONES.astype(np.float64), ONES.astype(np.float64))[0] != 0))
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


def test_other_generators_and_vmap_over_keys():
    layer = dropout(0.5)
    assert run(layer, layer.init(jax.random.key(0, impl="rbg"), ONES), ONES, ONES)[0].shape == ONES.shape
    params = jax.vmap(lambda key: layer.init(key, ONES))(jax.random.split(KEY, 3))
    y, dparams, dx = jit(jax.vmap(partial(pulled, layer), (0, None, None)))(params, ONES, ONES)
    np.testing.assert_array_equal(y, dx)
    assert not np.array_equal(y[0], y[1])
    assert dparams["key"].value.shape == (3,)


def test_a_step_advances_the_key():
    net, tx = chain(dense(20), dropout(0.5), dense(1)), optax.sgd(0.1)
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    params = net.init(KEY, x)
    before = bits(params[1]["key"].value)
    step, opt_state = make_step(value_and_grad(net, mse()), tx), init_opt_state(tx, params)
    params, opt_state, _ = step(params, opt_state, (x, x[:, :1]))
    assert not np.array_equal(bits(params[1]["key"].value), before)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_of_dropping_is_refused(rate):
    with pytest.raises(ValueError, match=r"dropout rate: expected a probability of dropping in \[0, 1\)"):
        dropout(rate)


@pytest.mark.parametrize(("params", "text"), [
    ((), r"params: expected \{'key'\}"), ({"key": KEY}, "key: expected a State with one typed key"),
    ({"key": Next(KEY)}, "key: expected a State"), ({"key": State(jax.random.key_data(KEY))}, "typed key, as jax.random.key"),
], ids=["none", "bare", "Next", "raw"])
def test_params_without_a_typed_key_in_state_are_refused(params, text):
    with pytest.raises(TypeError, match=text):
        predict(dropout(0.5))(params, ONES)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="x: expected a floating dtype"):
        predict(dropout(0.5))(dropout(0.5).init(KEY, ONES), ONES.astype(np.int32))
