"""Attention: loops in numpy, PyTorch in float64, masks, groups, blocks, rows without a key, memory, bad input."""

from __future__ import annotations

from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbackprop import attention, predict, vjp
from fbackprop.verify.cases.attention import CASES, plain
from fbackprop.verify.cases.case import Right
from fbackprop.verify.oracles import quick_jit as jit
from fbackprop.verify.table import verify_case


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@partial(jit, static_argnums=0)
def run(layer, x, dy):
    """`(y, dx)`, without the mask where there is one."""
    y, pullback = vjp(layer, (), x)
    if not isinstance(x, tuple):
        return y, pullback(dy)[1]
    assert y[1] is x[1]
    dx, dmask = pullback((dy, None))[1]
    assert dmask is None
    return y[0], dx


def loops(qkv, heads, kv_heads, causal, mask=None):
    """y of one example, one number at a time."""
    steps, width = qkv.shape
    size = width // (heads + 2 * kv_heads)
    parts = qkv.reshape(steps, heads + 2 * kv_heads, size)
    y = np.zeros((steps, heads, size))
    for head in range(heads):
        shared = heads + head // (heads // kv_heads)
        for t in range(steps):
            seen = [s for s in range(steps) if (mask is None or mask[s]) and not (causal and s > t)]
            scores = np.array([parts[t, head] @ parts[s, shared] / sqrt(size) for s in seen])
            weights = np.exp(scores - scores.max(initial=-np.inf))
            for s, weight in zip(seen, weights):
                y[t, head] += weight / weights.sum() * parts[s, kv_heads + shared]
    return y.reshape(steps, heads * size)


# ---- values and cotangents


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_forward_is_the_weighted_mean_written_with_loops(data):
    kv_heads, group, size, steps = (data.draw(st.integers(1, n)) for n in (2, 3, 3, 7))
    causal, block = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 8))
    heads = kv_heads * group
    qkv = normal(2, steps, (heads + 2 * kv_heads) * size, seed=steps, dtype=np.float64)
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=2 * steps, max_size=2 * steps))
    mask = None if mask is None else np.array(mask).reshape(2, steps)
    layer = attention(heads, kv_heads=kv_heads, causal=causal, block=block)
    with jax.enable_x64(True):
        y = jit(predict(layer))((), qkv if mask is None else (qkv, mask))
    y = y if mask is None else y[0]
    wanted = [loops(qkv[n], heads, kv_heads, causal, None if mask is None else mask[n]) for n in range(2)]
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "causal", "masked"), [
    (2, 2, False, False), (2, 2, True, False), (4, 2, False, True), (6, 3, True, False), (3, 1, False, True),
])
def test_pytorch_has_the_same_attention(heads, kv_heads, causal, masked, block):
    torch = pytest.importorskip("torch")
    qkv, dy = normal(2, 7, (heads + 2 * kv_heads) * 5, dtype=np.float64), normal(2, 7, heads * 5, seed=1, dtype=np.float64)
    mask = np.random.default_rng(2).random((2, 7)) < 0.6
    mask[:, 0] = True
    layer = attention(heads, kv_heads=kv_heads, causal=causal, block=block)
    with jax.enable_x64(True):
        y, dx = run(layer, (qkv, mask) if masked else qkv, dy)
    leaf = torch.tensor(qkv, requires_grad=True)
    q, k, v = leaf.reshape(2, 7, -1, 5).transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(mask)[:, None, None] if masked else None, is_causal=causal, enable_gqa=True)
    wanted = attended.transpose(1, 2).reshape(2, 7, heads * 5)
    wanted.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("block", "causal"), [(1, True), (3, True), (5, True), (5, False), (4, False), (50, True)])
def test_blocks_change_nothing_but_rounding(causal, block):
    qkv, dy = normal(2, 12, 24), normal(2, 12, 12, seed=1)
    y, dx = run(attention(4, kv_heads=2, causal=causal, block=block), qkv, dy)
    wanted, dwanted = run(attention(4, kv_heads=2, causal=causal), qkv, dy)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dwanted, rtol=1e-5, atol=2e-6)


def test_jax_nn_has_the_same_attention():
    qkv, dy = normal(2, 6, 40), normal(2, 6, 20, seed=1)

    def of_jax(qkv):
        q, k, v = jnp.split(qkv.reshape(2, 6, 8, 5), (4, 6), axis=2)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(2, 6, 20)

    y, dx = run(attention(4, kv_heads=2, causal=True), qkv, dy)
    wanted, pullback = jax.vjp(of_jax, qkv)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, pullback(dy)[0], rtol=1e-5, atol=2e-6)


# ---- masks


