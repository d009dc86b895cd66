"""The checker: first with wrong rules, which it has to call WRONG, then with right ones, which it may not."""

import json
import re
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbackprop
from fbackprop import (
    PRECISIONS,
    Layer,
    Next,
    State,
    add,
    assert_rule,
    chain,
    check_gradient,
    check_layer,
    check_network,
    checkpoint,
    dense,
    elu,
    embedding,
    fan_out,
    flatten,
    from_function,
    frozen,
    gelu,
    gpt,
    gru,
    half_squared_error,
    leaky_relu,
    lstm,
    max_pool,
    mlp,
    mse,
    relu,
    repeat,
    replace_rules,
    sigmoid,
    silu,
    skip,
    softmax,
    softmax_cross_entropy,
    softplus,
    split,
    take_last,
    tanh,
    tied,
    with_precision,
)
from fbackprop.data import load_mnist5k
from fbackprop.dtypes import combine
from fbackprop.names import names_of
from fbackprop.transform import layers_by_path
from fbackprop.verify.cases import CASES, Case
from fbackprop.verify.table import summary, verify_case, verify_table

pytestmark = pytest.mark.usefixtures("quick_compile")

RIGHT = ("OK", "NOISY", "KINK")
SMOOTH = ("OK", "NOISY")
QUICK = {"dtypes": ("float64",), "hints": False}
HINTED = {"dtypes": ("float64",)}


def numbers(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def drawn(*shape):
    return lambda rng: rng.standard_normal(shape)


X = numbers(4, 5)
CLASSES = np.array([0, 2, 1, 2], np.int32)


def layer(name, forward, backward, init=lambda key, x: ()):
    return Layer(name, init, forward, backward)


def pointwise(name, f, df):
    """y = f(x), dx = df(x) dy."""
    return layer(name, lambda params, x: (f(x), x), lambda params, x, dy: ((), df(x) * dy))


def changed(right, change):
    """`right` with `change(params, residuals, dy, dparams, dx)` in place of what its backward returns."""
    def backward(params, residuals, dy):
        return change(params, residuals, dy, *right.backward(params, residuals, dy))

    return replace(right, backward=backward)


def with_rule(f, pull):
    """f as a custom_vjp function with the rule pull(x, dy)."""
    custom = jax.custom_vjp(f)
    custom.defvjp(lambda x: (f(x), x), lambda x, dy: (pull(x, dy),))
    return custom


def wrong_leaves(report):
    return {finding.leaf for finding in report.findings if finding.verdict == "WRONG"}


def start(net, x):
    return net.init(jax.random.key(0), jnp.asarray(x, jnp.float32))


# ---- wrong rules. Each is a mistake somebody makes; none is taken from planted.py


def _vector_loss():
    """The mean of (y - t)^2 over y (B,), its rule without the 1 / B."""
    return layer("my_mse()", lambda params, batch: (jnp.mean(jnp.square(batch[0] - batch[1])), batch[0] - batch[1]),
                 lambda params, difference, dvalue: ((), (2 * difference * dvalue, -2 * difference * dvalue)))


def _shifted_slice():
    """y = x without its first column; the cotangent is put back one column too far to the left."""
    return layer("tail()", lambda params, x: (x[:, 1:], ()), lambda params, _, dy: ((), jnp.pad(dy, ((0, 0), (0, 1)))))


def _forgetful_skip():
    """y = x + tanh(x), dx without the x."""
    return pointwise("skip(mine)", lambda x: x + jnp.tanh(x), lambda x: 1 - jnp.tanh(x) ** 2)


def _two_params(backward):
    init = lambda key, x: {"scale": jnp.ones(5), "shift": jnp.ones(5)}
    return layer("affine()", lambda p, x: (x * p["scale"] + p["shift"], x), backward, init)


def _centred(backward):
    """x - mean, with the running mean of former batches carried."""
    def forward(params, x):
        return x - x.mean(0), x.mean(0)

    return layer("centre()", forward, backward, lambda key, x: {"mean": State(jnp.zeros(x.shape[-1], x.dtype))})


def _embedding(combine):
    """y = w[ids]; an id that occurs twice needs the sum of its cotangents."""
    def backward(params, ids, dy):
        return {"w": combine(jnp.zeros_like(params["w"]).at[ids], dy)}, None

    return layer("embedding()", lambda p, ids: (p["w"][ids], ids), backward,
                 lambda key, ids: {"w": jax.random.normal(key, (7, 3))})


def _used_twice(w_cotangent):
    """y = (x w) w: w is used twice."""
    def backward(w, x, dy):
        return w_cotangent(w, x, dy), dy @ w.T @ w.T

    return layer("twice()", lambda w, x: (x @ w @ w, x), backward, lambda key, x: jax.random.normal(key, (5, 5)))


IDS = np.array([[0, 1], [1, 4]], np.int32)
SQUARE = numbers(4, 5)
dsigmoid = lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))

# name: (layer, x, the leaves that are wrong, words of the hint or None where the mistake is not among the known ones)
WRONG = {
    "neighbour's residuals": (
        changed(tanh(), lambda p, y, dy, dp, dx: (dp, dy * (1 - jnp.roll(y, 1, 0) ** 2))), X, {"x"}, "an index is off by one"),
    "slice put back one column off": (_shifted_slice(), X, {"x"}, None),
    "w for its transpose": (
        changed(dense(5), lambda p, x, dy, dp, dx: (dp, dy @ p["w"])), SQUARE, {"x"}, "where its transpose belongs"),
    "dw transposed": (
        changed(dense(5), lambda p, x, dy, dp, dx: ({**dp, "w": dp["w"].T}, dx)), SQUARE, {"params/w"}, "transposed"),
    "another function's derivative": (
        replace(relu(), forward=lambda p, x: (relu().forward(p, x)[0], x), backward=lambda p, x, dy: ((), dsigmoid(x) * dy)),
        X, {"x"}, "the derivative of sigmoid"),
    "relu without its mask": (changed(relu(), lambda p, y, dy, dp, dx: (dp, dy)), X, {"x"}, "the derivative of identity"),
    "tanh' of x for that of y": (pointwise("tanh()", jnp.tanh, lambda x: (1 - x) * (1 + x)), X, {"x"}, None),
    "bias: first example alone": (
        changed(dense(3), lambda p, x, dy, dp, dx: ({**dp, "b": dy[0]}, dx)), X, {"params/b"},
        "the sum over the batch is missing"),
    "mean without its divisor": (_vector_loss(), (numbers(5), numbers(5, seed=1)), {"x/0", "x/1"}, "times the batch size"),
    "dy forgotten": (
        changed(tanh(), lambda p, y, dy, dp, dx: (dp, (1 - y) * (1 + y))), X, {"x"}, "made without dy"),
    "one half forgotten": (pointwise("square()", jnp.square, lambda x: x), X, {"x"}, "half the right one"),
    "sign": (changed(mse(), lambda p, r, d, dp, dx: (dp, (-dx[0], dx[1]))), (X, 2 * X), {"x/0"}, "with the wrong sign"),
    "stale residual": (
        _centred(lambda p, mean, dy: ({"mean": Next(mean)}, dy - dy.mean(0) + p["mean"].value - mean)), X, {"x"}, None),
    "skip without the skipped path": (_forgetful_skip(), X, {"x"}, "without the cotangent of the skipped path"),
    "1e-6 in one element": (
        changed(dense(3), lambda p, x, dy, dp, dx: ({**dp, "w": dp["w"].at[2, 1].multiply(1 + 1e-6)}, dx)),
        X, {"params/w"}, None),
    "negative inputs alone": (
        changed(leaky_relu(), lambda p, y, dy, dp, dx: (dp, jnp.where(y >= 0, dx, 1.1 * dx))), X, {"x"}, None),
    "dparams swapped": (
        _two_params(lambda p, x, dy: ({"scale": dy.sum(0), "shift": (x * dy).sum(0)}, dy * p["scale"])), X,
        {"params/scale", "params/shift"}, None),
    "NaN in one element": (changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx.at[1, 2].set(jnp.nan))), X, {"x"}, None),
    "infinite": (changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx.at[1, 2].set(jnp.inf))), X, {"x"}, None),
    "duplicate ids overwritten": (_embedding(lambda at, dy: at.set(dy)), IDS, {"params/w"}, None),
    "first of two uses forgotten": (_used_twice(lambda w, x, dy: (x @ w).T @ dy), X, {"params"}, None),
    "second output forgotten": (
        layer("both()", lambda p, x: ((jnp.sin(x), jnp.sum(x)), x), lambda p, x, dy: ((), dy[0] * jnp.cos(x))), X, {"x"}, None),
    "last of 500 elements": (
        changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx.at[-1].multiply(2))), numbers(500, scale=0.5), {"x"}, None),
    "zero where the output is constant": (
        layer("three()", lambda p, x: (jnp.full_like(x, 3.0), ()), lambda p, _, dy: ((), 1e-9 * dy)), X, {"x"}, None),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_rule_is_called_wrong(mistake):
    wrong, x, leaves, hint = WRONG[mistake]
    report = check_layer(wrong, x, **(QUICK if hint is None else HINTED))
    assert report.verdict == "WRONG"
    assert {finding.layer for finding in report.findings} == {wrong.name}
    assert wrong_leaves(report) == leaves
    assert wrong.name in str(report)
    for finding in report.findings:
        assert finding.verdict != "WRONG" or (hint or "") in finding.hint


