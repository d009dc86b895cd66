"""with_precision: narrow compute, wide weights; gradients as near float32's as jax's own; float16 with its loss scaled."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    PRECISIONS,
    Precision,
    auto_value_and_grad,
    batch_norm,
    chain,
    convnet,
    dense,
    embedding,
    from_function,
    frozen,
    gpt,
    graft,
    inference,
    init_opt_state,
    lstm_classifier,
    make_step,
    mlp,
    mse,
    paths,
    predict,
    relu,
    resnet,
    skip,
    softmax_cross_entropy,
    split,
    tap,
    value_and_grad,
    with_precision,
)
from fbackprop.train import LossScale, adjust, all_finite, unscale
from fbackprop.train.step.training import begin, make_training_step

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((8, 12, 12, 1)).astype(np.float32)
LABELS = RNG.integers(0, 10, 8).astype(np.int32)
TEXT = RNG.integers(0, 11, (4, 17)).astype(np.int32)
TOKENS = (TEXT[:, :-1], TEXT[:, 1:])
CLASSES = softmax_cross_entropy()
NARROW = ("bfloat16", "float16")
BF16 = PRECISIONS["bfloat16"]

MODELS = {
    "mlp": (mlp((32, 32)), CLASSES, (IMAGES, LABELS)),
    "convnet with dropout": (convnet((3, 4), hidden=(8,), rate=0.2), CLASSES, (IMAGES, LABELS)),
    "resnet": (resnet((4, 6), blocks=1), CLASSES, (IMAGES, LABELS)),
    "lstm": (lstm_classifier(16), CLASSES, (IMAGES[..., 0], LABELS)),
    "gpt": (gpt(11, 16, features=16, heads=2, blocks=2), None, TOKENS),
}


@cache
def start(name):
    """`(net, loss, batch, x, params)`, the params those of float32."""
    net, loss, batch = MODELS[name]
    x = batch if loss is None else batch[0]
    return net, loss, batch, x, net.init(KEY, x)


@cache
def compiled(name, dtype, how):
    net, loss, _ = MODELS[name]
    return jax.jit(how(net if dtype is None else with_precision(net, PRECISIONS[dtype]), loss))


@cache
def gradients(name, dtype=None, how=value_and_grad, seed=1):
    """`(value, grads)`; dtype None: of the net as it is."""
    _, _, batch, _, params = start(name)
    return compiled(name, dtype, how)(params, batch, np.float32(seed))


def norm(*leaves):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves))


def trained(grads):
    return paths(split(grads)[0])


def products(net, loss, params, batch):
    """The dtypes of what goes into every matrix product and convolution of loss and gradients."""
    dtypes = set()

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                dtypes.update(str(var.aval.dtype) for var in eqn.invars)
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(value_and_grad(net, loss))(params, batch).jaxpr)
    return dtypes


def kept_bytes(net, params, x):
    """Of floating numbers: a pool's choice is a byte in any precision."""
    _, residuals = jax.eval_shape(net.forward, params, x)
    floats = [leaf for leaf in jax.tree.leaves(residuals) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in floats)


# ---- gradients


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in MODELS), ("resnet", "float16"),
                                             ("gpt", "float16")])
def test_gradients_are_as_near_float32_s_as_those_of_jax(name, dtype):
    """jax.grad of the same rounded forward is the measure: how far rounding moves a gradient is the net's doing.

    Twice its error, for two ways of rounding a leaf scatter by that, and four units in the last place, for its own may be 0.
    """
    (wanted_value, wanted), (value, got), (_, by_jax) = (
        gradients(name), gradients(name, dtype), gradients(name, dtype, auto_value_and_grad))
    eps = float(jnp.finfo(dtype).eps)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted_value, rtol=8 * eps)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    wanted, got, by_jax = trained(wanted), trained(got), trained(by_jax)
    for path, leaf in got.items():
        assert leaf.dtype == jnp.float32
        error, of_jax = norm(leaf - wanted[path]), norm(by_jax[path] - wanted[path])
        assert error <= 2 * of_jax + 4 * eps * norm(wanted[path]), path
    whole = norm(*(got[path] - wanted[path] for path in wanted)) / norm(*wanted.values())
    assert whole <= 16 * eps  # measured: 7 eps at most, the resnet, whose batch norms divide by what eight images vary


