"""The law of rewrites: any two commute, or the second raises an error that names both. No rewrite is lost."""

import ast
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial, reduce
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import (
    PRECISIONS,
    Layer,
    attention,
    batch_norm,
    chain,
    checkpoint,
    dense,
    dropout,
    embedding,
    frozen,
    graft,
    identity,
    inference,
    linear_cross_entropy,
    lstm,
    mse,
    objective,
    parallel,
    paths,
    predict,
    probe,
    readings,
    recurrent,
    repeat,
    replace_rules,
    split,
    tanh,
    tap,
    tied,
    value_and_grad,
    watch,
    with_precision,
)
from fbackprop.memory import every, scheduled, with_schedules, with_settings
from fbackprop.transform import map_layers_with_path

pytestmark = pytest.mark.usefixtures("quick_compile")
ROOT = Path(__file__).parent.parent
TOKENS = jnp.array([[0, 1, 2, 3], [4, 5, 6, 0]])
BATCH = TOKENS, jnp.roll(TOKENS, -1, 1)
SETTINGS = {"0/0/4": {"block": 2}, "1": {"chunk": 3}, "0/0/2": {"segment": 2}}
DOUBLED = "0/0/1", "0/0/2/1/0", "0/0/3", "1"  # a repeat, a cell, a layer, one with a setting
SCHEDULES = {"0/0": every(3, 8), "0/0/1": every(2, 4)}


def everything():
    """A chain with a repeat, a recurrent layer, attention, State, and a tiled loss whose head can be tied."""
    body = chain(embedding(7, 4), repeat(chain(tanh(), dense(4)), 4), lstm(4), dense(12), attention(2, causal=True),
                 dense(4), dropout(0.5), batch_norm())
    return chain(parallel(body, identity()), linear_cross_entropy(7, chunk=4))


def doubled(layer):
    """The same value, twice the gradients of its params."""
    def backward(params, residuals, dy):
        dparams, dx = layer.backward(params, residuals, dy)
        gradients, successors = split(dparams)
        return jax.tree.map(lambda g, s: s if g is None else 2 * g, gradients, successors, is_leaf=lambda n: n is None), dx

    return replace(layer, backward=backward)


class Rewrite(NamedTuple):
    """`apply(net)`, and whether its effect is there: `there(net, grads, seen)`, grads by path, seen the paths tapped."""

    apply: Callable
    there: Callable


def found(net):
    """Every layer with its path, wrappers included."""
    layers = []
    map_layers_with_path(net, lambda path, layer: layers.append((path, layer)) or layer, wrappers=True)
    return layers


def has(kind, *at):
    return lambda net, grads, seen: set(at) <= {path for path, layer in found(net) if layer.kind == kind}


def has_option(name, at):
    return lambda net, grads, seen: all(
        any(path == here and dict(o[:2] for o in layer.options).get(name) == value for here, layer in found(net))
        for path, value in at.items())


def forgetting(net, grads, seen):
    """dropout and batch_norm by their twins: no layer of the training kind is left."""
    return not {layer.kind for _, layer in found(net)} & {"dropout", "batch_norm"}


SEEN: list[str] = []
TIES = {"1/w": "0/0/0/w"}
REWRITES = {
    "with_precision": Rewrite(lambda net: with_precision(net, PRECISIONS["bfloat16"]), has("cast", "", "0/0/0", "0/0/4", "1")),
    "with_settings": Rewrite(lambda net: with_settings(net, SETTINGS), lambda net, grads, seen: all(
        has_option(name, {path: value})(net, grads, seen) for path, name, value in
        (("0/0/4", "block", 2), ("1", "chunk", 3), ("0/0/2", "size", 2)))),
    "scheduled": Rewrite(lambda net: with_schedules(scheduled(net, ((1,), 1)), SCHEDULES),
                         has_option("schedule", {"": ((1,), 1), **SCHEDULES})),
    "replace_rules": Rewrite(lambda net: reduce(lambda net, path: replace_rules(net, path, doubled), DOUBLED, net),
                             lambda net, grads, seen: True),  # test_replaced_rules_stay_replaced
    "tap": Rewrite(partial(tap, see=lambda path, *_: SEEN.append(path)),
                   lambda net, grads, seen: {"", "0/0", "0/0/1/0/1", "0/0/2", "0/0/2/1/0", "0/0/4", "1"} <= seen),
    "watch": Rewrite(watch, lambda net, grads, seen: {"0/0/1/0[3]/1", "0/0/4", "1"} <= set(readings(grads))),
    "frozen": Rewrite(lambda net: replace_rules(net, "0/0/5", frozen),
                      lambda net, grads, seen: "0/0/5/w" not in paths(split(grads)[0])),
    "tied": Rewrite(partial(tied, ties=TIES), lambda net, grads, seen: "1/w" not in paths(split(grads)[0])),
    "checkpoint": Rewrite(lambda net: checkpoint(replace_rules(net, "0/0/1", checkpoint)), has("checkpoint", "", "0/0/1")),
    # not of the whole: the twin of the loss gives logits, and there would be no value to compare
    "inference": Rewrite(lambda net: replace_rules(net, "0/0/[67]", inference), forgetting),
}