@pytest.mark.parametrize(("mistake", "index"), [("1e-6 in one element", (2, 1)), ("NaN in one element", (1, 2)),
                                                ("last of 500 elements", (499,))])
def test_the_wrong_element_is_named(mistake, index):
    wrong, x, _, _ = WRONG[mistake]
    report = check_layer(wrong, x, **QUICK)
    assert report.worst.index == index
    assert f"[{', '.join(map(str, index))}]" in str(report)


def test_an_error_in_float32_alone_is_called_wrong_there():
    def backward(params, y, dy):
        narrow = dy.dtype == jnp.float32
        dx = (1 - y * y) * dy
        return (), dx.astype(jnp.float16).astype(dy.dtype) if narrow else dx

    report = check_layer(replace(tanh(), backward=backward), X, hints=False)
    assert {finding.dtype: finding.verdict for finding in report.findings} == {"float64": "OK", "float32": "WRONG"}


def test_a_wrong_rule_inside_the_forward_does_not_fool_the_checker():
    """jax.vjp of a forward with a wrong custom_vjp agrees with the wrong rule; the differences do not."""
    sine = with_rule(jnp.sin, lambda x, dy: dy * jnp.sin(x))
    wrong = layer("sine()", lambda params, x: (sine(x), x), lambda params, x, dy: ((), dy * jnp.sin(x)))
    report = check_layer(wrong, X, **QUICK)
    assert report.verdict == "WRONG"
    assert report.worst.oracle == "differences"


@pytest.mark.parametrize("seed", range(3))
def test_a_rule_that_takes_x_for_dy_is_wrong_whatever_x_was_drawn_from(seed):
    x = np.random.default_rng(seed).standard_normal((4, 6))
    forgets = layer("sin()", lambda p, x: (jnp.sin(x), x), lambda p, x, dy: ((), x * jnp.cos(x)))
    squares = layer("square()", lambda p, x: (x * x, x), lambda p, x, dy: ((), 2 * x * x))
    same = layer("same()", lambda p, x: (x, x), lambda p, x, dy: ((), x))
    for wrong in (forgets, squares, same):
        assert check_layer(wrong, x, seed=seed, **QUICK).verdict == "WRONG"
    assert check_layer(forgets, x.ravel()[:6], (), seed=seed, **QUICK).verdict == "WRONG"
    assert check_gradient(with_rule(jnp.sin, lambda x, dy: x * jnp.cos(x)), None, x, seed=seed).verdict == "WRONG"


dense_gradients = lambda change: changed(dense(3), lambda p, x, dy, dp, dx: (change(dp), dx))
masked = lambda dmask: layer("masked()", lambda p, x: (jnp.where(x[1], x[0], 0), x[1]),
                             lambda p, mask, dy: ((), (jnp.where(mask, dy, 0), dmask(mask))))
centred = lambda dmean: _centred(lambda p, mean, dy: ({"mean": dmean(p, mean, dy)}, dy - dy.mean(0)))
MISSHAPEN = {
    "shape of dx": (changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx[:2])), X, "dx:"),
    "a sum that is missing": (dense_gradients(lambda d: {**d, "b": jnp.broadcast_to(d["b"], (4, 3))}), X, "dparams:"),
    "a size-1 axis that is kept": (dense_gradients(lambda d: {**d, "b": d["b"][None]}), X, "dparams:"),
    "dtype": (changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx.astype(jnp.float16))), X, "float16"),
    "an integer gradient": (dense_gradients(lambda d: {**d, "b": d["b"].astype(int)}), X, "int64"),
    "a missing key": (dense_gradients(lambda d: {"w": d["w"]}), X, "'b'"),
    "a key too many": (dense_gradients(lambda d: {**d, "c": d["b"]}), X, "'c'"),
    "a list for a tuple": (changed(mse(), lambda p, r, d, dp, dx: (dp, list(dx))), (X, X + 1), "dx:"),
    "None for a floating leaf": (changed(mse(), lambda p, r, d, dp, dx: (dp, (dx[0], None))), (X, X + 1), "None"),
    "an array where None is due": (masked(lambda mask: jnp.zeros(mask.shape)), (X, X > 0), "None"),
    "float0 where None is due": (masked(lambda mask: np.zeros(mask.shape, jax.dtypes.float0)), (X, X > 0), "None"),
    "a gradient for a State": (centred(lambda p, mean, dy: dy.sum(0)), X, "'mean': None"),
    "a State for its Next": (centred(lambda p, mean, dy: State(mean)), X, "Next"),
    "nothing for a State": (centred(lambda p, mean, dy: None), X, "Next"),
    "Next for a gradient": (dense_gradients(lambda d: {**d, "b": Next(d["b"])}), X, "'b': None"),
    "no pair": (replace(tanh(), backward=lambda p, y, dy: dy), X, "a pair (dparams, dx)"),
    "None for the pair": (replace(tanh(), backward=lambda p, y, dy: None), X, "a pair (dparams, dx)"),
    "three results": (changed(tanh(), lambda p, y, dy, dp, dx: (dp, dx, dx)), X, "a pair (dparams, dx)"),
}


@pytest.mark.parametrize("mistake", MISSHAPEN)
def test_a_wrong_structure_is_called_wrong_and_described(mistake):
    wrong, x, text = MISSHAPEN[mistake]
    report = check_layer(wrong, x, **QUICK)
    assert (report.verdict, report.worst.layer, report.worst.oracle) == ("WRONG", wrong.name, "structure")
    assert text in report.worst.hint
    assert "expected" in report.worst.hint
    assert wrong.name in str(report)


class Affine(NamedTuple):
    w: jax.Array
    b: jax.Array


def test_leaves_of_any_pytree_are_named():
    wrong = layer("named()", lambda p, x: (x @ p.w + p.b, x), lambda p, x, dy: (Affine(x.T @ dy, dy[0]), dy @ p.w.T),
                  lambda key, x: Affine(jnp.ones((5, 3)), jnp.ones(3)))
    assert wrong_leaves(check_layer(wrong, X, **QUICK)) == {"params/b"}


# ---- right rules: never WRONG

OTHER_SHAPES = [
    (dense(2), numbers(2, 1, 3, 4)), (dense(1, bias=False), numbers(6, 1)),
    (leaky_relu(3.0), numbers(2, 1, 3)), (gelu(approximate=False), numbers(9)), (elu(2.0), numbers(2, 3, 1, 2)),
    (chain(sigmoid(), silu(), softplus(), gelu(), tanh(), relu()), numbers(1, 7)),
    (softmax(), numbers(7)), (softmax(), numbers(5, 1)), (flatten(), numbers(3)), (flatten(), numbers(2, 1, 3, 2)),
    (mse(), (numbers(7), numbers(7, seed=1))), (half_squared_error(), (numbers(2, 3, 4), numbers(2, 3, 4, seed=1))),
    (softmax_cross_entropy(), (numbers(6), np.int32(2))),
    (softmax_cross_entropy(), (numbers(2, 2, 5), np.full((2, 2, 5), 0.2))),
    (chain(), X), (chain(dense(4), skip(skip(chain(tanh(), dense(4)))), relu()), numbers(3, 2)), (skip(softmax()), X),
]


@pytest.mark.parametrize(("right", "x"), OTHER_SHAPES, ids=lambda row: "")
def test_a_public_rule_is_right_on_other_shapes(right, x):
    report = check_layer(right, x)
    assert report.verdict == "OK", f"{right}\n{report}"


def test_inputs_may_be_specs_arrays_and_python_numbers():
    square = pointwise("square()", lambda x: x * x, lambda x: 2 * x)
    for x in (jax.ShapeDtypeStruct((3,), jnp.bfloat16), jnp.ones(3, jnp.bfloat16), np.float32(2), 3.0):
        assert check_layer(square, x, **QUICK).verdict == "OK"


def test_checking_leaves_the_configuration_as_it_was():
    check_layer(tanh(), X, **QUICK)
    assert jax.config.jax_enable_x64 is False
    assert jnp.ones(1).dtype == jnp.float32


