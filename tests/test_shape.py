"""reshape, transpose, take_last, scale, log_softmax and the gated blocks: numpy, jax.nn and PyTorch; bad input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fbackprop import Static, geglu, log_softmax, predict, reshape, scale, swiglu, take_last, transpose, vjp
from fbackprop.verify.oracles import quick_jit as jit

KEY = jax.random.key(0)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pulled(layer, params, x, dy):
    """`(y, dparams, dx)` by the layer's rule."""
    y, pullback = vjp(layer, params, x)
    return (y, *pullback(dy))


run = jit(pulled, static_argnums=0)


# ---- elements that move


def assert_moves(layer, x, y):
    """Every element of dy is back where that of x was taken from."""
    got, _, dx = run(layer, (), x, 2 * y)
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(dx, 2 * x)


@pytest.mark.parametrize(("shape", "to"), [
    ((2, 3, 5), (5, 3)), ((2, 3, 5), (15,)), ((2, 6), (2, -1)), ((4, 1), ()), ((4,), (1, 1)), ((2, 3, 0), (0, 7)),
], ids=str)
def test_reshape_is_numpys_behind_the_batch_axis(shape, to):
    x = normal(*shape)
    assert_moves(reshape(*to), x, x.reshape(shape[0], *to))


def test_reshape_of_an_empty_batch_knows_the_rest():
    assert predict(reshape(2, -1))((), np.zeros((0, 6), np.float32)).shape == (0, 2, 3)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_transpose_is_numpys(axes, shape):
    x = normal(*shape)
    assert_moves(transpose(*axes), x, np.transpose(x, axes))


@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 1, 2), (2, 3, 5, 2), (5, 3), (0, 2, 3)], ids=str)
def test_take_last_takes_the_last_step_and_gives_the_others_nothing(shape):
    x = normal(*shape)
    y, _, dx = run(take_last(), (), x, 2 * x[..., -1, :])
    np.testing.assert_array_equal(y, x[..., -1, :])
    np.testing.assert_array_equal(dx[..., -1, :], 2 * x[..., -1, :])
    assert not np.any(dx[..., :-1, :])


@pytest.mark.parametrize("layer", [reshape(3, 2), transpose(0, 2, 1), take_last()], ids=repr)
def test_integers_may_be_moved_and_have_cotangent_none(layer):
    y, pullback = vjp(layer, (), np.ones((4, 2, 3), np.int32))
    assert y.dtype == np.int32
    assert pullback(None) == ((), None)


@pytest.mark.parametrize("layer", [reshape(3, 2), transpose(0, 2, 1), take_last(), scale(2)], ids=repr)
def test_nothing_but_static_shapes_is_kept(layer):
    _, kept = layer.forward((), normal(4, 2, 3))
    assert isinstance(kept, Static) or kept == ()


@pytest.mark.parametrize("factor", [0.1, -3, 0, np.float32(0.5), np.int64(2)])
def test_scale_is_a_product_rounded_once(factor):
    x, dy = normal(3, 5), normal(3, 5, seed=1)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        y, _, dx = run(scale(factor), (), jnp.asarray(x, dtype), jnp.asarray(dy, dtype))
        product = lambda a, t=dtype: (jnp.float32(factor) * jnp.asarray(a, t).astype(jnp.float32)).astype(t)
        np.testing.assert_array_equal((y, dx), (product(x), product(dy)))


# ---- log_softmax


def test_log_softmax_is_the_logarithm_of_softmax_where_that_underflows_too():
    with jax.enable_x64(True):
        x, dy = normal(2, 3, 7, dtype=np.float64), normal(2, 3, 7, seed=1, dtype=np.float64)
        y, _, dx = run(log_softmax(), (), x, dy)
        far, _, dfar = run(log_softmax(), (), np.array([[1e4, 0, -1e4], [1e6, 1e6, -np.inf]]), np.ones((2, 3)))
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    np.testing.assert_allclose(y, np.log(p), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dx, dy - p * dy.sum(-1, keepdims=True), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(far, [[0, -1e4, -2e4], [-np.log(2), -np.log(2), -np.inf]])
    np.testing.assert_allclose(dfar, [[-2, 1, 1], [-0.5, -0.5, 1]])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_log_softmax_keeps_its_probabilities_unrounded(dtype):
    x = jnp.asarray(normal(4, 1000), dtype)
    _, _, dx = run(log_softmax(), (), x, jnp.ones_like(x))
    p = 1000 * jax.nn.softmax(x.astype(jnp.float32))
    eps = float(jnp.finfo(dtype).eps)
    assert dx.dtype == dtype
    np.testing.assert_allclose(dx.astype(jnp.float32), 1 - p, atol=eps * float(jnp.max(p)))  # a rounded y: 3 % of p off


# ---- gated blocks

BLOCKS = {"swiglu": (swiglu, jax.nn.silu), "geglu": (geglu, jax.nn.gelu)}
blocks = pytest.mark.parametrize(("make", "act"), BLOCKS.values(), ids=BLOCKS)


def weights(width, hidden, dtype=np.float32):
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return {name: normal(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


@blocks
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)], ids=str)
def test_gated_blocks_are_the_composition(make, act, leading):
    composed = lambda p, x: (act(x @ p["gate"]) * (x @ p["up"])) @ p["down"]
    with jax.enable_x64(True):
        params, x = weights(5, 7, np.float64), normal(*leading, 5, seed=3, dtype=np.float64)
        dy = normal(*leading, 5, seed=4, dtype=np.float64)
        got = run(make(7), params, x, dy)
        y, *cotangents = jit(lambda p, x, dy: (composed(p, x), *jax.vjp(composed, p, x)[1](dy)))(params, x, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, (y, *cotangents))


