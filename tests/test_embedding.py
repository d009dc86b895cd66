"""embedding, learned_positions, rotary: plain loops and PyTorch, tokens that do not exist, pairs and distances, bad input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fbackprop import chain, embedding, learned_positions, mse, predict, rotary, value_and_grad, vjp
from fbackprop.verify.oracles import quick_jit as jit

KEY = jax.random.key(0)
TOKENS = np.int32([[2, 0, 2], [4, 2, 0]])


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pulled(layer, params, x, dy):
    """`(y, dparams, dx)` by the layer's rule."""
    y, pullback = vjp(layer, params, x)
    return (y, *pullback(dy))


run = jit(pulled, static_argnums=0)


# ---- embedding


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_embedding_is_the_loop_over_tokens(shape, vocabulary, features, seed):
    x = np.random.default_rng(seed).integers(-1, vocabulary + 1, shape).astype(np.int32)  # some of them do not exist
    w, dy = normal(vocabulary, features), normal(*shape, features, seed=1)
    y, dparams, dx = run(embedding(vocabulary, features), {"w": w}, x, dy)
    dw = np.zeros_like(w)
    for at in np.ndindex(*shape):
        legal = 0 <= x[at] < vocabulary
        np.testing.assert_array_equal(y[at], w[x[at]] if legal else np.full(features, np.nan))
        if legal:
            dw[x[at]] += dy[at]
    np.testing.assert_allclose(dparams["w"], dw, rtol=1e-5, atol=1e-6)
    assert dx is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int32])
def test_tokens_that_do_not_exist_are_nan_rows_whatever_their_dtype(dtype):
    w = normal(200, 2)  # more rows than an int8 can count
    x = np.array([3, -1, 127, -128]).astype(dtype)
    y, dparams, _ = run(embedding(200, 2), {"w": w}, x, np.full((4, 2), np.nan, np.float32))
    legal = (x >= 0) & (x < 200)
    np.testing.assert_array_equal(np.isnan(y).all(1), ~legal)
    np.testing.assert_array_equal(y[legal], w[x[legal]])
    rows = np.isnan(dparams["w"]).all(1)
    np.testing.assert_array_equal(np.flatnonzero(rows), np.unique(x[legal]))  # NaN in dy goes where its token is, nowhere else


def test_narrow_rows_are_added_up_wide():
    dy = jnp.ones((4096, 1), jnp.bfloat16)
    _, dparams, _ = run(embedding(2, 1), {"w": jnp.zeros((2, 1), jnp.bfloat16)}, np.zeros(4096, np.int32), dy)
    assert dparams["w"].dtype == jnp.bfloat16
    assert dparams["w"][0] == 4096  # bfloat16 sums of 1 stop at 256


def test_embedding_starts_small_or_as_told():
    w = embedding(300, 100).init(KEY, TOKENS)["w"]
    assert np.std(w) == pytest.approx(0.02, rel=0.05)
    assert np.all(embedding(5, 3, w_init=jax.nn.initializers.ones).init(KEY, TOKENS)["w"] == 1)


def test_tokens_end_the_chain_and_the_weights_learn():
    net = chain(embedding(5, 3), learned_positions(4))
    params = net.init(KEY, TOKENS)
    value, grads = jit(value_and_grad(net, mse()))(params, (TOKENS, normal(2, 3, 3)))
    assert np.isfinite(value)
    assert not np.any(np.asarray(grads[0]["w"])[[1, 3]])  # nobody used them
    assert np.all(np.asarray(grads[0]["w"])[[0, 2, 4]])
    assert not np.any(np.asarray(grads[1]["w"])[3:])


# ---- positions


def test_learned_positions_are_added_to_every_sequence():
    layer, x, dy = learned_positions(7), normal(2, 3, 5), normal(2, 3, 5, seed=1)
    w = normal(7, 5, seed=2)
    y, dparams, dx = run(layer, {"w": w}, x, dy)
    np.testing.assert_allclose(y, x + w[:3], rtol=1e-6)
    np.testing.assert_allclose(dparams["w"], np.concatenate([dy.sum(0), np.zeros((4, 5))]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dx, dy)


def turned(x, base, pairs):
    """The rotation written out, pair by pair and step by step."""
    y = np.array(x, np.float64)
    for t in range(x.shape[-2]):
        for i, (a, b) in enumerate(pairs):
            angle = t * base ** (-2 * i / x.shape[-1])
            y[..., t, a] = np.cos(angle) * x[..., t, a] - np.sin(angle) * x[..., t, b]
            y[..., t, b] = np.sin(angle) * x[..., t, a] + np.cos(angle) * x[..., t, b]
    return y


@pytest.mark.parametrize(("shape", "base"), [((2, 5, 6), 10000.0), ((7, 2), 10.0), ((2, 3, 4, 8), 500.0), ((3, 2, 0), 10.0)])
def test_rotary_turns_pairs_of_halves(shape, base):
    half = shape[-1] // 2
    with jax.enable_x64(True):
        x = normal(*shape, dtype=np.float64)
        y, _, dx = run(rotary(base=base), (), x, x)
    pairs = [(i, i + half) for i in range(half)]
    np.testing.assert_allclose(y, turned(x, base, pairs), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, turned(x, base, [(b, a) for a, b in pairs]), rtol=1e-12, atol=1e-12)  # the other way round


def test_rotary_of_permuted_features_is_the_pairing_of_neighbours():
    x = normal(5, 6)
    order = [0, 2, 4, 1, 3, 5]
    y, _, _ = run(rotary(), (), x[:, order], x)
    np.testing.assert_allclose(y[:, np.argsort(order)], turned(x, 1e4, [(0, 1), (2, 3), (4, 5)]), rtol=1e-5, atol=1e-6)


def test_rotary_keeps_lengths_and_products_depend_on_the_distance_alone():
    with jax.enable_x64(True):
        q, k = (jnp.broadcast_to(normal(1, 8, seed=seed, dtype=np.float64), (9, 8)) for seed in (0, 1))
        (q_turned, _, back), (k_turned, _, _) = (run(rotary(), (), a, a) for a in (q, k))
        again = run(rotary(), (), back, q_turned)
    products = np.asarray(q_turned) @ np.asarray(k_turned).T
    for distance in range(-8, 9):
        assert np.ptp(np.diagonal(products, distance)) < 1e-12
    np.testing.assert_allclose(np.linalg.norm(q_turned, axis=1), np.linalg.norm(q, axis=1))
    np.testing.assert_allclose(again[0], q, rtol=1e-12, atol=1e-12)  # the backward undoes the forward


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rotary_angles_are_made_wide(dtype):
    x = jnp.asarray(normal(600, 2), dtype)  # bfloat16 cannot count to 600
    y, _, _ = run(rotary(), (), x, x)
    wanted, _, _ = run(rotary(), (), x.astype(jnp.float32), x.astype(jnp.float32))
    eps = float(jnp.finfo(dtype).eps)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), wanted, rtol=eps, atol=eps)


