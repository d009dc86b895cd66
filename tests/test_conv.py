"""conv1d and conv2d: against loops in numpy, PyTorch, jax; both weight gradients; bad input."""

from functools import partial
from inspect import unwrap
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbackprop import Layer, conv1d, conv2d, predict, vjp
from fbackprop.layers.conv import correlate, pull_w, pull_x
from fbackprop.layers.kernels import convolution
from fbackprop.layers.kernels.windows import windows

KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((2, 5, 7, 6))


@partial(jax.jit, static_argnums=0)
def run(layer, params, x, dy):
    y, pullback = vjp(layer, params, x)
    return y, *pullback(dy)


def drawn(layer, x, seed=1):
    """params and dy of normal numbers, in float64."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape), jax.eval_shape(layer.init, KEY, x))
    return params, rng.standard_normal(jax.eval_shape(predict(layer), params, x).shape)


def looped(params, x, dy, stride, dilation, low, groups):
    """(y, dw, db, dx) element by element: window by window, channel group by channel group."""
    w = params["w"]
    kernel, (c, o) = w.shape[:-2], (x.shape[-1] // groups, w.shape[-1] // groups)
    y, dw, dx = np.zeros(dy.shape), np.zeros(w.shape), np.zeros(x.shape)
    for b, g, place, k in product(range(len(x)), range(groups), np.ndindex(*dy.shape[1:-1]), np.ndindex(*kernel)):
        at = tuple(n * s + i * d - a for n, s, i, d, a in zip(place, stride, k, dilation, low))
        if all(0 <= i < n for i, n in zip(at, x.shape[1:-1])):
            ins, outs = slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)
            y[(b, *place)][outs] += x[(b, *at)][ins] @ w[k][:, outs]
            dw[k][:, outs] += np.outer(x[(b, *at)][ins], dy[(b, *place)][outs])
            dx[(b, *at)][ins] += w[k][:, outs] @ dy[(b, *place)][outs]
    return y + params.get("b", 0), dw, dy.sum(tuple(range(dy.ndim - 1))), dx


def assert_loops_agree(layer, x, stride, dilation, low, groups):
    with jax.enable_x64(True):
        params, dy = drawn(layer, x)
        y, dparams, dx = run(layer, params, x, dy)
    wanted = looped(params, x, dy, stride, dilation, low, groups)
    for got, want in zip((y, dparams["w"], dparams["b"], dx), wanted):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=8, deadline=None)
@given(two(3, 7), two(1, 3), two(1, 3), two(1, 2), st.tuples(two(0, 3), two(0, 3)),
       st.sampled_from([(1, 3, 2), (2, 4, 6), (3, 3, 3)]))
def test_conv2d_is_the_sum_over_its_windows(sizes, kernel, stride, dilation, padding, channels):
    groups, c, o = channels
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    padding = tuple((a, b + max(0, r - n)) for (a, b), r, n in zip(padding, reach, sizes))
    layer = conv2d(o, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    x = np.random.default_rng(0).standard_normal((2, *sizes, c))
    assert_loops_agree(layer, x, stride, dilation, [a for a, _ in padding], groups)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 2, 6]))
def test_conv1d_same_has_a_window_every_stride(width, kernel, stride, dilation, groups):
    layer = conv1d(6, kernel, stride=stride, dilation=dilation, groups=groups)
    x = np.random.default_rng(0).standard_normal((2, width, 6))
    length = -(-width // stride)
    total = max(0, (length - 1) * stride + (kernel - 1) * dilation + 1 - width)
    assert jax.eval_shape(predict(layer), *drawn(layer, x)[:1], x).shape == (2, length, 6)
    assert_loops_agree(layer, x, (stride,), (dilation,), (total // 2,), groups)


@settings(max_examples=10, deadline=None)
@given(two(3, 7), two(1, 3), two(1, 3), two(1, 2), two(0, 2), st.sampled_from([1, 2]), st.sampled_from([1, 3, 6, 1200]),
       st.sampled_from([2, 16]))
def test_both_weight_gradients_agree(sizes, kernel, stride, dilation, low, groups, batch, features):
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation))
    places = windows("w", sizes, kernel, stride, tuple((a, r) for a, r in zip(low, reach)), dilation)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, dy = (jnp.asarray(rng.standard_normal(shape)) for shape in ((batch, *sizes, 4), (batch, *places.length, features)))
        a, b = (jax.jit(f, static_argnums=(2, 3))(x, dy, places, groups)
                for f in (pull_w, convolution.side_by_side))
    assert a.shape == (*kernel, 4 // groups, features)
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


EQUATIONS = {
    "y": (correlate, convolution.correlate, "x", "w"),
    "dx": (pull_x, convolution.pull_x, "dy", "w"),
    "dw": (pull_w, convolution.pull_w, "x", "dy"),
}


@settings(max_examples=20, deadline=None)
@given(two(3, 7), st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]), two(1, 3), two(1, 2),
       st.tuples(two(0, 2), two(0, 2)),
       st.sampled_from([(1, 3, 2), (2, 4, 6), (3, 3, 3), (3, 3, 6), (1, 1, 4), (1, 4, 1)]))
def test_formulations_for_a_cpu_agree_with_the_equations(sizes, kernel, stride, dilation, padding,
                                                         channels):
    """Against one lax convolution each; depthwise, of one position, of one channel among them."""
    groups, c, o = channels
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    padding = tuple((a, b + max(0, r - n)) for (a, b), r, n in zip(padding, reach, sizes))
    places = windows("w", sizes, kernel, stride, padding, dilation)
    shapes = {"x": (3, *sizes, c), "w": (*kernel, c // groups, o), "dy": (3, *places.length, o)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for equation, fast, first, second in EQUATIONS.values():
        with jax.enable_x64(True):
            at = arrays[first], arrays[second]
            want, got = (jax.jit(f, static_argnums=(2, 3))(*at, places, groups)
                         for f in (unwrap(equation), partial(fast, equation)))
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-12, atol=1e-12)


def test_images_in_one_row_agree_with_the_equation(monkeypatch):
    """The layout for jax 0.10, on any jax; sizes are asked for float32 and large batches."""
    monkeypatch.setattr(convolution, "ONE_CORE", True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 16, 18, 32)).astype(np.float32)
    w = rng.standard_normal((3, 3, 32, 64)).astype(np.float32)
    places = windows("w", (16, 18), (3, 3), (1, 1), ((0, 2), (2, 0)))
    in_row, plain = (jax.jit(lambda x, w, f=f: f(x, w, places, 1))
                     for f in (convolution.in_one_row(unwrap(correlate)), unwrap(correlate)))
    assert "platform_index" in str(jax.make_jaxpr(in_row)(x, w))
    np.testing.assert_allclose(in_row(x, w), plain(x, w), atol=3e-6 * np.abs(plain(x, w)).max())


@pytest.mark.parametrize("layer", [
    conv2d(64, 3), conv2d(40, 3, dilation=(1, 3)), conv2d(64, (2, 4)), conv2d(64, 3, padding=((0, 0), (0, 2))),
    conv2d(64, 3, padding=((3, 1), (2, 0))), conv2d(64, 3, padding="VALID"), conv2d(96, 3, stride=(1, 2)),
    conv2d(96, 3, groups=2),
], ids=str)
def test_sizes_that_are_worth_another_formulation(layer):
    """Large enough for images in one row and for loops over a few of them; XLA's convolution and its gradients in float64."""
    x = np.random.default_rng(0).standard_normal((40, 16, 18, 32))
    with jax.enable_x64(True):
        params, dy = drawn(layer, x)
        y, pullback = jax.vjp(predict(layer), params, jnp.asarray(x))
        wanted = y, *pullback(jnp.asarray(dy))
    narrow = partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float32))
    for got, want in zip(jax.tree.leaves(run(layer, *narrow((params, x, dy)))), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("layer", [
    conv2d(4, (2, 3), stride=(2, 1), padding="VALID", groups=2),
    pytest.param(conv2d(4, 3), marks=pytest.mark.slow),
    pytest.param(conv2d(6, 3, stride=2, groups=6), marks=pytest.mark.slow),
], ids=repr)
def test_jax_transforms_go_through_the_rule(layer):
    """Gradients under jit and vmap, and a Hessian product by jvp of the rule, as jax has them."""
    with jax.enable_x64(True):
        params, dy = drawn(layer, X)
        bent = lambda params, x: jnp.tanh(predict(layer)(params, x)) * dy
        ours = lambda *at: run(layer, *at, bent(*at))[1:]
        theirs = lambda *at: jax.vjp(predict(layer), *at)[1](bent(*at))
        at = (params, jnp.asarray(X))
        got, want = (jax.jit(lambda at, f=f: jax.jvp(f, at, at))(at) for f in (ours, theirs))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), got, want)
        each = jax.vmap(lambda x, d: run(layer, params, x[None], d[None])[1])(X, dy)
        whole = run(layer, params, X, dy)[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-11, atol=1e-11), each, whole)


