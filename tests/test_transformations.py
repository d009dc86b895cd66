"""make_step with every transformation of optax and optax.contrib, and init_opt_state."""

from __future__ import annotations

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbackprop import (
    Layer,
    Next,
    State,
    as_custom_vjp,
    chain,
    dense,
    frozen,
    init_opt_state,
    make_step,
    mse,
    objective,
    split,
    update,
    value_and_grad,
)

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore:Specifying a key", "ignore:.*deprecated:DeprecationWarning:optax"),
]

X = jnp.sin(jnp.arange(12.0).reshape(4, 3))
BATCH = X, jnp.cos(X[:, :2])
LOSS = mse()


def counter():
    """Passes x on and counts in its State how often it ran."""
    backward = lambda params, _, dy: ({"ran": Next(params["ran"].value + 1)}, dy)
    return Layer("counter", lambda key, x: {"ran": State(jnp.int32(0))}, lambda params, x: (x, ()), backward)


NET = chain(counter(), dense(2))
BY_HAND = value_and_grad(NET, LOSS)
VALUE_FN = as_custom_vjp(objective(NET, LOSS))
PARAMS = jax.tree.map(np.asarray, NET.init(jax.random.key(0), X))  # NumPy's, for a step deletes what it is given
ADAM = optax.adam(0.05)


def everywhere(value):
    return lambda params: jax.tree.map(lambda _: value, params)




def norm_of(updates, *args, **extra):
    return optax.tree.norm(updates)


ARGUMENTS = {  # what constructors ask for, by name
    "base_optimizer": ADAM, "fast_optimizer": ADAM, "inner": ADAM, "optimizer": ADAM, "tx": ADAM,
    "adv_optimizer": optax.sgd(0.1), "transforms": {"all": ADAM}, "param_labels": everywhere("all"),
    "inner_factory": optax.adam, "mask": everywhere(True), "freeze_mask": everywhere(False),
    "should_transform_fn": lambda step, **extra: step > 0,
    "clipping": 0.1, "decay": 0.9, "eta": 0.1, "gamma": 0.55, "l2_norm_clip": 1.0, "learning_rate": 0.05, "max_delta": 1.0,
    "max_norm": 1.0, "noise_multiplier": 0.1, "slow_step_size": 0.5, "step_size": 0.1, "threshold": 1.0,
    "max_backtracking_steps": 3, "max_consecutive_errors": 3, "max_linesearch_steps": 3, "seed": 0, "sync_period": 2,
    "step_size_fn": lambda count: 0.1, "f": lambda gradients, params: gradients, "measures": {"norm": norm_of},
    "measure": norm_of, "measure_name": "norm",
}
CALLS = {  # constructors with arguments of their own
    "chain": lambda: optax.chain(optax.clip(1.0), ADAM),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("adam", ADAM)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.05),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(0.05),
    "scale_by_muon": lambda: optax.masked(
        optax.contrib.scale_by_muon(weight_dimension_numbers=everywhere(optax.contrib.MuonDimensionNumbers())),
        lambda params: jax.tree.map(lambda p: p.ndim == 2, params)),
    "measure_with_ema": lambda: optax.monitor({"norm": optax.measure_with_ema(norm_of, 0.9)}),  # itself no update
    "sam in one step": lambda: optax.contrib.sam(ADAM, optax.sgd(0.1), opaque_mode=True),
    "MultiSteps": lambda: optax.MultiSteps(ADAM, 2),
}
TRIP_OVER_NONE = {"galore", "scale_by_galore"}  # which stands where params have State
ASK_FOR_VALUE_FN = {"lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch", "sophia",
                    "hutchinson_estimator_diag_hessian"}
ASK_FOR_EXAMPLES = {"dpsgd", "differentially_private_aggregate"}


