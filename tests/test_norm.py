"""Norms: plain loops and PyTorch in float64, running statistics, what they do not see, narrow dtypes, bad input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fbackprop import (
    Next,
    State,
    batch_norm,
    chain,
    dense,
    group_norm,
    inference,
    init_opt_state,
    layer_norm,
    make_step,
    merge,
    mse,
    predict,
    rms_norm,
    split,
    value_and_grad,
    vjp,
)
from fbackprop.verify.oracles import quick_jit as jit

KEY = jax.random.key(0)
LAYERS = {"layer": layer_norm(), "rms": rms_norm(), "group": group_norm(2), "batch": batch_norm()}
each = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def drawn(layer, x, seed=5):
    """The layer's params with normal numbers for weights, positive running variances."""
    params = layer.init(KEY, x)
    rng = np.random.default_rng(seed)
    trainable, state = split(params)
    trainable = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), trainable)
    state = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) + 0.5, p.dtype), state)
    return merge(trainable, state)


def pulled(layer, params, x, dy):
    """`(y, dparams, dx)` by the layer's rule."""
    y, pullback = vjp(layer, params, x)
    return (y, *pullback(dy))


run = jit(pulled, static_argnums=0)


@partial(jit, static_argnums=0)
def forward(layer, params, x):
    return predict(layer)(params, x)


def plain(groups, x, eps, centred=True):
    """(x - mean) / sqrt(var + eps) over each group, a list of indices into x."""
    h = np.empty_like(x)
    for group in groups:
        v = x[group]
        mean = np.sum(v) / v.size if centred else 0.0
        h[group] = (v - mean) / np.sqrt(np.sum((v - mean) ** 2) / v.size + eps)
    return h


def groups_of(layer, x):
    rows = [(*index, slice(None)) for index in np.ndindex(x.shape[:-1])]
    if layer.name.startswith("batch"):
        return [(..., c) for c in range(x.shape[-1])]
    if layer.name.startswith("group"):
        half = x.shape[-1] // 2
        return [(b, ..., slice(g * half, (g + 1) * half)) for b in range(x.shape[0]) for g in range(2)]
    return rows


@each
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5, 6), (2, 1, 2)], ids=str)
def test_forward_is_the_plain_loop_over_its_groups(layer, shape):
    x = 3 + 2 * normal(*shape)
    with jax.enable_x64(True):
        params = drawn(layer, x)
        y = forward(layer, params, x)
    centred = not layer.name.startswith("rms")
    wanted = plain(groups_of(layer, x), x, 1e-5 if centred else 1e-6, centred) * np.asarray(params["scale"])
    np.testing.assert_allclose(y, wanted + np.asarray(params.get("bias", 0)), rtol=1e-12, atol=1e-12)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # every shape is compiled: shrinking takes minutes
@given(st.sampled_from(["layer", "rms", "group", "batch"]), st.lists(st.integers(1, 3), min_size=1, max_size=3),
       st.integers(1, 3), st.integers(0, 100))
def test_rule_is_that_of_jax_at_any_shape(kind, leading, half, seed):
    layer, shape = LAYERS[kind], (*leading, 2 * half)
    with jax.enable_x64(True):
        x, dy = jnp.asarray(normal(*shape, seed=seed)), jnp.asarray(normal(*shape, seed=seed + 1))
        params = drawn(layer, x)
        trainable, state = split(params)
        f = lambda trainable, x: predict(layer)(merge(trainable, state), x)
        got, wanted = jit(lambda: (pulled(layer, params, x, dy)[1:], jax.vjp(f, trainable, x)[1](dy)))()
    got = split(got[0])[0], got[1]
    largest = max(1.0, *(np.max(np.abs(np.asarray(a))) for a in jax.tree.leaves(wanted)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10 * largest), got, wanted)


# ---- what they see and what they do not


def test_layer_norm_does_not_see_offset_and_size_of_a_row_rms_norm_only_its_size():
    x = normal(3, 5)
    with jax.enable_x64(True):
        for layer, moved, rest in ((layer_norm(eps=1e-12), 4 + 3 * x, None),
                                   (rms_norm(eps=1e-12), 3 * x, 4 + 3 * x)):
            f = lambda x, layer=layer: forward(layer, drawn(layer, x), x)
            np.testing.assert_allclose(f(moved), f(x), rtol=1e-8)
            assert rest is None or not np.allclose(f(rest), f(x), rtol=1e-2)


