"""dropout: sets elements to zero at random while training.

Shapes    x (...), y (...)
Dtypes    floating; the product is taken in float32 when narrower
Units     rate = probability of dropping
Forward   y = x / (1 - rate) where kept, else 0: the mean of y over masks is x (inverted scaling), so inference is the identity
Backward  dx = dy / (1 - rate) where kept, else 0: the same mask; the key's Next is a new key. Inference twin: dx = dy
Keeps     nothing: the mask is drawn again from the key, which comes back with the params, so a recompute cannot drift
At kinks  none: linear, the mask does not depend on x
Raises    TypeError: params without a key in State; ValueError: x not floating, a rate outside [0, 1)
Source    Srivastava et al. 2014, section 4 (scaling at the other end: section 10); derivation in docs/derivations/dropout.md
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..calls import by_name
from ..checks import expect, expect_floating, expect_params
from ..dtypes import wide
from ..facts import given
from ..layer import Layer, twinned
from ..params import Next, State, Tree


@by_name()
def dropout(rate: float) -> Layer:
    """y = x / (1 - rate) with probability 1 - rate, else 0. params {"key": State}, drawn at init, replaced at every backward.

    A key serves one forward and its backward: two forwards on the same params have the same mask.
    """
    expect(0 <= rate < 1, "dropout rate", "a probability of dropping in [0, 1)", repr(rate), "rate 1 would drop everything")

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        return {"key": State(jax.random.split(key, 1)[0])}  # not the caller's own: params may be donated

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, tuple[()]]:
        return masked(_key(params, x), x), ()

    def backward(params: Tree, residuals: tuple[()], dy: jax.Array) -> tuple[Tree, jax.Array]:
        key = _key(params, dy)
        return {"key": Next(jax.random.split(key)[1])}, masked(key, dy)

    def masked(key: jax.Array, x: jax.Array) -> jax.Array:
        if rate == 0:
            return x
        keep = jax.random.bernoulli(jax.random.split(key)[0], jnp.float32(1 - rate), x.shape)  # float32 with x64 too: same mask
        return jnp.where(keep, (wide(x) / (1 - rate)).astype(x.dtype), 0)

    def forward_twin(params: Tree, x: jax.Array) -> tuple[jax.Array, tuple[()]]:
        _key(params, x)
        return x, ()

    def backward_twin(params: Tree, residuals: tuple[()], dy: jax.Array) -> tuple[Tree, jax.Array]:
        return {"key": Next(params["key"].value)}, dy

    return twinned(Layer("dropout", init, forward, backward, given(dropout, rate)), forward_twin, backward_twin)


def _key(params: Tree, x: Any) -> jax.Array:
    expect_params(params, "key")
    state = params["key"]
    ok = isinstance(state, State) and jnp.issubdtype(jnp.result_type(state.value), jax.dtypes.prng_key)
    expect(ok, "key", "a State with one typed key, as jax.random.key makes it", repr(state), error=TypeError)
    expect_floating(x=x)
    return state.value