PLAIN = everything()
PARAMS = jax.tree.map(lambda a: a + 0.1 if jnp.issubdtype(a.dtype, jnp.floating) else a,  # no leaf is zero
                      PLAIN.init(jax.random.key(0), BATCH))


COMPILED: dict[tuple, Callable] = {}


def gradients(net):
    """(value, gradients by path, all grads, paths tapped), each run outside jit.

    Two orders that commute are mostly one program to the letter. Each program is compiled once.
    """
    SEEN.clear()
    params = graft(PARAMS, jax.eval_shape(net.init, jax.random.key(1), BATCH))
    made = lambda a: np.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a
    params = jax.tree.map(made, params)
    lowered = jax.jit(value_and_grad(net)).lower(params, BATCH)
    program = lowered.as_text(), lowered.in_tree, lowered.out_tree
    if program not in COMPILED:
        COMPILED[program] = lowered.compile()
    value, grads = COMPILED[program](params, BATCH)
    trained = {path: np.asarray(leaf, np.float64) for path, leaf in paths(split(grads)[0]).items()}
    return float(value), trained, grads, set(SEEN)


@cache
def in_order(first, second):
    """The gradients after both rewrites, whose effects are both there."""
    net = REWRITES[second].apply(REWRITES[first].apply(PLAIN))
    result = gradients(net)
    for name in (first, second):
        assert REWRITES[name].there(net, *result[2:]), f"{first}, then {second}: {name} is lost"
    return result


PAIRS = [pytest.param(pair, id=" ".join(pair)) for pair in combinations(REWRITES, 2)]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_rewrites_commute(pair):
    """Both orders: the same value, the same gradients, and neither rewrite is lost."""
    here, there = in_order(*pair), in_order(*pair[::-1])
    assert here[0] == pytest.approx(there[0], rel=1e-6)
    assert set(here[1]) == set(there[1])
    close = 1e-2 if "with_precision" in pair else 1e-6
    for path, a in here[1].items():
        b = there[1][path]
        np.testing.assert_allclose(a, b, rtol=0, atol=close * np.max(np.abs(b)), err_msg=path)


@pytest.mark.parametrize("other", [name for name in REWRITES if name != "replace_rules"])
def test_replaced_rules_stay_replaced(other):
    """Twice the gradients of the other rewrite alone, whichever comes first."""
    alone = gradients(REWRITES[other].apply(PLAIN))[1]
    for first, second in ((other, "replace_rules"), ("replace_rules", other)):
        both = in_order(first, second)[1]
        for path in ("0/0/1/0/1/w", "0/0/2/1/0/w", "0/0/3/w", "1/w"):
            if path in alone:
                close = 2e-2 if other == "with_precision" else 1e-5
                np.testing.assert_allclose(both[path], 2 * alone[path], rtol=0, atol=close * np.max(np.abs(both[path])),
                                           err_msg=f"{first}, then {second}: {path}")


# ---- pairs that refuse: each order's error names both


def in_segments(net):
    return with_settings(net, {"0/0/2": {"segment": 2}})


def scheduled_lstm(net):
    return with_schedules(net, {"0/0/2": ((1,), 1)})


def tied_table(net):
    return tied(net, TIES)


def frozen_table(net):
    return replace_rules(net, "0/0/0", frozen)