def test_norms_are_one_norm_over_other_groups():
    x, y = normal(4, 6, dtype=np.float32), {}
    bare = layer_norm(scale=False, bias=False)
    y["layer"] = forward(bare, (), x)
    y["one group"] = forward(group_norm(1), group_norm(1).init(KEY, x), x)
    y["batch"] = forward(batch_norm(), batch_norm().init(KEY, x.T), x.T).T
    for other in y.values():
        np.testing.assert_allclose(other, y["layer"], rtol=1e-5, atol=1e-6)
    _, _, dx = run(bare, (), x, np.ones_like(x))
    assert np.max(np.abs(dx)) < 1e-5  # a common change of a row has no effect


@pytest.mark.parametrize(("options", "names"), [
    ({}, ("bias", "scale")), ({"scale": False}, ("bias",)), ({"bias": False}, ("scale",)),
    ({"scale": False, "bias": False}, ()),
], ids=str)
def test_layer_norm_has_the_params_it_is_asked_for(options, names):
    layer, x = layer_norm(**options), normal(3, 5, dtype=np.float32)
    params = layer.init(KEY, x)
    assert tuple(sorted(params)) == names
    y, dparams, _ = run(layer, params, x, x)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    at_the_start = forward(layer_norm(), layer_norm().init(KEY, x), x)  # scale 1, bias 0
    np.testing.assert_allclose(y, at_the_start, rtol=1e-6)


@each
def test_what_is_kept_is_x_itself_and_two_numbers_a_group(layer):
    x = jnp.asarray(normal(2, 3, 4, dtype=np.float32))
    _, (kept, *numbers) = layer.forward(layer.init(KEY, x), x)
    assert kept is x
    count = {"layer": 12, "rms": 6, "group": 8, "batch": 8}[layer.name.partition("_")[0]]  # 6 rows, 4 groups, 4 channels
    assert sum(a.size for a in jax.tree.leaves(numbers)) == count


# ---- running statistics


@pytest.mark.parametrize("momentum", [0.9, 0.0, 0.75, 1.0])
def test_running_statistics_keep_the_share_of_the_old_and_are_biased(momentum):
    layer, x = batch_norm(momentum=momentum), 2 + 3 * normal(4, 2, 3, dtype=np.float32)
    params = drawn(layer, x)
    _, dparams, _ = run(layer, params, x, x)
    for name, of_batch in (("mean", x.mean((0, 1))), ("var", x.var((0, 1), ddof=0))):
        assert isinstance(dparams[name], Next)
        old = np.asarray(params[name].value)
        np.testing.assert_allclose(dparams[name].value, momentum * old + (1 - momentum) * of_batch, rtol=1e-5)


def test_running_statistics_of_many_steps_are_those_of_the_data_and_inference_uses_them():
    layer = batch_norm(momentum=0.5)
    x = 2 + 3 * normal(64, 5, dtype=np.float32)
    params = layer.init(KEY, x)
    for _ in range(30):
        params = merge(split(params)[0], split(run(layer, params, x, x)[1])[1])
    np.testing.assert_allclose(forward(inference(layer), params, x), forward(layer, params, x), rtol=1e-4, atol=1e-4)
    one = forward(inference(layer), params, x[:1])  # alone in its batch it is what it was among others
    np.testing.assert_allclose(one, forward(inference(layer), params, x)[:1], rtol=1e-6)


