"""The models: gradients equal to jax.grad's, shapes, and a gpt block of parts as lean as one fused by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    Layer,
    convnet,
    gpt,
    inference,
    lstm_classifier,
    mlp,
    mse,
    paths,
    predict,
    recommender,
    repeat,
    resnet,
    softmax_cross_entropy,
    split,
    value_and_grad,
)
from fbackprop.models.gpt import gpt_block
from fbackprop.train.run.epochs import evaluation
from fbackprop.verify.gradient_error import gradient_error

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 12, 12, 1)).astype(np.float32)
LABELS = RNG.integers(0, 10, 4).astype(np.int32)
TEXT = RNG.integers(0, 11, (2, 8)).astype(np.int32)
TOKENS = (TEXT[:, :-1], TEXT[:, 1:])
PAIRS = (RNG.integers(0, 5, 9).astype(np.int32), RNG.integers(0, 7, 9).astype(np.int32))
RATINGS = RNG.standard_normal(9).astype(np.float32)

MODELS = {
    "mlp": (mlp((16,)), softmax_cross_entropy(), (IMAGES, LABELS), (4, 10)),
    "convnet": (convnet((3, 4)), softmax_cross_entropy(), (IMAGES, LABELS), (4, 10)),
    "convnet with dropout": (convnet((3,), hidden=(5,), rate=0.5), softmax_cross_entropy(), (IMAGES, LABELS), (4, 10)),
    "resnet": (resnet((3, 4), blocks=2), softmax_cross_entropy(), (IMAGES, LABELS), (4, 10)),
    "lstm": (lstm_classifier(6), softmax_cross_entropy(), (IMAGES[..., 0], LABELS), (4, 10)),
    "gpt": (gpt(11, 7, features=8, heads=2, blocks=2), None, TOKENS, (2, 7, 11)),
    "gpt in tiles, written out": (
        gpt(11, 9, features=8, heads=2, blocks=2, block=4, chunk=3, unroll=True),
        None, TOKENS, (2, 7, 11)),
    "recommender": (recommender(5, 7, rank=3, mean=3.5), mse(), (PAIRS, RATINGS), (9,)),
}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_those_of_jax(name):
    net, loss, batch, _ = MODELS[name]
    params = net.init(KEY, batch if loss is None else batch[0])
    errors, norms = gradient_error(net, loss)(params, batch, 0)
    assert set(errors) == set(paths(split(params)[0]))
    assert max(float(e) for e in errors.values()) <= 1e-5
    assert all(float(n) > 0 for path, n in norms.items() if "norm" not in path)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", MODELS)
def test_predictions_and_the_loss_out_of_training(name):
    net, loss, batch, shape = MODELS[name]
    params = net.init(KEY, batch if loss is None else batch[0])

    @jax.jit
    def run(params, batch):
        y = predict(inference(net))(params, (batch[0], None) if loss is None else batch[0])
        wanted, _ = (loss or softmax_cross_entropy()).forward((), (y, batch[1]))
        return y, evaluation(net, loss).forward(params, batch)[0], wanted

    y, value, wanted = run(params, batch)
    assert y.shape == shape
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_the_networks_of_the_benchmarks_are_within_reach():
    """Shapes alone: 3136 inputs into the convnet's dense; a resnet of 8 x 8 x 128 at its end; a gpt of 8 blocks, tied."""
    image = jax.ShapeDtypeStruct((128, 28, 28, 1), jnp.float32)
    assert jax.eval_shape(convnet((32, 64)).init, KEY, image)[7]["w"].shape == (3136, 10)
    photo = jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.float32)
    net = resnet((32, 64, 128), blocks=2, stem=32)
    assert jax.eval_shape(net.init, KEY, photo)[-1]["w"].shape == (128, 10)
    steps = jax.ShapeDtypeStruct((32, 128, 64), jnp.float32)
    assert jax.eval_shape(lstm_classifier(256).init, KEY, steps)[0][1][0]["w"].shape == (256, 1024)
    tokens = jax.ShapeDtypeStruct((4, 512), jnp.int32)
    params = paths(jax.eval_shape(gpt(1024, 512).init, KEY, (tokens, tokens)))
    assert params["0/0/0/w"].shape == (1024, 256)
    assert "1/w" not in params
    assert sum(int(np.prod(leaf.shape)) for leaf in params.values()) == 1024 * 256 + 512 * 256 + 8 * 789_760 + 2 * 256


def test_a_block_of_parts_takes_no_more_memory_than_one_fused_by_hand():
    """Temporary bytes of loss and gradients at the gpt workload's sizes; and what eight in a scan keep."""
    features, heads = 256, 4
    x = jax.ShapeDtypeStruct((4, 512, features), jnp.float32)
    composed, fused = gpt_block(features, heads), fused_block(features, heads)
    assert temp_bytes(composed, x) <= 1.05 * temp_bytes(fused, x)
    assert kept_bytes(repeat(composed, 8), x) == kept_bytes(repeat(fused, 8), x)


