"""accumulate: any split of a batch gives the whole batch's gradient."""

from __future__ import annotations

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    PRECISIONS,
    accumulate,
    auto_value_and_grad,
    chain,
    dense,
    dropout,
    embedding,
    gpt,
    gru,
    half_squared_error,
    huber,
    merge,
    microbatches,
    mse,
    paths,
    softmax_cross_entropy,
    split,
    tanh,
    token_weight,
    value_and_grad,
    with_precision,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
IGNORED, V = -1, 7
LENGTHS = [5, 1, 9, 3, 0, 7, 2, 9, 4, 1, 6, 0]  # of 12 sequences; two are padding alone


def ragged():
    """Tokens and targets (12, 9), padded behind each sequence's length."""
    x = RNG.integers(0, V, (12, 9)).astype(np.int32)
    inside = np.arange(9) < np.array(LENGTHS)[:, None]
    return x, np.where(inside, RNG.integers(0, V, (12, 9)), IGNORED).astype(np.int32)


def assert_same(got, wanted, bound=1e-6):
    (value, grads), (right, wanted_grads) = got, wanted
    assert abs(value - right) <= bound * abs(right)
    assert jax.tree.structure(grads) == jax.tree.structure(wanted_grads)
    for path, b in paths(split(wanted_grads)[0]).items():
        a = paths(grads)[path]
        assert a.dtype == b.dtype
        assert np.max(np.abs(a - b)) <= bound * np.max(np.abs(b)), path


def splits(count):
    """Every way of cutting 12 sequences into runs, `count` of the 2048 or all of them."""
    cuts = list(product([False, True], repeat=11))
    chosen = cuts if count is None else [cuts[i] for i in RNG.choice(len(cuts), count, replace=False)] + [cuts[0], cuts[-1]]
    for cut in chosen:
        edges = [0, *(i + 1 for i, here in enumerate(cut) if here), 12]
        yield list(pairwise(edges))


@pytest.mark.parametrize("count", [40, pytest.param(None, marks=pytest.mark.slow)])
def test_every_split_of_twelve_ragged_sequences(count):
    x, target = ragged()
    net, loss = chain(embedding(V, 5), gru(6), dense(V)), softmax_cross_entropy(ignore_index=IGNORED)
    params = net.init(jax.random.key(0), x)
    by_hand = jax.jit(value_and_grad(net, loss))
    wanted = by_hand(params, (x, target))
    run = accumulate(by_hand, token_weight(ignore_index=IGNORED))

    def part(start, end):
        """Only as long as its longest sequence needs; a part that is all padding keeps one column."""
        longest = max(1, *LENGTHS[start:end], 0)
        return x[start:end, :longest], target[start:end, :longest]

    filled = {}  # every part with 12 rows, the rest ignored: one program per length in place of one per shape
    for start in range(12):
        for end in range(start + 1, 13):
            a, b = part(start, end)
            rows = 12 - len(a)
            filled[start, end] = (np.pad(a, ((0, rows), (0, 0))), np.pad(b, ((0, rows), (0, 0)), constant_values=IGNORED))
    for parts in splits(count):
        assert_same(run(params, [filled[start, end] for start, end in parts]), wanted)


def test_ragged_parts_as_they_are():
    x, target = ragged()
    net, loss = gpt(V, 9, features=8, heads=2, blocks=1), None
    target = np.where(target == IGNORED, 0, target)
    params = jax.jit(net.init)(jax.random.key(1), (x, target))
    wanted = jax.jit(value_and_grad(net, loss))(params, (x, target))
    parts = [(x[:5], target[:5]), (x[5:6], target[5:6]), (x[6:], target[6:])]
    assert_same(jax.jit(accumulate(value_and_grad(net)))(params, parts), wanted)