def test_the_same_seed_gives_the_same_report():
    first, second = (str(check_layer(changed(tanh(), lambda p, y, dy, dp, dx: (dp, 2 * dx)), X, seed=3, **QUICK)) for _ in "ab")
    assert first == second


def dropout(rate):
    """Draws its mask from a key that is carried; the backward draws the same mask again."""
    def keep(key, x):
        return jax.random.bernoulli(jax.random.split(key)[0], 1 - rate, x.shape)

    def forward(params, x):
        return jnp.where(keep(params.value, x), x / (1 - rate), 0), ()

    def backward(params, residuals, dy):
        following = jax.random.split(params.value)[1]
        return Next(following), jnp.where(keep(params.value, dy), dy / (1 - rate), 0)

    return layer(f"dropout({rate})", forward, backward, lambda key, x: State(key))


def batch_norm(momentum=0.9):
    """Normalised over the batch; a running mean is carried."""
    def init(key, x):
        return {"gain": jnp.ones(x.shape[-1], x.dtype), "mean": State(jnp.zeros(x.shape[-1], x.dtype))}

    def forward(params, x):
        mean = x.mean(0)
        scale = lax.rsqrt(jnp.square(x - mean).mean(0) + 1e-5)
        z = (x - mean) * scale
        return z * params["gain"], (z, scale, mean)

    def backward(params, kept, dy):
        z, scale, mean = kept
        dz = dy * params["gain"]
        following = momentum * params["mean"].value + (1 - momentum) * mean
        return {"gain": (dy * z).sum(0), "mean": Next(following)}, scale * (dz - dz.mean(0) - z * (dz * z).mean(0))

    return layer("batch_norm()", init=init, forward=forward, backward=backward)


@pytest.mark.parametrize("right", [dropout(0.5), batch_norm(), chain(dropout(0.3), batch_norm())], ids=str)
def test_a_layer_with_state_is_right(right):
    assert check_layer(right, X).verdict == "OK"


def test_another_mask_in_the_backward_is_wrong():
    wrong = changed(dropout(0.5), lambda key, r, dy, dp, dx: dropout(0.5).backward(State(dp.value), r, dy))
    assert wrong_leaves(check_layer(wrong, X, **QUICK)) == {"x"}


def test_integer_inputs_have_no_cotangent():
    assert check_layer(_embedding(lambda at, dy: at.add(dy)), IDS).verdict == "OK"
    assert check_layer(flatten(), np.zeros((2, 3), np.int32)).verdict == "OK"


centre = from_function(lambda params, x: x - x.mean(0))


def test_a_bias_in_front_of_a_mean_is_noise():
    """Its true gradient is zero, all that is left is rounding."""
    assert check_layer(chain(dense(3), centre), X).verdict in SMOOTH


def test_a_wrong_bias_in_front_of_a_mean_is_no_noise():
    wrong = changed(dense(3), lambda p, x, dy, dp, dx: ({**dp, "b": dp["b"] + 1e-9}, dx))
    assert wrong_leaves(check_layer(chain(wrong, centre), X, **QUICK)) == {"params/b"}


DEEP = [part for _ in range(12) for part in (dense(6), sigmoid())]


def test_twelve_sigmoids_are_no_false_alarm():
    net = chain(*DEEP, dense(3))
    report = check_network(net, softmax_cross_entropy(), start(net, X), (X, CLASSES), dtypes=("float64",))
    assert report.verdict in SMOOTH


def test_an_error_before_twelve_sigmoids_is_found():
    """The gradient is a millionth there, but an error of a thousandth of it is still one."""
    slightly = changed(sigmoid(), lambda p, y, dy, dp, dx: (dp, 1.001 * dx))
    net = chain(DEEP[0], slightly, *DEEP[2:])
    report = check_layer(net, X, start(net, X), **QUICK)
    assert {(finding.layer, finding.leaf) for finding in report.findings} == {("1 sigmoid()", "x")}


@pytest.mark.parametrize("residual", [1e-3, 1e-6, 1e-9])
def test_a_converged_net_is_no_false_alarm(residual):
    w = numbers(5, 2, seed=1)
    y = X @ w + residual * numbers(4, 2, seed=2)
    assert check_network(dense(2), mse(), {"w": w, "b": np.zeros(2)}, (X, y), seed=1).verdict in SMOOTH


def test_a_wrong_rule_in_a_converged_net_is_found():
    w = numbers(5, 2, seed=1)
    wrong = changed(dense(2), lambda p, x, dy, dp, dx: ({**dp, "w": 2 * dp["w"]}, dx))
    batch = X, X @ w + 1e-9 * numbers(4, 2, seed=2)
    assert check_network(wrong, mse(), {"w": w, "b": np.zeros(2)}, batch, dtypes=("float64",)).verdict == "WRONG"


def test_a_least_squares_solution_is_no_false_alarm():
    """The loss is far from zero, its gradient is rounding."""
    y = numbers(4, 1, seed=1)
    w, *_ = np.linalg.lstsq(X[:, :3], y, rcond=None)
    assert check_network(dense(1, bias=False), mse(), {"w": w}, (X[:, :3], y)).verdict in SMOOTH


@pytest.mark.parametrize("value", [0.0, 3.0, 1e10])
def test_a_constant_function_has_no_gradient(value):
    constant = layer("constant()", lambda p, x: (jnp.full_like(x, value), ()), lambda p, _, dy: ((), jnp.zeros_like(dy)))
    assert check_layer(constant, X).verdict == "OK"


def test_empty_inputs_are_right():
    assert check_layer(dense(3), np.zeros((0, 5))).verdict == "OK"
    assert check_layer(tanh(), np.zeros((0, 5))).verdict == "OK"


# ---- kinks

ZERO = np.array([0.0, 1.0, -1.0])
absolute = pointwise("absolute()", jnp.abs, jnp.sign)
AT_KINKS = {
    "relu": (relu(), ZERO),
    "negative zero": (relu(), -ZERO),
    "leaky_relu": (leaky_relu(), ZERO),
    "abs": (absolute, ZERO),
    "maximum": (pointwise("maximum()", lambda x: jnp.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)), ZERO),
    "maximum by jax": (from_function(lambda p, x: jnp.maximum(x, 0)), ZERO),
    "clip": (pointwise("clip()", lambda x: jnp.clip(x, -1, 1), lambda x: (jnp.abs(x) < 1).astype(x.dtype)), ZERO),
    "two equal in a max": (
        layer("max()", lambda p, x: (jnp.max(x), x), lambda p, x, dy: ((), jnp.zeros_like(x).at[jnp.argmax(x)].set(dy))),
        np.array([1.0, 1.0, -2.0])),
    "relu in a chain": (chain(relu(), tanh()), ZERO),
}


@pytest.mark.parametrize("kink", AT_KINKS)
def test_at_a_kink_the_verdict_is_kink(kink):
    right, x = AT_KINKS[kink]
    assert check_layer(right, x).verdict == "KINK"


@pytest.mark.parametrize("value", [-1.01, 1.01, 2.0, np.nan])
def test_a_value_outside_the_one_sided_slopes_is_wrong_even_at_a_kink(value):
    wrong = pointwise("absolute()", jnp.abs, lambda x: jnp.where(x == 0, value, jnp.sign(x)))
    assert check_layer(wrong, ZERO, **QUICK).verdict == "WRONG"


def test_a_kink_excuses_no_other_element():
    wrong = pointwise("relu()", lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x > 0.5, 0.9, x > 0))
    assert check_layer(wrong, ZERO, **QUICK).verdict == "WRONG"


NEAR = [sign * size for size in (5e-324, 1e-12, 1e-9, 1e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 1e-4) for sign in (1, -1)]


@pytest.mark.parametrize("right", [relu(), leaky_relu(), absolute], ids=str)
def test_near_a_kink_a_right_rule_is_not_wrong(right):
    for x in (np.array([*NEAR, 1.0, -1.0]), np.array([2e-6, 1.0]), np.array([1e-6])):
        assert check_layer(right, x, **QUICK).verdict in ("OK", "KINK")


# ---- check_gradient: anybody's functions

V = numbers(6)


def sines(x):
    """A numpy function no tracer gets through."""
    return float(np.sum(np.sin(np.asarray(x)) * x))


def test_numpy_functions_are_checked():
    assert check_gradient(sines, lambda x: np.cos(x) * x + np.sin(x), V).verdict == "OK"
    report = check_gradient(sines, lambda x: np.cos(x) * x, V)
    assert (report.verdict, report.worst.layer) == ("WRONG", "sines")
    assert "sines  x[" in str(report)


