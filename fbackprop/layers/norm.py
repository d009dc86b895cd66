"""norm: every group of numbers shifted to mean 0 and divided by its standard deviation, then scaled and shifted per feature.

Shapes    layer_norm, rms_norm: x (..., D), one group a row; group_norm: x (B, ..., C), a group is C / groups channels with all
          axes in between; batch_norm: x (..., C), a group is a channel with all leading axes; scale and bias: (D,) or (C,)
Dtypes    floating, all equal; computed in float32 when narrower, running statistics are then float32 too
Units     variances are biased: divided by n, not n - 1, the running one too; momentum = share of the old running value kept
Forward   h = (x - mean) rstd, rstd = 1 / sqrt(var + eps); y = h scale + bias; rms_norm: mean 0, var = mean of x^2, no bias
Backward  dh = dy scale; dx = rstd (dh - mean(dh) - h mean(dh h)), means over the group, the first not in rms_norm;
          dscale = sum dy h, dbias = sum dy over leading axes. Inference twin of batch_norm: dx = rstd dh
Keeps     x (its size) and mean and rstd per group (batch_norm: var, for the running one). Why: h is two operations away, a copy
          would be a second x; y holds h too, but not where scale is 0
At kinks  none: eps > 0
Raises    TypeError: params of another structure; ValueError: widths, dtypes, eps <= 0, a momentum outside 0..1, groups that do
          not divide C, an empty group (batch_norm: an empty batch)
Source    Ioffe and Szegedy 2015, section 3; Ba, Kiros and Hinton 2016, section 3; Wu and He 2018, section 3; Zhang and
          Sennrich 2019, section 4; derivation in docs/derivations/norm.md
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_floating, expect_params, expect_whole
from ..dtypes import wide, wide_dtype
from ..facts import Option, given
from ..layer import Layer, twinned
from ..params import Next, State, Tree
from .rewire import after

Axes = tuple[int, ...]
INIT: dict[str, Callable[..., jax.Array]] = {"scale": jnp.ones, "bias": jnp.zeros}  # and their order in _sums


@by_name("normalized_shape eps", "the width is taken from x")
def layer_norm(*, eps: float = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Over the last axis. x (..., D); params {"scale": (D,), "bias": (D,)}, less what is switched off, () without both."""
    names = ("scale",) * scale + ("bias",) * bias
    return _row_norm("layer_norm", given(layer_norm, scale=scale, bias=bias, eps=eps), names, eps)


@by_name("normalized_shape eps", "the width is taken from x")
def rms_norm(*, eps: float = 1e-6) -> Layer:
    """Over the last axis, divided by the root of the mean square, nothing subtracted. x (..., D); params {"scale": (D,)}."""
    return _row_norm("rms_norm", given(rms_norm, eps=eps), ("scale",), eps, centred=False)


