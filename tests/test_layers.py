"""Layers: the same numbers as jax.nn and as PyTorch in float64, kinks, NaN and inf, narrow dtypes, sizes 0 and 1, init."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    attention,
    dense,
    elu,
    embedding,
    flatten,
    gelu,
    gpt,
    group_norm,
    half_squared_error,
    identity,
    leaky_relu,
    learned_positions,
    linear_cross_entropy,
    mse,
    predict,
    recommender,
    relu,
    repeat,
    reshape,
    sigmoid,
    silu,
    softmax,
    softmax_cross_entropy,
    softplus,
    swiglu,
    tanh,
    vjp,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
NARROW = (jnp.bfloat16, jnp.float16)

ELEMENTWISE = {
    "identity": (identity(), lambda x: x),
    "relu": (relu(), jax.nn.relu),
    "leaky_relu": (leaky_relu(), jax.nn.leaky_relu),
    "leaky_relu 0.3": (leaky_relu(0.3), partial(jax.nn.leaky_relu, negative_slope=0.3)),
    "sigmoid": (sigmoid(), jax.nn.sigmoid),
    "tanh": (tanh(), jnp.tanh),
    "gelu": (gelu(), jax.nn.gelu),
    "gelu exact": (gelu(approximate=False), partial(jax.nn.gelu, approximate=False)),
    "silu": (silu(), jax.nn.silu),
    "softplus": (softplus(), jax.nn.softplus),
    "elu": (elu(), jax.nn.elu),
    "elu 0.3": (elu(0.3), partial(jax.nn.elu, alpha=0.3)),
}
each_elementwise = pytest.mark.parametrize(("layer", "reference"), ELEMENTWISE.values(), ids=ELEMENTWISE)


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def run(layer, params, x, dy):
    """`(y, dparams, dx)` by the layer's rule."""
    y, pullback = vjp(layer, params, x)
    return (y, *pullback(dy))


def run_jax(fn, x, dy):
    y, pullback = jax.vjp(fn, x)
    return y, *pullback(dy)


def both(layer, fn, x, dy):
    """`(y, dx)` by the rule and `(y, dx)` by jax, as numpy arrays, in one program."""
    compiled = jax.jit(lambda x, dy: (run(layer, (), x, dy), run_jax(fn, x, dy)))
    (y, _, dx), wanted = compiled(x, dy)
    return jax.tree.map(np.asarray, ((y, dx), wanted))


# ---- elementwise


@each_elementwise
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_and_derivative_are_those_of_jax_nn(layer, reference, dtype):
    with jax.enable_x64(dtype is np.float64):
        (y, dx), (y_jax, dx_jax) = both(layer, reference, 3 * normal(5, 7, dtype=dtype), normal(5, 7, seed=1, dtype=dtype))
    assert y.dtype == dx.dtype == dtype
    rtol = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, y_jax, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(dx, dx_jax, rtol=rtol, atol=rtol * np.max(np.abs(dx_jax)))


