"""Cases and mistakes of the norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from ...compose import chain
from ...layers.dense import dense
from ...layers.norm import batch_norm, group_norm, layer_norm, rms_norm
from ...params import State, Tree
from ...transform import inference
from .case import Bugs, Case, Right, Wrong, normal


def _after_some_steps(key: jax.Array, x: Any) -> Tree:
    """Returns params with other running statistics than 0 and 1, which would hide a sign."""
    channels = x.shape[-1]
    statistics = {"mean": State(jnp.linspace(-1, 2, channels)), "var": State(jnp.linspace(0.5, 2, channels))}
    return {**batch_norm().init(key, x), **statistics}


_running = replace(inference(batch_norm()), init=_after_some_steps)

CASES: tuple[Case, ...] = (
    Case("layer_norm", layer_norm(), normal(3, 5)),
    Case("layer_norm", layer_norm(eps=1e-3, scale=False), normal(2, 3, 7), "two leading axes"),
    Case("layer_norm", layer_norm(bias=False), normal(5), "one example"),
    Case("layer_norm", layer_norm(scale=False, bias=False), normal(3, 5, mean=30), "offset"),
    Case("layer_norm", layer_norm(), normal(2, 1), "one feature: x has no effect"),
    Case("layer_norm", layer_norm(), normal(0, 5), "empty batch"),
    Case("rms_norm", rms_norm(), normal(2, 3, 5)),
    Case("rms_norm", rms_norm(eps=0.1), normal(3, 7)),
    Case("rms_norm", rms_norm(eps=0.5), normal(2, 1), "one feature"),
    Case("rms_norm", rms_norm(), normal(0, 5), "empty batch"),
    Case("group_norm", group_norm(2), normal(3, 5, 2, 6), "images"),
    Case("group_norm", group_norm(3), normal(2, 6), "no axes between"),
    Case("group_norm", group_norm(1, eps=1e-3), normal(2, 7, 3), "one group"),
    Case("group_norm", group_norm(5), normal(2, 3, 5), "a channel a group"),
    Case("group_norm", group_norm(2), normal(0, 3, 4), "empty batch"),
    Case("batch_norm", batch_norm(), normal(7, 3)),
    Case("batch_norm", batch_norm(momentum=0.5, eps=1e-3), normal(2, 3, 5, 2), "images"),
    Case("batch_norm", batch_norm(), normal(7, 3, mean=30), "offset"),
    Case("batch_norm", batch_norm(), normal(1, 5), "one example: x has no effect"),
    Case("batch_norm", batch_norm(), normal(3, 0), "no channels"),
    Case("batch_norm", _running, normal(3, 5), "running statistics"),
    Case("batch_norm", _running, normal(0, 5), "running statistics, empty batch"),
    # y does not depend on the bias, so its gradient is rounding: nothing can be wrong with it, nor seen to be right
    Case("batch_norm", chain(dense(3), batch_norm()), normal(7, 5), "behind a bias", "NOISY"),
)


def _dx(right: Right, shape: Callable[[Right], tuple[int, ...]], axes: tuple[int, ...],
        mean: int = 1, variance: int = 1, less: int = 0) -> tuple[Tree, Any]:
    """Returns dx = rstd (dh - mean(dh) - h mean(dh h)), without a term or with another divisor.

    The numbers of a group lie along `axes` of x in this shape. less: what the divisor lacks.
    """
    params, x, dy = right.params, right.x, right.dy
    v, dh = x.reshape(shape(right)), dy.reshape(shape(right))
    if "scale" in params:
        dh = (dy * jnp.broadcast_to(params["scale"], dy.shape)).reshape(v.shape)
    n = prod(v.shape[axis] for axis in axes)
    share = 1 / max(n - less, 1)
    total = lambda a: jnp.sum(a, axes, keepdims=True)
    centred = v - jnp.mean(v, axes, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + 1e-5)
    h = centred * rstd
    dx = rstd * (dh - mean * share * total(dh) - variance * share * h * total(dh * h))
    return right.dparams, dx.reshape(x.shape)


def _bugs(shape: Callable[[Right], tuple[int, ...]], axes: tuple[int, ...]) -> dict[str, Wrong]:
    dx = partial(_dx, shape=shape, axes=axes)
    return {
        "without the path through the mean": partial(dx, mean=0),
        "without the path through the variance": partial(dx, variance=0),
        "mean and variance taken for constants": partial(dx, mean=0, variance=0),
        "divided by n - 1": partial(dx, less=1),
    }


def _of_groups(right: Right) -> tuple[int, ...]:
    batch, *between, channels = right.x.shape
    groups = right.options["groups"]
    return batch, prod(between), groups, channels // groups


def _of_channels(right: Right) -> tuple[int, ...]:
    *others, channels = right.x.shape
    return prod(others), channels


def _without_scale(right: Right) -> tuple[Tree, Any]:
    if "scale" not in right.params:
        return right.gradients
    return right.dparams, right.with_params(scale=jnp.ones_like(right.params["scale"])).dx


def _dscale_from_x(right: Right) -> tuple[Tree, Any]:
    if "scale" not in right.params:
        return right.gradients
    dscale = jnp.sum(right.dy * right.x, tuple(range(right.x.ndim - 1)))
    return {**right.dparams, "scale": dscale}, right.dx


_SHARED: dict[str, Wrong] = {"made without the scale": _without_scale, "dscale from x, not the normalized x": _dscale_from_x}

BUGS: Bugs = {
    "layer_norm": {**_SHARED, **_bugs(lambda right: right.x.shape, (-1,))},
    "rms_norm": {
        **_SHARED,
        "with the mean subtracted, as layer_norm":
            lambda right: right.given(layer=layer_norm(eps=1e-6, bias=False)).gradients,
    },
    "group_norm": {**_SHARED, **_bugs(_of_groups, (1, 3))},
    "batch_norm": {**_SHARED, **_bugs(_of_channels, (0,))},
}
