"""The contract: State and its paths, chains, the same gradients by hand and by jax, rewrites, transformations, errors."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    Layer,
    Next,
    State,
    Static,
    as_custom_vjp,
    auto_value_and_grad,
    chain,
    dense,
    flatten,
    from_function,
    graft,
    inference,
    init_opt_state,
    make_step,
    map_layers,
    merge,
    mse,
    paths,
    predict,
    relu,
    replace_rules,
    skip,
    softmax_cross_entropy,
    softplus,
    split,
    tanh,
    update,
    value_and_grad,
    vjp,
)
from fbackprop.dtypes import combine
from fbackprop.params import is_carried

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
X, T = (jnp.asarray(np.random.default_rng(0).standard_normal((7, width)), jnp.float32) for width in (5, 3))


def waves(key, shape, dtype):
    """Weights that cost no compilation."""
    return jnp.asarray(np.sin(1 + np.arange(np.prod(shape))).reshape(shape) / np.sqrt(shape[0]), dtype)


thin = partial(dense, w_init=waves)
ones = partial(dense, w_init=jax.nn.initializers.ones)


def passing(params):
    """What a backward returns for params whose State does not change."""
    return jax.tree.map(lambda n: Next(n.value) if is_carried(n) else n, params, is_leaf=is_carried)


def dropout(rate):
    """A layer with a key of its own; out of training it does nothing."""
    def kept(params, x):
        return jax.random.bernoulli(params["key"].value, 1 - rate, x.shape)

    def forward(params, x):
        return jnp.where(kept(params, x), x / (1 - rate), 0), ()

    def backward(params, _, dy):
        successor = jax.random.split(params["key"].value, 1)[0]
        return {"key": Next(successor)}, jnp.where(kept(params, dy), dy / (1 - rate), 0)

    init = lambda key, x: {"key": State(key)}
    off = Layer("dropped()", init, lambda params, x: (x, ()), lambda params, _, dy: (passing(params), dy))
    return Layer(f"dropout({rate})", init, forward, backward, inference=off)


def centre():
    """A layer with a running mean beside a trained scale; the mean it subtracts is always the running one."""
    def forward(params, x):
        return params["scale"] * (x - params["mean"].value), x

    def backward(params, x, dy):
        moved = 0.9 * params["mean"].value + 0.1 * jnp.mean(x, axis=0)
        dscale = jnp.sum(dy * (x - params["mean"].value), axis=0)
        return {"mean": Next(moved), "scale": dscale}, params["scale"] * dy

    def init(key, x):
        return {"mean": State(jnp.full(x.shape[-1:], 0.5, x.dtype)), "scale": jnp.ones(x.shape[-1:], x.dtype)}

    def backward_off(params, x, dy):
        dparams, dx = backward(params, x, dy)
        return {**dparams, "mean": Next(params["mean"].value)}, dx

    frozen = Layer("centred()", init, forward, backward_off)
    return Layer("centre()", init, forward, backward, inference=frozen)


NET = chain(thin(4), centre(), tanh(), dropout(0.3), skip(chain(thin(4), tanh())), thin(3))
PARAMS = NET.init(KEY, X)
BY_HAND = jax.jit(value_and_grad(NET, mse()))
AUTO = jax.jit(auto_value_and_grad(NET, mse()))
CALM = chain(thin(4), tanh(), skip(thin(4)), softplus(), thin(3))  # smooth and without State
WEIGHTS = CALM.init(KEY, X)


def raw(tree):
    """Random keys as the numbers they hold."""
    is_key = lambda a: hasattr(a, "dtype") and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: np.asarray(jax.random.key_data(a) if is_key(a) else a), tree)


def wide(tree):
    """In float64: under jax.enable_x64(True) only."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), tree)