def constructors():
    """Returns every constructor of optax and optax.contrib by name, found by what its signature returns or by a try."""
    found = dict(CALLS)
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name in found or name.startswith("_") or not inspect.isfunction(make):
                continue
            parameters = inspect.signature(make).parameters.values()
            asked = [each.name for each in parameters
                     if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
            says = "Transformation" in str(inspect.signature(make).return_annotation)
            unknown = set(asked) - set(ARGUMENTS)
            assert not (says and unknown), f"optax's {name} asks for {unknown}: add it to ARGUMENTS"
            if not unknown and (says or not inspect.get_annotations(make).get("return")):
                found[name] = lambda make=make, asked=asked: make(**{each: ARGUMENTS[each] for each in asked})
    return found


CONSTRUCTORS = constructors()
with warnings.catch_warnings(action="ignore"):
    ALL = [name for name, make in CONSTRUCTORS.items() if isinstance(make(), (optax.GradientTransformation, optax.MultiSteps))]


def shapes(tree):
    return [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


def over_none(tx):
    """Returns `tx` with another empty node in place of None: what the error of init_opt_state says to write."""
    return optax.masked(tx, lambda params: jax.tree.map(lambda p: p is not None, params, is_leaf=lambda p: p is None))


def step_of(tx, params=PARAMS, value_and_grad=BY_HAND, **options):
    """Returns what the second step of `tx` gives, as shapes: the state of one step is good for the next."""
    step = make_step(value_and_grad, tx, **options)
    first = jax.eval_shape(lambda params: (params, init_opt_state(tx, params)), params)
    after = jax.eval_shape(step, *first, BATCH)[:2]
    return jax.eval_shape(step, *after, BATCH)


def test_all_are_found():
    assert {"adam", "lookahead", "scale_by_lbfgs", "masked", "sam", "muon", "prodigy", "mechanize"} <= set(ALL)
    assert len(ALL) > 110


@pytest.mark.parametrize("name", [name for name in ALL if name not in ASK_FOR_EXAMPLES])
def test_a_step_takes_it(name):
    value_fn = VALUE_FN if name in ASK_FOR_VALUE_FN else None
    tx = CONSTRUCTORS[name]()
    params, _, metrics = step_of(over_none(tx) if name in TRIP_OVER_NONE else tx, value_fn=value_fn)
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    assert shapes(params) == shapes(PARAMS)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", sorted(ASK_FOR_VALUE_FN))
def test_a_missing_value_fn_is_named(name):
    with pytest.raises(ValueError, match=r"make_step value_fn: expected .* second derivatives.*value_fn=f"):
        step_of(CONSTRUCTORS[name]())


@pytest.mark.parametrize("name", sorted(TRIP_OVER_NONE))
def test_a_transformation_that_trips_over_none_is_named(name):
    with pytest.raises(TypeError, match=r"init_opt_state tx: expected .* passes over None.*State.*Write optax\.masked\(tx"):
        init_opt_state(CONSTRUCTORS[name](), PARAMS)
    step_of(CONSTRUCTORS[name](), PARAMS[1:], value_and_grad=value_and_grad(chain(dense(2)), LOSS))


@pytest.mark.parametrize("name", sorted(ASK_FOR_EXAMPLES))
def test_gradients_of_each_example_are_asked_for_and_taken(name):
    net, params = dense(2), PARAMS[1]
    tx = CONSTRUCTORS[name]()
    with pytest.raises(ValueError, match=r"expected .*gradients of each example.*jax\.vmap"):
        make_step(value_and_grad(net, LOSS), tx)(params, init_opt_state(tx, params), BATCH)

    def of_each(params, batch):
        values, gradients = jax.vmap(value_and_grad(net, LOSS), (None, 0))(params, batch)
        return jnp.mean(values), gradients

    stepped, _, _ = make_step(of_each, tx)(params, init_opt_state(tx, params), BATCH)
    assert shapes(stepped) == shapes(params)


def test_updates_of_other_shapes_are_refused():
    """dpsgd would sum over the first axis of a weight and add the sum to every row."""
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((3, 1))}
    tx = CONSTRUCTORS["differentially_private_aggregate"]()
    with pytest.raises(ValueError, match=r"updates of tx: expected those of the params, .*3,2.*got .*float32\[2\]"):
        update(tx, params, params, init_opt_state(tx, params))


def steps(tx, count, net=NET, **options):
    """Returns the params after some steps."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    opt_state = init_opt_state(tx, params)
    step = make_step(value_and_grad(net, LOSS), tx, **options)
    for _ in range(count):
        params, opt_state, _ = step(params, opt_state, BATCH)
    return params, opt_state


def test_lookahead_is_optax_with_two_copies():
    tx = optax.lookahead(optax.sgd(0.3), sync_period=2, slow_step_size=0.5)
    got, opt_state = steps(tx, 3)
    both = optax.LookaheadParams.init_synced(split(PARAMS)[0])
    state = tx.init(both)
    for _ in range(3):
        _, grads = BY_HAND((PARAMS[0], both.fast[1]), BATCH)
        updates, state = tx.update(split(grads)[0], state, both)
        both = optax.apply_updates(both, updates)
    np.testing.assert_allclose(got[1]["w"], both.fast[1]["w"], rtol=1e-5)
    np.testing.assert_allclose(opt_state.slow[1]["w"], both.slow[1]["w"], rtol=1e-5)
    assert got[0]["ran"].value == 3


def test_lookahead_needs_init_opt_state():
    tx = CONSTRUCTORS["lookahead"]()
    with pytest.raises(TypeError, match=r"opt_state: expected init_opt_state\(tx, params\), .* slow params"):
        update(tx, PARAMS, BY_HAND(PARAMS, BATCH)[1], tx.init(split(PARAMS)[0]))


def test_sam_in_one_step_and_in_two_reach_the_same_weights():
    """In one step, sam asks for the gradient at other weights; make_step gives it by the hand-written chain."""
    outer, inner = optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    in_two, _ = steps(optax.contrib.sam(outer, inner), 4)
    in_one, _ = steps(optax.contrib.sam(outer, inner, opaque_mode=True), 2)
    np.testing.assert_allclose(in_one[1]["w"], in_two[1]["w"], rtol=1e-5)
    assert in_one[0]["ran"].value == 2
    assert in_two[0]["ran"].value == 4


# ---- init_opt_state


def test_it_is_the_state_of_the_trainable_half():
    got, wanted = init_opt_state(ADAM, PARAMS), ADAM.init(split(PARAMS)[0])
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, wanted))


@pytest.mark.parametrize(("tx", "params", "error", "message"), [
    (optax.adam, PARAMS, TypeError, r"init_opt_state tx: expected an optax\.GradientTransformation, got the function adam\. "
                                    r"Call it: optax\.adam\(\.\.\.\)"),
    (0.1, PARAMS, TypeError, r"expected an optax\.GradientTransformation, got 0\.1\. Write optax\.adam\(1e-3\)"),
    (PARAMS, ADAM, TypeError, r"init_opt_state tx: expected an optax\.GradientTransformation, got \("),
    (ADAM, NET, TypeError, r"params: expected params, .*got chain\(.*Write init_opt_state\(tx, net\.init\(key, x\)\)"),
    (ADAM, PARAMS[:1], ValueError, r"params: expected at least one trainable leaf, got \(.*nothing to train"),
    (ADAM, (), ValueError, r"params: expected at least one trainable leaf, got \(\)"),
])
def test_bad_input_is_named(tx, params, error, message):
    with pytest.raises(error, match=message):
        init_opt_state(tx, params)


def test_frozen_weights_leave_nothing_to_train():
    with pytest.raises(ValueError, match="all of them frozen"):
        init_opt_state(ADAM, frozen(NET).init(jax.random.key(0), X))


def test_make_step_and_update_name_a_transformation_that_is_none():
    with pytest.raises(TypeError, match=r"make_step tx: expected .*Call it: optax\.sgd\(\.\.\.\)"):
        make_step(BY_HAND, optax.sgd)
    with pytest.raises(TypeError, match="update tx: expected"):
        update(None, PARAMS, PARAMS, ())