@each_elementwise
def test_far_from_zero_it_is_finite_where_jax_nn_is_and_equal(layer, reference):
    x = np.outer([1e-30, 1e-3, 20, 50, 100, 1e4, 1e12], [-1, 1]).astype(np.float32)
    (y, dx), (y_jax, dx_jax) = both(layer, reference, x, np.ones_like(x))
    np.testing.assert_allclose(y, y_jax, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(dx, dx_jax, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize(("layer", "exact"), [
    (sigmoid(), lambda x: 1 / (np.exp(x) + 2 + np.exp(-x))), (softplus(), lambda x: 1 / (1 + np.exp(-x))),
], ids=["sigmoid", "softplus"])
def test_small_derivatives_keep_their_digits(layer, exact):
    x = np.linspace(-80, -10, 50, dtype=np.float32)
    _, _, dx = run(layer, (), x, np.ones_like(x))
    np.testing.assert_allclose(dx, exact(np.float64(x)), rtol=1e-6)


@pytest.mark.parametrize(("layer", "reference", "slope"), [
    (relu(), jax.nn.relu, 0), (leaky_relu(0.2), partial(jax.nn.leaky_relu, negative_slope=0.2), 1),
    (elu(0.5), partial(jax.nn.elu, alpha=0.5), 0.5), (sigmoid(), jax.nn.sigmoid, 0.25), (tanh(), jnp.tanh, 1),
    (gelu(), jax.nn.gelu, 0.5), (silu(), jax.nn.silu, 0.5), (softplus(), jax.nn.softplus, 0.5),
], ids=lambda value: getattr(value, "name", ""))
def test_derivative_at_zero_of_either_sign_is_as_documented_and_as_in_jax_nn(layer, reference, slope):
    (_, dx), (_, dx_jax) = both(layer, reference, np.float32([0.0, -0.0]), np.float32([3.0, 3.0]))
    np.testing.assert_allclose(dx, [3 * slope, 3 * slope], rtol=1e-7)
    np.testing.assert_array_equal(dx, dx_jax)


def test_relu_backward_of_its_own_forward_under_jax_has_the_same_kink():
    assert jax.grad(lambda x: predict(relu())((), x))(0.0) == 0


@each_elementwise
def test_nan_in_is_nan_out(layer, reference):
    y = jax.jit(predict(layer))((), np.float32([np.nan, 1.0]))
    assert np.isnan(y[0])
    assert np.isfinite(y[1])


@pytest.mark.parametrize("dy", [np.inf, -np.inf, np.nan])
def test_a_closed_relu_stops_every_cotangent(dy):
    _, _, dx = run(relu(), (), np.float32([-1.0, 0.0, 2.0]), np.float32([dy, dy, dy]))
    np.testing.assert_array_equal(dx, [0, 0, dy])


@pytest.mark.parametrize(("layer", "at", "largest"), [
    (sigmoid(), 0, 0.25), (tanh(), 0, 1), (gelu(), 1.4185, 1.1290), (gelu(approximate=False), 1.4142, 1.1289),
    (silu(), 2.3994, 1.0998), (relu(), 1, 1), (leaky_relu(3.0), -1, 3), (elu(2.0), 0, 2), (softplus(), 20, 1),
], ids=lambda value: getattr(value, "name", ""))
def test_largest_derivative_is_the_documented_one(layer, at, largest):
    x = np.append(np.linspace(-30, 30, 6001), at).astype(np.float32)
    _, _, slopes = jax.jit(partial(run, layer))((), x, np.ones_like(x))
    assert np.max(slopes) == pytest.approx(largest, rel=2e-4)
    assert slopes[-1] == pytest.approx(largest, rel=2e-4)
    assert np.max(slopes) <= max(largest, 1) * (1 + 1e-3)


def test_derivatives_that_are_exact_at_zero():
    slope = lambda layer: run(layer, (), jnp.float32(0), jnp.float32(1))[2]
    assert slope(sigmoid()) == 0.25
    assert slope(tanh()) == 1


def test_ten_sigmoids_shrink_a_cotangent_at_least_a_millionfold():
    x = normal(100)
    dx = np.ones(100, np.float32)
    for _ in range(10):
        dx = run(sigmoid(), (), x, dx)[2]
    assert np.max(np.abs(dx)) <= 0.25**10 * (1 + 1e-5)


@each_elementwise
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_results_are_the_float32_ones_rounded(layer, reference, dtype):
    # a primitive need not be rounded only once: lax.logistic of a float16 is 0 on a CPU below -11.1, where 1e-5 can be had
    x = jnp.concatenate([jnp.linspace(-6, 6, 801), jnp.linspace(-60, 60, 801)]).astype(dtype)
    y, wanted = jax.jit(lambda x: (predict(layer)((), x), predict(layer)((), x.astype(jnp.float32))))(x)
    magnitude = np.maximum(np.abs(wanted), float(jnp.finfo(dtype).tiny))
    ulp = np.exp2(np.floor(np.log2(magnitude))) * float(jnp.finfo(dtype).eps)
    assert np.max(np.abs(np.asarray(y, np.float32) - wanted) / ulp) <= 1.01


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_slopes_that_hide_the_sign_of_x_are_refused(alpha):
    with pytest.raises(ValueError, match="slope: expected a number > 0"):
        leaky_relu(alpha)
    with pytest.raises(ValueError, match="alpha: expected a number > 0"):
        elu(alpha)


# ---- every layer


def with_params(layer, x):
    """`(layer, params, x)` with weights of x's dtype."""
    shapes = jax.eval_shape(layer.init, KEY, x)
    return layer, jax.tree.map(lambda s: normal(*s.shape, seed=3, dtype=s.dtype), shapes), x


LAYERS = [*(layer for layer, _ in ELEMENTWISE.values()), dense(4), dense(4, bias=False), softmax(), flatten()]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_dtypes_are_kept(layer, dtype):
    layer, params, x = with_params(layer, normal(3, 5, dtype=dtype))
    y, dparams, dx = jax.eval_shape(lambda params, x: run(layer, params, x, predict(layer)(params, x)), params, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, dparams, dx))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("layer", [relu(), gelu(), dense(4), softmax()], ids=repr)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_whole_numbers_are_refused_with_advice(layer, dtype):
    x = np.ones((3, 5), dtype)
    with pytest.raises(ValueError, match=r"x: expected a floating dtype, got \w+\[3,5\]. Convert it first"):
        layer.init(KEY, x)
    with pytest.raises(ValueError, match=r"x: expected a floating dtype"):
        predict(layer)((), x) if layer.name != "dense(4)" else predict(layer)({"w": x.T, "b": x[0]}, x)


@pytest.mark.parametrize("layer", [relu(), softmax(), flatten()], ids=repr)
def test_params_for_a_layer_that_has_none_are_refused(layer):
    with pytest.raises(TypeError, match=r"params: expected \(\), got \{'w'"):
        predict(layer)({"w": 1.0}, np.ones((3, 5), np.float32))


# ---- dense


def assert_dense(layer, params, x, dy):
    """Against the sums of the derivation, element by element in float64."""
    y, dparams, dx = jax.tree.map(np.asarray, run(layer, params, x, dy))
    w, b = np.float64(params["w"]), np.float64(params.get("b", 0))
    count = int(np.prod(x.shape[:-1]))
    rows, drows = (np.float64(a).reshape(count, a.shape[-1]) for a in (x, dy))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(y, (rows @ w + b).reshape(y.shape))
    close(dx, (drows @ w.T).reshape(x.shape))
    close(dparams["w"], rows.T @ drows)
    if "b" in params:
        close(dparams["b"], drows.sum(0))
    assert dparams.keys() == params.keys()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3), (2, 1, 3)], ids=str)