@pytest.mark.parametrize(("block", "causal"), [(None, False), (None, True), (2, False), (5, True)])
def test_a_query_without_any_key_gives_and_gets_zero(causal, block):
    qkv, dy = normal(2, 7, 18), normal(2, 7, 6, seed=1)
    mask = np.ones((2, 7), bool)
    mask[0] = False
    mask[1, :3] = False  # under causal: three queries without a key
    y, dx = run(attention(2, causal=causal, block=block), (qkv, mask), dy)
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(dx))
    assert not np.any(y[0])
    assert not np.any(dx[0])
    dead = 3 if causal else 0
    assert not np.any(y[1, :dead])
    assert not np.any(dx[1, :dead, :6])  # q of these
    assert not np.any(dx[1, :3, 6:])  # k and v that nobody may attend to
    assert np.all(y[1, 3:])


def test_a_masked_key_is_a_key_that_is_not_there():
    qkv, dy = normal(7, 18), normal(7, 6, seed=1)
    mask = np.arange(7) < 4
    y, dx = run(attention(2), (qkv, mask), np.where(mask[:, None], dy, 0))
    wanted, dwanted = run(attention(2), qkv[:4], dy[:4])
    np.testing.assert_allclose(y[:4], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx[:4], dwanted, rtol=1e-5, atol=1e-6)
    assert not np.any(dx[4:])


@pytest.mark.parametrize("block", [None, 2])
def test_the_future_has_no_effect_under_causal(block):
    qkv = normal(7, 18)
    changed = qkv.copy()
    changed[4:] += 1
    y, dx = run(attention(2, causal=True, block=block), qkv, np.float32(np.arange(7) < 4)[:, None] * normal(7, 6, seed=1))
    np.testing.assert_allclose(run(attention(2, causal=True, block=block), changed, y)[0][:4], y[:4], rtol=1e-6)
    assert not np.any(dx[4:])


# ---- numbers


@pytest.mark.parametrize("block", [None, 2])
def test_large_scores_neither_overflow_nor_lose_the_sum(block):
    qkv = 30 * normal(2, 7, 18)
    y, dx = run(attention(2, block=block), qkv, normal(2, 7, 6, seed=1))
    assert np.all(np.isfinite(dx))
    np.testing.assert_allclose(y, [loops(np.float64(example), 2, 2, False) for example in qkv], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_give_narrow_outputs_near_the_wide_ones(dtype, block):
    qkv, dy = normal(2, 7, 18).astype(dtype), normal(2, 7, 6, seed=1).astype(dtype)
    y, dx = run(attention(2, block=block), qkv, dy)
    assert y.dtype == dx.dtype == dtype
    wanted, dwanted = run(attention(2), np.float32(qkv), np.float32(dy))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float32(y), wanted, atol=2 * eps * np.max(np.abs(wanted)))
    np.testing.assert_allclose(np.float32(dx), dwanted, atol=4 * eps * np.max(np.abs(dwanted)))


def test_constant_values_are_their_own_mean_and_pull_nothing_through_the_weights():
    qkv = normal(7, 18)
    qkv[:, 12:] = 1
    y, dx = run(attention(2), qkv, normal(7, 6, seed=1))
    np.testing.assert_allclose(y, np.ones((7, 6)), rtol=1e-6)
    np.testing.assert_allclose(dx[:, :12], np.zeros((7, 12)), atol=1e-6)


# ---- memory


def temp_bytes(layer, steps):
    qkv = jax.ShapeDtypeStruct((1, steps, 3 * 2 * 4), np.float32)
    dy = jax.ShapeDtypeStruct((1, steps, 2 * 4), np.float32)
    both = jax.jit(lambda x, dy: (lambda y, pullback: (y, pullback(dy)[1]))(*vjp(layer, (), x)))
    return both.lower(qkv, dy).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("causal", [False, True])
def test_memory_of_blocks_is_linear_in_the_length(causal):
    first, second, third = (temp_bytes(attention(2, causal=causal, block=32), steps) for steps in (256, 512, 1024))
    assert third - second <= 2.2 * (second - first)  # four times for anything T x T
    assert third < 1024 * 1024 * 4 / 4
    assert temp_bytes(attention(2, causal=causal), 512) > 512 * 512 * 4


@pytest.mark.parametrize("block", [None, 64])
def test_no_matrix_of_the_length_squared_is_kept(block):
    steps = 256
    qkv = jax.ShapeDtypeStruct((2, steps, 24), np.float32)
    y, residuals = jax.eval_shape(attention(2, block=block).forward, (), qkv)
    kept = sum(leaf.size for leaf in jax.tree.leaves(residuals))
    assert kept == qkv.size + y.size + 2 * 2 * steps  # x, y and a number per row and head


def test_the_y_that_is_kept_is_the_y_that_is_returned():
    y, residuals = attention(2).forward((), jnp.asarray(normal(2, 5, 18)))
    assert any(leaf is y for leaf in jax.tree.leaves(residuals))


# ---- transformations, sizes


