"""Cases and mistakes of the norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from ...compose import chain
from ...layer import Layer
from ...layers.dense import dense
from ...layers.norm import batch_norm, group_norm, layer_norm, rms_norm
from ...params import State, Tree
from .case import Bugs, Case, Wrong, normal, options_of, right

_running = batch_norm().inference
assert _running is not None


def _after_some_steps(key: jax.Array, x: Any) -> Tree:
    """Params whose running statistics are not those of the start, 0 and 1, which would hide a sign."""
    channels = x.shape[-1]
    statistics = {"mean": State(jnp.linspace(-1, 2, channels)), "var": State(jnp.linspace(0.5, 2, channels))}
    return {**batch_norm().init(key, x), **statistics}


_running = replace(_running, init=_after_some_steps)

CASES: tuple[Case, ...] = (
    Case("layer_norm", layer_norm(), normal(3, 5)),
    Case("layer_norm", layer_norm(1e-3, scale=False), normal(2, 3, 7), "two leading axes"),
    Case("layer_norm", layer_norm(bias=False), normal(5), "one example"),
    Case("layer_norm", layer_norm(scale=False, bias=False), lambda rng: 30 + rng.standard_normal((3, 5)), "offset"),
    Case("layer_norm", layer_norm(), normal(2, 1), "one feature: x has no effect"),
    Case("layer_norm", layer_norm(), normal(0, 5), "empty batch"),
    Case("rms_norm", rms_norm(), normal(2, 3, 5)),
    Case("rms_norm", rms_norm(0.1), normal(3, 7)),
    Case("rms_norm", rms_norm(0.5), normal(2, 1), "one feature"),
    Case("rms_norm", rms_norm(), normal(0, 5), "empty batch"),
    Case("group_norm", group_norm(2), normal(3, 5, 2, 6), "images"),
    Case("group_norm", group_norm(3), normal(2, 6), "no axes between"),
    Case("group_norm", group_norm(1, 1e-3), normal(2, 7, 3), "one group"),
    Case("group_norm", group_norm(5), normal(2, 3, 5), "a channel a group"),
    Case("group_norm", group_norm(2), normal(0, 3, 4), "empty batch"),
    Case("batch_norm", batch_norm(), normal(7, 3)),
    Case("batch_norm", batch_norm(0.5, 1e-3), normal(2, 3, 5, 2), "images"),
    Case("batch_norm", batch_norm(), lambda rng: 30 + rng.standard_normal((7, 3)), "offset"),
    Case("batch_norm", batch_norm(), normal(1, 5), "one example: x has no effect"),
    Case("batch_norm", batch_norm(), normal(3, 0), "no channels"),
    Case("batch_norm", _running, normal(3, 5), "running statistics"),
    Case("batch_norm", _running, normal(0, 5), "running statistics, empty batch"),
    # y does not depend on the bias, so its gradient is rounding: nothing can be wrong with it, nor seen to be right
    Case("batch_norm", chain(dense(3), batch_norm()), normal(7, 5), "behind a bias", "NOISY"),
)


def _with_dx(dx_of: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int], jax.Array],
             view: Callable[[jax.Array], jax.Array], axes: tuple[int, ...], eps: float = 1e-5) -> Wrong:
    """The right dparams and dx_of(v, mean, rstd, dv, n), where v is view(x), dv that of dy scale, n the size of a group."""
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        dparams, dx = right(layer, params, x, dy)
        scale = params["scale"] if "scale" in params else jnp.ones(x.shape[-1], x.dtype)
        v, dv = view(x), view(dy * jnp.broadcast_to(scale, dy.shape))
        mean = jnp.mean(v, axes, keepdims=True)
        rstd = jax.lax.rsqrt(jnp.mean(jnp.square(v - mean), axes, keepdims=True) + eps)
        return dparams, dx_of(v, mean, rstd, dv, prod(v.shape[axis] for axis in axes)).reshape(x.shape)

    return wrong


def _sum_bugs(view: Callable[[jax.Array], jax.Array], axes: tuple[int, ...]) -> dict[str, Wrong]:
    """The terms of dx = rstd (dh - mean(dh) - h mean(dh h)), one forgotten or with another n each."""
    def terms(mean_share: Callable[[int], float], var_share: Callable[[int], float]) -> Wrong:
        def dx_of(v: Any, mean: Any, rstd: Any, dh: Any, n: int) -> Any:
            h, total = (v - mean) * rstd, lambda a: jnp.sum(a, axes, keepdims=True)
            return rstd * (dh - mean_share(n) * total(dh) - var_share(n) * h * total(dh * h))

        return _with_dx(dx_of, view, axes)

    nothing, right_share, less_one = lambda n: 0.0, lambda n: 1 / max(n, 1), lambda n: 1 / max(n - 1, 1)
    return {
        "without the path through the mean": terms(nothing, right_share),
        "without the path through the variance": terms(right_share, nothing),
        "mean and variance taken for constants": terms(nothing, nothing),
        "divided by n - 1": terms(less_one, less_one),
    }


def _without_scale(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    ones = {**params, "scale": jnp.ones_like(params["scale"])} if "scale" in params else params
    return right(layer, params, x, dy)[0], right(layer, ones, x, dy)[1]


def _centred(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    return right(layer_norm(1e-6, bias=False), params, x, dy)


def _of_groups(groups: int) -> Callable[[jax.Array], jax.Array]:
    return lambda x: x.reshape(x.shape[0], prod(x.shape[1:-1]), groups, x.shape[-1] // groups)


def _by_its_groups(text: str) -> Wrong:
    """A bug of group_norm; how many groups stands in the layer's name."""
    def wrong(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
        groups = options_of(layer)["groups"]
        return _sum_bugs(_of_groups(groups), (1, 3))[text](layer, params, x, dy)

    return wrong


def _dscale_from_x(layer: Layer, params: Tree, x: Any, dy: Any) -> tuple[Tree, Any]:
    dparams, dx = right(layer, params, x, dy)
    if "scale" in params:
        dparams = {**dparams, "scale": jnp.sum(dy * x, tuple(range(x.ndim - 1)))}
    return dparams, dx


_SHARED: dict[str, Wrong] = {"made without the scale": _without_scale, "dscale from x, not the normalized x": _dscale_from_x}
_rows = _sum_bugs(lambda x: x, (-1,))
_channels = _sum_bugs(lambda x: x.reshape(prod(x.shape[:-1]), x.shape[-1]), (0,))

BUGS: Bugs = {
    "layer_norm": {**_SHARED, **_rows},
    "rms_norm": {**_SHARED, "with the mean subtracted, as layer_norm": _centred},
    "group_norm": {**_SHARED, **{text: _by_its_groups(text) for text in _rows}},
    "batch_norm": {**_SHARED, **_channels},
}