def test_dense_takes_any_leading_axes(leading, bias):
    layer, params, x = with_params(dense(4, bias=bias), normal(*leading, 5))
    assert_dense(layer, params, x, normal(*leading, 4, seed=1))


@pytest.mark.parametrize(("leading", "inputs", "outputs"), [
    ((0,), 5, 4), ((7,), 0, 4), ((7,), 5, 0), ((2, 0), 5, 4), ((1,), 1, 1), ((1,), 5, 1), ((7,), 1, 4),
], ids=str)
def test_dense_takes_axes_of_size_zero_and_one(leading, inputs, outputs):
    layer, params, x = with_params(dense(outputs), normal(*leading, inputs))
    assert_dense(layer, params, x, normal(*leading, outputs, seed=1))


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (5, 0), (0, 0)])
def test_dense_init_of_an_empty_axis(inputs, outputs):
    params = dense(outputs).init(KEY, jnp.zeros((7, inputs)))
    assert params["w"].shape == (inputs, outputs)
    assert params["b"].shape == (outputs,)


def test_dense_narrow_products_accumulate_wide():
    x, w = jnp.ones((1, 4096), jnp.bfloat16), jnp.full((4096, 1), 1 / 256, jnp.bfloat16)
    assert predict(dense(1, bias=False))({"w": w}, x) == 16  # bfloat16 sums of 1/256 stop at 1
    ones = jnp.ones((1, 257), jnp.bfloat16)  # 257 is no bfloat16: a product rounded before the bias is added would be 256
    assert predict(dense(1))({"w": ones.T, "b": jnp.full(1, -256, jnp.bfloat16)}, ones) == 1
    many = jnp.ones((4096, 1), jnp.bfloat16)
    _, dparams, _ = run(dense(1), {"w": jnp.ones((1, 1), jnp.bfloat16), "b": jnp.zeros(1, jnp.bfloat16)}, many, many)
    assert dparams["w"] == dparams["b"] == 4096


