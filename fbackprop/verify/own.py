"""An input for a layer of which nothing is known but itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..layer import Layer

FLOAT, INT = jnp.float32, jnp.int32
CANDIDATES: tuple[Any, ...] = (
    jax.ShapeDtypeStruct((3, 5), FLOAT),
    jax.ShapeDtypeStruct((2, 3, 5), FLOAT),
    jax.ShapeDtypeStruct((2, 7, 5, 3), FLOAT),
    (jax.ShapeDtypeStruct((3, 5), FLOAT), jax.ShapeDtypeStruct((3,), INT)),
    (jax.ShapeDtypeStruct((3, 5), FLOAT), jax.ShapeDtypeStruct((3, 5), FLOAT)),
    jax.ShapeDtypeStruct((3, 5), INT),
)


def input_for(layer: Layer) -> Any:
    """The first of a few usual inputs that init and forward accept. Raises the first one's error when none is.

    (B, I), (B, T, I), (B, H, W, C), (logits, classes), (y, target), integers.
    """
    first: Exception | None = None
    for x in CANDIDATES:
        try:
            params = jax.eval_shape(layer.init, jax.random.key(0), x)
            jax.eval_shape(layer.forward, params, x)
            return x
        except Exception as error:
            first = first or error
    assert first is not None
    raise ValueError(f"{layer.name}: no usual input fits; return (layer, x) instead. For x float32[3,5]: {first}") from first