REFUSED = {
    "a tie to a frozen weight": (frozen_table, tied_table, ("tied", "frozen")),
    "a tie in a frozen net": (frozen, tied_table, ("tied", "frozen")),
    "a schedule of an lstm in segments": (in_segments, scheduled_lstm, ("with_settings", "schedule")),
    "segments of a scheduled lstm": (scheduled_lstm, in_segments, ("settings", "schedule")),
}


@pytest.mark.parametrize("pair", REFUSED)
def test_a_pair_that_does_not_go_together_is_refused_by_name(pair):
    first, second, words = REFUSED[pair]
    with pytest.raises((TypeError, ValueError)) as caught:
        gradients(second(first(PLAIN)))
    assert all(word in str(caught.value) for word in words), caught.value


# ---- faults that were there


def test_two_replaced_rules_one_inside_the_other():
    net = chain(chain(dense(3), tanh()), dense(2))
    x = jnp.ones((4, 3))
    params = net.init(jax.random.key(0), x)
    loss = lambda net: value_and_grad(chain(net, total()))((params, ()), x)[1][0]
    once, twice = loss(net), loss(replace_rules(replace_rules(net, "0", doubled), "0/0", doubled))
    np.testing.assert_allclose(twice[0][0]["w"], 4 * once[0][0]["w"], rtol=1e-6)
    np.testing.assert_allclose(twice[1]["w"], once[1]["w"], rtol=1e-6)


def total():
    return Layer("total", lambda key, x: (), lambda params, x: (jnp.sum(x), x),
                 lambda params, x, dy: ((), jnp.full_like(x, dy)))


def test_a_renamed_chain_is_scheduled_and_keeps_its_name():
    encoder = replace(chain(dense(4), tanh(), dense(4)), kind="encoder")
    made = with_precision(scheduled(encoder, every(2, 3)), PRECISIONS["bfloat16"])
    assert "encoder(" in repr(made)
    assert has_option("schedule", {"": every(2, 3)})(made, None, None)


def test_a_schedule_in_a_cast_net_is_replaced_by_another():
    net = with_precision(repeat(dense(4), 6), PRECISIONS["bfloat16"], keep=("0",))
    again = with_schedules(with_schedules(net, {"": every(2, 6)}), {"": every(3, 6)})
    assert has_option("schedule", {"": every(3, 6)})(again, None, None)
    x = jnp.ones((2, 4))
    params = net.init(jax.random.key(0), x)
    np.testing.assert_array_equal(again.forward(params, x)[0], net.forward(params, x)[0])


def test_taps_stay_out_of_training():
    seen = []
    net = inference(tap(chain(dense(3), dropout(0.5)), lambda path, layer, *_: seen.append((path, layer.name))))
    x = jnp.ones((2, 3))
    net.forward(net.init(jax.random.key(0), x), x)
    assert ("1", "inference(dropout(0.5))") in seen


# ---- three rewrites, and rewrites of one's own


def small():
    return chain(chain(dense(3), dense(3)), total())


X = jnp.linspace(-1, 1, 12).reshape(4, 3)


def trained(net, x=X):
    """Gradients by path, at weights that depend on the path alone."""
    params = net.init(jax.random.key(0), x)
    params = graft(small().init(jax.random.key(1), x), params)
    return {path: np.asarray(leaf, np.float64) for path, leaf in
            paths(split(jax.jit(value_and_grad(net))(params, x)[1])[0]).items() if "recorded" not in path}


THREE = {
    "a rule, a schedule, a cast": lambda net: with_precision(with_schedules(twice(net), ONE), PRECISIONS["float32"]),
    "a rule, a schedule, a probe": lambda net: watch(with_schedules(twice(net), ONE)),
    "a rule, a schedule, a tap": lambda net: tap(with_schedules(twice(net), ONE), lambda *_: None),
    "a rule, two schedules, a cast": lambda net: with_precision(
        with_schedules(with_schedules(twice(net), ONE), {"0": (1, (1,))}), PRECISIONS["float32"]),
    "a rule, a schedule, a checkpoint": lambda net: replace_rules(with_schedules(twice(net), ONE), "0/1", checkpoint),
    "a wrapped rule, a cast": lambda net: with_precision(
        replace_rules(net, "0", lambda layer: checkpoint(doubled(layer))), PRECISIONS["float32"]),
    "a cast, a wrapped rule": lambda net: replace_rules(
        with_precision(net, PRECISIONS["float32"]), "0", lambda layer: checkpoint(doubled(layer))),
}
ONE = {"0": ((1,), 1)}