# ---- transformations and bad input


def test_under_vmap_each_with_its_own_weights():
    layer, w, dy = embedding(5, 3), normal(2, 5, 3), normal(2, 3, 3, seed=1)
    y, dparams, _ = jit(jax.vmap(partial(pulled, layer)))({"w": w}, TOKENS, dy)
    for i in range(2):
        one, done, _ = run(layer, {"w": w[i]}, TOKENS[i], dy[i])
        np.testing.assert_array_equal(y[i], one)
        np.testing.assert_allclose(dparams["w"][i], done["w"], rtol=1e-6)


X = np.zeros((2, 3, 5), np.float32)


@pytest.mark.parametrize(("layer", "params", "x", "error", "text"), [
    (embedding(5, 3), {"w": normal(5, 3)}, X, ValueError, "x: expected an integer dtype, token numbers, got float32"),
    (embedding(5, 3), {"w": normal(5, 3)}, np.ones(3, bool), ValueError, "x: expected an integer dtype"),
    (embedding(5, 3), {"w": normal(3, 5)}, TOKENS, ValueError, r"w: expected \(5, 3\), got float32\[3,5\]"),
    (embedding(5, 3), (), TOKENS, TypeError, r"params: expected \{'w'\}"),
    (embedding(5, 3), {"w": normal(5, 3)}, (TOKENS,), TypeError, "x: expected one array"),
    (learned_positions(2), {"w": normal(2, 5)}, X, ValueError, r"at most 2 steps, \(..., T, D\), got float32\[2,3,5\]"),
    (learned_positions(7), {"w": normal(7, 4)}, X, ValueError, r"w: expected \(7, 5\)"),
    (learned_positions(7), {"w": normal(7, 5)}, X[0, 0], ValueError, "a time axis and features"),
    (rotary(), (), X, ValueError, "an even last axis: features are turned in pairs, got float32"),
    (rotary(), {"w": X}, X[..., :4], TypeError, r"params: expected \(\)"),
    (rotary(), (), TOKENS, ValueError, "x: expected a floating dtype"),
], ids=str)
def test_bad_input_is_refused(layer, params, x, error, text):
    with pytest.raises(error, match=text):
        predict(layer)(params, x)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: embedding(0, 3), "embedding vocabulary: expected a whole number of at least 1, got 0"),
    (lambda: embedding(5, 3.0), "embedding features: expected a whole number"),
    (lambda: learned_positions(0), "learned_positions length: expected a whole number of at least 1"),
    (lambda: rotary(base=0), "rotary base: expected a number > 0"),
])
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# ---- PyTorch in float64


@pytest.mark.peers
def test_pytorch_agrees_in_float64():
    torch = pytest.importorskip("torch")
    with jax.enable_x64(True):
        w, dy = normal(5, 3, dtype=np.float64), normal(2, 3, 3, seed=1, dtype=np.float64)
        y, dparams, _ = run(embedding(5, 3), {"w": w}, TOKENS, dy)
        x, dx_in = normal(2, 7, 6, dtype=np.float64), normal(2, 7, 6, seed=1, dtype=np.float64)
        turned, _, dx = run(rotary(), (), x, dx_in)

    w_torch = torch.tensor(w, requires_grad=True)
    y_torch = torch.nn.functional.embedding(torch.tensor(TOKENS), w_torch)
    y_torch.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, y_torch.detach().numpy())
    np.testing.assert_allclose(dparams["w"], w_torch.grad.numpy(), rtol=1e-12)

    x_torch = torch.tensor(x, requires_grad=True)  # rotation as a product of complex numbers
    angle = torch.outer(torch.arange(7.0, dtype=torch.float64), 1e4 ** (-torch.arange(3, dtype=torch.float64) / 3))
    product = torch.complex(*x_torch.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    turned_torch = torch.cat([product.real, product.imag], -1)
    turned_torch.backward(torch.tensor(dx_in))
    np.testing.assert_allclose(turned, turned_torch.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, x_torch.grad.numpy(), rtol=1e-10, atol=1e-12)