def assert_same(got, wanted, rtol=0.0):
    """The same structure, node types included; leaves to rtol of each leaf's largest."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(raw(got)), jax.tree.leaves(raw(wanted)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.max(np.abs(b), initial=0))


def renamed(layer):
    return replace(layer, kind=layer.kind + "!")


# ---- State


W, M = np.arange(3.0), np.arange(2.0)
TREES = {
    "one leaf": W,
    "one State": State(M),
    "nothing": (),
    "None leaves": {"w": W, "no": None, "m": State(M)},
    "State of a tree": ({"w": W}, State((M, {"deeper": W}))),
    "State of nothing": (State(()), W),
    "a chain": ({"w": W, "b": W}, (), ({"m": {"mean": State(M)}, "s": W}, None), [State(KEY)]),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_merge_is_the_inverse_of_split(tree):
    assert_same(merge(*split(tree)), tree)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_combine_is_the_inverse_of_split_for_gradients(tree):
    assert_same(combine(*split(passing(tree))), passing(tree))


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_merge_makes_State_of_Next(tree):
    assert_same(merge(split(tree)[0], split(passing(tree))[1]), tree)


def test_each_half_keeps_the_whole_structure():
    trainable, state = split(({"w": W, "m": State(M)}, (), State(W)))
    assert_same(trainable, ({"w": W, "m": None}, (), None))
    assert_same(state, ({"w": None, "m": State(M)}, (), State(W)))


@pytest.mark.parametrize("arithmetic", [
    lambda params, grads: jax.tree.map(lambda p, g: p - 0.1 * g, params, grads),
    lambda params, grads: optax.apply_updates(params, grads),
], ids=["by hand", "optax"])
def test_arithmetic_on_whole_params_raises_and_names_the_path(arithmetic):
    with pytest.raises(ValueError, match=r"\[1\]\['mean'\]"):
        arithmetic(PARAMS, BY_HAND(PARAMS, (X, T))[1])


def test_paths_leave_out_the_value_of_State():
    tree = ({"w": 1.0, "run": {"mean": State(2.0)}}, State((3.0, 4.0)), {"value": State(5.0), "no": None})
    wanted = {"0/run/mean": 2.0, "0/w": 1.0, "1/0": 3.0, "1/1": 4.0, "2/value": 5.0}
    assert paths(tree) == wanted
    assert list(paths(tree).values()) == jax.tree.leaves(tree)
    assert paths(passing(tree)) == wanted
    assert paths(State(1.0)) == {"": 1.0}


def test_state_may_not_be_taken_for_its_successor():
    assert jax.tree.structure(State(1.0)) != jax.tree.structure(Next(1.0))


# ---- graft


def test_graft_carries_weights_to_a_net_with_the_same_paths():
    into = chain(ones(4), centre(), relu(), dropout(0.5), skip(chain(ones(4), relu())), ones(3)).init(jax.random.key(9), X)
    assert_same(graft(PARAMS, into), PARAMS)


def test_graft_keeps_what_the_other_does_not_have():
    old, new = chain(thin(4)).init(KEY, X), chain(ones(4), thin(3)).init(KEY, X)
    assert_same(graft(old, new), (old[0], new[1]))
    assert_same(graft(new, old), (new[0],))


def test_graft_fills_specs():
    assert_same(graft(PARAMS, jax.eval_shape(NET.init, KEY, X)), PARAMS)


@pytest.mark.parametrize(("params", "into", "text"), [
    (({"w": W},), ({"w": M},), "graft 0/w: expected float64[2], got float64[3]"),
    (({"w": W},), ({"w": W.astype(np.float32)},), "graft 0/w: expected float32[3], got float64[3]"),
    ({"v": W}, {"w": W}, "graft: expected a path among ['v'], got ['w']"),
], ids=["shape", "dtype", "no path"])
def test_graft_refuses(params, into, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        graft(params, into)


# ---- Layer and Static


def test_a_layer_is_a_leaf_and_hashable():
    assert jax.tree.leaves(NET) == [NET]
    forward = jax.jit(lambda net, params, x: predict(net)(params, x), static_argnums=0)
    assert_same(forward(NET, PARAMS, X), jax.jit(predict(NET))(PARAMS, X))


def test_static_goes_through_jit_and_back():
    double = jax.jit(lambda kept: (2 * kept[0], Static(kept[1].value + (1,))))
    y, kept = double((W, Static((2, 3))))
    assert kept == Static((2, 3, 1))
    assert_same(y, jnp.asarray(2 * W))
    assert double((W, Static((4,))))[1] == Static((4, 1))  # another value is another trace
    assert jax.tree.leaves(kept) == []


# ---- init


def test_init_by_specs_is_init_by_arrays():
    assert_same(NET.init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype)), PARAMS)


def test_init_runs_under_jit_and_eval_shape():
    assert_same(jax.jit(NET.init)(KEY, X), PARAMS, 1e-6)
    assert jax.tree.structure(jax.eval_shape(NET.init, KEY, X)) == jax.tree.structure(PARAMS)


def test_equal_layers_start_from_different_weights():
    first, second = chain(dense(4), dense(4)).init(KEY, X[:, :4])
    assert not np.array_equal(first["w"], second["w"])


def test_a_chain_of_chains_computes_what_the_flat_chain_does():
    flat, nested = chain(thin(4), tanh(), thin(3)), chain(chain(thin(4), tanh()), chain(), chain(thin(3)))
    a, b, c = flat.init(KEY, X)
    run = jax.jit(lambda net, params: value_and_grad(net, mse())(params, (X, T)), static_argnums=0)
    value, (da, db, dc) = run(flat, (a, b, c))
    assert_same(run(nested, ((a, b), (), (c,))), (value, ((da, db), (), (dc,))), 1e-6)


# ---- gradients


@pytest.mark.parametrize("net", [CALM, chain(flatten(), thin(3)), skip(tanh())], ids=repr)
def test_vjp_is_jax_vjp(net):
    with jax.enable_x64(True):
        x = wide(X)
        params = net.init(KEY, x)
        dy = x[:, : jax.eval_shape(predict(net), params, x).shape[1]] + 1

        @jax.jit
        def both(params, x, dy):
            (y, pullback), (y_auto, auto) = vjp(net, params, x), jax.vjp(predict(net), params, x)
            return (y, pullback(dy), pullback(-2 * dy)), (y_auto, auto(dy), auto(-2 * dy))  # a pullback may run twice

        got, wanted = both(params, x, dy)
        assert_same(got, wanted, 1e-12)


def test_by_hand_is_auto_on_a_net_with_state():
    assert_same(BY_HAND(PARAMS, (X, T)), AUTO(PARAMS, (X, T)), 1e-6)


@pytest.mark.parametrize("run", [BY_HAND, AUTO], ids=["by hand", "auto"])
def test_next_values_are_the_successors(run):
    _, grads = run(PARAMS, (X, T))
    h = predict(dense(4))(PARAMS[0], X)
    assert_same(grads[1]["mean"], Next(0.9 * PARAMS[1]["mean"].value + 0.1 * jnp.mean(h, axis=0)), 1e-6)
    assert_same(grads[3]["key"], Next(jax.random.split(PARAMS[3]["key"].value, 1)[0]))


def test_auto_keeps_a_state_that_holds_nothing():  # or update would lose it
    empty = Layer("empty()", lambda key, x: State(()), lambda params, x: (x, ()), lambda params, _, dy: (Next(()), dy))
    net = chain(empty, thin(3))
    params = net.init(KEY, X)
    assert_same(auto_value_and_grad(net, mse())(params, (X, T)), value_and_grad(net, mse())(params, (X, T)), 1e-6)


@pytest.mark.parametrize("run", [BY_HAND, AUTO], ids=["by hand", "auto"])
def test_seed_scales_gradients_and_nothing_else(run):
    value, grads = run(PARAMS, (X, T))
    scaled_value, scaled = run(PARAMS, (X, T), jnp.float32(-2.5))  # traced: run is jitted
    assert_same(scaled_value, value, 1e-6)
    assert_same(split(scaled)[0], jax.tree.map(lambda g: -2.5 * g, split(grads)[0]), 1e-6)
    assert_same(split(scaled)[1], split(grads)[1], 1e-6)


def test_seed_has_to_be_a_scalar():  # any other would be broadcast over the columns of y without a word
    with pytest.raises((ValueError, TypeError)):
        jax.eval_shape(value_and_grad(NET, mse()), PARAMS, (X, T), jnp.ones(3))


def test_a_net_may_end_in_its_loss():
    whole = chain(CALM, from_function(lambda _, y: jnp.mean(jnp.square(y))))
    params = WEIGHTS
    value, (grads, _) = jax.jit(value_and_grad(whole))((params, ()), X)
    assert_same((value, grads), jax.jit(value_and_grad(CALM, mse()))(params, (X, jnp.zeros((7, 3)))), 1e-5)


@pytest.mark.parametrize("use", [
    lambda params, x, t: value_and_grad(CALM, mse())(params, (x, t)),
    lambda params, x, t: auto_value_and_grad(CALM, mse())(params, (x, t)),
    lambda params, x, t: as_custom_vjp(CALM)(params, x),
    # found: a ValueError for float64, numpy's default, which jit takes as float32
    lambda params, x, t: predict(CALM)(params, x),
    lambda params, x, t: vjp(CALM, params, x)[1](t),
], ids=["by hand", "auto", "custom_vjp", "predict", "vjp"])
def test_numpy_arrays_mean_outside_jit_what_they_mean_under_jit(use):
    x, t = np.asarray(X, np.float64), np.asarray(T, np.float64)
    assert_same(use(WEIGHTS, x, t), jax.jit(use)(WEIGHTS, x, t), 1e-5)


def test_init_takes_numpy_arrays():
    assert_same(dense(4).init(KEY, np.asarray(X, np.float64)), dense(4).init(KEY, X))


def test_integer_leaves_of_params_have_cotangent_none_in_both_arms():
    net = from_function(lambda params, x: params["w"] * x + params["n"], lambda key, x: {"w": jnp.ones(5), "n": jnp.int32(2)})
    params = net.init(KEY, X)
    value, grads = value_and_grad(net, mse())(params, (X, X))
    assert grads["n"] is None
    assert_same(auto_value_and_grad(net, mse())(params, (X, X)), (value, grads), 1e-6)


# ---- rewrites


def doubled(layer):
    def backward(params, residuals, dy):
        dparams, dx = layer.backward(params, residuals, dy)
        return jax.tree.map(lambda g: 2 * g, dparams), 2 * dx

    return replace(layer, backward=backward)


def test_rules_change_the_layer_they_name_and_what_comes_before_it():
    params = WEIGHTS
    plain = jax.jit(value_and_grad(CALM, mse()))(params, (X, T))
    value, grads = jax.jit(value_and_grad(CALM, mse(), rules={"2": doubled, "4": doubled}))(params, (X, T))
    factors = [4, 4, 4, 2, 2]
    wanted = tuple(jax.tree.map(lambda g, f=f: f * g, g) for f, g in zip(factors, plain[1], strict=True))
    assert_same((value, grads), (plain[0], wanted), 1e-6)


@pytest.mark.parametrize("rules", [{"4": doubled, "": doubled}, {"": doubled, "4": doubled}], ids=["up", "down"])
def test_rules_on_a_net_and_on_a_layer_in_it_both_hold(rules):
    # found: down, rebuilding the net for the second rule makes a plain chain again and the first rule is lost without a word
    # (so does inference() to a rewritten combinator)
    value, grads = jax.jit(value_and_grad(CALM, mse()))(WEIGHTS, (X, T))
    got = jax.jit(value_and_grad(CALM, mse(), rules=rules))(WEIGHTS, (X, T))
    assert_same(got, (value, jax.tree.map(lambda g: 4 * g, grads)), 1e-6)


NESTED = chain(tanh(), skip(chain(relu(), dense(5))), dense(3))
ALL = {"", "0", "1", "1/0", "1/0/0", "1/0/1", "2"}


@pytest.mark.parametrize(("where", "hit"), [
    ("2", {"2"}), ("1", {"1"}), ("1/*", {"1/0", "1/0/0", "1/0/1"}), ("1/0/1", {"1/0/1"}),
    ("", {""}), ("*", ALL), ("[02]", {"0", "2"}),
])
def test_rule_patterns(where, hit):
    marked = replace_rules(NESTED, where, lambda layer: replace(layer, inference=layer))
    found = set()

    def walk(layer, path):
        found.update([path] if layer.inference is not None else [])
        for i, part in enumerate(layer.parts):
            walk(part, f"{path}/{i}" if path else str(i))

    walk(marked, "")
    assert found == hit


def test_a_pattern_that_matches_nothing_names_the_layers():
    with pytest.raises(ValueError, match=r"'7/\*'.*'1/0/1'"):
        value_and_grad(NESTED, mse(), rules={"7/*": doubled})


def test_replace_rules_rebuilds_the_layers_above():
    assert repr(replace_rules(NESTED, "1/0/1", lambda _: dense(5, bias=False))) == \
        "chain(tanh(), skip(chain(relu(), dense(5, bias=False))), dense(3))"


def test_map_layers_goes_children_first_and_takes_the_root():
    seen = []
    map_layers(NESTED, lambda layer: seen.append(layer.name) or layer)
    inner = ["relu()", "dense(5)", "chain(relu(), dense(5))", "skip(chain(relu(), dense(5)))"]
    assert seen == ["tanh()", *inner, "dense(3)", NESTED.name]


def test_map_layers_that_changes_nothing_returns_the_net():
    assert map_layers(NESTED, lambda layer: layer) is NESTED


def test_map_layers_takes_one_layer_object_twice():
    act = tanh()
    assert repr(map_layers(chain(act, act), renamed)) == "chain!(tanh!(), tanh!())"


def test_inference_replaces_every_twin():
    off = inference(chain(dropout(0.3), skip(chain(centre(), dropout(0.1)))))
    assert repr(off) == "chain(dropped(), skip(chain(centred(), dropped())))"


def test_inference_reaches_every_layer_or_raises():  # below a combinator without `rebuild` too
    wrapped = chain(dropout(0.3))
    try:
        off = inference(replace(wrapped, rebuild=None))
    except (TypeError, ValueError):
        return
    x = jnp.ones((2, 3))
    assert_same(predict(off)(wrapped.init(KEY, x), x), x)


def test_inference_keeps_params_and_has_a_backward_pass():
    off = inference(NET)
    value, grads = jax.jit(value_and_grad(off, mse()))(PARAMS, (X, T))
    assert_same((value, grads), jax.jit(auto_value_and_grad(off, mse()))(PARAMS, (X, T)), 1e-6)
    assert_same(merge(split(PARAMS)[0], split(grads)[1]), PARAMS)  # its State stays what it was
    h = jnp.tanh(predict(dense(4))(PARAMS[0], X) - PARAMS[1]["mean"].value)
    h = h + jnp.tanh(predict(dense(4))(PARAMS[4][0][0], h))
    assert_same(predict(off)(PARAMS, X), predict(dense(3))(PARAMS[5], h), 1e-5)


# ---- as_custom_vjp


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_custom_vjp_is_the_hand_rule_inside_jax_grad(run):
    trainable, state = split(PARAMS)
    f, loss = as_custom_vjp(NET), as_custom_vjp(mse())
    value = lambda trainable, x: loss((), (f(merge(trainable, state), x), T))
    grad = jax.value_and_grad(value, argnums=(0, 1))
    got_value, (gradients, dx) = run(grad)(trainable, X)
    wanted_value, wanted = BY_HAND(PARAMS, (X, T))
    assert_same((got_value, gradients), (wanted_value, split(wanted)[0]), 1e-6)
    assert dx.shape == X.shape


def test_custom_vjp_runs_the_rule_and_not_jax():
    f = as_custom_vjp(doubled(dense(3)))
    params = thin(3).init(KEY, X)
    got = jax.grad(lambda params: jnp.sum(f(params, X)))(params)
    assert_same(got, jax.grad(lambda params: 2 * jnp.sum(predict(dense(3))(params, X)))(params), 1e-6)


def test_custom_vjp_takes_integer_inputs_and_outputs():
    def backward(params, ids, dy):
        dtaken, dids = dy
        assert dids is None  # the cotangent of an integer leaf, also where jax says float0
        return {"rows": jnp.zeros_like(params["rows"]).at[ids].add(dtaken)}, None

    take = Layer("take()", lambda key, ids: (), lambda params, ids: ((params["rows"][ids], ids + 1), ids), backward)
    f, ids, params = as_custom_vjp(take), jnp.array([0, 3, 3]), {"rows": jnp.arange(8.0).reshape(4, 2)}
    got = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(f(params, ids)[0]))))(params)
    assert_same(got, jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(params["rows"][ids]))))(params), 1e-6)


def test_custom_vjp_under_vmap():
    net, params = dense(3), thin(3).init(KEY, X)
    grad = lambda f: jax.jit(jax.vmap(jax.grad(lambda params, x, t: jnp.sum((f(params, x) - t) ** 2)), (None, 0, 0)))
    assert_same(grad(as_custom_vjp(net))(params, X, T), grad(predict(net))(params, X, T), 1e-6)


def test_custom_vjp_of_a_loss_takes_class_numbers():
    labels, loss = jnp.array([0, 2, 1, 1, 0, 2, 2]), as_custom_vjp(softmax_cross_entropy())
    wanted = lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(x, labels).mean()
    assert_same(jax.jit(jax.grad(lambda x: loss((), (x, labels))))(T), jax.jit(jax.grad(wanted))(T), 1e-5)


# ---- transformations


def test_vmap_over_nets_started_from_several_keys():
    net, keys = chain(dense(4), dropout(0.3), thin(3)), jax.random.split(KEY, 2)

    @jax.jit
    def all_at_once(keys):
        many = jax.vmap(net.init, (0, None))(keys, X)
        return many, jax.vmap(value_and_grad(net, mse()), (0, None))(many, (X, T))

    @jax.jit
    def one(key):
        params = net.init(key, X)
        return params, value_and_grad(net, mse())(params, (X, T))

    assert_same(jax.tree.map(lambda a: a[1], all_at_once(keys)), one(keys[1]), 1e-5)


def test_scan_of_steps_is_the_loop_of_steps():
    tx = optax.sgd(0.1, momentum=0.9)

    def step(carry, batch):
        params, opt_state = carry
        value, grads = value_and_grad(NET, mse())(params, batch)
        return update(tx, params, grads, opt_state), value

    carry = PARAMS, init_opt_state(tx, PARAMS)
    batches = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), (X, T))
    got = jax.jit(partial(jax.lax.scan, step))(carry, batches)
    values, once = [], jax.jit(step)
    for i in range(3):
        carry, value = once(carry, jax.tree.map(lambda a, i=i: a[i], batches))
        values.append(value)
    assert_same(got, (carry, jnp.stack(values)), 1e-5)


def test_jvp_of_the_gradient_is_the_hessian_vector_product():
    with jax.enable_x64(True):
        x, t, params = wide((X, T, WEIGHTS))
        some = lambda seed: jax.tree.map(lambda a: np.random.default_rng(seed).standard_normal(a.shape), params)
        u, v = some(3), some(4)

        @jax.jit
        def products(params):
            product = lambda run, v: jax.jvp(lambda params: run(CALM, mse())(params, (x, t))[1], (params,), (v,))[1]
            return product(value_and_grad, u), product(value_and_grad, v), product(auto_value_and_grad, v)

        hu, hv, wanted = products(params)
        assert_same(hv, wanted, 1e-10)
        dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.sum(a * b), a, b)))
        assert float(dot(u, hv)) == pytest.approx(float(dot(v, hu)), rel=1e-10)


def test_what_nobody_asks_for_is_not_computed():
    net, x = chain(thin(64), tanh(), thin(32)), jnp.zeros((16, 48))
    params, dy = net.init(KEY, x), jnp.zeros((16, 32))

    def flops(ask):
        program = jax.jit(lambda params, x, dy: ask(vjp(net, params, x)[1](dy)))
        return program.lower(params, x, dy).compile().cost_analysis().get("flops", 0.0)

    both, dparams, dx = flops(lambda pulled: pulled), flops(lambda pulled: pulled[0]), flops(lambda pulled: pulled[1])
    first, last = 2 * 16 * 48 * 64, 2 * 16 * 64 * 32  # one product of each dense
    assert both - dparams == pytest.approx(first, rel=0.05)  # the first layer's dx
    assert both - dx == pytest.approx(first + last, rel=0.05)  # both dw


def test_layers_are_named_in_the_compiled_program():
    net = chain(thin(4), skip(chain(tanh(), thin(4))))
    text = jax.jit(value_and_grad(net, mse())).lower(net.init(KEY, X), (X, X[:, :4])).as_text(debug_info=True)
    for scope in ("dense(4)", "skip(chain(tanh(), dense(4)))/chain(tanh(), dense(4))/tanh()", "mse()"):
        assert scope in text


# ---- from_function


def assert_module(fn, params, x, t):
    """A net around `fn(params, x)` has jax.grad's gradients, and an optimizer takes them."""
    net = chain(from_function(fn, lambda key, x: params), tanh(), thin(3))
    params = net.init(KEY, x)
    wanted = jax.value_and_grad(lambda p: jnp.mean((jnp.tanh(fn(p[0], x)) @ p[2]["w"] + p[2]["b"] - t) ** 2))
    got = jax.jit(value_and_grad(net, mse()))(params, (x, t))
    assert_same(got, jax.jit(wanted)(params), 1e-5)
    tx = optax.sgd(0.1)
    stepped, _ = jax.jit(partial(update, tx))(params, got[1], init_opt_state(tx, params))
    assert_same(stepped, jax.tree.map(lambda p, g: p - 0.1 * g, params, got[1]), 1e-5)