@by_name("groups num_channels eps", "the number of channels is taken from x")
def group_norm(groups: int, *, eps: float = 1e-5) -> Layer:
    """Per example over `groups` runs of neighbouring channels and all axes between. x (B, ..., C); params as layer_norm."""
    groups = expect_whole("group_norm groups", groups)

    def view(x: jax.Array) -> jax.Array:
        expect(x.ndim >= 2, "x", "a batch axis and channels, (B, ..., C)", x)
        expect(x.shape[-1] % groups == 0, "x", f"channels that {groups} groups divide", x)
        return x.reshape(x.shape[0], prod(x.shape[1:-1]), groups, x.shape[-1] // groups)  # B S G C/G

    return _row_norm("group_norm", given(group_norm, groups, eps=eps), ("scale", "bias"), eps, view=view, axes=(1, 3))


def _row_norm(kind: str, options: tuple[Option, ...], names: tuple[str, ...], eps: float, centred: bool = True,
              axes: Axes = (-1,), view: Callable[[jax.Array], jax.Array] = lambda x: x) -> Layer:
    """A norm whose groups lie within an example: over `axes` of view(x)."""
    _expect_eps(kind, eps)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        return {leaf: INIT[leaf](x.shape[-1:], x.dtype) for leaf in names} or ()

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, Any]:
        expect_params(params, *names)
        weights = {leaf: params[leaf] for leaf in names}
        expect_floating(x=x, **weights)
        expect(x.ndim >= 1, "x", "at least one axis", x)
        _expect_widths(x, **weights)
        v = wide(view(x))
        expect(prod(v.shape[axis] for axis in axes) > 0, "x", "at least one element to take the mean of", x)
        mean = _mean(v, axes) if centred else None
        square = jnp.square(v if mean is None else v - _like(mean, v))
        rstd = lax.rsqrt(_mean(square, axes) + eps)
        y = _affine(params, _normalized(v, mean, rstd).reshape(x.shape))
        return y.astype(x.dtype), (x, mean, rstd)

    def backward(params: Tree, residuals: Any, dy: jax.Array) -> tuple[Tree, jax.Array]:
        x, mean, rstd = residuals
        h = _normalized(wide(view(x)), mean, rstd)
        dparams, dh = _daffine(params, h.reshape(x.shape), dy)
        dx = _dnormalized(dh.reshape(h.shape), h, rstd, axes, centred)
        return dparams, dx.reshape(x.shape).astype(x.dtype)

    return Layer(kind, init, forward, backward, options)


@by_name("num_features eps", "the number of channels is taken from x")
def batch_norm(*, momentum: float = 0.9, eps: float = 1e-5) -> Layer:
    """Per channel over the whole batch: all axes but the last. x (..., C), at least (B, C).

    params {"scale": (C,), "bias": (C,), "mean": State (C,), "var": State (C,)}; `backward` returns as Next of the running
    statistics momentum * old + (1 - momentum) * that of the batch. The inference twin normalizes by them.
    """
    expect(0 <= momentum <= 1, "batch_norm momentum", "a share of the old value, 0 to 1", repr(momentum))
    _expect_eps("batch_norm", eps)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect(x.ndim >= 2, "x", "a batch axis and channels, (..., C)", x)
        channels, acc = x.shape[-1:], wide_dtype(x.dtype)  # a tenth of a small change is lost in a narrow running mean
        return {"scale": jnp.ones(channels, x.dtype), "bias": jnp.zeros(channels, x.dtype),
                "mean": State(jnp.zeros(channels, acc)), "var": State(jnp.ones(channels, acc))}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, Any]:
        axes = _expect_batch(params, x)
        expect(prod(x.shape[:-1]) > 0, "x", "at least one example to take the mean of", x, "Is the batch empty?")
        v = wide(x)
        mean = jnp.mean(v, axes)  # (C,)
        var = jnp.mean(jnp.square(v - _like(mean, v)), axes)  # (C,)
        y = _affine(params, _normalized(v, mean, lax.rsqrt(var + eps)))
        return y.astype(x.dtype), (x, mean, var)

    def backward(params: Tree, residuals: Any, dy: jax.Array) -> tuple[Tree, jax.Array]:
        x, mean, var = residuals
        x, dy = after(x, dy)  # or XLA sees that h is the forward's and keeps it: a second x
        rstd, n = lax.rsqrt(var + eps), prod(x.shape[:-1])
        h, slope = _normalized(wide(x), mean, rstd), wide(params["scale"]) * rstd
        dscale, dbias = _sums(h, dy)
        # the group is the batch: mean(dh) and mean(dh h) are scale / n times the two sums, which are needed anyway
        dx = (wide(dy) - _like(dbias / n, h) - h * _like(dscale / n, h)) * _like(slope, h)
        running = {"mean": _moved(params["mean"], mean, momentum), "var": _moved(params["var"], var, momentum)}
        return {"scale": dscale.astype(x.dtype), "bias": dbias.astype(x.dtype), **running}, dx.astype(x.dtype)

    layer = Layer("batch_norm", init, forward, backward, given(batch_norm, momentum=momentum, eps=eps))
    return twinned(layer, *_by_running_statistics(eps))


