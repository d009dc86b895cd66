"""Operations that round otherwise move a value by its rounding, through all control flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fbackprop.jaxprs.rounding import rounded_otherwise

SALTS = np.random.default_rng(0).integers(0, 2**64, 6, np.uint64)
AT = np.linspace(0.1, 2, 5)


def moves(fn, *args):
    with jax.enable_x64(True):
        value, moved = float(fn(*args)), jax.jit(rounded_otherwise(fn))
        return [float(moved(salt, *args)) - value for salt in SALTS]


@pytest.mark.parametrize("z", [3.0, 7.0, 20.0, 30.0])
def test_cancellation_shows(z):
    """1 - sigmoid(z) has a rounding of 1e-16 in about exp(-z)."""
    largest = np.max(np.abs(moves(lambda z: -jnp.log(1 - 1 / (1 + jnp.exp(-z))), z)))
    assert 0.3 < largest / (1.1e-16 * np.exp(z)) < 10


KINDS = {
    "scan": lambda x: jnp.sum(lax.scan(lambda c, y: (jnp.sin(c) + y, c), x[0], x)[1]),
    "scan in reverse": lambda x: lax.scan(lambda c, y: (jnp.sin(c) * y, c), x[0], x, reverse=True)[
        0
    ],
    "while": lambda x: lax.while_loop(
        lambda c: c[1] < 3, lambda c: (jnp.cos(c[0]), c[1] + 1), (x[1], 0)
    )[0],
    "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x[2]),
    "jit": lambda x: jax.jit(jnp.tanh)(x[0]) * 3.1,
    "checkpoint": lambda x: jax.checkpoint(jnp.tanh)(x[0]) * 3.1,
    "custom_jvp": lambda x: jnp.sum(jax.nn.silu(x)),
    "gradient": lambda x: jax.grad(
        lambda x: lax.scan(lambda c, y: (jnp.sin(c) * y, c), x[0], x)[0]
    )(x)[1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_control_flow_is_gone_through(kind):
    found = moves(KINDS[kind], AT)
    assert 0 < np.max(np.abs(found)) < 1e-13


def test_what_rounds_nothing_moves_nothing():
    assert not np.any(moves(lambda x: jnp.max(x[1:][::-1]), AT))


def test_float32_inside_moves_by_its_own_units():
    assert (
        1e-9 < np.max(np.abs(moves(lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32))), AT))) < 1e-5
    )