def test_inference_is_affine_its_weights_have_gradients_and_its_state_stays():
    layer, x = inference(batch_norm()), normal(3, 5, dtype=np.float32)
    params = drawn(batch_norm(), x)
    y, dparams, dx = run(layer, params, x, np.ones_like(x))
    mean, var = np.asarray(params["mean"].value), np.asarray(params["var"].value)
    h = (x - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, h * params["scale"] + params["bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dparams["scale"], h.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, np.broadcast_to(params["scale"] / np.sqrt(var + 1e-5), x.shape), rtol=1e-5)
    np.testing.assert_array_equal(dparams["mean"].value, mean)
    np.testing.assert_array_equal(dparams["var"].value, var)
    assert jax.tree.structure(dparams) == jax.tree.structure(run(batch_norm(), params, x, x)[1])


def test_a_step_trains_the_weights_and_carries_the_statistics():
    import optax

    net, tx = chain(dense(4, bias=False), batch_norm(), dense(1)), optax.sgd(0.1)
    x = normal(16, 3, dtype=np.float32)
    params = net.init(KEY, x)
    step, opt_state = make_step(value_and_grad(net, mse()), tx), init_opt_state(tx, params)
    first = None
    for _ in range(20):
        params, opt_state, metrics = step(params, opt_state, (x, x[:, :1] * 2 + 1))
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < first / 2
    assert isinstance(params[1]["mean"], State)
    assert np.all(np.asarray(params[1]["var"].value) != 1)


# ---- dtypes, sizes, transformations


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_are_reduced_wide(layer, dtype):
    x = jnp.asarray(300 + 100 * normal(8, 64, dtype=np.float32), dtype)  # squares and their sums overflow float16
    dy = jnp.asarray(normal(8, 64, seed=1), dtype)
    params = drawn(layer, x)
    y, dparams, dx = run(layer, params, x, dy)
    single = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    wanted = run(layer, single(params), single(x), single(dy))
    assert y.dtype == dx.dtype == dparams["scale"].dtype == dtype
    for a, b in zip(jax.tree.leaves((y, dparams, dx)), jax.tree.leaves(wanted), strict=True):
        eps = float(jnp.finfo(a.dtype).eps)
        np.testing.assert_allclose(single(a), b, rtol=eps, atol=eps * np.max(np.abs(b)))
    if "mean" in params:
        assert params["mean"].value.dtype == dparams["mean"].value.dtype == jnp.float32


@each
def test_under_vmap_and_forward_over_reverse(layer):
    x = normal(3, 5, 4, dtype=np.float32)
    params = drawn(layer, x[0])
    state = split(params)[1]
    stacked = jnp.asarray(normal(3, 5, 4, seed=1, dtype=np.float32))
    many = jit(jax.vmap(partial(pulled, layer), (None, 0, 0)))(params, x, stacked)
    one = run(layer, params, x[1], stacked[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-4), many, one)

    by_rule = lambda x: pulled(layer, params, x, stacked[0])[2]
    by_jax = lambda x: jax.vjp(lambda x: predict(layer)(merge(split(params)[0], state), x), x)[1](stacked[0])[0]
    hand, auto = (jit(lambda x, f=f: jax.jvp(f, (x,), (stacked[2],))[1])(x[0]) for f in (by_rule, by_jax))
    np.testing.assert_allclose(hand, auto, rtol=1e-3, atol=1e-3 * np.max(np.abs(auto)))


@pytest.mark.parametrize(("layer", "shape", "text"), [
    (batch_norm(), (0, 5), "at least one example to take the mean of.*Is the batch empty"),
    (batch_norm(), (5,), r"a batch axis and channels, \(..., C\)"),
    (layer_norm(), (3, 0), "at least one element to take the mean of"),
    (rms_norm(), (3, 0), "at least one element to take the mean of"),
    (group_norm(2), (3, 0, 4), "at least one element to take the mean of"),
    (group_norm(2), (3, 5), "channels that 2 groups divide, got float32\\[3,5\\]"),
    (group_norm(2), (4,), "a batch axis and channels"),
    (layer_norm(), (), "at least one axis"),
], ids=str)
def test_shapes_it_cannot_average_over_are_refused(layer, shape, text):
    x = np.zeros(shape, np.float32)
    params = layer.init(KEY, np.zeros((2, *shape[-1:]) if shape else (2, 3), np.float32))
    with pytest.raises(ValueError, match=text):
        predict(layer)(params, x)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: layer_norm(eps=0), "eps: expected a number > 0, got 0"),
    (lambda: rms_norm(eps=-1e-6), "eps: expected a number > 0"),
    (lambda: batch_norm(eps=0.0), "eps: expected a number > 0"), (lambda: group_norm(0), "a whole number of at least 1"),
    (lambda: group_norm(2.0), "a whole number of at least 1"),
    (lambda: batch_norm(momentum=1.5), "a share of the old value, 0 to 1"),
    (lambda: batch_norm(momentum=float("nan")), "a share of the old value"),
])
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_params_that_do_not_fit_are_refused():
    x = np.zeros((2, 5), np.float32)
    params = batch_norm().init(KEY, x)
    with pytest.raises(TypeError, match=r"mean: expected a State, got float32\[5\]|mean: expected a State, got Array"):
        predict(batch_norm())({**params, "mean": params["mean"].value}, x)
    with pytest.raises(TypeError, match=r"mean: expected a State, got Next.*merge"):
        predict(batch_norm())({**params, "mean": Next(params["mean"].value)}, x)
    with pytest.raises(ValueError, match=r"var: expected \(5,\), the last axis of x"):
        predict(batch_norm())({**params, "var": State(jnp.ones(4))}, x)
    with pytest.raises(ValueError, match=r"scale: expected \(4,\), the last axis of x, got float32\[5\]"):
        predict(layer_norm())(layer_norm().init(KEY, x), x[:, :4])
    with pytest.raises(TypeError, match=r"params: expected \{'scale', 'bias'\}"):
        predict(layer_norm())(rms_norm().init(KEY, x), x)
    with pytest.raises(ValueError, match=r"x: expected a floating dtype"):
        predict(rms_norm())(rms_norm().init(KEY, x), x.astype(np.int32))


