"""Pooling: against loops in numpy, PyTorch, XLA's own reduce_window; ties, NaN, padding; bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fbackprop import Layer, avg_pool, chain, conv2d, global_avg_pool, global_max_pool, max_pool, predict, relu, vjp

pytestmark = pytest.mark.usefixtures("quick_compile")
X = np.random.default_rng(0).standard_normal((2, 5, 7, 3))


@partial(jax.jit, static_argnums=0)
def run(layer, x, dy):
    y, pullback = vjp(layer, (), x)
    return y, pullback(dy)[1]


def dy_for(layer, x):
    return np.random.default_rng(1).standard_normal(jax.eval_shape(predict(layer), (), x).shape)


def looped(x, dy, window, stride, low, kind):
    """(y, dx) window by window; kind: max, mean, or mean of what is not padding."""
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for at in np.ndindex(dy.shape):
        b, *place, c = at
        met = [tuple(n * s + i - a for n, s, i, a in zip(place, stride, k, low)) for k in np.ndindex(*window)]
        met = [i for i in met if all(0 <= i_ < n for i_, n in zip(i, x.shape[1:-1]))]
        values = [x[(b, *i, c)] for i in met]
        if kind == "max":
            y[at] = max(values)
            dx[(b, *met[values.index(y[at])], c)] += dy[at]  # index: the first of equals
        else:
            count = np.prod(window) if kind == "mean" else len(met)
            y[at] = sum(values) / count
            for i in met:
                dx[(b, *i, c)] += dy[at] / count
    return y, dx


two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))
LAYERS = {"max": max_pool, "mean": avg_pool, "mean without padding": partial(avg_pool, count_include_pad=False)}


@settings(max_examples=15, deadline=None)
@given(two(3, 7), two(1, 3), two(1, 3), two(0, 2), two(0, 2), st.sampled_from(list(LAYERS)), st.booleans())
def test_pooling_window_by_window(sizes, window, stride, low, high, kind, ties):
    padding = tuple((min(a, k - 1), min(b, k - 1)) for a, b, k in zip(low, high, window))
    layer = LAYERS[kind](window, stride=stride, padding=padding)
    x = np.random.default_rng(0).standard_normal((2, *sizes, 2))
    x = np.round(x) if ties else x
    with jax.enable_x64(True):
        dy = dy_for(layer, x)
        got = run(layer, x, dy)
    for a, b in zip(got, looped(x, dy, window, stride, [a for a, _ in padding], kind)):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("layer", "window", "stride", "padding"), [
    (max_pool(), 2, 2, "VALID"), (max_pool(3, stride=2, padding="SAME"), 3, 2, "SAME"),
    (max_pool(3, stride=1), 3, 1, "VALID")])
def test_ties_go_to_the_same_element_as_in_xla(layer, window, stride, padding):
    x = jnp.asarray(np.maximum(np.round(X), 0), jnp.float32)  # what comes out of a relu: windows of zeros
    dy = jnp.asarray(dy_for(layer, x), jnp.float32)
    reduce = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), padding)
    y, dx = run(layer, x, dy)
    y_xla, pullback = jax.vjp(reduce, x)
    np.testing.assert_array_equal(y, y_xla)
    np.testing.assert_allclose(dx, pullback(dy)[0], rtol=1e-6)
    np.testing.assert_allclose(dx, jax.vjp(lambda x: predict(layer)((), x), x)[1](dy)[0], rtol=1e-6)  # and autodiff of ours


@pytest.mark.parametrize("layer", [max_pool(), global_max_pool()], ids=repr)
def test_of_equal_maxima_the_first_takes_all(layer):
    y, dx = run(layer, jnp.ones((1, 2, 2, 1)), jnp.full(jax.eval_shape(predict(layer), (), jnp.ones((1, 2, 2, 1))).shape, 3.0))
    assert np.all(y == 1)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[3, 0], [0, 0]])


@pytest.mark.parametrize(
    "layer", [max_pool(), max_pool(2, stride=2, padding="SAME"), global_max_pool()], ids=repr)
def test_a_nan_is_the_maximum_and_takes_the_cotangent(layer):
    x = jnp.asarray([[1.0, 5.0], [np.nan, 7.0]])[None, :, :, None]
    y, dx = run(layer, x, jnp.ones(jax.eval_shape(predict(layer), (), x).shape))
    assert np.all(np.isnan(y))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 0], [1, 0]])


def test_padding_is_never_the_maximum():
    pool, x = max_pool(3, stride=1, padding="SAME"), jnp.full((1, 2, 2, 1), -5.0)
    y, dx = run(pool, x, jnp.ones((1, 2, 2, 1)))
    assert np.all(y == -5)
    assert np.sum(dx) == 4


def test_padding_counts_in_a_mean_unless_told():
    x = jnp.ones((1, 2, 2, 1))
    counted = avg_pool(3, stride=1, padding="SAME")
    left_out = avg_pool(3, stride=1, padding="SAME", count_include_pad=False)
    np.testing.assert_allclose(predict(counted)((), x), np.full((1, 2, 2, 1), 4 / 9), rtol=1e-6)
    np.testing.assert_array_equal(predict(left_out)((), x), x)


def test_a_maximum_keeps_one_byte_an_output():
    _, (winner, _) = max_pool().forward((), jnp.zeros((2, 4, 6, 3)))
    assert (winner.shape, winner.dtype) == ((2, 2, 3, 3), np.uint8)
    assert jax.eval_shape(max_pool((257,)).forward, (), jnp.zeros((1, 257, 1)))[1][0].dtype == np.uint16
    assert jax.tree.leaves(avg_pool().forward((), jnp.zeros((2, 4, 6, 3)))[1]) == []
    assert jax.tree.leaves(global_avg_pool().forward((), jnp.zeros((2, 4, 6, 3)))[1]) == []


@pytest.mark.parametrize(
    "layer", [max_pool(), avg_pool(2, stride=1), global_max_pool(), global_avg_pool()], ids=repr)
def test_jax_transforms_go_through_the_rule(layer):
    bent = lambda x: jnp.tanh(predict(layer)((), x))
    ours = lambda x: run(layer, x, bent(x))[1]
    theirs = lambda x: jax.vjp(lambda x: predict(layer)((), x), x)[1](bent(x))[0]
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        got, want = (jax.jit(lambda x, f=f: jax.jvp(f, (x,), (x,)))(x) for f in (ours, theirs))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)
        each = jax.vmap(lambda x: ours(x[None])[0])(x)
    np.testing.assert_allclose(each, got[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [global_avg_pool(), avg_pool((300,))], ids=repr)
def test_narrow_means_are_summed_wide(layer):
    x = jnp.ones((1, 600, 1), jnp.bfloat16)
    y, dx = run(layer, x, jnp.ones(jax.eval_shape(predict(layer), (), x).shape, x.dtype))
    assert np.all(y == 1)  # sums of ones stop at 256 in bfloat16
    assert y.dtype == dx.dtype == jnp.bfloat16


@pytest.mark.parametrize(("layer", "shape", "out"), [
    (max_pool(), (0, 4, 6, 3), (0, 2, 3, 3)), (avg_pool(), (2, 0, 4, 6, 3), (2, 0, 2, 3, 3)),
    (max_pool((3,)), (2, 7, 0), (2, 2, 0)), (max_pool(), (2, 1, 4, 6, 3), (2, 1, 2, 3, 3)),
    (global_max_pool(), (0, 4, 3), (0, 3)), (global_avg_pool(), (2, 4, 3, 2, 0), (2, 0)),
], ids=str)
def test_leading_axes_and_empty_ones(layer, shape, out):
    y, dx = run(layer, jnp.zeros(shape), jnp.zeros(out))
    assert (y.shape, dx.shape) == (out, shape)


def test_a_convnet_trains_through_it():
    net = chain(conv2d(4, 3), relu(), max_pool(), conv2d(5, 3, stride=2), relu(), global_avg_pool())
    with jax.enable_x64(True):
        params = net.init(jax.random.key(0), jnp.asarray(X))
        bent = lambda params, x: jnp.cos(predict(net)(params, x))
        ours = lambda *at: vjp(net, *at)[1](bent(*at))
        theirs = lambda *at: jax.vjp(predict(net), *at)[1](bent(*at))
        got, want = (jax.jit(f)(params, X) for f in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), got, want)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: max_pool(0), "max_pool window: expected a whole number of at least 1, or 2 of them, got 0"),
    (lambda: max_pool((2, 2, 2)), r"max_pool window: expected a whole number, a pair, or \(w,\) for one axis, got \(2, 2, 2\)"),
    (lambda: avg_pool(2.0), "avg_pool window: .* got 2.0"),
    (lambda: avg_pool((3,), stride=(2, 2)), r"avg_pool stride: .* or 1 of them, got \(2, 2\)"),
    (lambda: max_pool(2, stride=2, padding="same"),
     "max_pool padding: expected 'SAME', 'VALID' or 2 "),
    (lambda: max_pool(2, stride=2, padding=((2, 0), (0, 0))),
     r"max_pool padding: expected less on each side than the window, \(2, 2\)"),
])
def test_options_are_checked(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(("layer", "x", "text"), [
    (max_pool(), np.ones((5, 7, 3)), r"x: expected at least 4 axes, \(B..., H, W, C\), got float64\[5,7,3\]. A window \(w,\)"),
    (max_pool(6), X, r"max_pool window: expected at most the padded input, \(5, 7\), got a window that reaches over \(6, 6\)"),
    (avg_pool((2,)), np.ones((2, 0, 3)), "avg_pool window: expected at most the padded input"),
    (global_avg_pool(), np.ones((2, 0, 3)), r"x: expected \(B, \*sizes, C\) with no spatial axis of size 0, got"),
    (global_max_pool(), np.ones((2, 3)), r"x: expected \(B, \*sizes, C\)"),
    (max_pool(), np.ones((2, 4, 4, 3), int), "x: expected a floating dtype"),
])
def test_inputs_are_checked(layer, x, text):
    with jax.enable_x64(True), pytest.raises(ValueError, match=text):
        predict(layer)((), x)
    with pytest.raises(TypeError, match=r"params: expected \(\)"):
        predict(layer)({"w": 1.0}, x)


def torch_cases():
    """(layer, x, the function in torch of (functional, x with channels first))."""
    row = X[:, 0]
    tied = np.maximum(np.round(X), 0)
    for x in (X, tied):
        yield max_pool(), x, lambda F, x: F.max_pool2d(x, 2)
        padded = max_pool(3, stride=2, padding=((1, 1), (1, 1)))
        yield padded, x, lambda F, x: F.max_pool2d(x, 3, 2, 1)
        yield global_max_pool(), x, lambda F, x: F.adaptive_max_pool2d(x, 1).flatten(1)
    yield max_pool((3,), stride=2), row, lambda F, x: F.max_pool1d(x, 3, 2)
    yield avg_pool((2, 3), stride=(1, 2)), X, lambda F, x: F.avg_pool2d(x, (2, 3), (1, 2))
    padded = partial(avg_pool, 3, stride=2, padding=((1, 1), (1, 1)))
    yield padded(), X, lambda F, x: F.avg_pool2d(x, 3, 2, 1)
    yield padded(count_include_pad=False), X, lambda F, x: F.avg_pool2d(
        x, 3, 2, 1, count_include_pad=False)
    yield avg_pool((3,), stride=2, padding=((1, 1),)), row, lambda F, x: F.avg_pool1d(x, 3, 2, 1)
    yield global_avg_pool(), X, lambda F, x: F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.peers
@pytest.mark.parametrize(("layer", "x", "of_torch"), list(torch_cases()), ids=lambda a: repr(a) if isinstance(a, Layer) else "")
def test_pytorch_agrees_in_float64(layer, x, of_torch):
    torch = pytest.importorskip("torch")
    first = lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1))  # torch has channels first
    with jax.enable_x64(True):
        dy = dy_for(layer, x)
        got = run(layer, x, dy)
    xs = torch.tensor(first(x)).requires_grad_()
    y = of_torch(torch.nn.functional, xs)
    y.backward(torch.tensor(first(dy)))
    wanted = np.moveaxis(y.detach().numpy(), 1, -1), np.moveaxis(xs.grad.numpy(), 1, -1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, wanted)