CUSTOM = {
    "right": (lambda x, dy: dy * jnp.cos(x), "OK"),
    "other derivative": (lambda x, dy: dy * jnp.sin(x), "WRONG"),
    "sign": (lambda x, dy: -dy * jnp.cos(x), "WRONG"),
    "dy forgotten": (lambda x, dy: jnp.cos(x), "WRONG"),
    "1e-6 in one element": (lambda x, dy: (dy * jnp.cos(x)).at[2].multiply(1 + 1e-6), "WRONG"),
    "NaN": (lambda x, dy: jnp.full_like(x, jnp.nan), "WRONG"),
    "no gradient": (lambda x, dy: None, "WRONG"),
}


@pytest.mark.parametrize("rule", CUSTOM)
def test_custom_vjp_functions_are_checked(rule):
    pull, verdict = CUSTOM[rule]
    assert check_gradient(with_rule(jnp.sin, pull), None, V).verdict == verdict


def test_a_custom_vjp_function_with_one_wrong_element_among_many():
    x = numbers(500)
    assert check_gradient(with_rule(jnp.tanh, lambda x, dy: dy * (1 - jnp.tanh(x) ** 2)), None, x).verdict == "OK"
    last = with_rule(jnp.tanh, lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2)).at[-1].multiply(1.01))
    assert check_gradient(last, None, x).verdict == "WRONG"


def test_a_function_with_reverse_mode_alone():
    """A callback has no derivative by jax; its custom_vjp has, in reverse mode only."""
    on_host = lambda x: jax.pure_callback(lambda a: np.sin(a), jax.ShapeDtypeStruct(x.shape, x.dtype), x,
                                          vmap_method="sequential")
    assert check_gradient(with_rule(on_host, lambda x, dy: dy * jnp.cos(x)), None, V).verdict == "OK"
    assert check_gradient(with_rule(on_host, lambda x, dy: dy * jnp.sin(x)), None, V).verdict == "WRONG"


def test_a_custom_jvp_function_with_a_wrong_rule():
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda primals, tangents: (jnp.sin(*primals), jnp.sin(*primals) * tangents[0]))
    assert check_gradient(sine, None, V).verdict == "WRONG"


def test_jitted_functions_are_checked():
    square = jax.jit(lambda x: jnp.sum(x * x))
    assert check_gradient(square, jax.grad(square), V).verdict == "OK"
    assert check_gradient(square, jax.jit(lambda x: x), V).verdict == "WRONG"


def test_argnums_of_a_numpy_function():
    value = lambda a, x: float(np.sum(np.asarray(a) @ np.asarray(x)))
    a, x = numbers(3, 6), V
    assert check_gradient(value, lambda a, x: a.sum(0), a, x, argnums=1).verdict == "OK"
    report = check_gradient(value, lambda a, x: 2 * a.sum(0), a, x, argnums=1)
    assert wrong_leaves(report) == {"x"}


def test_argnums_of_a_custom_vjp_function():
    @jax.custom_vjp
    def product(a, b):
        return a * b

    product.defvjp(lambda a, b: (a * b, (a, b)), lambda kept, dy: (dy * kept[1], 2 * dy * kept[0]))
    assert check_gradient(product, None, V, V[::-1]).verdict == "OK"
    assert check_gradient(product, None, V, V[::-1], argnums=1).verdict == "WRONG"


def test_pytrees_as_arguments():
    value = lambda p: jnp.sum(jnp.tanh(p["w"])) * p["b"][0] * p["n"]
    dw = lambda p: p["b"][0] * p["n"] * (1 - jnp.tanh(p["w"]) ** 2)
    gradient = lambda p: {"w": dw(p), "b": [jnp.sum(jnp.tanh(p["w"])) * p["n"]], "n": None}
    at = {"w": V, "b": [2.0], "n": 3}
    assert check_gradient(value, gradient, at).verdict == "OK"
    report = check_gradient(value, lambda p: {**gradient(p), "b": [p["b"][0]]}, at)
    assert wrong_leaves(report) == {"p/b/0"}


def test_a_value_that_is_no_scalar_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="scalar"):
        check_gradient(jnp.sin, jnp.cos, V)


def test_value_and_grad_for_a_gradient_is_wrong_and_says_so():
    value = lambda x: jnp.sum(x * x)
    report = check_gradient(value, jax.value_and_grad(value), V)
    assert report.verdict == "WRONG"
    assert "the gradient: expected" in str(report)


# ---- check_gradient: functions of any kind


def _in_place(a):
    b = a.copy()
    b[b < 0] = 0
    return np.sum(b ** 2)


def _put(a):
    b = a.copy()
    np.put(b, np.flatnonzero(b < 0), 0.0)
    return np.sum(b ** 2)


def _sorted(a):
    b = a.copy()
    b.sort()
    return b[-1] ** 2


def _overwrites(a):
    a *= a > 0
    return float(a @ a)


def _relu_gradient(a):
    dx = 2 * a
    dx[a <= 0] = 0
    return dx


P = np.array([1.0, -2.0, 5.0, 0.5])
of_relu = lambda a: 2 * np.maximum(a, 0)
# name: (fn, gradient_fn); the gradient in the first argument, at P
HOST = {
    "assigns in place": (_in_place, of_relu),
    "boolean mask": (lambda a: np.sum(a[a > 0] ** 2), of_relu),
    "flat": (lambda a: sum(a.flat[i] ** 2 for i in range(4)), lambda a: 2 * a),
    "nditer": (lambda a: sum(float(b) ** 2 for b in np.nditer(a)), lambda a: 2 * a),
    "put": (_put, of_relu),
    "sort in place": (_sorted, lambda a: np.where(a == a.max(), 2 * a, 0)),
    "overwrites its argument": (_overwrites, of_relu),
    "branches on a value": (lambda a: jnp.sum(a ** 2) if a[0] > 0 else jnp.sum(a), lambda a: 2 * a),
    "float": (lambda a: float(jnp.sum(a ** 2)), lambda a: 2 * a),
    "NumPy gradient of a JAX function": (lambda a: jnp.sum(jnp.maximum(a, 0) ** 2), _relu_gradient),
    "JAX gradient of a NumPy function": (_in_place, lambda a: jnp.zeros_like(a).at[:].set(2 * jnp.maximum(a, 0))),
}


@pytest.mark.parametrize("kind", HOST)
def test_functions_of_any_kind_are_judged_as_they_are(kind):
    fn, gradient = HOST[kind]
    assert check_gradient(fn, gradient, P).verdict == "OK"
    assert check_gradient(fn, lambda a: 1.001 * np.asarray(gradient(a)), P).verdict == "WRONG"
    assert P.tolist() == [1.0, -2.0, 5.0, 0.5]


def test_a_function_is_not_judged_by_what_tracing_makes_of_it():
    """Traced, `b.sort()` sorts a copy: the last element would be the largest."""
    assert check_gradient(_sorted, lambda a: np.array([0, 0, 0, 2 * a[3]]), P).verdict == "WRONG"


def test_functions_of_tensors_are_judged():
    torch = pytest.importorskip("torch")
    fn = lambda a: float((torch.tensor(a) ** 2).sum())
    assert check_gradient(fn, lambda a: 2 * a, P).verdict == "OK"
    shared = lambda a: (torch.from_numpy(a) ** 2).sum()
    assert check_gradient(shared, lambda a: 2 * torch.from_numpy(a), P).verdict == "OK"
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert check_gradient(lambda t: torch.sin(t).sum(), torch.cos, tensor).verdict == "OK"
    assert check_gradient(lambda t: torch.sin(t).sum(), torch.sin, tensor).verdict == "WRONG"


def test_large_arguments_of_numpy_functions():
    """A callback of JAX runs on another thread, without x64."""
    assert check_gradient(lambda a: float(np.sum(a ** 2)), lambda a: 2 * np.asarray(a), np.ones(2000)).verdict == "OK"


DATA, TARGET, WEIGHTS = numbers(5, 3), numbers(5, seed=1), numbers(3, seed=2)
squares = lambda w, x, y: jnp.sum((x @ w - y) ** 2)
dsquares = lambda w, x, y: 2 * x.T @ (x @ w - y)
closed = lambda w: squares(w, DATA, TARGET)
WITH_DATA = {
    "closed-over float64": (closed, lambda w: dsquares(w, DATA, TARGET), (WEIGHTS,)),
    "jax.grad of it": (closed, jax.grad(closed), (WEIGHTS,)),
    "as arguments": (squares, dsquares, (WEIGHTS, DATA, TARGET)),
    "float32 arguments": (squares, dsquares, tuple(a.astype(np.float32) for a in (WEIGHTS, DATA, TARGET))),
    "arrays of JAX": (squares, dsquares, tuple(map(jnp.asarray, (WEIGHTS, DATA, TARGET)))),
    "a NumPy scalar": (lambda a: a * jnp.sin(a), lambda a: jnp.sin(a) + a * jnp.cos(a), (np.float64(0.3),)),
    "a number": (lambda a: a * np.sin(a), lambda a: np.sin(a) + a * np.cos(a), (0.3,)),
    "a list of numbers": (lambda a: np.sum(np.square(a)), lambda a: 2 * np.asarray(a), ([3.0, 4.0],)),
    "words beside": (lambda a, how: jnp.sum(a) if how == "sum" else None, lambda a, how: jnp.ones_like(a), (WEIGHTS, "sum")),
}