# ---- PyTorch in float64


def torch_cases():
    """name -> (layer, x, the function in torch of (functional, params, x))."""
    shape = {"normalized_shape": (6,)}
    yield "layer", layer_norm(eps=1e-3), (3, 5, 6), lambda F, p, x: F.layer_norm(
        x, **shape, weight=p["scale"], bias=p["bias"], eps=1e-3)
    yield "bare layer", layer_norm(scale=False, bias=False), (3, 6), lambda F, p, x: F.layer_norm(x, **shape)
    yield "rms", rms_norm(), (3, 5, 6), lambda F, p, x: F.rms_norm(x, **shape, weight=p["scale"], eps=1e-6)
    yield "group", group_norm(3), (2, 5, 7, 6), lambda F, p, x: F.group_norm(
        x.movedim(-1, 1), 3, p["scale"], p["bias"]).movedim(1, -1)
    yield "group (B, C)", group_norm(2), (4, 6), lambda F, p, x: F.group_norm(x, 2, p["scale"], p["bias"])
    yield "batch", batch_norm(), (7, 6), lambda F, p, x: F.batch_norm(
        x, None, None, p["scale"], p["bias"], training=True)
    yield "batch, images", batch_norm(), (2, 5, 7, 3), lambda F, p, x: F.batch_norm(
        x.movedim(-1, 1), None, None, p["scale"], p["bias"], training=True).movedim(1, -1)
    yield "batch, running", inference(batch_norm()), (7, 6), lambda F, p, x: F.batch_norm(
        x, p["mean"], p["var"], p["scale"], p["bias"], training=False)


TORCH = {name: case for name, *case in torch_cases()}


@pytest.mark.peers
@pytest.mark.parametrize(("layer", "shape", "of_torch"), TORCH.values(), ids=TORCH)
def test_pytorch_agrees_in_float64(layer, shape, of_torch):
    torch = pytest.importorskip("torch")
    x, dy = 1 + 2 * normal(*shape), normal(*shape, seed=1)
    with jax.enable_x64(True):
        params = drawn(layer, x)
        y, dparams, dx = run(layer, params, x, dy)
    weights = {name: torch.tensor(np.asarray(p), requires_grad=True) for name, p in (split(params)[0] or {}).items()
               if p is not None}
    running = {name: torch.tensor(np.asarray(p.value)) for name, p in (params or {}).items() if isinstance(p, State)}
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = of_torch(torch.nn.functional, weights | running, x_torch)
    y_torch.backward(torch.tensor(dy))
    pairs = [(y, y_torch.detach()), (dx, x_torch.grad), *((dparams[name], w.grad) for name, w in weights.items())]
    for a, b in pairs:
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-10 * np.max(np.abs(b.numpy())))


@pytest.mark.peers
def test_running_statistics_are_those_of_pytorch_but_for_its_unbiased_variance():
    torch = pytest.importorskip("torch")
    x = 1 + 2 * normal(7, 3)
    with jax.enable_x64(True):
        params = drawn(batch_norm(momentum=0.8), x)
        _, dparams, _ = run(batch_norm(momentum=0.8), params, x, x)
    mean, var = (torch.tensor(np.asarray(params[name].value)) for name in ("mean", "var"))
    old = var.numpy().copy()
    torch.nn.functional.batch_norm(torch.tensor(x), mean, var, training=True, momentum=0.2)  # there: the share of the new
    np.testing.assert_allclose(dparams["mean"].value, mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(dparams["var"].value, 0.8 * old + (var.numpy() - 0.8 * old) * 6 / 7, rtol=1e-12)
