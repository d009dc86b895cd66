"""An input for a layer of which nothing is known but itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..layer import Layer

_floats = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
_ints = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int32)
# (B, I), (B, T, I), (B, H, W, C), (logits, classes), (y, target), integers
CANDIDATES: tuple[Any, ...] = (
    _floats(3, 5), _floats(2, 3, 5), _floats(2, 7, 5, 3),
    (_floats(3, 5), _ints(3)), (_floats(3, 5), _floats(3, 5)), _ints(3, 5))


def input_for(layer: Layer) -> Any:
    """Returns the first of CANDIDATES that init and forward accept. Else raises ValueError."""
    errors = []
    for x in CANDIDATES:
        try:
            params = jax.eval_shape(layer.init, jax.random.key(0), x)
            jax.eval_shape(layer.forward, params, x)
            return x
        except Exception as error:
            errors.append(error)
    first = errors[0]
    raise ValueError(f"{layer.name}: no usual input fits; return (layer, x) instead. "
                     f"For x float32[3,5]: {first}") from first
