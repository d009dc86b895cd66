"""More losses: PyTorch in float64, weights, smoothing, ignored rows, huber, binary and linear, memory, bad input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbackprop import (
    binary_cross_entropy_with_logits,
    half_squared_error,
    huber,
    inference,
    linear_cross_entropy,
    mse,
    predict,
    softmax_cross_entropy,
    vjp,
)
from fbackprop.jaxprs.flops import count_flops
from fbackprop.verify.oracles import quick_jit as jit

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((7, 5))
CLASSES = np.int32([0, 4, 2, 2, 1, 3, 0])
SHARES = RNG.random((7, 5))
CLASS_WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
WEIGHTS = RNG.random(7) + 0.5


@partial(jit, static_argnums=0)
def run(loss, params, x, dvalue=1.0):
    """`(value, dparams, dx)`."""
    value, pullback = vjp(loss, params, x)
    return value, *pullback(jnp.asarray(dvalue, value.dtype))


def wide_run(*args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, run(*args))


def close(got, wanted, rtol=1e-10):
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * max(1e-2, np.max(np.abs(wanted))))


# ---- softmax_cross_entropy


@pytest.mark.peers
@pytest.mark.parametrize("options", [
    {"label_smoothing": 0.1}, {"class_weights": CLASS_WEIGHTS}, {"ignore_index": 2}, {"ignore_index": -100},
    {"label_smoothing": 0.3, "class_weights": CLASS_WEIGHTS, "ignore_index": 0},
], ids=lambda options: ", ".join(options))
@pytest.mark.parametrize("target", [CLASSES, SHARES], ids=["classes", "probabilities"])
def test_pytorch_has_the_same_cross_entropy(options, target):
    torch = pytest.importorskip("torch")
    if target is SHARES:
        options = {name: option for name, option in options.items() if name != "ignore_index"}
    value, _, (dx, dtarget) = wide_run(softmax_cross_entropy(**options), (), (LOGITS, target), 3.0)
    x = torch.tensor(LOGITS, requires_grad=True)
    t = torch.tensor(target, requires_grad=True) if target is SHARES else torch.tensor(target).long()
    weight = torch.tensor(CLASS_WEIGHTS) if "class_weights" in options else None
    wanted = torch.nn.functional.cross_entropy(x, t, weight, ignore_index=options.get("ignore_index", -100),
                                               label_smoothing=options.get("label_smoothing", 0.0))
    (3 * wanted).backward()
    close(value, wanted.item())
    close(dx, x.grad.numpy())
    if target is SHARES:
        close(dtarget, t.grad.numpy())


def test_weights_make_a_weighted_mean_and_get_its_cotangent():
    value, _, (dx, none, dweights) = wide_run(softmax_cross_entropy(), (), (LOGITS, CLASSES, WEIGHTS))
    log_p = LOGITS - np.log(np.sum(np.exp(LOGITS), axis=1, keepdims=True))
    rows, total = -log_p[np.arange(7), CLASSES], WEIGHTS.sum()
    close(value, np.sum(WEIGHTS * rows) / total)
    close(dx, (np.exp(log_p) - np.eye(5)[CLASSES]) * WEIGHTS[:, None] / total)
    close(dweights, (rows - value) / total)
    assert none is None


def test_a_row_of_weight_zero_is_a_row_left_out():
    kept = np.float64(CLASSES != 2)
    value, _, (dx, _, _) = wide_run(softmax_cross_entropy(), (), (LOGITS, CLASSES, kept))
    wanted, _, (dwanted, _) = wide_run(softmax_cross_entropy(ignore_index=2), (), (LOGITS, CLASSES))
    close(value, wanted)
    close(dx, dwanted)


@pytest.mark.parametrize("batch", [
    (LOGITS, np.full(7, -1, np.int32)), (LOGITS, CLASSES, np.zeros(7)), (LOGITS, SHARES, np.zeros(7)),
], ids=["ignored", "classes", "probabilities"])
def test_the_mean_over_no_row_is_zero_and_so_are_its_gradients(batch):
    loss = softmax_cross_entropy(ignore_index=None if batch[1] is SHARES else -1, label_smoothing=0.1)
    for leaf in jax.tree.leaves(wide_run(loss, (), batch)):
        assert not np.any(leaf)  # NaN is true


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int32"])
def test_an_index_the_labels_cannot_hold_ignores_nothing(dtype):
    value, _, _ = run(softmax_cross_entropy(ignore_index=-100), (), (np.float32(LOGITS), CLASSES.astype(dtype)))
    wanted, _, _ = run(softmax_cross_entropy(), (), (np.float32(LOGITS), CLASSES))
    assert value == wanted


def test_other_illegal_labels_stay_nan_beside_ignored_ones():
    target = np.int32([0, -1, -2, 2, 1, 3, 0])
    value, _, (dx, _) = wide_run(softmax_cross_entropy(ignore_index=-1), (), (LOGITS, target))
    assert np.isnan(value)
    assert np.all(np.isnan(dx).any(axis=1) == (target == -2))
    assert not np.any(dx[1])


# ---- elementwise losses


@pytest.mark.peers
@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_pytorch_has_the_same_huber(delta):
    torch = pytest.importorskip("torch")
    y, target = 2 * LOGITS, SHARES
    value, _, (dy, dtarget) = wide_run(huber(delta=delta), (), (y, target), 3.0)
    a, b = torch.tensor(y, requires_grad=True), torch.tensor(target, requires_grad=True)
    wanted = torch.nn.functional.huber_loss(a, b, delta=delta)
    (3 * wanted).backward()
    close(value, wanted.item())
    close(dy, a.grad.numpy())
    close(dtarget, b.grad.numpy())


@pytest.mark.peers
@pytest.mark.parametrize(("loss", "name", "share"), [
    (binary_cross_entropy_with_logits(), "binary_cross_entropy_with_logits", 1), (mse(), "mse_loss", 1),
    (half_squared_error(), "mse_loss", LOGITS.size / 2)], ids=lambda value: getattr(value, "name", ""))
def test_pytorch_has_the_same_loss(loss, name, share):
    torch = pytest.importorskip("torch")
    value, _, (dy, dtarget) = wide_run(loss, (), (5 * LOGITS, SHARES), 3.0)
    a, b = torch.tensor(5 * LOGITS, requires_grad=True), torch.tensor(SHARES, requires_grad=True)
    wanted = share * getattr(torch.nn.functional, name)(a, b)
    (3 * wanted).backward()
    close(value, wanted.item())
    close(dy, a.grad.numpy())
    close(dtarget, b.grad.numpy())


def test_huber_is_half_the_squared_error_inside_and_grows_by_delta_outside():
    e = np.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    value, _, (dy, _) = wide_run(huber(delta=1.0), (), (e, np.zeros(5)))
    close(value, np.mean([2.5, 0.125, 0, 0.125, 2.5]))
    close(dy, np.clip(e, -1, 1) / 5)
    wide = wide_run(huber(delta=100.0), (), (LOGITS, SHARES))[0]
    close(2 * wide, wide_run(mse(), (), (LOGITS, SHARES))[0])


def test_binary_cross_entropy_keeps_its_digits_far_out():
    x, t = np.float32([[60, -60, 30, 1e4, -1e4]]), np.float32([[1, 0, 1, 0, 1]])
    for logit, target, wanted in zip(x[0], t[0], [np.exp(-60.0), np.exp(-60.0), np.exp(-30.0), 1e4, 1e4]):
        value, _, (dx, _) = run(binary_cross_entropy_with_logits(), (), (logit[None], target[None]))
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert np.isfinite(dx).all()


# ---- linear_cross_entropy


def head(classes=7, width=3, bias=False, seed=0):
    rng = np.random.default_rng(seed)
    w = {"w": rng.standard_normal((classes, width))}
    return {**w, "b": rng.standard_normal(classes)} if bias else w


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_chunk_is_the_dense_and_its_cross_entropy(data):
    axis = data.draw(st.sampled_from(["tokens", "vocabulary"]))
    chunk, bias = data.draw(st.none() | st.integers(1, 9)), data.draw(st.booleans())
    options = {"label_smoothing": data.draw(st.sampled_from([0.0, 0.2])),
               "ignore_index": data.draw(st.sampled_from([None, -1, 2]))}
    h = np.random.default_rng(1).standard_normal((2, 4, 3))
    target = np.int32([[0, 6, 2, 2], [1, 3, 2, 5]])
    params = head(bias=bias)
    loss = linear_cross_entropy(7, chunk=chunk, axis=axis, bias=bias, **options)
    value, dparams, (dh, none) = wide_run(loss, params, (h, target), 3.0)
    x = h @ params["w"].T + params.get("b", 0)
    wanted, _, (dx, _) = wide_run(softmax_cross_entropy(**options), (), (x, target), 3.0)
    close(value, wanted)
    close(dh, dx @ params["w"])
    close(dparams["w"], np.einsum("btv,btd->vd", dx, h))
    if bias:
        close(dparams["b"], dx.sum((0, 1)))
    assert none is None


@pytest.mark.peers
@pytest.mark.parametrize("axis", ["tokens", "vocabulary"])
def test_pytorch_has_the_same_linear_cross_entropy(axis):
    torch = pytest.importorskip("torch")
    h, target, params = LOGITS[:, :3].copy(), np.int32([0, 6, 2, -1, 1, 3, 0]), head(bias=True)
    loss = linear_cross_entropy(
        7, chunk=3, axis=axis, bias=True, label_smoothing=0.1, ignore_index=-1)
    value, dparams, (dh, _) = wide_run(loss, params, (h, target))
    a, w, b = (torch.tensor(leaf, requires_grad=True) for leaf in (h, params["w"], params["b"]))
    wanted = torch.nn.functional.cross_entropy(a @ w.T + b, torch.tensor(target).long(), ignore_index=-1, label_smoothing=0.1)
    wanted.backward()
    close(value, wanted.item())
    for got, leaf in ((dh, a), (dparams["w"], w), (dparams["b"], b)):
        close(got, leaf.grad.numpy())


def test_nothing_but_ignored_rows_gives_zero_and_an_illegal_label_nan_in_its_row():
    h = LOGITS[:, :3]
    ignored = (h, np.full(7, -1, np.int32))
    loss = linear_cross_entropy(7, chunk=2, ignore_index=-1)
    for leaf in jax.tree.leaves(wide_run(loss, head(), ignored)):
        assert not np.any(leaf)
    bad = np.int32([0, 6, 7, 2, 1, 3, 0])
    for axis in ("tokens", "vocabulary"):
        value, _, (dh, _) = wide_run(linear_cross_entropy(7, chunk=2, axis=axis), head(), (h, bad))
        assert np.isnan(value)
        assert np.all(np.isnan(dh).any(axis=1) == (bad == 7))


@pytest.mark.parametrize("target", [None, CLASSES], ids=["None", "classes"])
def test_the_inference_twin_gives_logits_and_never_looks_at_the_target(target):
    twin, params = inference(linear_cross_entropy(7, chunk=2, bias=True)), head(bias=True)
    h, dy = LOGITS[:, :3], np.random.default_rng(3).standard_normal((7, 7))
    with jax.enable_x64(True):
        y, pullback = vjp(twin, params, (h, target))
        dparams, (dh, none) = pullback(jnp.asarray(dy))
    close(y, h @ params["w"].T + params["b"])
    close(dh, dy @ params["w"])
    close(dparams["w"], dy.T @ h)
    close(dparams["b"], dy.sum(0))
    assert none is None


def test_params_are_made_from_specs():
    h, target = jax.ShapeDtypeStruct((2, 5, 64), np.float32), jax.ShapeDtypeStruct((2, 5), np.int32)
    params = linear_cross_entropy(400, bias=True).init(jax.random.key(0), (h, target))
    assert {name: leaf.shape for name, leaf in params.items()} == {"w": (400, 64), "b": (400,)}
    assert np.std(params["w"]) == pytest.approx(1 / 8, rel=0.05)  # fan-in is D


@pytest.mark.parametrize(("axis", "chunk"), [("tokens", 32), ("vocabulary", 250)])
def test_the_logits_are_never_whole(axis, chunk):
    spec = (jax.ShapeDtypeStruct((512, 32), np.float32), jax.ShapeDtypeStruct((512,), np.int32))
    whole = 512 * 5000 * 4

    def temp(loss):
        params = jax.eval_shape(loss.init, jax.random.key(0), spec)
        return jax.jit(partial(run.__wrapped__, loss)).lower(params, spec).compile().memory_analysis().temp_size_in_bytes

    assert temp(linear_cross_entropy(5000, chunk=chunk, axis=axis)) < whole / 4
    assert temp(linear_cross_entropy(5000)) >= whole
    residuals = jax.eval_shape(linear_cross_entropy(5000, chunk=chunk, axis=axis).forward,
                               {"w": jax.ShapeDtypeStruct((5000, 32), np.float32)}, spec)[1]
    # dh, dw and db, as the backward returns them; or h, target and one number a row
    kept = 512 * 32 + 5000 * 32 + 5000 if axis == "tokens" else 512 * 32 + 2 * 512
    assert sum(leaf.size for leaf in jax.tree.leaves(residuals)) == kept


def test_tiles_of_tokens_make_the_logits_once_and_a_loss_alone_makes_no_gradients():
    spec = (jax.ShapeDtypeStruct((512, 32), np.float32), jax.ShapeDtypeStruct((512,), np.int32))
    params, product = {"w": jax.ShapeDtypeStruct((5000, 32), np.float32)}, 2 * 512 * 32 * 5000

    def products(fn, chunk, axis):
        loss = linear_cross_entropy(5000, chunk=chunk, axis=axis)
        return count_flops(partial(fn, loss), params, spec) / product

    for chunk in (None, 128):
        assert products(run.__wrapped__, chunk, "tokens") == pytest.approx(3, abs=0.3)
        assert products(lambda loss, *given: predict(loss)(*given), chunk, "tokens") == pytest.approx(1, abs=0.2)
    assert products(run.__wrapped__, 128, "vocabulary") == pytest.approx(4, abs=0.5)


# ---- errors


@pytest.mark.parametrize(("make", "text"), [
    (lambda: huber(delta=0), "huber delta: expected a number > 0"),
    (lambda: softmax_cross_entropy(label_smoothing=1.0), r"label_smoothing: expected a share in \[0, 1\)"),
    (lambda: softmax_cross_entropy(ignore_index=1.5), "ignore_index: expected a whole number or None"),
    (lambda: linear_cross_entropy(0), "linear_cross_entropy vocabulary: expected a whole number of at least 1"),
    (lambda: linear_cross_entropy(7, chunk=0), "linear_cross_entropy chunk: expected a whole number of at least 1"),
    (lambda: linear_cross_entropy(7, axis="time"), "linear_cross_entropy axis: expected 'tokens' or 'vocabulary', got 'time'"),
], ids=["huber", "smoothing", "index", "vocabulary", "chunk", "axis"])
def test_options_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


H, W = np.zeros((7, 3), np.float32), {"w": np.zeros((7, 3), np.float32)}
X = np.float32(LOGITS)


@pytest.mark.parametrize(("loss", "params", "batch", "error", "text"), [
    (softmax_cross_entropy(), (), (X, CLASSES, np.float32(WEIGHTS)[:3]), ValueError, r"weights: expected one a row, .*\(7,\)"),
    (softmax_cross_entropy(), (), (X, CLASSES, CLASSES), ValueError, "weights: expected a floating dtype"),
    (softmax_cross_entropy(class_weights=CLASS_WEIGHTS[:3]), (), (X, CLASSES), ValueError, r"class_weights: .*\(5,\)"),
    (softmax_cross_entropy(ignore_index=2), (), (X, np.float32(SHARES)), ValueError, "target: .*of which ignore_index=2"),
    (linear_cross_entropy(7), W, (H, None), TypeError, "target: expected one array"),
    (linear_cross_entropy(7), W, (H, X), ValueError, "target: expected class numbers"),
    (linear_cross_entropy(7), W, (H[:, :2], CLASSES), ValueError, "h: expected a last axis of 3, the columns of w"),
    (linear_cross_entropy(5), W, (H, CLASSES), ValueError, r"w: expected \(5, D\)"),
    (linear_cross_entropy(7, bias=True), W, (H, CLASSES), TypeError, "params: expected {'w', 'b'}"),
    (linear_cross_entropy(7), W, (H[:0], CLASSES[:0]), ValueError, "Is the batch empty"),
    (binary_cross_entropy_with_logits(), (), (X, X[:, 0]), ValueError, "target: expected the shape of y"),
    (huber(), (), (X[:0], X[:0]), ValueError, "Is the batch empty"),
], ids=lambda value: value.name if hasattr(value, "name") else "")
def test_input_that_does_not_fit_is_refused_while_tracing(loss, params, batch, error, text):
    with pytest.raises(error, match=text):
        jax.eval_shape(loss.forward, params, batch)