@pytest.mark.parametrize("kind", WITH_DATA)
def test_functions_with_data_are_checked(kind):
    fn, gradient, args = WITH_DATA[kind]
    assert check_gradient(fn, gradient, *args).verdict == "OK"
    assert check_gradient(fn, lambda *a: 1.001 * np.asarray(gradient(*a)), *args).verdict == "WRONG"


def test_dicts_of_params_are_checked():
    value = lambda p: jnp.sum((DATA @ p["w"] + p["b"] - TARGET) ** 2)
    at = {"w": WEIGHTS, "b": 0.5}
    assert check_gradient(value, jax.grad(value), at).verdict == "OK"
    wrong = lambda p: {**jax.grad(value)(p), "b": 1.0}
    assert wrong_leaves(check_gradient(value, wrong, at)) == {"p/b"}


def test_several_and_negative_argnums():
    both = jax.grad(squares, argnums=(0, 1))
    assert check_gradient(squares, both, WEIGHTS, DATA, TARGET, argnums=(0, 1)).verdict == "OK"
    second = lambda *a: (both(*a)[0], 1.001 * both(*a)[1])
    assert wrong_leaves(check_gradient(squares, second, WEIGHTS, DATA, TARGET, argnums=(0, -2))) == {"x"}
    last = lambda w, x, y: -2 * (x @ w - y)
    assert check_gradient(squares, last, WEIGHTS, DATA, TARGET, argnums=-1).verdict == "OK"
    report = check_gradient(squares, both, WEIGHTS, DATA, TARGET, argnums=(0, 1, 2))
    assert (report.verdict, report.worst.oracle) == ("WRONG", "structure")
    assert "a tuple of 3" in str(report)


# ---- nothing checked is not OK

half = with_rule(lambda x: 0.5 * x, lambda x, dy: 0.5 * dy)
NOTHING = {
    "integers": jnp.arange(3), "integers of NumPy": np.array([1, 2]), "empty": jnp.zeros(0), "complex": np.array([1j, 2.0]),
    "an int": 3, "a list of ints": [1, 2], "a bool": True, "a list of nothing": [], "words": "abc",
}


@pytest.mark.parametrize("kind", NOTHING)
def test_arguments_without_a_gradient_are_an_error(kind):
    for fn, gradient in ((half, None), (lambda a: jnp.sum(a * 1.0), lambda a: 50.0 * a)):
        with pytest.raises(ValueError, match="argument 0: expected real floating numbers") as caught:
            check_gradient(fn, gradient, NOTHING[kind])
        assert "\n" not in str(caught.value)


def test_the_report_says_what_has_no_gradient():
    value = lambda p: jnp.sum(p["w"] ** 2) * p["n"]
    report = check_gradient(value, lambda p: {"w": 2 * p["w"] * p["n"], "n": None}, {"w": V, "n": 3})
    assert report.verdict == "OK"
    assert "Not checked: p/n (int)" in str(report)
    assert "no floating number to check" in str(check_layer(tanh(), np.zeros((0, 5))))


@pytest.mark.parametrize("dtypes", [(), "float32", ("float128",), ("float64", "int32")])
def test_dtypes_that_check_nothing_are_an_error(dtypes):
    with pytest.raises(ValueError, match="dtypes: expected some of float64, float32, bfloat16, float16"):
        check_layer(tanh(), X, dtypes=dtypes)


def test_complex_numbers_are_an_error():
    to_complex = layer("roots()", lambda p, x: (x * 1j, ()), lambda p, _, dy: ((), dy))
    for right, x in ((tanh(), X * 1j), (to_complex, X)):
        with pytest.raises(ValueError, match=r"expected .*, got .*complex128"):
            check_layer(right, x)


# ---- functions that cannot be checked: one clear line


def _raises(a):
    raise KeyError("momentum")


def _remembers(a, calls=[]):  # noqa: B006
    calls.append(a)
    return np.sum(a) * len(calls)


def _grows(a, calls=[]):  # noqa: B006
    calls.append(a)
    return (np.sum(a),) * len(calls)


double = lambda a: 2 * a
BAD = {
    "raises": (_raises, double, {}, "fn: expected a value, but it raises KeyError: 'momentum'"),
    "does not fit": (lambda a, b: a, double, {}, "fn: expected a value, but it raises TypeError: .*missing 1 required"),
    "gradient raises": (np.sum, _raises, {}, "gradient_fn: expected a value, but it raises KeyError"),
    "random": (lambda a: np.sum(a * np.random.default_rng().normal(size=6)), double, {}, "fn: expected the same value"),
    "remembers": (_remembers, double, {}, "fn: expected the same value"),
    "another structure": (_grows, double, {}, "fn: expected one structure at every call"),
    "None": (lambda a: None, double, {}, "fn: expected a scalar value"),
    "a word": (lambda a: "1.0", double, {}, "fn: expected a scalar value"),
    "complex": (lambda a: np.sum(a) * 1j, double, {}, "fn: expected a scalar value"),
    "no function": (3.0, double, {}, "fn: expected a function, got 3.0"),
    "no gradient function": (np.sum, V, {}, "gradient_fn: expected a function or None, got float64"),
    "argnums beyond": (np.sum, double, {"argnums": 5}, "argnums: expected different positions among the 1 arguments, got 5"),
    "argnums twice": (np.sum, double, {"argnums": (0, -1)}, "argnums: expected different positions"),
    "argnums of nothing": (np.sum, double, {"argnums": ()}, "argnums: expected different positions"),
    "argnums of words": (np.sum, double, {"argnums": "w"}, "argnums: expected different positions"),
    "no rule": (lambda a: np.sum(np.asarray(a)), None, {}, "fn: expected a function that JAX can trace"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_checked_is_one_clear_line(kind):
    fn, gradient, options, text = BAD[kind]
    with pytest.raises(ValueError, match=text) as caught:
        check_gradient(fn, gradient, V, **options)
    assert "\n" not in str(caught.value)


def test_a_rule_that_raises_is_wrong_and_says_so():
    def pull(x, dy):
        raise TypeError("no such rule")

    report = check_gradient(with_rule(jnp.sin, pull), None, V)
    assert (report.verdict, report.worst.oracle) == ("WRONG", "structure")
    assert "the rule raises TypeError: no such rule" in str(report)


@pytest.mark.parametrize("module", [np, jnp])
def test_what_a_function_prints_is_shown_once(module, capsys):
    def fn(a):
        print("called")
        return module.sum(a ** 2)

    assert check_gradient(fn, lambda a: 2 * a, V).verdict == "OK"
    assert capsys.readouterr().out == "called\n"


# ---- rounding is measured: a right gradient is OK or NOISY, a wrong one is still WRONG


def by_numpy(sigmoid):
    return lambda z: -np.log(1 - sigmoid(z)).sum()


naive = lambda z: 1 / (1 + np.exp(-z))
naive_jax = lambda z: 1 / (1 + jnp.exp(-z))


@pytest.mark.parametrize("z", [3.0, 7.0, 9.0, 12.0, 20.0, 30.0, 35.0, 36.0, 37.0, 40.0])
def test_a_numpy_function_that_cancels_is_no_false_alarm(z):
    """1 - sigmoid(z) has few digits left: its logarithm is flat over small steps."""
    for seed in range(10):
        assert check_gradient(by_numpy(naive), naive, np.array([z]), seed=seed).verdict in SMOOTH


@pytest.mark.parametrize("z", [7.0, 9.0, 15.0, 25.0, 30.0, 35.0, 37.0, 40.0])
def test_a_jax_function_that_cancels_is_no_false_alarm(z):
    for seed in range(4):
        value = lambda z: -jnp.log(1 - naive_jax(z)).sum()
        assert check_gradient(value, naive_jax, np.array([z]), seed=seed).verdict in SMOOTH


def test_a_value_that_is_flat_everywhere_accuses_no_rule():
    """The loss of a saturated softmax is zero wherever differences ask, its gradient is 1e-22."""
    logits = lambda factor: numbers(4, 5) + factor * np.eye(4, 5)
    for factor in (40.0, 50.0):
        target = np.arange(4, dtype=np.int32)
        report = check_layer(softmax_cross_entropy(), (logits(factor), target))
        assert report.verdict == "NOISY"
        assert "The value is flat or rough" in str(report)


def test_a_gradient_in_float32_is_judged_as_such_along_a_direction():
    fn, gradient = FLOAT32_INSIDE["gradient alone"]
    for seed in range(20):
        assert check_gradient(fn, gradient, numbers(7, seed=seed), seed=seed).verdict in SMOOTH


def _logistic(rng):
    x, y, w = 3 * rng.standard_normal((20, 4)), rng.integers(0, 2, 20), rng.standard_normal(4)
    return (lambda w: -np.sum(y * np.log(naive(x @ w)) + (1 - y) * np.log(1 - naive(x @ w)))), (
        lambda w: x.T @ (naive(x @ w) - y)), w


def _one_pass_variance(rng):
    return (lambda x: np.mean(x**2) - np.mean(x) ** 2), (lambda x: 2 * (x - x.mean()) / x.size), 100 + rng.standard_normal(8)


@pytest.mark.parametrize("make", [_logistic, _one_pass_variance])
def test_numpy_losses_that_cancel(make):
    for seed in range(8):
        fn, gradient, at = make(np.random.default_rng(seed))
        assert check_gradient(fn, gradient, at, seed=seed).verdict in SMOOTH
        assert check_gradient(fn, lambda a, right=gradient: 1.001 * right(a), at, seed=seed).verdict == "WRONG"


RAMP = np.linspace(-1, 1, 6)


def single_sine(x):
    return jnp.sin(x.astype(jnp.float32)).astype(x.dtype)


FLOAT32_INSIDE = {
    "custom_vjp": (with_rule(single_sine, lambda x, dy: dy * jnp.cos(x)), None),
    "JAX": (lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32))), jnp.cos),
    "NumPy": (lambda x: np.sum(np.sin(x.astype(np.float32))), np.cos),
    "gradient alone": (lambda x: np.sum(np.sin(x)), lambda x: np.cos(x.astype(np.float32))),
    "gradient of tensors": (lambda x: np.sum(x**2), lambda x: 2 * x.astype(np.float32)),
}