def test_the_policy_of_float32_changes_only_the_order_of_a_cells_sums():
    """A cell between casts has another backward, so its weights' gradients come from all steps' cotangents recomputed."""
    for got, wanted in zip(jax.tree.leaves(gradients("lstm", "float32")), jax.tree.leaves(gradients("lstm")), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.max(np.abs(wanted)))


@pytest.mark.parametrize("name", ["resnet"])
def test_the_policy_of_float32_changes_no_bit(name):
    for got, wanted in zip(jax.tree.leaves(gradients(name, "float32")), jax.tree.leaves(gradients(name)), strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_params_are_those_of_the_net_without_it(name):
    net, _, _, x, params = start(name)
    narrow = with_precision(net, BF16)
    in_bfloat16 = jax.eval_shape(lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, x))
    for spec in (x, in_bfloat16):
        made = narrow.init(KEY, spec)
        assert jax.tree.structure(made) == jax.tree.structure(params)
        for got, wanted in zip(jax.tree.leaves(split(made)[0]), jax.tree.leaves(split(params)[0]), strict=True):
            assert got.dtype == jnp.float32
            assert np.array_equal(got, wanted)
    assert jax.tree.structure(graft(params, made)) == jax.tree.structure(params)


def test_running_statistics_stay_float32_and_are_those_of_the_rounded_batch():
    (_, wanted), (_, got) = gradients("resnet"), gradients("resnet", "bfloat16")
    for ours, theirs in zip(jax.tree.leaves(split(got)[1]), jax.tree.leaves(split(wanted)[1]), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.005)
        assert np.any(ours != ours.astype(jnp.bfloat16))  # not rounded on the way


# ---- what runs narrow


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", MODELS)
def test_products_take_narrow_numbers_and_half_is_kept(name, dtype):
    net, loss, batch, x, params = start(name)
    narrow = with_precision(net, PRECISIONS[dtype])
    assert products(net, loss, params, batch) == {"float32"}
    assert products(narrow, loss, params, batch) == {dtype}
    # row sums of attention and statistics of norms stay float32
    assert kept_bytes(narrow, params, x) <= 0.53 * kept_bytes(net, params, x)


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_out_of_training_it_is_narrow_too_and_returns_float32(name):
    net, loss, _, x, params = start(name)
    given = (x[0], None) if loss is None else x
    ways = [inference(net), inference(with_precision(net, BF16)), with_precision(inference(net), BF16)]
    wanted, first, second = (jax.jit(predict(way))(params, given) for way in ways)
    assert first.dtype == jnp.float32
    assert np.array_equal(first, second)
    assert 0 < norm(first - wanted) <= 0.02 * norm(wanted)


def test_the_output_and_the_weights_have_the_dtype_of_the_policy():
    net = with_precision(chain(dense(3), relu()), Precision("bfloat16", "float32", "float16"))
    params = net.init(KEY, jnp.ones((2, 5)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    y, residuals = net.forward(params, jnp.ones((2, 5)))
    assert y.dtype == jnp.float16
    dparams, dx = net.backward(params, residuals, y)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dparams)} == {"bfloat16"}
    assert dx.dtype == jnp.float32
    table = with_precision(embedding(3, 2), Precision("bfloat16", "float16", "float32")).init(KEY, LABELS)["w"]
    assert table.dtype == jnp.bfloat16  # tokens have no floating dtype to tell it


def test_a_layer_of_the_user_s_may_widen_its_output():
    net = chain(dense(3), from_function(lambda params, x: x.astype(jnp.float32) ** 2), dense(2))
    params = net.init(KEY, jnp.ones((2, 5)))
    assert seen(with_precision(net, BF16), params, jnp.ones((2, 5)))["2"] == {"bfloat16"}


# ---- what is left out


