"""Losses: plain formulas and optax, units, targets of every kind, offsets, labels that do not exist, shapes that broadcast."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import half_squared_error, mse, predict, softmax_cross_entropy, vjp

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
Y, TARGET = RNG.standard_normal((2, 7, 5)).astype(np.float32)
CLASSES = np.int32([0, 4, 2, 2, 1, 3, 0])
ROWS = np.arange(7)
LOSSES = {"mse": mse(), "half_squared_error": half_squared_error(), "softmax_cross_entropy": softmax_cross_entropy()}


def run(loss, y, target, dvalue=None):
    """`(value, dy, dtarget)`."""
    value, pullback = vjp(loss, (), (y, target))
    _, cotangents = pullback(jnp.ones_like(value) if dvalue is None else dvalue)
    return value, *cotangents


@partial(jax.jit, static_argnums=0)
def compiled(loss, y, target):
    return run(loss, y, target)


def close(got, wanted, rtol=2e-6):
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.max(np.abs(wanted)))


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


# ---- values and cotangents


def test_mse_is_the_mean_over_every_element():
    value, dy, dtarget = compiled(mse(), Y, TARGET)
    close(value, np.mean((Y - TARGET) ** 2))
    close(dy, 2 * (Y - TARGET) / 35)
    close(dtarget, -2 * (Y - TARGET) / 35)


def test_half_squared_error_is_half_the_sum_over_the_batch_too():
    value, dy, dtarget = compiled(half_squared_error(), Y, TARGET)
    close(value, np.sum((Y - TARGET) ** 2) / 2)
    close(dy, Y - TARGET)
    close(dtarget, TARGET - Y)


def test_cross_entropy_of_classes_is_the_mean_over_rows_in_nats():
    value, dy, dtarget = compiled(softmax_cross_entropy(), Y, CLASSES)
    close(value, -np.mean(log_softmax(Y)[ROWS, CLASSES]))
    close(dy, (np.exp(log_softmax(Y)) - np.eye(5)[CLASSES]) / 7)
    assert dtarget is None
    close(predict(softmax_cross_entropy())((), (np.zeros((7, 5), np.float32), CLASSES)), np.log(5))


def test_cross_entropy_of_probabilities_that_do_not_sum_to_one():
    target = np.abs(TARGET)
    value, dy, dtarget = compiled(softmax_cross_entropy(), Y, target)
    close(value, -np.mean(np.sum(target * log_softmax(Y), axis=-1)))
    close(dy, (np.exp(log_softmax(Y)) * target.sum(1, keepdims=True) - target) / 7)
    close(dtarget, -log_softmax(Y) / 7)


@pytest.mark.parametrize(("loss", "target", "of_optax"), [
    (mse(), TARGET, lambda y, t: optax.losses.squared_error(y, t).mean()),
    (half_squared_error(), TARGET, lambda y, t: optax.losses.l2_loss(y, t).sum()),
    (softmax_cross_entropy(), CLASSES, lambda y, t: optax.losses.softmax_cross_entropy_with_integer_labels(y, t).mean()),
    (softmax_cross_entropy(), np.abs(TARGET), lambda y, t: optax.losses.softmax_cross_entropy(y, t).mean()),
], ids=["mse", "half_squared_error", "classes", "probabilities"])
def test_optax_has_the_same_loss(loss, target, of_optax):
    value, dy, _ = compiled(loss, Y, target)
    value_optax, dy_optax = jax.jit(jax.value_and_grad(of_optax))(Y, target)
    close(value, value_optax)
    close(dy, dy_optax, 1e-5)


def test_classes_are_their_one_hot_rows():
    value, dy, _ = compiled(softmax_cross_entropy(), Y, CLASSES)
    value_rows, dy_rows, _ = compiled(softmax_cross_entropy(), Y, np.eye(5, dtype=np.float32)[CLASSES])
    close(value, value_rows)
    close(dy, dy_rows)


@pytest.mark.parametrize("target", [CLASSES.reshape(7, 1), np.abs(TARGET).reshape(7, 1, 5)], ids=["classes", "probabilities"])
def test_cross_entropy_averages_over_all_leading_axes(target):
    value, dy, _ = compiled(softmax_cross_entropy(), Y.reshape(7, 1, 5), target)
    flat, dy_flat, _ = compiled(softmax_cross_entropy(), Y, target.reshape(7, *target.shape[2:]))
    close(value, flat)
    close(dy, dy_flat.reshape(7, 1, 5))


def test_cross_entropy_of_one_example_without_a_batch():
    value, dy, _ = run(softmax_cross_entropy(), Y[0], jnp.int32(3))
    close(value, -log_softmax(Y)[0, 3])
    close(dy, np.exp(log_softmax(Y)[0]) - np.eye(5)[3])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_cotangent_of_the_value_scales_both(loss):
    target = np.abs(TARGET)
    value, dy, dtarget = compiled(loss, Y, target)
    scaled = run(loss, Y, target, jnp.full_like(value, -3))
    close(scaled[1], -3 * dy)
    close(scaled[2], -3 * dtarget)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_have_a_float32_value_and_narrow_cotangents(loss, dtype):
    value, dy, dtarget = jax.eval_shape(partial(run, loss), Y.astype(dtype), TARGET.astype(dtype))
    assert value.dtype == jnp.float32
    assert dy.dtype == dtarget.dtype == dtype


def test_narrow_sums_are_taken_wide():
    ones = jnp.ones(4096, jnp.float16)
    assert predict(half_squared_error())((), (8 * ones, 0 * ones)) == 131072  # float16 ends at 65504
    assert predict(softmax_cross_entropy())((), (jnp.zeros((4096, 2), jnp.bfloat16), jnp.zeros(4096, int))) == \
        pytest.approx(np.log(2), rel=1e-6)


# ---- logits


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_on_the_logits_costs_no_digits(offset):
    logits = np.round(Y * 64) / 64  # so that the offset itself rounds nothing away
    _, dy, _ = compiled(softmax_cross_entropy(), np.float32(logits + offset), CLASSES)
    exact = (np.exp(log_softmax(logits)) - np.eye(5)[CLASSES]) / 7
    np.testing.assert_allclose(dy, exact, rtol=1e-6)


def test_large_logits_stay_finite():
    logits = np.float32([[1e4, 0, -1e4], [-1e4, 1e4, 0]])
    value, dy, _ = run(softmax_cross_entropy(), logits, np.int32([2, 1]))
    close(value, 1e4)
    close(dy, np.float32([[0.5, 0, -0.5], [0, 0, 0]]))


def test_minus_infinity_elsewhere_in_a_row_is_a_class_left_out():
    logits = Y.copy()
    logits[ROWS, (CLASSES + 1) % 5] = -np.inf
    value, dy, _ = compiled(softmax_cross_entropy(), logits, CLASSES)
    kept = np.exp(np.float64(logits))
    p = kept / kept.sum(1, keepdims=True)
    close(value, -np.mean(np.log(p[ROWS, CLASSES])))
    close(dy, (p - np.eye(5)[CLASSES]) / 7)
    assert not np.any(dy[ROWS, (CLASSES + 1) % 5])


# ---- class numbers


@pytest.mark.parametrize("label", [-1, 5, 12, -5, 2**31 - 1, -(2**31)])
def test_a_class_that_does_not_exist_is_nan_in_the_value_and_in_its_row_only(label):
    bad = CLASSES.copy()
    bad[3] = label
    value, dy, _ = compiled(softmax_cross_entropy(), Y, bad)
    _, good, _ = compiled(softmax_cross_entropy(), Y, CLASSES)
    assert np.isnan(value)
    assert np.all(np.isnan(dy[3]))
    others = ROWS != 3
    np.testing.assert_array_equal(dy[others], good[others])


@pytest.mark.parametrize(("dtype", "classes"), [
    ("int8", 5), ("uint8", 5), ("int16", 5), ("uint16", 5), ("int32", 5), ("uint32", 5), ("int8", 127), ("uint8", 255),
    # more classes than the labels' dtype can count: class numbers made in that dtype would wrap
    ("uint8", 256), ("uint8", 300), ("int8", 128), ("int8", 200),
])
def test_labels_of_every_integer_dtype_mean_the_same(dtype, classes):
    logits = np.random.default_rng(1).standard_normal((4, classes)).astype(np.float32)
    labels = np.array([0, 1, 3, 4])
    value, dy, _ = compiled(softmax_cross_entropy(), logits, labels.astype(dtype))
    close(value, -np.mean(log_softmax(logits)[np.arange(4), labels]))
    close(dy, (np.exp(log_softmax(logits)) - np.eye(classes)[labels]) / 4)


def test_numpy_labels_are_legal_outside_jit_too():
    value, dy, _ = run(softmax_cross_entropy(), Y, CLASSES.astype(np.int64))
    wanted_value, wanted, _ = compiled(softmax_cross_entropy(), Y, CLASSES)
    close(value, wanted_value)
    close(dy, wanted)


# ---- errors


@pytest.mark.parametrize("loss", [mse(), half_squared_error()], ids=repr)
@pytest.mark.parametrize(("y", "target"), [
    ((7,), (7, 1)), ((7, 1), (7,)), ((7, 5), (5,)), ((7, 5), (7, 1)), ((7, 5), ()),
], ids=str)
def test_shapes_that_would_broadcast_are_refused(loss, y, target):
    with pytest.raises(ValueError, match=r"target: expected the shape of y, .*Another shape would be broadcast"):
        jax.eval_shape(partial(run, loss), np.zeros(y, np.float32), np.zeros(target, np.float32))


@pytest.mark.parametrize(("target", "text"), [
    (CLASSES[:, None], r"class numbers of shape \(7,\), got int32\[7,1\]. One-hot targets must be floating"),
    (np.eye(5, dtype=np.int32)[CLASSES], "One-hot targets must be floating"),
    (CLASSES[:3], r"class numbers of shape \(7,\), got int32\[3\]"),
    (np.abs(TARGET[:, :4]), r"probabilities of shape \(7, 5\), got float32\[7,4\]"),
    (np.float32(CLASSES), r"probabilities of shape \(7, 5\), got float32\[7\]"),
    (np.abs(TARGET).astype(jnp.bfloat16), "expected one dtype, got logits float32.*target bfloat16"),
    (CLASSES > 2, r"class numbers or probabilities, got bool\[7\]"),
], ids=["column", "whole one-hot", "short", "narrow rows", "floating classes", "dtype", "bool"])
def test_targets_that_do_not_fit_the_logits_are_refused(target, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(partial(run, softmax_cross_entropy()), Y, target)


@pytest.mark.parametrize("target", [[0, 4, 2, 2, 1, 3, 0], None, 3, (CLASSES, CLASSES)], ids=["list", "None", "int", "pair"])
def test_a_target_that_is_no_array_is_a_type_error_that_says_so(target):
    with pytest.raises(TypeError, match="target: expected"):
        predict(softmax_cross_entropy())((), (Y, target))


def test_the_mean_of_nothing_is_refused_and_the_sum_of_nothing_is_zero():
    nothing = np.zeros((0, 5), np.float32)
    for loss, target in ((mse(), nothing), (softmax_cross_entropy(), CLASSES[:0]), (softmax_cross_entropy(), nothing)):
        with pytest.raises(ValueError, match="Is the batch empty"):
            predict(loss)((), (nothing, target))
    value, dy, _ = run(half_squared_error(), nothing, nothing)
    assert value == 0
    assert dy.shape == (0, 5)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="at least one row and one class"):
        predict(softmax_cross_entropy())((), (np.zeros((7, 0), np.float32), CLASSES))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("batch", [Y, (Y,), (Y, Y, Y, Y), {"y": Y, "target": Y}], ids=["array", "one", "four", "dict"])
def test_a_loss_takes_a_pair(loss, batch):
    with pytest.raises(TypeError, match=r"input of a loss: expected a pair \(y, target\), got"):
        predict(loss)((), batch)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_whole_numbers_for_y_are_refused(loss):
    with pytest.raises(ValueError, match="expected a floating dtype"):
        predict(loss)((), (CLASSES[:, None], np.float32(CLASSES[:, None])))