def test_vmap_and_second_derivatives_pass_through():
    layer, qkv = attention(2, causal=True, block=2), normal(3, 5, 18)
    y = jit(jax.vmap(predict(layer), (None, 0)))((), qkv)
    np.testing.assert_allclose(y, jit(predict(layer))((), qkv), rtol=1e-6, atol=1e-6)

    def gradient(layer):
        def of(x):
            y, pullback = vjp(layer, (), x)
            return pullback(y)[1]

        return of

    v = normal(3, 5, 18, seed=3)
    along = jit(lambda x, v: jax.jvp(gradient(layer), (x,), (v,))[1])(qkv, v)
    half = lambda x: 0.5 * jnp.sum(predict(attention(2, causal=True))((), x) ** 2)
    wanted = jit(lambda x, v: jax.jvp(jax.grad(half), (x,), (v,))[1])(qkv, v)
    np.testing.assert_allclose(along, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0, 5), (1, 1), (5,)], ids=str)
@pytest.mark.parametrize("block", [None, 2])
def test_sizes_zero_and_one_and_no_batch(sizes, block):
    y, dx = run(attention(2, block=block), normal(*sizes, 18), normal(*sizes, 6))
    assert y.shape == (*sizes, 6)
    assert dx.shape == (*sizes, 18)


def test_init_has_no_params_and_takes_specs():
    spec = jax.ShapeDtypeStruct((2, 5, 18), np.float32)
    assert attention(2).init(jax.random.key(0), spec) == ()
    assert attention(2).init(jax.random.key(0), (spec, jax.ShapeDtypeStruct((2, 5), bool))) == ()
    assert repr(attention(4, kv_heads=2, causal=True, block=3)) == "attention(4, kv_heads=2, causal=True, block=3)"


# ---- errors


@pytest.mark.parametrize(("options", "text"), [
    ({"heads": 0}, "attention heads: expected a whole number of at least 1, got 0"),
    ({"heads": 2.0}, "attention heads: expected a whole number"),
    ({"heads": 4, "kv_heads": 3}, "attention kv_heads: expected a divisor of heads = 4, got 3"),
    ({"heads": 2, "kv_heads": 0}, "attention kv_heads: expected a whole number of at least 1"),
    ({"heads": 2, "block": 0}, "attention block: expected a whole number of at least 1"),
], ids=str)
def test_options_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        attention(**options)


QKV, MASK = normal(2, 5, 18), np.ones((2, 5), bool)


@pytest.mark.parametrize(("x", "error", "text"), [
    (normal(2, 5, 20), ValueError, r"qkv: expected \(\.\.\., T, 6 C\).*got float32\[2,5,20\].*dense\(6 \* C\)"),
    (normal(18), ValueError, r"qkv: expected \(\.\.\., T, 6 C\)"),
    (normal(2, 0, 18), ValueError, "qkv: expected at least one position"),
    (normal(2, 5, 0), ValueError, r"qkv: expected \(\.\.\., T, 6 C\)"),
    (np.ones((2, 5, 18), int), ValueError, "qkv: expected a floating dtype"),
    ((QKV, MASK[0]), ValueError, r"mask: expected a key per position, bool\[2, 5\], got bool\[5\]"),
    ((QKV, MASK[:, None]), ValueError, "mask: expected a key per position"),
    ((QKV, np.float32(MASK)), ValueError, "mask: expected bool, True where a key may be attended, got float32"),
    ((QKV, None), TypeError, "mask: expected one array"),
    ((QKV,), TypeError, r"x: expected qkv or a pair \(qkv, mask\)"),
    ({"q": QKV}, TypeError, "qkv: expected one array"),
], ids=["width", "one axis", "no position", "no width", "integers", "short", "column", "floating", "None", "one", "dict"])
def test_input_that_does_not_fit_is_refused_while_tracing(x, error, text):
    for traced in (attention(2).init, attention(2).forward):
        with pytest.raises(error, match=text):
            jax.eval_shape(traced, (), x)


# ---- the rule


@pytest.mark.slow
def test_the_plain_rule_mistakes_are_made_from_is_right():
    for case in CASES:
        if "empty" in case.note:
            continue
        x = jax.tree.map(lambda a: a if a.dtype == bool else np.float32(a), case.x(np.random.default_rng(0)))
        y, dx = run(case.layer, x, normal(*jax.eval_shape(case.layer.forward, (), x)[1][2].shape))
        dy = normal(*y.shape)
        dy = (dy, None) if isinstance(x, tuple) else dy
        _, wanted = jit(lambda x, dy, layer=case.layer: plain(Right(layer, (), x, dy)))(x, dy)
        np.testing.assert_allclose(dx, jax.tree.leaves(wanted)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_oracle_agrees_and_every_mistake_is_caught(case):
    result = verify_case(case, draws=3, seed=1)
    assert result.as_expected, (str(result.report), result.missed, result.alarms)