def seen(net, params, x, attribute="x"):
    """{path: dtypes} of what the layers without parts were given."""
    dtypes = {}

    def see(path, layer, params, x, y, residuals):
        if not layer.parts:
            dtypes[path] = {str(leaf.dtype) for leaf in jax.tree.leaves((params, x))}

    jax.eval_shape(tap(net, see).forward, params, x)
    return dtypes


def test_a_layer_that_is_kept_takes_and_gives_as_before_and_computes_in_float32():
    net = chain(dense(5), skip(chain(batch_norm(), dense(5))), chain(relu(), dense(5)), dense(2))
    x = jnp.ones((4, 5))
    params = net.init(KEY, x)
    kept = with_precision(net, BF16, keep=("1/0/0", "2"))
    wide = {path for path, dtypes in seen(kept, params, x).items() if "bfloat16" not in dtypes}
    assert wide == {"1/0/0", "2/0", "2/1"}
    assert jax.tree.structure(kept.init(KEY, x)) == jax.tree.structure(params)
    _, grads = jax.eval_shape(value_and_grad(kept, mse()), params, (x, jnp.ones((4, 2))))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}
    everything = with_precision(net, BF16, keep=("*",))
    assert set().union(*seen(everything, params, x).values()) == {"float32"}


@pytest.mark.parametrize(("name", "where"), [("lstm", "0/1/0"), ("gpt", "0/0/2/*"), ("gpt", "1")])
def test_keeping_a_cell_the_blocks_or_the_loss_brings_the_gradient_no_further_off(name, where):
    net, loss, batch, x, params = start(name)
    kept = with_precision(net, BF16, keep=(where,))
    value, grads = jax.jit(value_and_grad(kept, loss))(params, batch)
    wanted = trained(gradients(name)[1])
    far = lambda grads: norm(*(leaf - wanted[path] for path, leaf in trained(grads).items()))
    assert far(grads) <= 1.1 * far(gradients(name, "bfloat16")[1])
    assert value != value.astype(jnp.bfloat16)  # a value is not rounded on its way out
    assert "float32" in products(kept, loss, params, batch)


def test_frozen_weights_are_not_rounded_and_integers_go_by():
    net = chain(frozen(dense(4)), dense(2))
    x = jnp.ones((3, 5))
    params = net.init(KEY, x)
    run = jax.jit(value_and_grad(with_precision(net, BF16), mse()))
    _, grads = run(params, (x, jnp.ones((3, 2))))
    carried = jax.tree.leaves(split(grads)[1])
    for got, wanted in zip(carried, jax.tree.leaves(params[0]), strict=True):
        assert np.array_equal(got, wanted)
        assert got.dtype == jnp.float32


def test_a_skip_may_come_first_and_a_rule_put_in_later_meets_the_layer_itself():
    net = with_precision(skip(dense(5)), BF16)
    x = jnp.ones((3, 5))
    params = net.init(KEY, x)
    doubled = lambda layer: replace(layer, backward=lambda params, x, dy: layer.backward(params, x, 2 * dy))
    assert seen(net, params, x) == {"0": {"bfloat16"}}
    _, plain = jax.jit(value_and_grad(net, mse()))(params, (x, x))
    _, twice = jax.jit(value_and_grad(net, mse(), rules={"0": doubled}))(params, (x, x))
    np.testing.assert_array_equal(2 * plain[0]["w"], twice[0]["w"])