def _by_running_statistics(eps: float) -> tuple[Callable, Callable]:
    """Returns forward and backward of batch_norm out of training: the running statistics are constants."""

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        _expect_batch(params, x)
        return _affine(params, _normalized(wide(x), *constants(params, x))).astype(x.dtype), x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
        mean, rstd = constants(params, x)
        dparams, dh = _daffine(params, _normalized(wide(x), mean, rstd), dy)
        unchanged = {name: Next(params[name].value) for name in ("mean", "var")}
        return {**dparams, **unchanged}, (dh * _like(rstd, dh)).astype(x.dtype)

    def constants(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, var = (params[name].value.astype(wide_dtype(x.dtype)) for name in ("mean", "var"))
        return mean, lax.rsqrt(var + eps)

    return forward, backward


def _like(a: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(a, x.shape)


def _mean(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)


def _normalized(x: jax.Array, mean: jax.Array | None, rstd: jax.Array) -> jax.Array:
    """h."""
    return (x if mean is None else x - _like(mean, x)) * _like(rstd, x)


def _dnormalized(dh: jax.Array, h: jax.Array, rstd: jax.Array, axes: Axes, centred: bool = True) -> jax.Array:
    """dx: what is left of dh without its part along h (var moves too) and its mean (mean moves too)."""
    dx = dh - h * _like(_mean(dh * h, axes), h)
    if centred:
        dx = dx - _like(_mean(dh, axes), h)
    return dx * _like(rstd, h)


def _affine(params: Tree, h: jax.Array) -> jax.Array:
    """y, in the dtype of h."""
    y = h * _like(wide(params["scale"]), h) if "scale" in params else h
    return y + _like(wide(params["bias"]), y) if "bias" in params else y


def _sums(h: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(dscale, dbias), the visible sums of the two broadcasts, in the dtype of h."""
    leading, dy = tuple(range(dy.ndim - 1)), dy.astype(h.dtype)
    return jnp.sum(dy * h, leading), jnp.sum(dy, leading)


def _daffine(params: Tree, h: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
    """`(dparams, dh)`."""
    dparams = {name: total.astype(dy.dtype) for name, total in zip(INIT, _sums(h, dy)) if name in params}
    dy = dy.astype(h.dtype)
    return dparams or (), dy * _like(wide(params["scale"]), dy) if "scale" in params else dy


def _moved(running: State, of_batch: jax.Array, momentum: float) -> Next:
    old = running.value
    return Next((momentum * old.astype(of_batch.dtype) + (1 - momentum) * of_batch).astype(old.dtype))


def _expect_eps(name: str, eps: float) -> None:
    expect(eps > 0, f"{name} eps", "a number > 0", repr(eps), "A group of equal numbers would be divided by 0")


def _expect_widths(x: jax.Array, **params: jax.Array) -> None:
    for name, leaf in params.items():
        expect(leaf.shape == x.shape[-1:], name, f"{x.shape[-1:]}, the last axis of x", leaf, "Was init given another x?")


def _expect_batch(params: Tree, x: jax.Array) -> Axes:
    """The axes a channel is averaged over."""
    expect_params(params, "scale", "bias", "mean", "var")
    trained, carried = ({name: params[name] for name in names} for names in (("scale", "bias"), ("mean", "var")))
    for name, leaf in carried.items():
        expect(isinstance(leaf, State), name, "a State", repr(leaf), "merge(trainable, state) puts it back", TypeError)
    expect_floating(x=x, **trained)
    expect(x.ndim >= 2, "x", "a batch axis and channels, (..., C)", x)
    _expect_widths(x, **trained, **{name: leaf.value for name, leaf in carried.items()})
    return tuple(range(x.ndim - 1))
