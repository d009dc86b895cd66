"""embedding: a row of weights per token, and where in the sequence it stands.

Shapes    embedding: x (...) of token numbers, w (V, D), y (..., D); learned_positions: x (..., T, D), w (L, D), T <= L;
          rotary: x (..., T, D), D even
Dtypes    embedding: x integer; the others floating; sums are taken and rotations made in float32 when narrower
Units     rotary: radians
Forward   embedding: y = w[x]; learned_positions: y_t = x_t + w_t; rotary: the pair (x_i, x_{i + D/2}) of step t turned by
          the angle t base^(-2 i / D)
Backward  embedding: dw[v] = sum of dy where x = v, dx None; learned_positions: dx = dy, dw = sum of dy over leading axes,
          0 from T on; rotary: dy turned by minus the angle
Keeps     embedding: x. The others nothing: additions and rotations are linear, and all they need is in params and dy
At kinks  none: linear
Raises    TypeError: params of another structure; ValueError: token numbers that are no integers, T > L, an odd D, sizes.
          A token number outside 0..V-1, negative included, gives a row of NaN and adds nothing to dw
Source    elementary; rotary: Su et al. 2021 (RoFormer), section 3.4, which pairs neighbours, (x_2i, x_2i+1): pairs of halves
          are that with the columns of the weights in front permuted; derivation in docs/derivations/embedding.md
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..calls import by_name
from ..checks import expect, expect_array, expect_floating, expect_params, expect_whole
from ..dtypes import wide, wide_dtype
from ..facts import given
from ..layer import Layer
from ..params import Tree
from .algebra import Initializer
from .parameterless import parameterless

INIT = jax.nn.initializers.normal(0.02)  # small against what the layers behind add: Radford et al. 2018, section 4.1


@by_name()
def embedding(vocabulary: int, features: int, *, w_init: Initializer | None = None) -> Layer:
    """y = w[x]. x (...) integers in 0..vocabulary-1 -> y (..., features); params {"w": (vocabulary, features)}.

    `w_init` is a `jax.nn.initializers`: normal with standard deviation 0.02 unless given.
    """
    vocabulary = expect_whole("embedding vocabulary", vocabulary)
    features = expect_whole("embedding features", features, 0)
    shape = (vocabulary, features)

    def init(key: jax.Array, x: Any) -> Tree:
        _expect_tokens(x)
        return {"w": (w_init or INIT)(key, shape, jnp.result_type(float))}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect_params(params, "w")
        expect_floating(w=params["w"])
        expect(params["w"].shape == shape, "w", f"{shape}", params["w"])
        _expect_tokens(x)
        y = params["w"].at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)  # (..., D)
        return y, x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, None]:
        dw = jnp.zeros(shape, wide_dtype(dy.dtype))
        dw = dw.at[x].add(wide(dy), mode="drop", wrap_negative_indices=False)  # a token that came twice gets both
        return {"w": dw.astype(dy.dtype)}, None

    return Layer("embedding", init, forward, backward, given(embedding, vocabulary, features, w_init=w_init))


@by_name()
def learned_positions(length: int) -> Layer:
    """y_t = x_t + w_t. x (..., T, D) with T <= length; params {"w": (length, D)}, small normal numbers at the start."""
    length = expect_whole("learned_positions length", length)

    def init(key: jax.Array, x: Any) -> Tree:
        _expect_sequence(x)
        return {"w": INIT(key, (length, x.shape[-1]), x.dtype)}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, tuple[()]]:
        expect_params(params, "w")
        w = params["w"]
        _expect_sequence(x, w=w)
        expect(w.shape == (length, x.shape[-1]), "w", f"({length}, {x.shape[-1]})", w)
        expect(x.shape[-2] <= length, "x", f"at most {length} steps, (..., T, D)", x)
        return x + jnp.broadcast_to(w[: x.shape[-2]], x.shape), ()

    def backward(params: Tree, residuals: tuple[()], dy: jax.Array) -> tuple[Tree, jax.Array]:
        steps = dy.shape[-2]
        dw = jnp.sum(wide(dy), tuple(range(dy.ndim - 2)))  # (T, D): the visible sum of the broadcast
        return {"w": jnp.pad(dw, ((0, length - steps), (0, 0))).astype(dy.dtype)}, dy

    return Layer("learned_positions", init, forward, backward, given(learned_positions, length))


@by_name("width base", "the width is taken from x")
def rotary(*, base: float = 10000.0) -> Layer:
    """Turns the pair (x_i, x_{i + D/2}) of step t by t base^(-2 i / D). x (..., T, D), D even; a product of two vectors so
    turned depends on their distance in time alone. Halves are paired, not neighbours.
    """
    expect(base > 0, "rotary base", "a number > 0", repr(base))

    def turned(x: jax.Array, sign: int) -> jax.Array:
        steps, half, acc = x.shape[-2], x.shape[-1] // 2, wide_dtype(x.dtype)
        speed = base ** (-jnp.arange(half, dtype=acc) / max(half, 1))  # (D/2,) radians a step
        angle = jnp.outer(jnp.arange(steps, dtype=acc), speed)  # (T, D/2)
        a, b = jnp.split(wide(x), 2, axis=-1)  # (..., T, D/2) each
        cos, sin = (jnp.broadcast_to(f, a.shape) for f in (jnp.cos(angle), sign * jnp.sin(angle)))
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)

    # the transpose of a rotation is the rotation back
    return parameterless("rotary", lambda x: (turned(x, 1), ()), lambda _, dy: turned(dy, -1),
                         given(rotary, base=base), _expect_pairs)


def _expect_tokens(x: Any) -> None:
    expect_array("x", x)
    expect(jnp.issubdtype(x.dtype, jnp.integer), "x", "an integer dtype, token numbers", x)


def _expect_sequence(x: Any, **params: Any) -> None:
    expect_floating(x=x, **params)
    expect(x.ndim >= 2, "x", "a time axis and features, (..., T, D)", x)


def _expect_pairs(x: Any) -> None:
    _expect_sequence(x)
    expect(x.shape[-1] % 2 == 0, "x", "an even last axis: features are turned in pairs", x)