def test_equal_parts_are_one_scan():
    x = RNG.standard_normal((12, 3)).astype(np.float32)
    net, loss = chain(dense(4), tanh(), dense(2)), mse()
    batch = x, np.sin(x[:, :2])
    params = net.init(jax.random.key(0), x)
    run = accumulate(value_and_grad(net, loss))
    stacked = microbatches(batch, 4)
    assert stacked[0].shape == (4, 3, 3)
    assert_same(jax.jit(run)(params, stacked), jax.jit(value_and_grad(net, loss))(params, batch))
    jaxpr = str(jax.make_jaxpr(run)(params, stacked))
    assert jaxpr.count("scan[") == 1


def test_parts_differ_by_one_row_when_they_must():
    x = np.arange(14.0, dtype=np.float32).reshape(7, 2)
    parts = microbatches((x, x), 3)
    assert [len(part[0]) for part in parts] == [2, 2, 3]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), x)
    with pytest.raises(ValueError, match="expected 1 to 7, the rows of the batch, got 8"):
        microbatches((x, x), 8)


def test_the_mean_of_the_means_is_another_number():
    """What accumulating with equal weights gets wrong, here by more than a fifth."""
    x, target = ragged()
    net, loss = chain(embedding(V, 5), dense(V)), softmax_cross_entropy(ignore_index=IGNORED)
    params = net.init(jax.random.key(0), x)
    wanted = jax.jit(value_and_grad(net, loss))(params, (x, target))
    parts = [(x[:1], target[:1]), (x[1:2], target[1:2]), (x[2:], target[2:])]
    _, naive = jax.jit(accumulate(value_and_grad(net, loss), lambda batch: 1.0))(params, parts)
    right, wrong = paths(wanted[1])["1/b"], paths(naive)["1/b"]
    assert np.max(np.abs(wrong - right)) > 0.2 * np.max(np.abs(right))


def test_class_weights_and_row_weights_weigh():
    x = RNG.standard_normal((12, 4)).astype(np.float32)
    target = RNG.integers(0, 3, 12).astype(np.int32)
    c = (1.0, 0.2, 3.0)
    net, loss = dense(3), softmax_cross_entropy(class_weights=c)
    params = net.init(jax.random.key(0), x)
    parts = [(x[:2], target[:2]), (x[2:9], target[2:9]), (x[9:], target[9:])]
    run = accumulate(value_and_grad(net, loss), token_weight(class_weights=c))
    wanted = jax.jit(value_and_grad(net, loss))(params, (x, target))
    assert_same(jax.jit(run)(params, parts), wanted)
    assert token_weight()((x, target, np.full(12, 0.5, np.float32))) == 6.0
    assert token_weight()((x, np.full((12, 3), 1 / 3, np.float32))) == 12.0


def test_nothing_to_learn_from_is_zero():
    x, target = ragged()
    net, loss = chain(embedding(V, 5), dense(V)), softmax_cross_entropy(ignore_index=IGNORED)
    params = net.init(jax.random.key(0), x)
    masked = x, np.full_like(target, IGNORED)
    run = jax.jit(accumulate(value_and_grad(net, loss), token_weight(ignore_index=IGNORED)))
    value, grads = run(params, [masked, masked])
    assert value == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))
    with pytest.raises(ValueError, match="an empty list"):
        accumulate(value_and_grad(net, loss))(params, [])


def test_state_goes_from_part_to_part():
    """Three parts draw three masks, and the key that comes back is the fourth."""
    x = RNG.standard_normal((12, 3)).astype(np.float32)
    net, loss = chain(dropout(0.5), dense(2)), mse()
    params = net.init(jax.random.key(0), x)
    batch = x, x[:, :2]
    by_hand = jax.jit(value_and_grad(net, loss))
    seen = params
    for part in zip(*microbatches(batch, 3)):
        _, grads = by_hand(seen, part)
        seen = merge(split(params)[0], split(grads)[1])
    _, grads = jax.jit(accumulate(by_hand))(params, microbatches(batch, 3))
    last = jax.random.key_data(grads[0]["key"].value)
    np.testing.assert_array_equal(last, jax.random.key_data(seen[0]["key"].value))


