"""Every case of the table under jax's transformations: jit, vmap, scan, jvp of the rule, and inside as_custom_vjp."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import as_custom_vjp
from fbackprop.verify.cases import CASES
from fbackprop.verify.check import draw_params
from fbackprop.verify.subject import cast, layer_subject

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

WITH_NUMBERS = [case for case in CASES if case.verdict == "OK" and not ("empty" in case.note or "no channels" in case.note)]


@pytest.mark.parametrize("case", WITH_NUMBERS, ids=lambda case: case.name)
def test_a_rule_goes_through_the_transformations(case):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = cast(case.x(rng), np.float64)
        params = draw_params(case.layer, x, rng)
        subject, theta, fixed = layer_subject(case.layer, params, x)
        in_theirs = as_custom_vjp(case.layer)
        borrowed = layer_subject(replace(case.layer, forward=lambda p, x: (in_theirs(p, x), ())), params, x)[0]
        size = jax.eval_shape(subject.f, theta, fixed).size
        dys, thetas = rng.standard_normal((2, size)), theta + 1e-3 * rng.standard_normal((2, theta.size))
        u, v = rng.standard_normal((2, theta.size))

        @jax.jit
        def run(theta, fixed):
            rule, auto = (lambda t, dy, g=g: g(t, fixed, dy) for g in (subject.rule, subject.auto))
            hessian_product = lambda g, v: jax.jvp(lambda t: g(t, dys[0]), (theta,), (v,))[1]
            return {
                "rule": jnp.stack([rule(theta, dy) for dy in dys]),
                "vmap over cotangents": jax.vmap(rule, (None, 0))(theta, dys),
                "as_custom_vjp": jnp.stack([borrowed.auto(theta, fixed, dy) for dy in dys]),
                "rules": jnp.stack([rule(t, dys[0]) for t in thetas]),
                "vmap over points": jax.vmap(rule, (0, None))(thetas, dys[0]),
                "scan": jax.lax.scan(lambda c, t: (c, rule(t, dys[0])), 0, thetas)[1],
                "hv": hessian_product(rule, v), "hu": hessian_product(rule, u), "hv by jax": hessian_product(auto, v),
            }

        got = jax.tree.map(np.asarray, run(theta, fixed))
    close(got["vmap over cotangents"], got["rule"])
    close(got["as_custom_vjp"], got["rule"])
    close(got["vmap over points"], got["rules"])
    close(got["scan"], got["rules"])
    scale = np.max(np.abs(got["hv by jax"])) + np.max(np.abs(got["rule"]))
    np.testing.assert_allclose(got["hv"], got["hv by jax"], rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(u @ got["hv"], v @ got["hu"], rtol=1e-9, atol=1e-9 * scale * theta.size)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * max(1e-300, float(np.max(np.abs(b)))))
