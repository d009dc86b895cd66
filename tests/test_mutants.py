"""The mutator changes what it says it changes, and the checker catches it: on rules small enough to know every mutant."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation.interpret import evaluate
from mutation.mutants import AT_A_KINK, Trial, try_mutants
from mutation.mutations import KINDS, mutations

from fbackprop import Layer, check_layer, dense, recurrent, relu, rnn_cell
from fbackprop.verify.cases.case import Case, normal, pinned


def by_hand(backward, forward=lambda x: x**3):
    """A layer without params: y = x^3 unless said otherwise, residuals x."""
    return Layer("mine()", lambda key, x: (), lambda params, x: (forward(x), x), lambda params, x, dy: ((), backward(x, dy)))


def outcomes(layer, x=(3, 4)):
    return try_mutants(Case("mine", layer, normal(*x)), 1000)


def fates(found, kind):
    return {str(o.mutant): o.fate for o in found if o.mutant.mutation.kind == kind}


RULES = {
    "primitive": by_hand(lambda x, dy: dy * 3.0 * x**2),
    "sign": by_hand(lambda x, dy: dy * 3.0 * x**2),
    "constant": by_hand(lambda x, dy: dy * 3.0 * x**2),
    "dropped": by_hand(lambda x, dy: dy * 3.0 * x**2),
    "axis": by_hand(lambda x, dy: dy @ dy.T @ x * 0.0 + jnp.transpose(dy), jnp.transpose),
    "order": by_hand(lambda x, dy: dy - (x - dy) + x - dy, lambda x: x),
    "off by one": by_hand(lambda x, dy: jnp.pad(dy, ((0, 0), (1, 1))), lambda x: x[:, 1:-1]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mutation_changes_a_small_rule_and_is_caught(kind):
    found = fates(outcomes(RULES[kind], (3, 3)), kind)
    assert "caught" in found.values()
    assert "survivor" not in found.values()


def test_a_factor_left_out_is_the_rule_without_it():
    layer = by_hand(lambda x, dy: dy * 3.0 * x**2)
    closed = jax.make_jaxpr(lambda x, dy: layer.backward((), x, dy)[1])(1.0, 1.0)
    at = next((i, m) for i, eqn in enumerate(closed.jaxpr.eqns) for m in mutations(eqn)
              if m.text == "factor 1 left out" and getattr(eqn.invars[1], "val", None) == 3.0)
    (got,) = evaluate(closed, [jnp.asarray(2.0), jnp.asarray(5.0)], (at[0],), at[1].change)
    assert float(got) == 5.0 * 2.0**2
    (right,) = evaluate(closed, [jnp.asarray(2.0), jnp.asarray(5.0)])
    assert float(right) == 5.0 * 3.0 * 2.0**2


def test_a_mutation_inside_a_scan_is_applied_and_caught():
    found = try_mutants(Case("recurrent", recurrent(rnn_cell(2)), normal(2, 3, 2)), 40)
    inside = [o for o in found if len(o.mutant.path) > 2]
    assert inside
    assert all(o.fate == "caught" and o.change > 0 for o in inside if o.mutant.mutation.kind == "sign")


def test_a_scan_taken_step_by_step_is_the_scan():
    def backward(x):
        return jax.lax.scan(lambda c, a: (c * a + 1, (c, c - a)), jnp.ones(()), x, reverse=True)

    closed = jax.make_jaxpr(backward)(jnp.arange(4.0))
    number = [eqn.primitive.name for eqn in closed.jaxpr.eqns].index("scan")
    body = closed.jaxpr.eqns[number].params["jaxpr"].jaxpr
    first = body.eqns[0]
    same = lambda args: [first.primitive.bind(*args, **first.params)]
    by_steps = evaluate(closed, [jnp.arange(4.0)], (number, 0, 0), same)
    for got, right in zip(by_steps, jax.tree.leaves(backward(jnp.arange(4.0)))):
        np.testing.assert_allclose(got, right, rtol=1e-6)


def test_a_while_is_entered_and_its_counter_left_alone():
    def backward(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, jnp.ones(())))[1]

    found = outcomes(by_hand(lambda x, dy: dy * jax.vmap(jax.vmap(lambda a: backward(a)))(x) * 4, lambda x: x**4), (2, 2))
    assert {o.fate for o in found if len(o.mutant.path) > 1 and o.mutant.mutation.kind == "sign"} == {"caught"}


def test_what_changes_nothing_is_equivalent():
    found = outcomes(by_hand(lambda x, dy: dy * jnp.maximum(jnp.abs(x), -1.0), lambda x: x * jnp.abs(x) / 2))
    assert fates(found, "constant")
    assert any(fate == "equivalent" for name, fate in fates(found, "constant").items() if "max" in name)


def test_a_wrong_shape_is_stillborn_and_equations_without_effect_are_left_alone():
    layer = by_hand(lambda x, dy: (jnp.sin(x), dy * 3 * x**2)[1])
    assert not [o for o in outcomes(layer) if o.mutant.primitive == "sin"]
    trial_of = Case("dense", dense(3), normal(2, 3))
    with jax.enable_x64(True):
        closed = Trial(trial_of).backward.closed
        number, eqn = next((i, e) for i, e in enumerate(closed.jaxpr.eqns) if e.outvars[0].aval.ndim == 2)
        with pytest.raises(ValueError, match="where"):
            evaluate(closed, [jnp.zeros(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars], (number,),
                     lambda args: [jnp.zeros(7)])


def test_another_value_at_a_kink_survives_with_its_reason():
    found = try_mutants(Case("relu", relu(), pinned(3, 5)), 1000)
    survivors = [o for o in found if o.fate == "survivor"]
    assert all(o.reason == AT_A_KINK for o in survivors)
    assert any(o.fate == "caught" for o in found)


@pytest.mark.parametrize(("share", "verdict"), [
    ((0.5, 0.5), "KINK"), ((0.0, 1.0), "KINK"), ((0.0, 0.0), "WRONG"), ((1.0, 1.0), "WRONG")])
def test_a_tie_may_be_shared_in_any_way_but_not_lost_or_counted_twice(share, verdict):
    layer = by_hand(lambda x, dy: dy * jnp.asarray([*share, 0.0], dy.dtype), jnp.max)
    assert check_layer(layer, np.array([2.0, 2.0, -1.0])).verdict == verdict


def test_a_rule_that_is_wrong_already_is_refused():
    with pytest.raises(ValueError, match="called WRONG"):
        outcomes(by_hand(lambda x, dy: dy * 2 * x**2))


@pytest.mark.slow
def test_the_checker_catches_99_of_100_mutants(tmp_path):
    """Of every eleventh case; the whole is run by hand."""
    script = Path(__file__).parents[1] / "experiments" / "mutants.py"
    done = subprocess.run([sys.executable, script, "--every", "11", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