@pytest.mark.parametrize("kind", FLOAT32_INSIDE)
def test_a_right_gradient_of_what_is_float32_inside(kind):
    fn, gradient = FLOAT32_INSIDE[kind]
    for seed in range(3):
        assert check_gradient(fn, gradient, RAMP, seed=seed).verdict in SMOOTH


def test_a_wrong_gradient_of_what_is_float32_inside():
    wrong = with_rule(single_sine, lambda x, dy: 1.01 * dy * jnp.cos(x))
    for seed in range(3):
        assert check_gradient(wrong, None, RAMP, seed=seed).verdict == "WRONG"
        assert check_gradient(FLOAT32_INSIDE["NumPy"][0], lambda x: 1.1 * np.cos(x), RAMP, seed=seed).verdict == "WRONG"
        assert check_gradient(FLOAT32_INSIDE["JAX"][0], lambda x: 1.001 * jnp.cos(x), RAMP, seed=seed).verdict == "WRONG"


def _rms_norm(factor=1.0):
    """Computes its scale in float32, as LLaMA does."""
    def forward(params, x):
        wide = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
        return (wide * scale).astype(x.dtype), (x, scale.astype(x.dtype))

    def backward(params, kept, dy):
        x, scale = kept
        return (), factor * (scale * dy - x * scale**3 * jnp.mean(x * dy, -1, keepdims=True))

    return layer("rms_norm()", forward, backward)


def test_a_layer_that_is_float32_inside():
    for seed in range(4):
        x = numbers(4, 6, seed=seed)
        assert check_layer(_rms_norm(), x, seed=seed).verdict in SMOOTH
        assert check_layer(_rms_norm(1.001), x, seed=seed, **QUICK).verdict == "WRONG"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_net_of_another_precision_is_noisy_and_says_why(dtype):
    net = with_precision(chain(dense(8), tanh(), dense(3)), PRECISIONS[dtype])
    report = check_layer(net, X)
    assert report.verdict == "NOISY"
    assert f"It computes in {dtype}" in str(report)


def test_a_constant_of_numpy_does_not_make_a_layer_wrong_in_float32():
    scale = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    right = layer("scale()", lambda p, x: (x * scale, ()), lambda p, _, dy: ((), dy * scale))
    assert check_layer(right, X).verdict == "OK"
    assert check_layer(replace(right, backward=lambda p, _, dy: ((), dy * scale * 1.001)), X).verdict == "WRONG"


# ---- large leaves


def test_a_large_leaf_is_checked_element_by_element():
    """A million numbers: gradients are made one at a time, differences taken for a few, all compared with jax.vjp."""
    x = numbers(4, 1024)
    assert check_layer(dense(1024), x, **QUICK).verdict == "OK"
    last = changed(dense(1024), lambda p, x, dy, dp, dx: ({**dp, "w": dp["w"].at[-1, -1].multiply(1.001)}, dx))
    report = check_layer(last, x, **QUICK)
    assert wrong_leaves(report) == {"params/w"}
    assert report.worst.index == (1023, 1023)


# ---- oracles that disagree


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("right", [tanh(), dense(3), relu()], ids=str)
def test_inputs_that_are_not_finite_are_no_false_alarm(right, value):
    x = X.copy()
    x[1, 2] = value
    report = check_layer(right, x)
    assert report.verdict == "NOISY"
    assert "not finite" in str(report) or "rounding level" in str(report)


def _guarded_root(factor=1.0):
    """jax.vjp of it is NaN where x <= 0: zero times an infinite slope."""
    def backward(params, x, dy):
        return (), factor * jnp.where(x > 0, dy / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 0)

    return layer("guarded_root()", lambda p, x: (jnp.where(x > 0, jnp.sqrt(x), 0), x), backward)


def test_where_jax_is_nan_the_differences_decide():
    x = np.array([[-1.0, 2.0, 3.0, -2.0]])
    assert check_layer(_guarded_root(), x, **QUICK).verdict == "OK"
    assert check_layer(_guarded_root(), x).verdict in SMOOTH
    wrong = layer("guarded_root()", _guarded_root().forward, lambda p, x, dy: ((), dy / (2 * jnp.sqrt(jnp.abs(x)))))
    assert check_layer(wrong, x, **QUICK).verdict == "WRONG"
    assert check_layer(_guarded_root(jnp.nan), x, **QUICK).verdict == "WRONG"


# ---- the same rule, used otherwise

def rule_of_tanh(change):
    return changed(tanh(), lambda p, y, dy, dp, dx: (dp, change(dy, dx)))


def _of_a_later_trace(after):
    calls = []

    def change(dy, dx):
        calls.append(1)
        return 2 * dx if len(calls) > after else dx

    return change


@jax.custom_batching.custom_vmap
def _doubled_by_vmap(x):
    return x


_doubled_by_vmap.def_vmap(lambda size, batched, x: (2 * x, batched[0]))
is_traced = lambda x: isinstance(x, jax.core.Tracer)
OTHERWISE = {
    "clipped at 10": rule_of_tanh(lambda dy, dx: dx * jnp.minimum(1.0, 10 / jnp.abs(dy))),
    "0 for dy below -3": rule_of_tanh(lambda dy, dx: jnp.where(dy < -3, 0.0, dx)),
    "0 for a small dy": rule_of_tanh(lambda dy, dx: jnp.where(jnp.abs(dy) < 1e-3, 0.0, dx)),
    "the size of dy": rule_of_tanh(lambda dy, dx: dx * jnp.sign(dy)),
    "the first dy for all": rule_of_tanh(lambda dy, dx: dx / dy * dy[0, 0]),
    "one example leaks into the next": rule_of_tanh(lambda dy, dx: dx + 1e-3 * jnp.roll(dx, 1, 0)),
    "without jit": rule_of_tanh(lambda dy, dx: dx if is_traced(dy) else 2 * dx),
    "under jit": rule_of_tanh(lambda dy, dx: 2 * dx if is_traced(dy) else dx),
    "under vmap": rule_of_tanh(lambda dy, dx: _doubled_by_vmap(dx)),
    "from the second trace on": rule_of_tanh(_of_a_later_trace(1)),
    "from the fourth trace on": rule_of_tanh(_of_a_later_trace(3)),
    "no gradient for a leaf": changed(dense(3), lambda p, x, dy, dp, dx: ({**dp, "b": None}, dx)),
    "a batch of one": changed(dense(3), lambda p, x, dy, dp, dx: ({**dp, "b": dp["b"] * (1 + (len(x) == 1))}, dx)),
}


@pytest.mark.parametrize("mistake", OTHERWISE)
def test_a_rule_that_is_wrong_when_used_otherwise(mistake):
    assert check_layer(OTHERWISE[mistake], X, **HINTED).verdict == "WRONG"