def test_dense_starts_with_he_and_zero_biases():
    params = dense(400).init(KEY, jnp.zeros((1, 200)))
    assert np.std(params["w"]) == pytest.approx(np.sqrt(2 / 200), rel=0.1)
    assert abs(np.mean(params["w"])) < 3 * np.sqrt(2 / 200 / 80000)
    assert not np.any(params["b"])


def test_dense_initialisers_can_be_set():
    xavier, halves = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.constant(0.5)
    params = dense(400, w_init=xavier, b_init=halves).init(KEY, jnp.zeros((1, 200)))
    assert np.std(params["w"]) == pytest.approx(np.sqrt(2 / (200 + 400)), rel=0.1)
    assert np.max(np.abs(params["w"])) <= np.sqrt(6 / (200 + 400))  # uniform, so bounded
    assert np.all(params["b"] == 0.5)


def test_dense_without_bias_has_none():
    assert dense(400, bias=False).init(KEY, jnp.zeros((1, 200))).keys() == {"w"}
    assert repr(dense(4, bias=False)) == "dense(4, bias=False)"


def test_init_is_a_function_of_the_key():
    init, x = dense(400).init, jnp.zeros((1, 200))
    np.testing.assert_array_equal(init(KEY, x)["w"], init(KEY, x)["w"])
    assert not np.array_equal(init(KEY, x)["w"], init(jax.random.key(1), x)["w"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_params_have_the_dtype_of_x(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        params = jax.eval_shape(dense(4).init, KEY, jax.ShapeDtypeStruct((7, 5), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("features", [-1, 2.0, True, "4", None])
def test_dense_features_have_to_be_a_whole_number(features):
    with pytest.raises(ValueError, match="dense features: expected a whole number of at least 0, got"):
        dense(features)


def test_dense_features_may_be_a_numpy_integer():
    assert repr(dense(np.int64(4))) == "dense(4)"


@pytest.mark.parametrize(("params", "x", "text"), [
    ({"w": np.ones((5, 4)), "b": np.ones(4)}, np.ones((2, 6)), r"x: expected a last axis of 5.*got float64\[2,6\].*flatten"),
    ({"w": np.ones((5, 3)), "b": np.ones(4)}, np.ones((2, 5)), r"w: expected \(I, 4\), got float64\[5,3\]"),
    ({"w": np.ones((5, 4)), "b": np.ones((1, 4))}, np.ones((2, 5)), r"b: expected \(4,\), got float64\[1,4\]"),
    ({"w": np.ones((5, 4)), "b": np.ones(4)}, np.float64(1), "x: expected a last axis of 5"),
], ids=["x", "w", "b", "scalar"])
def test_dense_shapes_are_checked(params, x, text):
    with jax.enable_x64(True), pytest.raises(ValueError, match=text):
        predict(dense(4))(params, x)


# ---- softmax and flatten


def test_softmax_is_jax_nn_softmax_over_the_last_axis():
    (y, dx), (y_jax, dx_jax) = both(softmax(), jax.nn.softmax, 5 * normal(2, 3, 7), normal(2, 3, 7, seed=1))
    np.testing.assert_allclose(y, y_jax, rtol=1e-6)
    np.testing.assert_allclose(dx, dx_jax, rtol=1e-5, atol=1e-7)


def test_softmax_of_large_logits_with_an_offset():
    x = normal(3, 5)
    y, _, dx = run(softmax(), (), jnp.round(x * 4096) / 4096 + 1000, normal(3, 5, seed=1))
    y_near, _, dx_near = run(softmax(), (), jnp.round(x * 4096) / 4096, normal(3, 5, seed=1))
    np.testing.assert_allclose(y, y_near, rtol=1e-3)
    np.testing.assert_allclose(dx, dx_near, rtol=1e-2, atol=1e-4)
    y, _, dx = run(softmax(), (), jnp.float32([[1e4, 0, -1e4], [0, -np.inf, 0]]), jnp.ones((2, 3)))
    np.testing.assert_allclose(y, [[1, 0, 0], [0.5, 0, 0.5]])
    np.testing.assert_array_equal(dx, np.zeros((2, 3)))


def test_softmax_narrow_rows_of_dx_sum_to_zero_within_rounding():
    _, _, dx = run(softmax(), (), normal(8, 50, dtype=jnp.bfloat16), jnp.full((8, 50), 100, jnp.bfloat16))
    assert np.max(np.abs(np.asarray(dx, np.float32))) < 1e-4  # a rounded y would leak 100 * 0.4 % / 50


@pytest.mark.parametrize("shape", [(0, 5), (5, 1), (1,)], ids=str)
def test_softmax_takes_empty_batches_and_one_class(shape):
    y, _, dx = run(softmax(), (), normal(*shape), normal(*shape, seed=1))
    assert y.shape == dx.shape == shape
    if y.size and shape[-1] == 1:
        np.testing.assert_array_equal((y, dx), (np.ones(shape), np.zeros(shape)))


@pytest.mark.parametrize("shape", [(5, 0), ()], ids=str)
def test_softmax_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="a last axis of size at least 1"):
        predict(softmax())((), jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(7,), (7, 5), (2, 3, 5), (0, 3, 5), (2, 0, 5), (1, 1, 1, 1)], ids=str)
def test_flatten_keeps_the_batch_axis_and_the_order(shape):
    x = normal(*shape)
    y, _, dx = run(flatten(), (), x, 2 * x.reshape(shape[0], int(np.prod(shape[1:]))))
    np.testing.assert_array_equal(y, np.asarray(x).reshape(shape[0], int(np.prod(shape[1:]))))
    np.testing.assert_array_equal(dx, 2 * x)


def test_flatten_takes_integers_whose_cotangent_is_none():
    y, pullback = vjp(flatten(), (), np.arange(12).reshape(2, 2, 3))
    np.testing.assert_array_equal(y, np.arange(12).reshape(2, 6))
    assert pullback(None) == ((), None)


def test_flatten_of_a_scalar_is_refused():
    with pytest.raises(ValueError, match="x: expected a batch axis"):
        predict(flatten())((), jnp.float32(1))


# ---- PyTorch in float64


def torch_cases():
    """name -> (layer, x, the function in torch of (functional, params, x))."""
    x, target = (np.random.default_rng(seed).standard_normal((7, 5)) for seed in (1, 2))
    unit = np.abs(target)
    classes = np.array([0, 4, 2, 2, 1, 3, 0])
    yield "dense", dense(4), x, lambda F, p, x: F.linear(x, p["w"].T, p["b"])
    yield "dense 3 axes", dense(4, bias=False), x.reshape(7, 1, 5), lambda F, p, x: F.linear(x, p["w"].T)
    yield "relu", relu(), x, lambda F, p, x: F.relu(x)
    yield "leaky_relu", leaky_relu(0.2), x, lambda F, p, x: F.leaky_relu(x, 0.2)
    yield "sigmoid", sigmoid(), x, lambda F, p, x: F.sigmoid(x)
    yield "tanh", tanh(), x, lambda F, p, x: F.tanh(x)
    yield "gelu", gelu(), x, lambda F, p, x: F.gelu(x, approximate="tanh")
    yield "gelu exact", gelu(approximate=False), x, lambda F, p, x: F.gelu(x)
    yield "silu", silu(), x, lambda F, p, x: F.silu(x)
    yield "softplus", softplus(), x, lambda F, p, x: F.softplus(x)
    yield "elu", elu(0.7), x, lambda F, p, x: F.elu(x, 0.7)
    yield "softmax", softmax(), x, lambda F, p, x: F.softmax(x, -1)
    yield "flatten", flatten(), x.reshape(7, 5, 1), lambda F, p, x: x.flatten(1)
    yield "mse", mse(), (x, target), lambda F, p, x: F.mse_loss(*x)
    yield "half_squared_error", half_squared_error(), (x, target), lambda F, p, x: F.mse_loss(*x, reduction="sum") / 2
    yield "cross-entropy, classes", softmax_cross_entropy(), (x, classes), lambda F, p, x: F.cross_entropy(*x)
    yield "cross-entropy, (B, T, V)", softmax_cross_entropy(), (x.reshape(7, 1, 5), classes[:, None]), \
        lambda F, p, x: F.cross_entropy(x[0].flatten(0, 1), x[1].flatten())
    yield "cross-entropy, probabilities", softmax_cross_entropy(), (x, unit / unit.sum(1, keepdims=True)), \
        lambda F, p, x: F.cross_entropy(*x)
    yield "cross-entropy, any target", softmax_cross_entropy(), (x, target), lambda F, p, x: F.cross_entropy(*x)


TORCH = {name: case for name, *case in torch_cases()}


@pytest.mark.peers
@pytest.mark.parametrize(("layer", "x", "of_torch"), TORCH.values(), ids=TORCH)
def test_pytorch_agrees_in_float64(layer, x, of_torch):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)

    def to_torch(a):
        tensor = torch.tensor(np.asarray(a))
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor

    with jax.enable_x64(True):
        shapes = jax.eval_shape(layer.init, KEY, x)
        params = jax.tree.map(lambda s: rng.standard_normal(s.shape), shapes)
        y = jax.eval_shape(predict(layer), params, x)
        dy = rng.standard_normal(y.shape)
        got = jax.jit(partial(run, layer))(params, x, jnp.asarray(dy))

    params_torch, x_torch = jax.tree.map(to_torch, params), jax.tree.map(to_torch, x)
    y_torch = of_torch(torch.nn.functional, params_torch, x_torch)
    y_torch.backward(torch.tensor(dy))
    gradient = lambda t: None if t.grad is None else t.grad.numpy()
    wanted = y_torch.detach().numpy(), jax.tree.map(gradient, params_torch), jax.tree.map(gradient, x_torch)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)  # None for class numbers
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.max(np.abs(b)))


@pytest.mark.parametrize("make", [
    lambda n: embedding(n, n), lambda n: learned_positions(n), lambda n: attention(n), lambda n: group_norm(n),
    lambda n: repeat(dense(4), n), lambda n: swiglu(n), lambda n: linear_cross_entropy(n, chunk=n),
    lambda n: gpt(n, n, features=4, heads=n, blocks=n), lambda n: recommender(n, n),
    lambda n: softmax_cross_entropy(ignore_index=n),
    lambda n: reshape(n, n),
], ids=range(11))
def test_a_numpy_integer_is_a_whole_number(make):
    assert repr(make(np.int64(2))) == repr(make(2))