def twice(net):
    return replace_rules(net, "0", doubled)


@pytest.mark.parametrize("three", THREE)
def test_a_rule_is_applied_once_whatever_follows(three):
    plain, got = trained(small()), trained(THREE[three](small()))
    for path, right in plain.items():
        np.testing.assert_allclose(got[path], 2 * right, rtol=1e-5, err_msg=path)


def test_a_wrapped_rule_holds_out_of_training_too():
    net = chain(dense(3), batch_norm(), total())
    params = net.init(jax.random.key(0), X)
    rule = lambda net: replace_rules(net, "1", lambda layer: checkpoint(doubled(layer)))
    bias = lambda net: value_and_grad(net)(params, X)[1][1]["bias"]
    alone = bias(inference(net))
    np.testing.assert_allclose(bias(inference(rule(net))), 2 * alone, rtol=1e-6)
    np.testing.assert_allclose(bias(rule(inference(net))), 2 * alone, rtol=1e-6)


def test_a_cast_objective_keeps_its_loss():
    net = with_precision(objective(frozen(dense(3)), mse()), PRECISIONS["bfloat16"])
    value = net.forward(net.init(jax.random.key(0), (X, X)), (X, X))[0]
    assert value.shape == ()
    exact = with_precision(objective(identity(), mse()), PRECISIONS["bfloat16"], keep=("loss",))
    batch = jnp.full((1, 1), 1000.0), jnp.full((1, 1), 1001.0)
    assert exact.forward(exact.init(jax.random.key(0), batch), batch)[0] == pytest.approx(1.0)  # a target rounds to 1000


def test_a_record_of_segments_is_of_all_steps():
    whole, cut = lstm(3), lstm(3, segment=2)
    x = jax.random.normal(jax.random.key(2), (2, 4, 3))
    seen = []
    for layer in (whole, cut):
        net = chain(layer, total())
        measure = probe(net)
        seen.append(measure(net.init(jax.random.key(0), x), x)[1])
    for path in ("0/0", "0/1/0"):
        assert seen[1][path].y.size == seen[0][path].y.size
        assert seen[1][path].dparams.norm == pytest.approx(seen[0][path].dparams.norm, rel=1e-5)


def test_an_objective_is_watched_like_a_net_that_ends_in_its_loss():
    net = objective(chain(dense(3)), mse())
    params = net.init(jax.random.key(0), (X, X))
    value, seen, grads = probe(net)(params, (X, X))
    assert set(seen) == {"0", "loss"}
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert value == pytest.approx(float(value_and_grad(chain(dense(3)), mse())(params, (X, X))[0]))


def test_what_replace_was_given_outlives_a_rewrite():
    seven = Layer("seven", lambda key, x: (), lambda params, x: (jnp.full_like(x, 7), ()), lambda params, kept, dy: ((), dy))
    net = replace(chain(tanh()), inference=seven)
    for later in (with_precision(net, PRECISIONS["float32"]), scheduled(net, (1,)), tap(net, lambda *_: None)):
        assert predict(inference(later))(later.init(jax.random.key(0), X), X)[0, 0] == 7
    mine = with_settings(replace(attention(1), kind="mine"), {"": {"block": 2}})
    assert repr(mine) == "mine(1, block=2)"


def test_a_cast_goes_inside_frozen_whatever_its_name():
    backbone = lambda layer: replace(frozen(layer), kind="backbone")
    net = replace_rules(with_precision(chain(dense(3)), PRECISIONS["bfloat16"]), "0", backbone)
    y = net.forward(net.init(jax.random.key(0), X), X)[0]
    assert y.dtype == jnp.float32


@pytest.mark.parametrize("change", [doubled, checkpoint, frozen], ids=lambda change: change.__name__)
def test_segments_and_a_rule_of_the_recurrent_layer_are_refused(change):
    with pytest.raises(TypeError, match="with_settings, segment"):
        replace_rules(with_settings(lstm(3), {"": {"segment": 2}}), "1", change)
    with pytest.raises((TypeError, ValueError), match="settings"):
        with_settings(replace_rules(lstm(3), "1", change), {"": {"segment": 2}})