def test_leading_axes_are_one_batch():
    layer, x = conv2d(4, 3, stride=2), X.reshape(2, 1, 5, 7, 6)
    with jax.enable_x64(True):
        params, dy = drawn(layer, x)
        y, dparams, dx = run(layer, params, x, dy)
        y_flat, dparams_flat, dx_flat = run(layer, params, X, dy.reshape(2, *dy.shape[2:]))
    assert y.shape == (2, 1, 3, 4, 4)
    assert dx.shape == x.shape
    got, want = (y.ravel(), dx.ravel(), dparams), (y_flat.ravel(), dx_flat.ravel(), dparams_flat)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("shape", [(0, 5, 7, 6), (2, 0, 5, 7, 6), (2, 5, 7, 0)], ids=str)
def test_empty_batches_and_no_channels_have_zero_gradients(shape):
    layer, x = conv2d(4, 3), jnp.zeros(shape)
    y, dparams, dx = run(layer, params := layer.init(KEY, x), x, jnp.ones((*shape[:-1], 4)))
    assert (y.shape, dx.shape) == ((*shape[:-1], 4), shape)
    assert dparams["w"].shape == params["w"].shape
    assert not np.any(dparams["w"])


def test_the_input_alone_is_kept():
    x = jnp.asarray(X, jnp.float32)
    assert conv2d(4, 3).forward(conv2d(4, 3).init(KEY, x), x)[1] is x


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("groups", [1, 2])
def test_narrow_sums_accumulate_wide(groups, dtype):
    layer, x = conv1d(2, 1, groups=groups), jnp.ones((1, 4096, 2), dtype)
    params = {"w": jnp.ones((1, 2 // groups, 2), dtype), "b": jnp.zeros(2, dtype)}
    _, dparams, _ = run(layer, params, x, x)
    assert np.all(dparams["w"] == 4096)  # sums of ones stop at 256 in bfloat16, at 2048 in float16
    assert np.all(dparams["b"] == 4096)
    y, _, dx = run(conv1d(4096, 1), {"w": jnp.full((1, 4096, 4096), 1 / 256, dtype), "b": jnp.zeros(4096, dtype)},
                   jnp.ones((1, 1, 4096), dtype), jnp.ones((1, 1, 4096), dtype))
    assert np.all(y == 16)
    assert np.all(dx == 16)


def test_starts_with_he_over_the_inputs_of_a_window_and_zero_biases():
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
    params = conv2d(64, 3, groups=2).init(KEY, x)
    assert params["w"].shape == (3, 3, 32, 64)
    assert np.std(params["w"]) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.05)
    assert not np.any(params["b"])
    halves = jax.nn.initializers.constant(0.5)
    params = conv1d(4, 3, w_init=halves, b_init=halves).init(KEY, jnp.zeros((1, 5, 2)))
    assert all(np.all(leaf == 0.5) for leaf in jax.tree.leaves(params))
    assert conv1d(4, 3, bias=False).init(KEY, jnp.zeros((1, 5, 2))).keys() == {"w"}


def test_the_name_is_the_call():
    assert repr(conv2d(4, 3)) == "conv2d(4, 3)"
    call = "conv1d(4, 3, stride=2, padding=((2, 0),), bias=False)"
    assert repr(conv1d(4, 3, stride=2, padding=((2, 0),), bias=False)) == call


def test_the_weight_gradient_needs_little_memory():
    """What jax.grad transposes for its own weight gradient is as large as x and dy."""
    layer, x = conv2d(64, 3), jax.ShapeDtypeStruct((128, 14, 14, 32), jnp.float32)
    params, dy = jax.eval_shape(layer.init, KEY, x), jax.ShapeDtypeStruct((128, 14, 14, 64), jnp.float32)
    ours = lambda params, x, dy: layer.backward(params, x, dy)[0]
    theirs = lambda params, x, dy: jax.vjp(lambda p: predict(layer)(p, x), params)[1](dy)
    temp = lambda f: jax.jit(f).lower(params, x, dy).compile().memory_analysis().temp_size_in_bytes
    assert temp(ours) < temp(theirs) / 2


@pytest.mark.parametrize(("options", "text"), [
    ({"features": 2.0}, "conv2d features: expected a whole number"),
    ({"features": -4}, "conv2d features: expected a whole number"),
    ({"kernel": 0}, "conv2d kernel: expected a whole number of at least 1, or 2 of them, got 0"),
    ({"kernel": (3,)}, r"conv2d kernel: .* got \(3,\)"),
    ({"stride": (1, 1.5)}, r"conv2d stride: .* got \(1, 1.5\)"),
    ({"dilation": True}, "conv2d dilation: .* got True"),
    ({"groups": 3}, "conv2d groups: expected a divisor of the 4 features, got 3"),
    ({"padding": "same"}, r"conv2d padding: expected 'SAME', 'VALID' or 2 \(low, high\) pairs .* got 'same'"),
    ({"padding": 1}, "conv2d padding: .* got 1"),
    ({"padding": ((1, 1),)}, r"conv2d padding: .* got \(\(1, 1\),\)"),
    ({"padding": ((1, -1), (0, 0))}, "conv2d padding: "),
])
def test_options_are_checked(options, text):
    with pytest.raises(ValueError, match=text):
        conv2d(**{"features": 4, "kernel": 3, **options})


@pytest.mark.parametrize(("layer", "x", "text"), [
    (conv2d(4, 3), X[0], r"x: expected \(B..., H, W, C\), got float64\[5,7,6\]. One example needs a batch axis"),
    (conv1d(4, 3), X[0, 0], r"x: expected \(B..., W, C\), got float64\[7,6\]"),
    (conv2d(4, 3, groups=4), X, "x: expected channels that 4 groups divide"),
    (conv2d(4, 6, padding="VALID"), X, r"conv2d kernel: expected at most the padded input, \(5, 7\), got .* over \(6, 6\)"),
    (conv2d(4, 3, dilation=3, padding="VALID"), X, r"reaches over \(7, 7\)"),
    (conv2d(4, 3), X[:, :0], "conv2d kernel: expected at most the padded input"),
])
def test_inputs_are_checked(layer, x, text):
    with jax.enable_x64(True), pytest.raises(ValueError, match=text):
        predict(layer)(layer.init(KEY, x), x)


@pytest.mark.parametrize(("change", "text"), [
    ({"w": np.ones((3, 3, 5, 4))}, r"w: expected \(3, 3, 6, 4\) for x \(2, 5, 7, 6\), got float64\[3,3,5,4\]"),
    ({"b": np.ones(5)}, r"b: expected \(4,\), got float64\[5\]"),
    ({"b": np.ones(4, np.float32)}, "x and w and b: expected one dtype"),
])
def test_params_are_checked(change, text):
    params = {"w": np.ones((3, 3, 6, 4)), "b": np.ones(4), **change}
    with jax.enable_x64(True), pytest.raises(ValueError, match=text):
        predict(conv2d(4, 3))(params, X)
    with pytest.raises(TypeError, match=r"params: expected \{'w', 'b'\}"):
        predict(conv2d(4, 3))({"w": params["w"]}, X)


def torch_cases():
    """(layer, x, torch's padding as its F.pad wants it, keyword arguments of F.conv)."""
    row = X[:, 0]
    yield conv1d(4, 3), row, (1, 1), {}
    yield conv1d(4, 3, stride=2, padding=((4, 0),), dilation=2, groups=2), row, (4, 0), {
        "stride": 2, "dilation": 2, "groups": 2}
    yield conv2d(4, 3), X, (1, 1, 1, 1), {}
    yield conv2d(4, 3, bias=False), X, (1, 1, 1, 1), {}
    yield conv2d(4, (3, 2), stride=(2, 3), padding="VALID"), X, (0, 0, 0, 0), {"stride": (2, 3)}
    both = conv2d(4, 3, stride=(1, 2), padding=((1, 2), (3, 0)), dilation=(2, 1), groups=2)
    yield both, X, (3, 0, 1, 2), {"stride": (1, 2), "dilation": (2, 1), "groups": 2}
    yield conv2d(6, 3, stride=2, padding=((1, 1), (1, 1)), groups=6), X, (1, 1, 1, 1), {
        "stride": 2, "groups": 6}
    yield conv2d(12, 3, groups=6), X, (1, 1, 1, 1), {"groups": 6}
    yield conv2d(4, 1, stride=2), X, (0, 0, 0, 0), {"stride": 2}


@pytest.mark.peers
@pytest.mark.parametrize(("layer", "x", "padding", "options"), list(torch_cases()),
                         ids=lambda a: repr(a) if isinstance(a, Layer) else "")
def test_pytorch_agrees_in_float64(layer, x, padding, options):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    first = lambda a: np.moveaxis(a, -1, 1)  # torch has channels first, and weights (O, I, *kernel)
    with jax.enable_x64(True):
        params, dy = drawn(layer, x)
        got = run(layer, params, x, dy)
    leaf = lambda a: torch.tensor(np.ascontiguousarray(a)).requires_grad_()
    w, b, xs = leaf(np.moveaxis(params["w"], (-1, -2), (0, 1))), leaf(params.get("b", np.zeros(dy.shape[-1]))), leaf(first(x))
    y = {3: functional.conv1d, 4: functional.conv2d}[x.ndim](functional.pad(xs, padding), w, b, **options)
    y.backward(torch.tensor(np.ascontiguousarray(first(dy))))
    last = lambda a: np.moveaxis(a.numpy(), 1, -1)
    wanted = last(y.detach()), {"w": np.moveaxis(w.grad.numpy(), (0, 1), (-1, -2)), "b": b.grad.numpy()}, last(xs.grad)
    if "b" not in params:
        del wanted[1]["b"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, wanted)