FIXED = numbers(4, 5, seed=9)
MADE_FOR_THEIR_BATCH = {
    "a loss of closed-over targets": layer("closed()", lambda p, y: (jnp.mean((y - FIXED) ** 2), y),
                                           lambda p, y, dvalue: ((), 2 / y.size * dvalue * (y - FIXED))),
    "a weight for each example": layer("weighed()", lambda p, x: (x * FIXED, ()), lambda p, kept, dy: ((), dy * FIXED)),
    "params of the shape of x": layer("place()", lambda p, x: (x + p, ()), lambda p, kept, dy: (dy, dy),
                                      lambda key, x: jnp.zeros(x.shape)),
    "a rule that vmap cannot take": layer("hosted()", lambda p, x: (jnp.sin(x), x), lambda p, x, dy: ((), jax.pure_callback(
        lambda x, dy: np.cos(x) * dy, jax.ShapeDtypeStruct(x.shape, x.dtype), x, dy))),
}


@pytest.mark.parametrize("kind", MADE_FOR_THEIR_BATCH)
def test_a_right_rule_that_cannot_be_used_otherwise(kind):
    assert check_layer(MADE_FOR_THEIR_BATCH[kind], X).verdict == "OK"


def _pooling(share):
    """Returns max_pool(2) whose tied winners get `share(winners)` of dy each."""
    wide = lambda a: jnp.repeat(jnp.repeat(a, 2, 1), 2, 2)

    def backward(params, x, dy):
        won = x == wide(max_pool(2).forward((), x)[0])
        count = wide(won.reshape(2, 4, 2, 4, 2, 3).sum((2, 4)))
        return (), jnp.where(won, wide(dy) * share(count), 0.0)

    return layer("pooling()", lambda params, x: (max_pool(2).forward((), x)[0], x), backward)


@pytest.mark.parametrize(("share", "verdict"), [
    (lambda count: 1.0, "WRONG"), (lambda count: count == 1, "WRONG"), (lambda count: 1 / count, "KINK")])
def test_ties_of_a_large_pooling(share, verdict):
    x = np.round(numbers(2, 8, 8, 3))
    assert check_layer(_pooling(share), x, **QUICK).verdict == verdict


def _largest(change, kind="largest()"):
    """Returns the layer max |x| of every row; `change(won, dy)` is the gradient in front of the sign."""
    return layer(kind, lambda params, x: (jnp.max(jnp.abs(x), -1), x), lambda params, x, dy: (
        (), jnp.sign(x) * change(jnp.abs(x) == jnp.max(jnp.abs(x), -1, keepdims=True), dy[:, None])))


@pytest.mark.parametrize(("change", "verdict"), [
    (lambda won, dy: dy * won, "WRONG"), (lambda won, dy: dy * won * (won.sum(-1, keepdims=True) == 1), "WRONG"),
    (lambda won, dy: dy * won / won.sum(-1, keepdims=True), "KINK")])
def test_ties_of_absolute_values(change, verdict):
    x = np.array([[1.0, -1.0, 0.3], [0.2, 0.5, -0.1]])
    assert check_layer(_largest(change), x, **QUICK).verdict in ((verdict, "OK") if verdict == "KINK" else (verdict,))


def test_a_lost_tie_beside_another_kink():
    def backward(params, x, dy):
        y = jax.nn.relu(x)
        won = y == jnp.max(y, -1, keepdims=True)
        return (), jnp.where(won & (x > 0) & (won.sum(-1, keepdims=True) == 1), dy[:, None], 0.0)

    lost = layer("top()", lambda params, x: (jnp.max(jax.nn.relu(x), -1), x), backward)
    assert check_layer(lost, np.array([[0.0, -1.0, -2.0], [2.0, 2.0, 1.0]]), **QUICK).verdict == "WRONG"


def _in_place(params, x):
    logits, ids = x
    ids -= 1  # of a NumPy array: in place
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, None], 1)), (logits, ids)


def test_the_arrays_of_the_user_stay_what_they_are():
    def backward(params, kept, dy):
        logits, ids = kept
        return (), (dy * (jax.nn.softmax(logits) - jax.nn.one_hot(ids, 5, dtype=dy.dtype)), None)

    ids = np.array([1, 3, 2, 2])
    assert check_layer(layer("from_one()", _in_place, backward), (X, ids)).verdict == "OK"
    assert ids.tolist() == [1, 3, 2, 2]


SOURCE, TARGET_NODE = jnp.array([1, 2, 3]), jnp.array([2, 3, 1])
EXAMPLES_MEET = {
    "messages along edges": layer(
        "messages()", lambda p, x: (jnp.zeros_like(x).at[TARGET_NODE].add(x[SOURCE]), ()),
        lambda p, kept, dy: ((), jnp.zeros_like(dy).at[SOURCE].add(dy[TARGET_NODE]))),
    "a difference of neighbours": layer(
        "difference()", lambda p, x: (x.at[0].set(x[1] - x[0]), ()),
        lambda p, kept, dy: ((), dy.at[0].set(0).at[1].add(dy[0]).at[0].add(-dy[0]))),
    "the spread of a batch": layer(
        "spread()", lambda p, x: (jnp.sum(jnp.std(x, 0)), x),
        lambda p, x, dy: ((), dy * (x - x.mean(0)) / (len(x) * jnp.std(x, 0)))),
}


@pytest.mark.parametrize("kind", EXAMPLES_MEET)
def test_a_right_rule_whose_examples_meet(kind):
    assert check_layer(EXAMPLES_MEET[kind], X).verdict in RIGHT


def test_a_custom_vjp_that_keeps_float32():
    @jax.custom_vjp
    def f(x):
        return jnp.tanh(x)

    f.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x).astype(jnp.float32)), lambda y, dy: (dy * (1 - y.astype(dy.dtype) ** 2),))
    assert check_gradient(f, None, X).verdict in RIGHT


def test_a_wrong_layer_beside_a_counter_is_named():
    def counting():
        return Layer("count", lambda key, x: {"n": State(jnp.zeros((), int))}, lambda params, x: (x, ()),
                     lambda params, kept, dy: ({"n": Next(params["n"].value + 1)}, dy))

    net = chain(counting(), doubled(dense(3)))
    report = check_layer(net, X, net.init(jax.random.key(0), X), dtypes=("float64",))
    assert {finding.layer for finding in report.findings} == {"1 dense(3)"}


def test_a_rule_made_by_autodiff_is_reported():
    ours = "The rule is made by jax.vjp"
    by_jax = from_function(lambda params, x: jnp.sin(x))
    assert ours in str(check_layer(by_jax, X, **QUICK))
    assert ours in str(check_layer(chain(dense(3), by_jax), X, **QUICK))
    assert ours not in str(check_layer(dense(3), X, **QUICK))


# ---- networks: the culprit is named

badly = changed(relu(), lambda p, y, dy, dp, dx: (dp, dy))
first_alone = changed(dense(5), lambda p, x, dy, dp, dx: ({**dp, "b": dy[0]}, dx))
CULPRITS = {
    "the first": ([first_alone, dense(3)], {"0 dense(5)"}),
    "in a chain in a skip": ([skip(chain(dense(6), badly, dense(5)))], {"0/0/1 relu()"}),
    "two": ([skip(chain(first_alone, badly))], {"0/0/0 dense(5)", "0/0/1 relu()"}),
    "a missing key": ([changed(dense(5), lambda p, x, dy, dp, dx: ({"w": dp["w"]}, dx)), tanh()], {"0 dense(5)"}),
}


def doubled(of: Layer) -> Layer:
    """Doubles the largest part of a rule: the weights' gradients, or dx where there are none."""
    def backward(params, residuals, dy):
        dparams, dx = of.backward(params, residuals, dy)
        twice = lambda tree: jax.tree.map(lambda g: 2 * g, tree)
        gradients, successors = split(dparams)
        if jax.tree.leaves(gradients):
            return combine(twice(gradients), successors), dx
        return dparams, twice(dx)

    return replace(of, backward=backward)


