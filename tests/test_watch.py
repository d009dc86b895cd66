"""watch: what is measured is what jax says, in every combinator; nothing else changes; where a bad number began is found."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    Layer,
    Next,
    State,
    accumulate,
    activation_gradients,
    chain,
    checkpoint,
    concat,
    dense,
    dropout,
    embedding,
    fan_out,
    first_bad,
    flatten,
    frozen,
    graft,
    identity,
    inference,
    init_opt_state,
    make_step,
    microbatches,
    mse,
    parallel,
    paths,
    predict,
    probe,
    readings,
    recurrent,
    relu,
    repeat,
    rnn_cell,
    sigmoid,
    skip,
    softmax_cross_entropy,
    split,
    tanh,
    tied,
    value_and_grad,
    watch,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, T = (jnp.asarray(RNG.standard_normal((8, width)), jnp.float32) for width in (5, 3))
XS = jnp.asarray(RNG.standard_normal((4, 6, 5)), jnp.float32)


def waves(key, shape, dtype):
    """Weights that cost no compilation, not the same in each block."""
    return jnp.asarray(np.sin(1 + np.arange(np.prod(shape))).reshape(shape) / np.sqrt(shape[0]), dtype) * (
        1 + jax.random.key_data(key)[0].astype(dtype) / 2.0**33)


thin = partial(dense, w_init=waves)
BLOCK = skip(chain(thin(5), relu(), dropout(0.3)))
NETS = {
    "repeat": (chain(repeat(checkpoint(BLOCK), 3), thin(3)), X),
    "repeat, unrolled": (chain(repeat(BLOCK, 2, unroll=True), thin(3)), X),
    "repeat in repeat": (chain(repeat(repeat(skip(chain(thin(5), tanh())), 2), 3), thin(3)), X),
    "tied": (tied(chain(thin(5), relu(), thin(5), thin(3)), {"2/w": "0/w"}), X),
    "frozen": (chain(frozen(chain(thin(5), dropout(0.3))), thin(3)), X),
    "fan_out and parallel": (chain(fan_out(thin(2), sigmoid()), parallel(tanh(), identity()), concat(), thin(3)), X),
    "recurrent": (chain(recurrent(rnn_cell(5), last=True), thin(3)), XS),
}


@cache
def measured(name):
    """`(params, batch, value, readings, grads)` of a row of NETS."""
    net, x = NETS[name]
    params, batch = net.init(KEY, x), (x, T[: len(x)])
    return params, batch, *probe(net, mse())(params, batch)


@pytest.mark.parametrize("name", NETS)
def test_value_gradients_and_readings_are_those_of_the_net_without_a_probe(name):
    params, batch, value, seen, grads = measured(name)
    net = NETS[name][0]
    plain, wanted = jax.jit(value_and_grad(net, mse()))(params, batch)
    assert jax.tree.structure(grads) == jax.tree.structure(wanted)
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    raw = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    for path, leaf in paths(grads).items():
        np.testing.assert_allclose(raw(leaf), raw(paths(wanted)[path]), rtol=1e-5, atol=1e-6, err_msg=path)

    dys, gradients = activation_gradients(net, mse())(params, batch), paths(split(wanted)[0])
    for path, reading in seen.items():
        blocks = tuple(int(part.split("[")[1][:-1]) for part in path.split("/") if "[" in part)
        layer = "/".join(part.split("[")[0] for part in path.split("/"))
        if reading.layer != "rnn_cell(5)":  # whose dy holds the carry's too
            norm, size = norm_of([leaf[blocks] for leaf in jax.tree.leaves(dys[layer])])
            assert (reading.dy.norm, reading.dy.size) == (pytest.approx(norm, rel=1e-5), size), path
        if name not in ("tied", "frozen"):  # the sum of two uses; no gradient handed out
            norm, size = norm_of([leaf[blocks] for own, leaf in gradients.items() if own.rpartition("/")[0] == layer])
            assert (reading.dparams.norm, reading.dparams.size) == (pytest.approx(norm, rel=1e-5), size), path


def norm_of(leaves):
    """`(norm, size)`."""
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves)), sum(leaf.size for leaf in leaves)


def test_readings_of_a_repeat_come_in_the_order_the_blocks_run():
    seen = list(measured("repeat in repeat")[3])
    assert seen[:4] == ["0/0[0]/0[0]/0/0", "0/0[0]/0[0]/0/1", "0/0[0]/0[1]/0/0", "0/0[0]/0[1]/0/1"]
    assert seen[-2:] == ["0/0[2]/0[1]/0/1", "1"]


def test_a_cell_is_seen_over_all_steps_without_its_carry():
    params, (x, _), _, seen, _ = measured("recurrent")
    seen, ys = seen["0/0"], jax.jit(recurrent(rnn_cell(5)).forward)(params[0], x)[0]
    assert seen.y.size == ys.size
    assert seen.y.norm == pytest.approx(float(jnp.linalg.norm(ys)), rel=1e-5)
    assert seen.saturated == pytest.approx(float(jnp.mean(jnp.abs(ys) > 0.98)))


def test_what_a_reading_says_of_y():
    x = jnp.asarray([[-1.0, 2.0, -3.0, 0.5], [1.0, -2.0, -3.0, 0.0]])
    seen = probe(chain(relu(), sigmoid(), tanh(), identity()), mse())(((), (), (), ()), (10 * x, x))[1]
    assert seen["0"].y.zeros == pytest.approx(5 / 8)
    assert seen["0"].dead == pytest.approx(1 / 4)  # the third unit alone is 0 for both
    assert seen["0"].y.max == pytest.approx(20)
    assert seen["0"].y.norm == pytest.approx(np.sqrt(400 + 25 + 100))
    assert seen["0"].y.rms == pytest.approx(np.sqrt((400 + 25 + 100) / 8))
    assert seen["1"].saturated == pytest.approx(3 / 8)
    assert seen["2"].saturated == 0
    assert [seen["3"].dead, seen["3"].saturated, seen["0"].saturated] == [None, None, None]


def test_units_alike_are_told_from_a_layer_that_says_nothing():
    net = chain(thin(4), tanh(), thin(3))
    params = net.init(KEY, X)
    measure = probe(net, mse())
    alike = lambda params: measure(params, (X, T))[1]["0"].alike
    assert alike(params) == 0
    assert alike(jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)) == 1
    assert alike(jax.tree.map(jnp.zeros_like, params)) == 0


def test_norms_survive_where_squares_overflow_or_vanish():
    huge, tiny = jnp.full((2, 3), 1e30), jnp.full((2, 3), 1e-30)
    measure = probe(chain(identity(), mean()))
    for x in (huge, tiny):
        seen = measure(((), ()), x)[1]["0"]
        assert seen.y.norm == pytest.approx(np.sqrt(6) * float(x[0, 0]), rel=1e-5)


def mean():
    """The value is the mean of x."""
    return Layer("mean()", lambda key, x: (), lambda params, x: (jnp.mean(x), x),
                 lambda params, x, dy: ((), jnp.full_like(x, dy / x.size)))


def test_readings_of_grads_inside_and_outside_jit_and_of_a_net_without_probes():
    net = chain(thin(4), relu(), thin(3))
    watched = watch(net)
    params = graft(net.init(KEY, X), watched.init(KEY, X))
    assert set(paths(net.init(KEY, X))) <= set(paths(params))

    @jax.jit
    def run(params):
        _, grads = value_and_grad(watched, mse())(params, (X, T))
        return grads, readings(grads)["1"]

    grads, inside = run(params)
    outside = readings(grads)
    assert isinstance(outside["1"].y.norm, float)
    assert float(inside.dead) == pytest.approx(outside["1"].dead)
    assert float(inside.y.rms) == pytest.approx(outside["1"].y.rms, rel=1e-6)
    assert readings(net.init(KEY, X)) == {}


def test_inference_twins_work_under_the_probe():
    net = chain(thin(5), dropout(0.5), thin(3))
    params = net.init(KEY, X)
    watched = inference(watch(net))
    got = jax.jit(predict(watched))(graft(params, watch(net).init(KEY, X)), X)
    np.testing.assert_array_equal(got, jax.jit(predict(inference(net)))(params, X))


def test_params_without_probes_and_nets_with_them_are_refused_with_a_hint():
    net = chain(thin(4))
    with pytest.raises(TypeError, match=r"layer 0 .*graft"):
        watch(net).forward(net.init(KEY, X), X)
    with pytest.raises(ValueError, match="expected a net without probes"):
        watch(watch(net))


def test_a_watched_net_trains_and_its_probes_hold_the_last_step():
    net = watch(chain(thin(4), tanh(), thin(3)))
    params, tx = net.init(KEY, X), optax.sgd(0.1)
    step, opt_state = make_step(value_and_grad(net, mse()), tx), init_opt_state(tx, params)
    for _ in range(3):
        before = jax.tree.map(jnp.copy, params)
        params, opt_state, metrics = step(params, opt_state, (X, T))
    w, b = (np.asarray(paths(before)[f"0/{name}"]) for name in "wb")
    hidden = np.tanh(np.asarray(X) @ w + b)
    assert readings(params)["1"].y.norm == pytest.approx(float(np.linalg.norm(hidden)), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(np.hypot(*(readings(params)[path].dparams.norm for path in "02")), rel=1e-5)


# ---- activation gradients


def added(by, layer):
    """y + by: the gradient with respect to `by` is dy."""
    forward = lambda params, x: ((lambda y, kept: (y + by, kept))(*layer.forward(params, x)))
    return replace(layer, forward=forward)


@pytest.mark.parametrize("wrap", [lambda layer: layer, checkpoint], ids=["plain", "checkpoint"])
def test_activation_gradients_are_those_of_an_added_zero(wrap):
    def with_zero(zero):
        inner = thin(5) if zero is None else added(zero, thin(5))
        return chain(thin(5), wrap(chain(inner, tanh())), thin(3))

    net = with_zero(None)
    params = net.init(KEY, X)
    value = lambda zero: jnp.mean(jnp.square(with_zero(zero).forward(params, X)[0] - T))
    got = activation_gradients(net, mse(), where="1/0")(params, (X, T))
    assert list(got) == ["1/0"]
    wanted = jax.jit(jax.grad(value))(jnp.zeros((8, 5)))
    np.testing.assert_allclose(got["1/0"], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unroll", [False, True])
def test_activation_gradients_inside_repeat_have_an_axis_of_blocks(unroll):
    net = chain(repeat(chain(thin(5), tanh()), 3, unroll=unroll), thin(3))
    params = net.init(KEY, X)

    def value(zeros):
        x = X
        for k in range(3):
            p = jax.tree.map(lambda a, k=k: a[k], params[0][0][0])
            x = jnp.tanh(x @ p["w"] + p["b"] + zeros[k])
        return jnp.mean(jnp.square(x @ params[1]["w"] + params[1]["b"] - T))

    got = activation_gradients(net, mse(), where="0/0/0")(params, (X, T))["0/0/0"]
    wanted = jax.jit(jax.grad(value))(jnp.zeros((3, 8, 5)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_activation_gradients_of_a_combinator_and_of_nothing():
    net = chain(fan_out(thin(2), thin(3)), concat(), thin(3))
    params = net.init(KEY, X)
    got = activation_gradients(net, mse(), where="0")(params, (X, T))["0"]
    assert [dy.shape for dy in got] == [(8, 2), (8, 3)]
    with pytest.raises(ValueError, match=r"'7\*'.*'0/0'"):
        activation_gradients(net, mse(), where="7*")


# ---- where a bad number began


def planted():
    """A dense layer whose forward, dw and dx are multiplied by exp of its State: 1000 overflows, 0 changes nothing."""
    inner = thin(5)

    def init(key, x):
        return {**inner.init(key, x), "fault": State({side: jnp.zeros(()) for side in ("residual", "dparams", "dx")})}

    def forward(params, x):
        y, kept = inner.forward({name: params[name] for name in ("w", "b")}, x)
        return y * jnp.exp(params["fault"].value["residual"]), kept

    def backward(params, kept, dy):
        factors = jax.tree.map(jnp.exp, params["fault"].value)
        dparams, dx = inner.backward({name: params[name] for name in ("w", "b")}, kept, dy)
        dw = dparams["w"] * factors["dparams"]
        return {**dparams, "w": dw, "fault": Next(params["fault"].value)}, dx * factors["dx"]

    return Layer("planted(5)", init, forward, backward)


FAULTY = chain(thin(5), planted(), repeat(chain(tanh(), planted()), 3), tanh(), thin(3))
HEALTHY = FAULTY.init(KEY, X)
look = probe(FAULTY, mse())  # compiled once for all of these


def origin(params, x=X, target=T):
    value, seen, _ = look(params, (x, target))
    return first_bad(seen, params, (x, target), value)


def with_leaf(path, change):
    leaves = paths(HEALTHY)
    return jax.tree.map(lambda leaf: change(leaf) if leaf is leaves[path] else leaf, HEALTHY)


@pytest.mark.parametrize("side", ["residual", "dparams", "dx"])
def test_a_bad_number_is_traced_to_layer_block_and_side(side):
    assert origin(with_leaf(f"1/fault/{side}", lambda a: a + 1000)) == ("1", side)
    assert origin(with_leaf(f"2/0/1/fault/{side}", lambda a: a.at[1].set(1000))) == ("2/0[1]/1", side)
    first = 0 if side == "residual" else 2  # the backward begins with the last block
    assert origin(with_leaf(f"2/0/1/fault/{side}", lambda a: a + 1000)) == (f"2/0[{first}]/1", side)


def test_bad_batches_and_params_are_told_as_such():
    assert str(origin(HEALTHY, x=X.at[1, 1].set(jnp.nan))) == "batch 0"
    assert str(origin(HEALTHY, target=T.at[0, 0].set(jnp.inf))) == "batch 1"
    assert str(origin(with_leaf("2/0/1/w", lambda w: w.at[2, 0, 0].set(jnp.nan)))) == "params 2/0/1/w"
    assert origin(HEALTHY) is None


def test_without_params_and_batch_the_first_layer_they_reach_is_named():
    nan = X.at[1, 1].set(jnp.nan)
    assert str(first_bad(look(HEALTHY, (nan, T))[1])) == "residual of layer 0"


def test_a_value_that_overflows_alone_is_the_loss():
    params = with_leaf("4/b", lambda b: b + 1e25)
    assert str(origin(params)) == "residual of the loss"


def test_the_loss_is_named_for_a_class_that_does_not_exist():
    labels = jnp.zeros(8, jnp.int32).at[3].set(7)
    net = chain(thin(5), tanh(), thin(3))
    value, seen, _ = probe(net, softmax_cross_entropy())(net.init(KEY, X), (X, labels))
    assert first_bad(seen) == ("loss", "dy")
    assert str(first_bad(seen, value=float(value))) == "residual of the loss"


def test_a_carry_that_explodes_on_the_way_back_is_the_cells():
    net = NETS["recurrent"][0]
    (_,), last = net.init(KEY, XS)
    zero = (({"w": 1e20 * jnp.eye(5)},), last)  # with x = 0 too h stays 0, tanh' is 1 and the carry's cotangent grows
    _, seen, _ = probe(net, mse())(zero, (jnp.zeros_like(XS), T[:4]))
    assert first_bad(seen) == ("0/0", "dx")


def test_through_accumulation_the_last_part_is_seen():
    """State is threaded: after three parts the statistics are those of the third, its cotangents times its share."""
    x = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)
    net, loss = chain(dense(5), relu(), dense(2)), mse()
    watched = watch(net)
    params = watched.init(jax.random.key(0), x)
    batch = x, x[:, :2]
    value, grads = jax.jit(accumulate(value_and_grad(watched, loss)))(params, microbatches(batch, 3))
    seen = readings(grads)
    last = readings(jax.jit(value_and_grad(watched, loss))(params, (x[8:], x[8:, :2]), 1 / 3)[1])
    for path, reading in last.items():
        assert seen[path].y.norm == pytest.approx(reading.y.norm, rel=1e-5)
        assert seen[path].dy.norm == pytest.approx(reading.dy.norm, rel=1e-5)
        assert seen[path].y.size == reading.y.size


def test_params_in_float32_under_x64_stay_what_they_are():
    net, loss = chain(embedding(5, 3), flatten(), dense(5)), softmax_cross_entropy()
    with jax.enable_x64(True):
        ids, labels = jnp.zeros((2, 2), int), jnp.array([0, 1])
        params = jax.tree.map(lambda leaf: leaf.astype("float32"), net.init(jax.random.key(0), ids))
        gradients = activation_gradients(net, loss)(params, (ids, labels))
        value, seen, _ = probe(net, loss)(params, (ids, labels))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {"float32"}
    assert value.dtype == "float32"
    assert set(seen) == {"0", "1", "2"}