def test_from_function_with_a_plain_function():
    assert_module(lambda params, x: jnp.sin(x @ params["a"]), {"a": jnp.ones((5, 2))}, X, T)


@pytest.mark.peers
def test_from_function_with_an_equinox_module():
    eqx = pytest.importorskip("equinox")
    params, static = eqx.partition(eqx.nn.MLP(5, 4, 6, 1, key=KEY), eqx.is_inexact_array)
    assert_module(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, X, T)


@pytest.mark.peers
def test_from_function_with_an_nnx_module():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(nnx.Linear(5, 6, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    graph, params = nnx.split(model)
    assert_module(lambda params, x: nnx.merge(graph, params)(x), params, X, T)


def test_from_function_passes_state_on_and_integers_by():
    net = from_function(lambda params, x: (params["k"].value * params["w"] * x[0], x[1]),
                        lambda key, x: {"k": State(jnp.float32(3)), "w": jnp.float32(2)})
    params = net.init(KEY, None)
    y, pullback = vjp(net, params, (X, jnp.arange(7)))
    assert_same(y, (6 * X, jnp.arange(7)))
    dparams, dx = pullback((jnp.ones_like(X), None))
    assert_same((dparams, dx), ({"k": Next(jnp.float32(3)), "w": 3 * jnp.sum(X)}, (jnp.full_like(X, 6), None)), 1e-6)


# ---- errors


DEEP = chain(thin(4), chain(tanh(), skip(thin(4))), thin(3))
GOOD = DEEP.init(KEY, X)


def deep(inner):
    return GOOD[0], ((), (inner,)), GOOD[2]


WRONG = {
    "width of a nested w": (deep({"w": jnp.ones((6, 4)), "b": jnp.ones(4)}), (X, T), ValueError,
                            "layer 1/1/0 dense(4): x: expected a last axis of 6, the rows of w, got float32[7,4]"),
    "nested params": (deep({"kernel": jnp.ones((4, 4))}), (X, T), TypeError,
                      "layer 1/1/0 dense(4): params: expected {'w', 'b'}, got {'kernel': float32[4,4]}"),
    "nested list": ((GOOD[0], [(), GOOD[1][1]], GOOD[2]), (X, T), TypeError,
                    "layer 1 chain(tanh(), skip(dense(4))): params: expected a tuple of 2 trees"),
    "dtype of a nested w": (deep({"w": jnp.ones((4, 4), jnp.bfloat16), "b": jnp.ones(4)}), (X, T), ValueError,
                            "layer 1/1/0 dense(4): x and ... expected one dtype, got x float32[7,4], ... w bfloat16[4,4]"),
    "too few trees": (GOOD[:2], (X, T), TypeError, "params: expected a tuple of 3 trees, one per layer, got ("),
    "dtype of x": (GOOD, (X.astype(jnp.bfloat16), T), ValueError,
                   "layer 0 dense(4): x and ... expected one dtype, got x bfloat16[7,5], ... w float32[5,4]"),
    "integer x": (GOOD, (X.astype(int), T), ValueError, "layer 0 dense(4): x: expected a floating dtype, got int32[7,5]"),
    "a pair for x": (GOOD, ((X, X), T), TypeError, "layer 0 dense(4): x: expected one array, got (float32[7,5], float32[7,5])"),
    "batch of one": (GOOD, X, TypeError, "batch: expected a pair (x, target), got float32[7,5]"),
    "batch of three": (GOOD, (X, T, T), TypeError, "batch: expected a pair (x, target), got (float32[7,5], float32[7,3], "),
    "target": (GOOD, (X, T[:, :1]), ValueError, "layer loss mse(): target: expected the shape of y, (7, 3), got float32[7,1]"),
}


@pytest.mark.parametrize("run", [value_and_grad, auto_value_and_grad])
@pytest.mark.parametrize(("params", "batch", "error", "text"), WRONG.values(), ids=WRONG)
def test_errors_name_the_layer_what_was_expected_and_what_came(run, params, batch, error, text):
    with pytest.raises(error) as caught:
        jax.eval_shape(run(DEEP, mse()), params, batch)
    assert type(caught.value) is error
    beginning, *others = text.split(" ... ")
    assert str(caught.value).startswith(beginning)
    assert all(other in str(caught.value) for other in others)


@pytest.mark.parametrize(("net", "text"), [
    (chain(thin(4), skip(thin(3))),
     "layer 1 skip(dense(3)): y of a layer inside skip: expected float32[7,4], got float32[7,3]"),
    (chain(thin(4), chain(flatten(), from_function(lambda _, x: x.astype(int))), skip(thin(3))),
     "layer 2/0 dense(3): x: expected a floating dtype, got int32[7,4]"),
], ids=["skip", "integers"])
def test_init_finds_layers_that_do_not_fit(net, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        net.init(KEY, X)


def test_an_error_of_the_users_own_layer_gets_its_path():
    def broken(params, x):
        raise ValueError("seven is not a shape")

    with pytest.raises(ValueError, match=r"layer 1/0 from_function\(broken, rule='jax.vjp'\): seven is not a shape"):
        chain(tanh(), chain(from_function(broken))).init(KEY, X)


@pytest.mark.parametrize(("dy", "error"), [(T[:, :2], ValueError), (T.astype(jnp.bfloat16), ValueError), ((T,), TypeError)])
def test_a_pullback_checks_its_cotangent(dy, error):
    with pytest.raises(error, match="dy: expected"):
        vjp(DEEP, GOOD, X)[1](dy)


@pytest.mark.parametrize("y", [
    X, jnp.int32(1), (X, X), {"loss": jnp.float32(1)},
], ids=["array", "integer", "pair", "dict"])
@pytest.mark.parametrize("run", [value_and_grad, auto_value_and_grad])
def test_a_value_that_is_no_scalar_says_that_the_loss_is_missing(run, y):
    net = Layer("y()", lambda key, x: (), lambda params, x: (y, ()), lambda params, _, dy: ((), X))
    with pytest.raises(ValueError, match=r"value: expected one floating scalar, got .*Pass the loss"):
        run(net)((), X)


@pytest.mark.parametrize("layers", [(dense(3), relu), ([dense(3), relu()],)], ids=["relu for relu()", "a list"])
def test_a_chain_of_something_else_says_so(layers):
    with pytest.raises(TypeError, match="Layer"):
        chain(*layers)


# ---- the training path owes nothing to autodiff


def test_a_hand_written_step_trains_without_autodiff(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("autodiff was called")

    for name in ("grad", "vjp", "linearize", "value_and_grad", "jacrev", "jacfwd", "jacobian", "hessian"):
        monkeypatch.setattr(jax, name, forbidden)
        monkeypatch.setattr(jax._src.api, name, forbidden, raising=False)
    with pytest.raises(AssertionError, match="autodiff was called"):
        jax.grad(jnp.sin)(1.0)

    net = chain(flatten(), thin(9), centre(), relu(), dropout(0.1), skip(chain(thin(9), tanh())), thin(4))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((11, 2, 3)), jnp.float32)  # no other test has these shapes,
    labels = jnp.arange(11) % 4  # so that nothing was traced before
    params, tx, losses = net.init(KEY, x), optax.adam(0.02), []
    step, opt_state = make_step(value_and_grad(net, softmax_cross_entropy()), tx), init_opt_state(tx, params)
    for _ in range(30):
        params, opt_state, metrics = step(params, opt_state, (x, labels))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
