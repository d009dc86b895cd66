"""Branches, repeat, wrappers and recurrence as people compose them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    Next,
    State,
    add,
    as_custom_vjp,
    auto_value_and_grad,
    chain,
    checkpoint,
    concat,
    dense,
    fan_out,
    flatten,
    frozen,
    gelu,
    graft,
    gru,
    identity,
    inference,
    lstm,
    lstm_cell,
    mse,
    parallel,
    paths,
    predict,
    recurrent,
    relu,
    repeat,
    replace_rules,
    rnn,
    rnn_cell,
    skip,
    split,
    tanh,
    tied,
    value_and_grad,
    vjp,
)
from fbackprop.verify.gradient_error import gradient_error

pytestmark = pytest.mark.usefixtures("quick_compile")
X = jax.random.normal(jax.random.key(1), (4, 5))
BLOCK = chain(dense(5), tanh())


def output(net, x):
    """The shape and dtype of y."""
    return jax.eval_shape(lambda x: net.forward(net.init(jax.random.key(0), x), x)[0], x)


def assert_same_gradients(net, x, target, params=None):
    params = net.init(jax.random.key(0), x) if params is None else params
    value, grads = jax.jit(value_and_grad(net, mse()))(params, (x, target))
    by_jax = jax.jit(lambda *given: auto_value_and_grad(net, mse())(*given)[0])
    auto_value = by_jax(params, (x, target))
    np.testing.assert_allclose(value, auto_value, rtol=1e-6)
    errors, _ = gradient_error(net, mse())(params, (x, target), 0)
    assert set(errors) == set(paths(split(grads)[0]))
    assert max(errors.values()) <= 1e-5, errors
    return params, grads


def temp_bytes(net, params, x):
    step = jax.jit(lambda p, x: value_and_grad(net, mse())(p, (x, x)))
    return step.lower(params, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("net", [
    chain(fan_out(dense(3), chain(dense(4), relu())), concat()),
    chain(fan_out(identity(), dense(5)), add(), dense(2)),
    chain(fan_out(dense(3), dense(3)), parallel(tanh(), gelu()), add()),
    repeat(skip(BLOCK), 4),
    repeat(skip(BLOCK), 4, unroll=True),
    chain(checkpoint(chain(dense(16), gelu())), dense(3)),
    tied(chain(dense(5), tanh(), dense(5)), {"2/w": "0/w"}),
    checkpoint(repeat(checkpoint(skip(BLOCK)), 3)),
], ids=repr)
def test_compositions_equal_autodiff(net):
    y = output(net, X)
    assert_same_gradients(net, X, jnp.ones(y.shape, y.dtype))


@pytest.mark.parametrize("maker", [rnn, lstm, gru])
@pytest.mark.parametrize("options", [{}, {"last": True}, {"reverse": True}, {"last": True, "reverse": True}], ids=str)
def test_recurrent_nets_equal_autodiff(maker, options):
    x = jax.random.normal(jax.random.key(2), (3, 7, 4))
    net = maker(5, **options)
    y = output(net, x)
    assert y.shape == ((3, 5) if options.get("last") else (3, 7, 5))
    assert_same_gradients(net, x, jnp.ones(y.shape, y.dtype))


def test_truncation_equals_autodiff_of_the_cut_forward():
    x = jax.random.normal(jax.random.key(2), (2, 7, 4))
    for reverse in (False, True):
        net = recurrent(rnn_cell(4), truncate=3, reverse=reverse)
        params, grads = assert_same_gradients(net, x, jnp.ones((2, 7, 4)))
        whole = recurrent(rnn_cell(4), reverse=reverse)
        _, other = jax.jit(value_and_grad(whole, mse()))(params, (x, jnp.ones((2, 7, 4))))
        assert not np.allclose(grads[0]["w"], other[0]["w"], atol=1e-4)


def test_an_initial_carry_gets_its_cotangent():
    x = jax.random.normal(jax.random.key(2), (2, 6, 20))
    net, half = recurrent(lstm_cell(5), initial=True), recurrent(lstm_cell(5))
    params = half.init(jax.random.key(0), x)
    zero = jnp.zeros((2, 5))
    run = jax.jit(predict(net))
    carry, first = run(params, ((zero, zero), x[:, :3]))
    _, second = run(params, (carry, x[:, 3:]))
    whole = jax.jit(predict(half))(params, x)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-6)


def test_one_compile_whatever_the_depth():
    def program(n):
        net = repeat(skip(BLOCK), n)
        params = net.init(jax.random.key(0), X)
        return len(jax.jit(value_and_grad(net, mse())).lower(params, (X, X)).as_text())

    assert program(64) < 1.1 * program(2)


def test_a_value_kept_twice_is_stored_once():
    net = repeat(chain(dense(5), relu(), dense(5), tanh()), 3)  # relu's y is the next dense's x, tanh's y the next x
    params = net.init(jax.random.key(0), X)
    _, (kept, _) = jax.eval_shape(net.forward, params, X)
    assert len(jax.tree.leaves(kept)) == 3  # x, relu's y, tanh's y


def test_checkpoint_keeps_only_its_input_and_no_more_than_jax_does():
    x = jnp.ones((256, 64))
    block = skip(chain(dense(512), gelu(), dense(64)))
    plain, lean = chain(*[block] * 6), chain(*[checkpoint(block)] * 6)
    params = jax.jit(plain.init)(jax.random.key(0), x)
    _, residuals = jax.eval_shape(lean.forward, params, x)
    assert all(kept is not None and kept.shape == x.shape for kept in residuals)

    def by_jax(params, batch):
        y = batch[0]
        for p in params:
            y = jax.checkpoint(predict(block))(p, y)
        return mse().forward((), (y, batch[1]))[0]

    theirs = jax.jit(jax.grad(by_jax)).lower(params, (x, x)).compile().memory_analysis().temp_size_in_bytes
    assert temp_bytes(lean, params, x) <= 1.02 * theirs
    assert temp_bytes(lean, params, x) < temp_bytes(plain, params, x)
    assert_same_gradients(lean, x, jnp.ones_like(x), params)


def test_wrappers_leave_the_paths_as_they_were():
    plain = chain(dense(5), tanh(), dense(3))
    for wrapped in (checkpoint(plain), frozen(plain), chain(frozen(dense(5)), tanh(), checkpoint(dense(3)))):
        params = wrapped.init(jax.random.key(0), X)
        assert list(paths(params)) == list(paths(plain.init(jax.random.key(0), X)))
        renamed = replace_rules(wrapped, "2", lambda layer: replace(layer, kind=f"seen {layer.kind}"))
        assert repr(renamed).count("seen dense(3)") == 1


def test_graft_carries_weights_into_a_rewritten_net():
    plain = chain(dense(5), tanh(), dense(3))
    params = plain.init(jax.random.key(7), X)
    for rewritten in (checkpoint(plain), chain(frozen(dense(5)), tanh(), dense(3))):
        carried = graft(params, rewritten.init(jax.random.key(0), X))
        np.testing.assert_array_equal(predict(rewritten)(carried, X), predict(plain)(params, X))


def test_frozen_trains_nothing_and_costs_nothing():
    big, head = dense(512, bias=False), dense(3)
    x = jnp.ones((64, 512))
    net, free = chain(big, frozen(big), head), chain(big, big, head)
    params = net.init(jax.random.key(0), x)
    _, grads = jax.jit(value_and_grad(net, mse()))(params, (x, jnp.ones((64, 3))))
    gradients, successors = split(grads)
    assert list(paths(gradients)) == ["0/w", "2/b", "2/w"]
    assert isinstance(successors[1].inner, Next)
    assert isinstance(params[1].inner, State)

    def flops(net, params):
        run = jax.jit(lambda p, x: split(value_and_grad(net, mse())(p, (x, jnp.ones((64, 3))))[1])[0])
        return run.lower(params, x).compile().cost_analysis()["flops"]

    one_product = 2 * 64 * 512 * 512
    saved = flops(free, free.init(jax.random.key(0), x)) - flops(net, params)
    assert saved == pytest.approx(one_product, rel=0.05)


def test_frozen_allocates_no_buffer_for_gradients():
    x = jnp.ones((8, 1024))
    net = chain(dense(1024), frozen(dense(1024)), dense(3))
    params = net.init(jax.random.key(0), x)
    run = jax.jit(lambda p, x: split(value_and_grad(net, mse())(p, (x, jnp.ones((8, 3))))[1])[0])
    memory = run.lower(params, x).compile().memory_analysis()
    trained = 4 * sum(leaf.size for leaf in jax.tree.leaves(split(params)[0]))
    assert memory.output_size_in_bytes < 1.01 * trained + 1000
    assert memory.temp_size_in_bytes < 4 * 1024 * 1024


def test_tied_counts_both_uses():
    net = tied(chain(dense(5, bias=False), dense(5, bias=False)), {"1/w": "0/w"})
    params, grads = assert_same_gradients(net, X, jnp.ones((4, 5)))
    assert list(paths(params)) == ["0/w"]
    assert list(paths(grads)) == ["0/w"]


@pytest.mark.parametrize(("ties", "text"), [
    ({"2/w": "1/w"}, "one of 0/b, 0/w, 2/b, 2/w"),
    ({"9/w": "0/w"}, "one of 0/b, 0/w, 2/b, 2/w"),
    ({"2/b": "0/w"}, r"float32\[5,5\]"),
    ({"2/w": "0/w", "0/w": "2/w"}, "not tied itself"),
])
def test_a_tie_that_cannot_be_is_told(ties, text):
    with pytest.raises(ValueError, match=text):
        tied(chain(dense(5), tanh(), dense(5)), ties).init(jax.random.key(0), X)


def test_state_cannot_be_tied():
    with pytest.raises(ValueError, match="State"):
        tied(chain(frozen(dense(5)), dense(5)), {"1/w": "0/w"}).init(jax.random.key(0), X)


@pytest.mark.parametrize(("net", "x", "error", "text"), [
    (parallel(dense(3), dense(3)), X, TypeError, "a tuple of 2 inputs"),
    (add(), (X, X[:2]), ValueError, "one shape"),
    (concat(), (X, X[:2]), ValueError, "agree but for axis"),
    (repeat(dense(3), 2), X, ValueError, "inside repeat"),
    (recurrent(rnn_cell(5)), X, ValueError, r"\(B, T, F\)"),
    (recurrent(rnn_cell(5)), jnp.ones((2, 0, 5)), ValueError, "T at least 1"),
    (recurrent(lstm_cell(5)), jnp.ones((2, 3, 5)), ValueError, "4 times 5"),
    (recurrent(rnn_cell(5), initial=True), jnp.ones((2, 3, 5)), TypeError, "a pair"),
], ids=str)
def test_what_does_not_fit_is_told_while_tracing(net, x, error, text):
    with pytest.raises(error, match=text):
        jax.eval_shape(lambda x: net.forward(net.init(jax.random.key(0), x), x), x)


@pytest.mark.parametrize("maker", [lambda: repeat(dense(3), 0), lambda: repeat(dense(3), 1.5),
                                   lambda: recurrent(rnn_cell(3), truncate=0)])
def test_bad_arguments_are_told(maker):
    with pytest.raises(ValueError, match="expected"):
        maker()


def test_inference_reaches_inside_every_combinator():
    noisy = replace(tanh(), inference=relu())
    net = chain(checkpoint(noisy), repeat(noisy, 2), fan_out(noisy, noisy), parallel(frozen(noisy), noisy), add(), flatten())
    assert "tanh" not in repr(inference(net))


def test_as_custom_vjp_takes_combinators():
    net = repeat(checkpoint(skip(BLOCK)), 3)
    params = net.init(jax.random.key(0), X)

    @jax.jit
    def both(params):
        y, pullback = vjp(net, params, X)
        squares = lambda params: jnp.sum(as_custom_vjp(net)(params, X) ** 2)
        return jax.grad(squares)(params), pullback(2 * y)[0]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *both(params))


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_against_torch(kind):
    import torch

    b, t, i, h = 2, 5, 3, 4
    peer = getattr(torch.nn, kind)(i, h, batch_first=True, dtype=torch.float64)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((b, t, i)), rng.standard_normal((b, t, h))
    tx = torch.tensor(x, requires_grad=True)
    peer(tx)[0].backward(torch.tensor(dy))
    w, u, bi, bh = (p.detach().numpy() for p in (peer.weight_ih_l0, peer.weight_hh_l0, peer.bias_ih_l0, peer.bias_hh_l0))
    dw, du, dbi, dbh = (p.grad.numpy() for p in (peer.weight_ih_l0, peer.weight_hh_l0, peer.bias_ih_l0, peer.bias_hh_l0))
    with jax.enable_x64(True):
        net = {"RNN": rnn, "LSTM": lstm, "GRU": gru}[kind](h)
        cell = {"w": u.T} if kind != "GRU" else {"w": u.T, "b": bh[2 * h :]}
        bias = bi + bh if kind != "GRU" else bi + np.concatenate([bh[: 2 * h], np.zeros(h)])
        params = ({"w": w.T, "b": bias}, (cell,))
        y, pullback = vjp(net, params, x)
        (dproject, (dcell,)), dx = pullback(jnp.asarray(dy))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
        close(y, peer(tx)[0].detach().numpy())
        close(dx, tx.grad.numpy())
        close(dproject["w"], dw.T)
        close(dproject["b"], dbi)
        close(dcell["w"], du.T)
        if kind == "GRU":
            close(dcell["b"], dbh[2 * h :])