@pytest.mark.usefixtures("quick_compile")
def test_the_block_fused_by_hand_is_the_block_of_parts():
    features, heads = 8, 2
    x = jax.random.normal(KEY, (2, 6, features))
    composed, fused = gpt_block(features, heads), fused_block(features, heads)
    params = composed.init(KEY, x)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(KEY, a.shape), params)
    leaves, treedef = jax.tree.flatten(params)
    flat = dict(zip(FUSED, leaves))
    value, grads = jax.jit(value_and_grad(composed, mse()))(params, (x, 0 * x))
    fused_value, fused_grads = jax.jit(value_and_grad(fused, mse()))(flat, (x, 0 * x))
    np.testing.assert_allclose(value, fused_value, rtol=1e-6)
    for got, wanted in zip(jax.tree.leaves(grads), [fused_grads[name] for name in FUSED]):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-6)


def temp_bytes(net, x):
    params = jax.eval_shape(net.init, KEY, x)
    step = jax.jit(value_and_grad(net, mse()))
    return step.lower(params, (x, x)).compile().memory_analysis().temp_size_in_bytes


def kept_bytes(net, x):
    _, residuals = jax.eval_shape(net.forward, jax.eval_shape(net.init, KEY, x), x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


FUSED = ("bias1", "scale1", "bqkv", "wqkv", "bout", "wout", "bias2", "scale2", "bup", "wup", "bdown", "wdown")


def fused_block(features, heads):
    """The same block as one rule, as a person would write it: keeps x, qkv, lse, y, x2 and h, and makes the rest again."""
    d, c = features, features // heads

    def norm(x):
        mean = jnp.mean(x, -1, keepdims=True)
        rstd = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), -1, keepdims=True) + 1e-5)
        return (x - mean) * rstd, rstd

    def dnorm(dh, h, rstd):
        return rstd * (dh - jnp.mean(dh, -1, keepdims=True) - h * jnp.mean(dh * h, -1, keepdims=True))

    def split_heads(qkv):
        b, t, _ = qkv.shape
        return [a.reshape(b, t, heads, c).swapaxes(1, 2) for a in jnp.split(qkv, 3, -1)]

    def joined(a):
        return a.swapaxes(1, 2).reshape(a.shape[0], a.shape[2], d)

    def scores(q, k):
        t = q.shape[2]
        return jnp.where(jnp.tril(jnp.ones((t, t), bool)), q @ k.swapaxes(2, 3) / c**0.5, -jnp.inf)

    def gelu(h):
        return jax.nn.gelu(h, approximate=True)

    def dgelu(h):
        k = (2 / jnp.pi) ** 0.5
        t = jnp.tanh(k * (h + 0.044715 * h**3))
        return 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * k * (1 + 3 * 0.044715 * h * h)

    def outer(a, b):
        return jnp.einsum("bti,bto->io", a, b)

    def init(key, x):
        shapes = {"bias1": d, "scale1": d, "bqkv": 3 * d, "wqkv": (d, 3 * d), "bout": d, "wout": (d, d),
                  "bias2": d, "scale2": d, "bup": 4 * d, "wup": (d, 4 * d), "bdown": d, "wdown": (4 * d, d)}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def forward(p, x):
        qkv = (norm(x)[0] * p["scale1"] + p["bias1"]) @ p["wqkv"] + p["bqkv"]
        q, k, v = split_heads(qkv)
        s = scores(q, k)
        lse = jax.nn.logsumexp(s, -1)
        y = joined(jnp.exp(s - lse[..., None]) @ v)
        x2 = x + y @ p["wout"] + p["bout"]
        h = (norm(x2)[0] * p["scale2"] + p["bias2"]) @ p["wup"] + p["bup"]
        return x2 + gelu(h) @ p["wdown"] + p["bdown"], (x, qkv, lse, y, x2, h)

    def backward(p, kept, dout):
        x, qkv, lse, y, x2, h = kept
        g = {"bdown": dout.sum((0, 1)), "wdown": outer(gelu(h), dout)}
        dh = dout @ p["wdown"].T * dgelu(h)
        n2, rstd2 = norm(x2)
        g |= {"bup": dh.sum((0, 1)), "wup": outer(n2 * p["scale2"] + p["bias2"], dh)}
        da = dh @ p["wup"].T
        g |= {"bias2": da.sum((0, 1)), "scale2": (da * n2).sum((0, 1))}
        dx2 = dout + dnorm(da * p["scale2"], n2, rstd2)
        g |= {"bout": dx2.sum((0, 1)), "wout": outer(y, dx2)}
        dy = dx2 @ p["wout"].T
        q, k, v = split_heads(qkv)
        w = jnp.exp(scores(q, k) - lse[..., None])
        dyh = split_heads(jnp.tile(dy, 3))[0]
        mean = jnp.sum(dy * y, -1).reshape(*dy.shape[:2], 1) if heads == 1 else jnp.sum(
            (dy * y).reshape(*dy.shape[:2], heads, c), -1).swapaxes(1, 2)[..., None]
        ds = w * (dyh @ v.swapaxes(2, 3) - mean) / c**0.5
        dqkv = jnp.concatenate([joined(ds @ k), joined(ds.swapaxes(2, 3) @ q), joined(w.swapaxes(2, 3) @ dyh)], -1)
        n1, rstd1 = norm(x)
        g |= {"bqkv": dqkv.sum((0, 1)), "wqkv": outer(n1 * p["scale1"] + p["bias1"], dqkv)}
        da = dqkv @ p["wqkv"].T
        g |= {"bias1": da.sum((0, 1)), "scale1": (da * n1).sum((0, 1))}
        return g, dx2 + dnorm(da * p["scale1"], n1, rstd1)

    return Layer("fused_block()", init, forward, backward)