def test_the_seed_goes_through_and_half_precision_sums_in_float32():
    x = RNG.standard_normal((12, 3)).astype(np.float16)
    net, loss = dense(2), mse()
    params = net.init(jax.random.key(0), x)
    batch = x, x[:, :2]
    by_hand = jax.jit(value_and_grad(net, loss))
    value, grads = jax.jit(accumulate(by_hand))(params, microbatches(batch, 12), 4.0)
    right, wanted = by_hand(params, batch, 4.0)
    assert value.dtype == jnp.float32
    assert abs(value - right) <= 1e-3 * right
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
        assert a.dtype == jnp.float16
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * np.max(np.abs(b)))


def test_microbatches_of_a_jitted_step_are_cut_inside():
    x = RNG.standard_normal((12, 3)).astype(np.float32)
    net, loss = chain(dense(4), tanh(), dense(2)), mse()
    params = net.init(jax.random.key(0), x)
    batch = x, x[:, :2]
    run = jax.jit(lambda params, batch: accumulate(value_and_grad(net, loss))(params, microbatches(batch, 5)))
    assert_same(run(params, batch), jax.jit(value_and_grad(net, loss))(params, batch))


def test_float64_is_divided_in_float64():
    """Three rows in two parts: a third in float32 would be apart by 3e-8."""
    with jax.enable_x64(True):
        net = chain(dense(3))
        x, target = np.random.default_rng(0).standard_normal((3, 2)), np.zeros((3, 3))
        params, whole = net.init(jax.random.key(0), x), value_and_grad(net, mse())
        value, grads = whole(params, (x, target))
        parts, sums = accumulate(whole)(params, [(x[:1], target[:1]), (x[1:], target[1:])])
        assert parts.dtype == value.dtype == jnp.float64
        np.testing.assert_allclose(parts, value, rtol=1e-14)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-14), sums, grads)


SUMS_AND_MEANS = {
    "a sum": (half_squared_error(), lambda rng: (rng.standard_normal((8, 3)), rng.standard_normal((8, 4)))),
    "a mean over elements": (huber(), lambda rng: (rng.standard_normal((8, 3)), rng.standard_normal((8, 4)))),
    "a mean over counted rows": (softmax_cross_entropy(ignore_index=0), lambda rng: (
        rng.standard_normal((8, 3)), np.array([0, 0, 0, 1, 2, 0, 3, 1]))),
    "a mean over weighted classes": (softmax_cross_entropy(class_weights=[1.0, 5.0, 2.0, 0.5]), lambda rng: (
        rng.standard_normal((8, 3)), np.array([0, 0, 0, 1, 2, 0, 3, 1]))),
}


@pytest.mark.parametrize("kind", SUMS_AND_MEANS)
@pytest.mark.parametrize("how", [value_and_grad, auto_value_and_grad])
def test_a_loss_knows_its_own_weight(kind, how):
    loss, make = SUMS_AND_MEANS[kind]
    with jax.enable_x64(True):
        batch = make(np.random.default_rng(0))
        net = chain(dense(4))
        params = net.init(jax.random.key(0), batch[0])
        whole = how(net, loss)
        for n in (2, 3):
            parts = accumulate(whole)(params, microbatches(batch, n))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), parts, whole(params, batch))


def test_parts_in_float16_overflow_no_sooner_than_the_whole():
    net = with_precision(chain(dense(1, bias=False)), PRECISIONS["float16"])
    x, target = np.ones((4096, 1), np.float32), np.full((4096, 1), 20.0, np.float32)
    params = net.init(jax.random.key(0), x)
    of_parts = accumulate(value_and_grad(net, mse()))
    _, grads = of_parts(params, microbatches((x, target), 2), 2.0**9)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