@pytest.mark.parametrize(("call", "message"), [
    (lambda: scheduled(small(), ((-1,), 3)), "schedule: expected a tuple of runs"),
    (lambda: scheduled(small(), 2), "schedule: expected a tuple of runs"),
    (lambda: with_settings(lstm(3, segment=4), {"": {}}), "expected a dict that names a setting"),
    (lambda: with_settings(attention(2), {"": 5}), "expected a dict that names a setting"),
    (lambda: replace_rules(small(), "0", lambda layer: None), "expected a Layer, got None"),
    (lambda: replace_rules(small(), "0", dense(3)), "rules: expected a glob of layer paths and a function"),
    (lambda: checkpoint(tanh), r"checkpoint: expected a Layer, got tanh. Did you mean tanh\(\)\?"),
    (lambda: watch(tanh), r"Did you mean tanh\(\)\?"),
    (lambda: repeat(tanh, 3), r"Did you mean tanh\(\)\?"),
    (lambda: recurrent(tanh), r"Did you mean tanh\(\)\?"),
    (lambda: tied(small(), [("0/1/w", "0/0/w")]), "ties: expected a dict"),
    (lambda: replace(dense(3), tuning={}), "tuning of dense: expected a Tuning or None"),
    (lambda: replace(dense(3), parts=[dense(3)]), "parts of dense: expected a tuple of Layers"),
], ids=range(13))
def test_a_wrong_call_says_what_to_write(call, message):
    with pytest.raises(TypeError, match=message):
        call()


# ---- the record itself


def test_layer_has_no_subclasses():
    with pytest.raises(TypeError, match=r"Layer\): expected no subclass.*Layer\(\"mine\", init, forward, backward\)"):
        type("Mine", (Layer,), {})


def test_replace_drops_what_described_the_old_rule():
    layer = attention(2)
    assert layer.tuning is not None
    assert replace(layer, backward=lambda *_: None).tuning is None
    other = replace(lstm(3).parts[1].parts[0], backward=lambda *_: None)
    assert other.cell.pull is None
    assert other.cell.start is not None


def test_parts_of_a_chain_with_a_rule_of_its_own_cannot_be_rewritten():
    mine = replace(chain(dense(3), tanh()), backward=lambda params, kept, dy: (params, dy))
    with pytest.raises(TypeError, match=r"chain\(dense\(3\), tanh\(\)\): expected parts that stay.*by replace_rules\("):
        with_precision(mine, PRECISIONS["bfloat16"])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"kind": 3}, "Layer kind: expected a word, got 3"),
    ({"kind": ""}, "Layer kind: expected a word, got ''"),
    ({"options": {"features": 3}}, r"options of mine: expected pairs \(name, value\), got .*options=\("),
    ({"options": ("features",)}, "options of mine: expected pairs"),
], ids=["no word", "an empty word", "a dict", "a name alone"])
def test_a_wrong_record_says_how_to_write_it(arguments, message):
    functions = {"init": lambda key, x: (), "forward": lambda params, x: (x, ()), "backward": lambda params, kept, dy: ((), dy)}
    with pytest.raises(TypeError, match=message):
        Layer(**{"kind": "mine", **functions, **arguments})


def test_a_setting_that_is_not_there_is_named():
    with pytest.raises(TypeError, match=r"settings at '0', attention\(2\): expected some of block, got \{'chunk': 4\}"):
        with_settings(chain(attention(2)), {"0": {"chunk": 4}})


def test_recurrent_asks_for_a_cell():
    with pytest.raises(TypeError, match=r"recurrent: expected a cell: lstm_cell\(features\).*got dense\(3\)"):
        recurrent(dense(3))


LAYERS = {"layer", "net", "loss", "part", "cell", "old", "new", "over", "before", "case.layer", "self.layer", "call.layer"}
PRINTED = (ast.FormattedValue, ast.Call, ast.keyword, ast.Return, ast.Dict, ast.DictComp, ast.Lambda, ast.IfExp, ast.Tuple)


def test_no_code_decides_by_the_name_of_a_layer():
    """`.name` is passed on or put into a text, never compared, taken apart or looked up."""
    wrong = []
    for folder in ("fbackprop", "experiments"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
            wrong += [f"{file.relative_to(ROOT)}:{node.lineno}" for node in ast.walk(tree)
                      if isinstance(node, ast.Attribute) and node.attr == "name" and ast.unparse(node.value) in LAYERS
                      and not isinstance(parents[node], PRINTED)]
    assert wrong == []