@pytest.mark.parametrize(("wrong", "error", "words"), [
    (lambda: with_precision(dense(2), "bfloat16"), TypeError, "PRECISIONS has those with a name: float32, bfloat16, float16"),
    (lambda: with_precision(dense(2), BF16, keep="4"), TypeError, "globs of layer paths"),
    (lambda: with_precision(chain(dense(2)), BF16, keep=("4",)), ValueError, r"keep '4': expected a match .*\['', '0'\]"),
    (lambda: Precision("float32", "int8", "float32"), ValueError, "Precision compute: expected a floating dtype, got int8"),
])
def test_mistakes_are_told(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


# ---- training


def curve(net, loss, batch, steps):
    x = batch if loss is None else batch[0]
    tx = optax.adam(3e-3)
    params = net.init(KEY, x)
    step, opt_state = make_step(value_and_grad(net, loss), tx), init_opt_state(tx, params)
    losses = []
    for _ in range(steps):
        params, opt_state, metrics = step(params, opt_state, batch)
        losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.parametrize(("name", "steps"), [("mlp", 60), ("gpt", 120)])
def test_it_trains_as_float32_does(name, steps):
    net, loss, batch, _, _ = start(name)
    wide, narrow = (curve(one, loss, batch, steps) for one in (net, with_precision(net, BF16)))
    assert wide[-1] < 0.4 * wide[0]
    np.testing.assert_allclose(narrow, wide, atol=0.03 * wide[0])


# ---- float16: the loss scaled


def test_gradients_too_small_for_float16_survive_scaled():
    net, x = chain(dense(4), dense(1)), jnp.ones((2, 3))
    batch = x, jnp.zeros((2, 1))
    params = jax.tree.map(lambda a: 1e-3 * a, net.init(KEY, x))
    half = with_precision(net, PRECISIONS["float16"])
    batch = x, predict(half)(params, x) + 1e-4
    scale = LossScale(np.float32(2**13))
    narrow = jax.jit(value_and_grad(half, mse()))
    _, wanted = jax.jit(value_and_grad(net, mse()))(params, batch)
    (_, lost), (_, scaled) = narrow(params, batch, np.float32(1)), narrow(params, batch, scale.scale)
    got = unscale(scaled, scale)
    assert 0 < norm(wanted[0]["w"]) < 1e-6
    eps = float(jnp.finfo(jnp.float16).eps)
    assert norm(lost[0]["w"] - wanted[0]["w"]) > 0.1 * norm(wanted[0]["w"])
    assert norm(got[0]["w"] - wanted[0]["w"]) < 16 * eps * norm(wanted[0]["w"])


def test_a_scale_changes_no_gradient_and_no_successor_where_nothing_is_small():
    scale = LossScale()  # bfloat16 reaches as far down as float32: scaled and not, the same bits
    (_, plain), (_, scaled) = gradients("resnet", "bfloat16"), gradients("resnet", "bfloat16", seed=2**15)
    for got, wanted in zip(jax.tree.leaves(unscale(scaled, scale)), jax.tree.leaves(plain), strict=True):
        assert np.array_equal(got, wanted)


def test_the_scale_halves_on_overflow_and_doubles_after_a_run_of_good_steps():
    traces = []
    step = jax.jit(lambda *given: traces.append(None) or adjust(*given))
    scale = LossScale()
    assert (scale.scale, scale.good) == (2**15, 0)
    for _ in range(1999):
        scale = step(scale, True)
    assert (scale.scale, scale.good) == (2**15, 1999)
    assert len(traces) == 1
    assert step(scale, True) == (2**16, 0)
    assert step(scale, False) == (2**14, 0)
    assert step(LossScale(1.0, 7), False) == (1, 0)
    assert step(LossScale(2.0**24, 1999), True) == (2**24, 0)
    assert adjust(LossScale(8.0, 2), True, patience=3, most=12.0) == (12, 0)
    assert adjust(LossScale(8.0, 2), False, least=6.0) == (6, 0)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(scale)] == ["float32", "int32"]


def test_an_overflow_is_seen_in_the_gradients_and_not_in_next():
    (_, grads), (_, over) = gradients("resnet", "float16"), gradients("resnet", "float16", seed=2**24)
    assert all_finite(grads)
    assert not all_finite(over)
    assert all_finite(split(over)[1])


def test_a_batch_that_is_nan_says_nothing_about_the_scale():
    net = with_precision(chain(dense(2)), PRECISIONS["float16"])
    x = np.ones((4, 3), np.float32)
    tx = optax.sgd(0.1)
    step = make_training_step(value_and_grad(net, mse()), tx, skip=True)
    training = begin(net.init(jax.random.key(0), x), tx, scaled=True)
    before = float(training.guard[2].scale)
    training, metrics = step(training, (np.full_like(x, np.nan), np.ones((4, 2), np.float32)))
    assert not metrics["finite"]
    assert float(training.guard[2].scale) == before
