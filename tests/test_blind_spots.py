"""What a passed check cannot see (docs/checking.md): each of these wrong rules passes, and has to go on being listed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbackprop import Layer, Next, State, check_layer, dense, relu, tanh

pytestmark = pytest.mark.usefixtures("quick_compile")
X = np.random.default_rng(0).standard_normal((3, 5))


def wrong_backward(layer, change):
    """`layer` with `change(params, residuals, dy, dparams, dx)` in place of what its backward returns."""
    def backward(params, residuals, dy):
        return change(params, residuals, dy, *layer.backward(params, residuals, dy))

    return replace(layer, backward=backward)


def _fake_tanh():
    """A forward that is not tanh (it is tanh x + 0.01 x), with the right rule of what it is."""
    def backward(params, x, dy):
        return (), dy * (1.01 - jnp.tanh(x) ** 2)

    return replace(tanh(), forward=lambda p, x: (jnp.tanh(x) + 0.01 * x, x), backward=backward)


def _counter(step):
    """A layer that counts its calls; `step` is what it adds."""
    return Layer("counter()", lambda key, x: State(jnp.zeros(())), lambda params, x: (x, ()),
                 lambda params, residuals, dy: (Next(params.value + step), dy))


def _remembering():
    """A tanh whose rule is wrong from its hundredth trace on."""
    calls = []

    def change(params, y, dy, dparams, dx):
        calls.append(1)
        return dparams, dx if len(calls) < 100 else 2 * dx

    return wrong_backward(tanh(), change)


@jax.custom_batching.custom_vmap
def _refusing(x):
    return x


@_refusing.def_vmap
def _refuse(size, batched, x):
    raise NotImplementedError("no vmap")


UNSEEN = {
    "a rule that remembers": (_remembering(), X),
    "a batch of one of a loss, or of unlike leaves": (Layer(
        "total()", lambda key, x: (), lambda p, x: (jnp.sum(jnp.sin(x)), x),
        lambda p, x, dy: ((), dy * jnp.cos(x) * (1 + (len(x) == 1)))), X),
    "a use that the rule refuses": (wrong_backward(tanh(), lambda p, y, dy, dp, dx: (dp, _refusing(dx))), X),
    "a wrong forward": (_fake_tanh(), X),
    "values never drawn": (wrong_backward(tanh(), lambda p, y, dy, dp, dx: (dp, jnp.where(jnp.abs(y) > 0.999999, 7.0, dx))), X),
    "shapes never tried": (wrong_backward(dense(4), lambda p, x, dy, dp, dx: ({"w": dp["w"], "b": dy[0]}, dx)), X[:1]),
    "errors below the bound": (wrong_backward(tanh(), lambda p, y, dy, dp, dx: (dp, dx * (1 + 1e-13))), X),
    "State": (_counter(step=2), X),
    "memory and speed": (replace(tanh(), forward=lambda p, x: (jnp.tanh(x), (jnp.tanh(x), *[x + i for i in range(10)])),
                                 backward=lambda p, kept, dy: tanh().backward(p, kept[0], dy)), X),
}


@pytest.mark.parametrize("spot", UNSEEN)
def test_a_wrong_rule_that_passes(spot):
    layer, x = UNSEEN[spot]
    assert check_layer(layer, x).verdict == "OK"


def test_any_value_between_the_slopes_passes_at_a_kink():
    x = np.array([[0.0, 1.0, -1.0]])
    third = wrong_backward(relu(), lambda p, y, dy, dp, dx: (dp, jnp.where(y == 0, dy / 3 * (jnp.arange(3) == 0), dx)))
    assert check_layer(third, x).verdict == "KINK"
    outside = wrong_backward(relu(), lambda p, y, dy, dp, dx: (dp, jnp.where(jnp.arange(3) == 0, 2 * dy, dx)))
    assert check_layer(outside, x).verdict == "WRONG"


def test_the_same_mistakes_are_seen_where_they_show():
    values = UNSEEN["values never drawn"][0]
    assert check_layer(values, np.array([[20.0, 1.0]]), dtypes=("float64",)).verdict == "WRONG"
    shapes = UNSEEN["shapes never tried"][0]
    assert check_layer(shapes, X, dtypes=("float64",)).verdict == "WRONG"
    assert jax.config.jax_enable_x64 is False