NARROW, SEQUENCES = numbers(4, 6), numbers(4, 5, 6)
IDS = np.array([[0, 3, 1], [2, 2, 4], [1, 0, 3], [4, 4, 0]], np.int32)
# name -> (net, x, places that are judged in every run)
PLACES = {
    "skip": (chain(skip(chain(dense(6), tanh(), dense(6))), dense(3)), NARROW, ()),
    "repeat": (chain(repeat(chain(dense(6), tanh()), 3), dense(3)), NARROW, ("0/0/0", "0")),
    "unrolled repeat": (chain(repeat(chain(dense(6), tanh()), 2, unroll=True), dense(3)), NARROW, ()),
    "fan_out": (chain(fan_out(dense(3), chain(dense(3), tanh())), add()), NARROW, ("0/1/1",)),
    "lstm": (chain(lstm(4), take_last(), dense(3)), SEQUENCES, ("0/1/0",)),
    "gru": (chain(gru(4), take_last(), dense(3)), SEQUENCES, ()),
    "tied": (tied(chain(dense(6), tanh(), dense(6), dense(3)), {"2/w": "0/w"}), NARROW, ("2",)),
    "precision": (with_precision(chain(dense(6), tanh(), dense(3)), PRECISIONS["bfloat16"]), NARROW, ("0",)),
    "checkpoint": (chain(checkpoint(chain(dense(6), tanh())), dense(3)), NARROW, ("0/0",)),
    "frozen": (chain(frozen(dense(6)), tanh(), dense(3)), NARROW, ("1",)),
    "embedding": (chain(embedding(5, 4), flatten(), dense(3)), IDS, ("0",)),
    "state": (chain(dense(6), fbackprop.dropout(0.5), fbackprop.batch_norm(), dense(3)), NARROW, ("2",)),
    "gpt": (gpt(11, 3, features=8, heads=2, blocks=1, chunk=None), (IDS, IDS), ()),
}


def expect_named(name, place):
    net, x, _ = PLACES[name]
    loss, batch = (None, x) if name == "gpt" else (softmax_cross_entropy(), (x, CLASSES))
    params = net.init(jax.random.key(0), x)
    report = check_network(replace_rules(net, place, doubled), loss, params, batch, dtypes=("float64",))
    assert report.verdict == "WRONG"
    assert {finding.layer.partition(" ")[0] for finding in report.findings} == {place}


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in PLACES for place in PLACES[name][2]])
def test_a_wrong_layer_is_named(name, place):
    expect_named(name, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_every_wrong_layer_is_named(name):
    net, _, done = PLACES[name]
    for place in layers_by_path(net):
        without = (name, place) in (("frozen", "0"), ("gpt", "0/1"))  # no gradient there: frozen, or the targets alone
        unseen = place == "" or place in done or without
        if not unseen:
            expect_named(name, place)


def test_check_layer_names_the_layer_too():
    net, x, _ = PLACES["repeat"]
    report = check_layer(replace_rules(net, "0/0/1", doubled), x)
    assert {finding.layer for finding in report.findings} == {"0/0/1 tanh()"}


def test_a_wrong_combinator_without_parts_to_see_is_reported_whole():
    net = replace(chain(dense(6), tanh()), backward=lambda params, residuals, dy: (params, dy))
    report = check_layer(net, X)
    assert report.verdict == "WRONG"
    assert {finding.layer for finding in report.findings} == {"chain(dense(6), tanh())"}


def test_a_leaf_has_one_line_for_all_dtypes():
    shown = str(check_layer(badly, X)).splitlines()
    assert len(shown) == 2
    assert "float64, float32" in shown[0]


mean_square = layer("mean_square()", lambda p, batch: (jnp.mean(jnp.square(batch[0])), batch[0]),
                    lambda p, y, dvalue: ((), (2 / y.size * dvalue * y, None)))


@pytest.mark.parametrize("where", CULPRITS)
def test_a_network_names_the_layer_that_is_wrong(where):
    layers, culprits = CULPRITS[where]
    net = chain(*layers)
    report = check_network(net, mean_square, start(net, X), (X, CLASSES), dtypes=("float64",))
    assert report.verdict == "WRONG"
    assert {finding.layer for finding in report.findings} == culprits


def test_a_network_that_ends_in_its_loss():
    net = chain(badly, from_function(lambda params, y: (y, jnp.asarray(CLASSES))), softmax_cross_entropy())
    report = check_network(net, None, start(net, X), X, dtypes=("float64",))
    assert {finding.layer for finding in report.findings} == {"0 relu()"}


def test_a_network_with_state_and_integer_inputs():
    net = chain(_embedding(lambda at, dy: at.set(dy)), dropout(0.3))
    ids = np.array([0, 3, 3, 6], np.int32)
    report = check_network(net, softmax_cross_entropy(), net.init(jax.random.key(0), ids), (ids, CLASSES), dtypes=("float64",))
    assert {finding.layer for finding in report.findings} == {"0 embedding()"}


def test_a_right_network_is_ok():
    net, x = mlp((64,)), numbers(32, 100)
    labels = np.arange(32) % 10
    assert check_network(net, softmax_cross_entropy(), start(net, x), (x, labels)).verdict == "OK"


def test_a_real_network_on_real_digits_is_no_false_alarm():
    """Among 128 relus times 32 examples the larger Taylor steps cross kinks."""
    images, labels = load_mnist5k()
    net = mlp((128, 128))
    picked = np.random.default_rng(0).permutation(5000)[:32]
    x, params = images[picked] / 255.0, net.init(jax.random.key(0), jnp.zeros((32, 28, 28)))
    assert check_network(net, softmax_cross_entropy(), params, (x, labels[picked]), dtypes=("float64",)).verdict == "OK"


@pytest.mark.parametrize(("layer", "x", "words"), [
    (dense, X, "layer: expected a Layer, got dense"), (jnp.sin, X, "layer: expected a Layer"),
    (relu(), (3, 5), "x: expected arrays, or specs of them, got (3, 5). For a shape alone write jax.ShapeDtypeStruct"),
    (relu(), "abc", "x: expected arrays, or specs of them, got 'abc'")])
def test_what_is_no_layer_or_no_array(layer, x, words):
    with pytest.raises(TypeError, match=re.escape(words)) as caught:
        check_layer(layer, x)
    assert "\n" not in str(caught.value)


# ---- assert_rule


def test_assert_rule_raises_with_the_report():
    with pytest.raises(AssertionError, match=r"WRONG relu\(\)  x\[.*the derivative of identity"):
        assert_rule(badly, X)
    with pytest.raises(AssertionError, match="WRONG sines"):
        assert_rule(sines, lambda x: np.cos(x), V)


def test_assert_rule_passes_right_rules_kinks_and_noise():
    assert_rule(tanh(), X)
    assert_rule(relu(), ZERO)
    assert_rule(chain(dense(3), centre), X)
    assert_rule(mse(), (X, 2 * X))
    assert_rule(sines, lambda x: np.cos(x) * x + np.sin(x), V)
    assert_rule(with_rule(jnp.sin, lambda x, dy: dy * jnp.cos(x)), None, V)


# ---- the table


def public_layers():
    homes = names_of("")
    return {name for name, home in homes.items() if home.startswith("layers.") or home == "losses"} | {"chain", "skip"}


def test_every_public_layer_has_a_row():
    assert {case.of for case in CASES} >= public_layers()


def test_every_row_stands_for_what_it_says():
    for case in CASES:
        # a net of parts stands for one of them; a head's inference twin has a name of its own
        made_by = {"linear_cross_entropy": "linear_"}.get(case.of, case.of)
        assert made_by in case.layer.name or case.layer.parts, case.name
        assert getattr(fbackprop, case.of)


def test_no_two_rows_have_one_name():
    assert len({case.name for case in CASES}) == len(CASES)


QUICK_CASES = ("dense(5) square, two leading axes", "relu()", "softmax()", "softmax_cross_entropy()", "skip(dense(5))")


@pytest.mark.parametrize("name", QUICK_CASES)
def test_every_planted_bug_is_caught(name):
    (case,) = [case for case in CASES if case.name == name]
    result = verify_case(case, draws=3, seed=1)
    assert result.planted > 5
    assert result.missed == []
    assert result.alarms == []
    assert result.as_expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_whole_table_at_another_seed(case):
    result = verify_case(case, draws=0 if "empty" in case.note or case.verdict != "OK" else 30, seed=1)
    assert result.report.verdict == case.verdict
    assert result.missed == []
    assert [str(alarm) for alarm in result.alarms] == []


def test_a_wrong_row_is_counted_and_named():
    wrong = Case("tanh", changed(tanh(), lambda p, y, dy, dp, dx: (dp, 2 * dx)), drawn(3, 5))
    right = Case("tanh", tanh(), drawn(0, 5), "empty batch")
    seen = []
    counts = verify_table([wrong, right], draws=0, on_result=seen.append)
    assert [result.as_expected for result in seen] == [False, True]
    assert (counts["layers"], counts["cases"], counts["ok"], counts["wrong"]) == (1, 2, 1, 1)
    assert counts["worst"]["verdict"] == "WRONG"
    assert json.loads(json.dumps(counts)) == counts == summary(seen)


def test_a_false_alarm_is_counted():
    """A rule that is wrong above 1.47 alone: right at the first point, wrong at some later ones."""
    late = Case("tanh", changed(tanh(), lambda p, y, dy, dp, dx: (dp, jnp.where(y > 0.9, 2 * dx, dx))), drawn(2, 2))
    result = verify_case(late, draws=40)
    assert result.report.verdict == "OK"
    assert result.alarms
    assert summary([result])["false_alarms"] == len(result.alarms)