@blocks
def test_gated_blocks_keep_x_and_two_hidden_arrays(make, act):
    x = jnp.asarray(normal(3, 5, dtype=jnp.bfloat16))
    params = make(7).init(KEY, x)
    _, kept = make(7).forward(params, x)
    assert kept[0] is x
    assert [(a.shape, a.dtype) for a in kept[1:]] == [((3, 7), jnp.bfloat16)] * 2
    assert {name: p.shape for name, p in params.items()} == {"gate": (5, 7), "up": (5, 7), "down": (7, 5)}
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_gated_blocks_start_with_lecun_or_as_told():
    x = jnp.zeros((1, 200))
    params = swiglu(400).init(KEY, x)
    assert np.std(params["up"]) == pytest.approx(200**-0.5, rel=0.05)
    assert np.std(params["down"]) == pytest.approx(400**-0.5, rel=0.05)
    assert not np.array_equal(params["gate"], params["up"])
    assert np.all(geglu(3, w_init=jax.nn.initializers.ones).init(KEY, x)["down"] == 1)
    assert swiglu(0).init(KEY, x)["gate"].shape == (200, 0)


# ---- bad input

X = np.zeros((2, 3, 5), np.float32)


@pytest.mark.parametrize(("layer", "params", "x", "error", "text"), [
    (reshape(4, 4), (), X, ValueError, r"\(4, 4\) to hold the 15 elements of an example, got float32\[2,3,5\]"),
    (reshape(4, -1), (), X, ValueError, r"\(4, -1\) to hold the 15 elements"),
    (reshape(3), (), np.float32(1), ValueError, "a batch axis"),
    (transpose(0, 1), (), X, ValueError, r"x: expected 2 axes, got float32\[2,3,5\]"),
    (take_last(), (), X[:, :0], ValueError, "at least one step in time"),
    (take_last(), (), X[0, 0], ValueError, "at least one step in time"),
    (scale(2), (), X.astype(np.int32), ValueError, "a floating dtype"),
    (scale(2), {"s": X}, X, TypeError, r"params: expected \(\)"),
    (log_softmax(), (), X[..., :0], ValueError, "a last axis of size at least 1"),
    (take_last(), (), (X, X), TypeError, "x: expected one array"),
    (swiglu(7), weights(4, 7), X, ValueError, r"gate: expected \(5, 7\) for x of width 5, got float32\[4,7\]"),
    (geglu(7), {"gate": X}, X, TypeError, r"params: expected \{'gate', 'up', 'down'\}"),
], ids=str)
def test_bad_input_is_refused(layer, params, x, error, text):
    with pytest.raises(error, match=text):
        predict(layer)(params, x)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: reshape(-1, -1), "at most one of them -1"), (lambda: reshape(2.0), "reshape shape: expected sizes"),
    (lambda: transpose(0, 2), "transpose axes: expected each of 0, 1, ... once"), (lambda: transpose(1, 1), "transpose axes"),
    (lambda: scale("2"), "scale factor: expected a number, got '2'"), (lambda: scale(None), "scale factor"),
    (lambda: swiglu(2.0), "swiglu hidden: expected a whole number"), (lambda: geglu(-1), "geglu hidden: expected a whole"),
])
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# ---- PyTorch in float64


@pytest.mark.peers
@pytest.mark.parametrize("name", ["log_softmax", "swiglu", "geglu"])
def test_pytorch_agrees_in_float64(name):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    act = {"swiglu": F.silu, "geglu": partial(F.gelu, approximate="tanh")}.get(name)
    layer = log_softmax() if act is None else BLOCKS[name][0](7)
    params = () if act is None else weights(5, 7, np.float64)
    x, dy = normal(2, 3, 5, seed=3, dtype=np.float64), normal(2, 3, 5, seed=4, dtype=np.float64)
    with jax.enable_x64(True):
        y, dparams, dx = run(layer, params, x, dy)

    p = {key: torch.tensor(value, requires_grad=True) for key, value in dict(params).items()}
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = F.log_softmax(x_torch, -1) if act is None else (act(x_torch @ p["gate"]) * (x_torch @ p["up"])) @ p["down"]
    y_torch.backward(torch.tensor(dy))
    pairs = [(y, y_torch.detach()), (dx, x_torch.grad), *((dparams[key], value.grad) for key, value in p.items())]
    for a, b in pairs:
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-10 * np.max(np.abs(b.numpy())))
