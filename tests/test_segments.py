"""Segments of a sequence: the same y and gradients as all steps at once, in less memory."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import pytest

from fbackprop import check_layer, gru, lstm, map_layers, rnn, split, vjp

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 12, 5))


@pytest.mark.parametrize("remake", ["nothing", "gates", "carries"])
@pytest.mark.parametrize("options", [{}, {"last": True}, {"reverse": True}, {"last": True, "reverse": True}], ids=str)
@pytest.mark.parametrize("make", [rnn, lstm, gru])
def test_segments_change_nothing(make, options, remake):
    whole, parts = make(4, **options), make(4, segment=5, remake=remake, **options)  # 12 steps: segments of 4
    params = whole.init(KEY, X)
    chex.assert_trees_all_equal(parts.init(KEY, X), params)

    def both(layer):
        y, pullback = vjp(layer, params, X)
        return y, pullback(jnp.cos(y))

    chex.assert_trees_all_close(jax.jit(lambda: both(parts))(), jax.jit(lambda: both(whole))(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("remake", ["nothing", "gates", "carries"])
def test_the_rule_is_right(remake):
    assert check_layer(lstm(3, segment=2, remake=remake), X[:2, :4]).verdict == "OK"


def test_memory_falls_with_the_segment():
    x = jnp.ones((16, 128, 32))

    def temp(layer):
        def both(params, x):
            y, pullback = vjp(layer, params, x)
            return pullback(y)

        params = jax.eval_shape(layer.init, KEY, x)
        return jax.jit(both).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    whole, kept, gates, carries = (temp(lstm(64, last=True, **options)) for options in (
        {}, {"segment": 16, "remake": "nothing"}, {"segment": 8}, {"segment": 8, "remake": "carries"}))
    assert kept < 0.6 * whole
    assert gates < 0.16 * whole
    assert carries < 0.15 * whole


@pytest.mark.parametrize("options", [{}, {"segment": 4}, {"segment": 4, "remake": "nothing"}], ids=str)
@pytest.mark.parametrize("name", ["lstm_cell", "recurrent"])
def test_a_rewritten_part_is_still_asked(name, options):
    """Another backward of the cell is used in segments too; one of the recurrence is refused there."""
    def doubled(layer):
        def backward(params, residuals, dy):
            dparams, dx = layer.backward(params, residuals, dy)
            return jax.tree.map(lambda a: 2 * a, dparams), dx

        return replace(layer, backward=backward) if layer.kind == name else layer

    net = lstm(4, **options)
    params = net.init(KEY, X)
    if name == "recurrent" and options:
        with pytest.raises(TypeError, match="segments do not go with replace_rules"):
            map_layers(net, doubled)
        return
    right, twice = (split(vjp(each, params, X)[1](jnp.ones((3, 12, 4)))[0])[0] for each in (net, map_layers(net, doubled)))
    chex.assert_trees_all_close(twice[1][0]["w"], 2 * right[1][0]["w"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(twice[0], right[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"segment": 0}, "segment: expected a whole number"), ({"remake": "gates"}, "remake: expected a segment"),
    ({"segment": 2, "remake": "all"}, "remake: expected 'nothing'"),
    ({"segment": 4, "truncate": 2}, "no truncate"), ({"segment": True}, "segment: expected a whole number")])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lstm(4, **options)
