"""conv: one small affine map at every place of a sliding window.

Shapes    x (B..., *sizes, C), w (*kernel, C // groups, O), b (O,), y (B..., *length, O); sizes is W, or H W; one B at least
Dtypes    floating, all equal; products accumulate in float32 when inputs are narrower
Units     stride, dilation and padding in elements
Forward   y[l] = sum over k of x[l stride + k dilation - low] w[k] + b, zero outside x: a correlation, the kernel not flipped.
          With groups, the G runs of C / G neighbouring channels are convolved apart, into G runs of O / G features
Backward  dw[k] = sum over B and l of x[l stride + k dilation - low]^T dy[l]; db = sum over B and l of dy;
          dx[i] = sum over k, l with l stride + k dilation - low = i of dy[l] w[k]^T
Keeps     x (its size): dw needs it, and it is usually the previous layer's output, stored anyway
At kinks  none: linear in x, in w and in b
Raises    TypeError: params without w, b; ValueError: rank, widths, dtypes, a window larger than the padded x, groups that do
          not divide C and O, options that are no whole numbers, padding of another form
Source    LeCun et al. 1989; Dumoulin and Visin 2016, section 4 (dx as a convolution); derivation in docs/derivations/conv.md

The three equations are one convolution each; layers/kernels/convolution.py has formulations of them
that are faster on a CPU, and chooses by the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..calls import by_name
from ..checks import expect, expect_floating, expect_params, expect_whole
from ..facts import given
from ..layer import Layer
from ..params import Tree
from .algebra import Initializer, affine_init, bias_gradient, plus_bias, rows
from .kernels import convolution as fast
from .kernels.windows import (
    Padding1d,
    Padding2d,
    Size1d,
    Size2d,
    Windows,
    checked_padding,
    per_axis,
    windows,
)

ELSEWHERE = ("in_channels features kernel stride padding dilation groups bias",
             "the number of channels is taken from x")


@by_name(*ELSEWHERE)
def conv1d(features: int, kernel: Size1d, *, stride: Size1d = 1, padding: Padding1d = "SAME",
           dilation: Size1d = 1, groups: int = 1, bias: bool = True,
           w_init: Initializer | None = None, b_init: Initializer | None = None) -> Layer:
    """x (B..., W, C) -> y (B..., length, features); params {"w": (kernel, C // groups, features), "b": (features,)}.

    `padding`: "SAME", "VALID" or ((low, high),); `((kernel - 1, 0),)` looks only back in time. The rest as `conv2d`.
    """
    return _conv(conv1d, 1, features, kernel, stride, padding, dilation, groups, bias, w_init, b_init)


@by_name(*ELSEWHERE)
def conv2d(features: int, kernel: Size2d, *, stride: Size2d = 1, padding: Padding2d = "SAME",
           dilation: Size2d = 1, groups: int = 1, bias: bool = True,
           w_init: Initializer | None = None, b_init: Initializer | None = None) -> Layer:
    """x (B..., H, W, C) -> y (B..., *length, features); params {"w": (kh, kw, C // groups, features), "b": (features,)}.

    `kernel`, `stride`, `dilation`: a whole number for both axes, or a pair. `padding`: "SAME", "VALID" or two (low, high)
    pairs. `groups=C` is depthwise. He normal over a window's inputs and zeros unless `w_init`, `b_init` are given.
    """
    return _conv(conv2d, 2, features, kernel, stride, padding, dilation, groups, bias, w_init, b_init)


def _conv(maker: Callable, axes: int, features: int, kernel: Any, stride: Any, padding: Any,
          dilation: Any, groups: int, bias: bool, w_init: Initializer | None,
          b_init: Initializer | None) -> Layer:
    kind = maker.__name__
    options = given(maker, features, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
                    w_init=w_init, b_init=b_init)
    features = expect_whole(f"{kind} features", features)
    groups = expect_whole(f"{kind} groups", groups)
    size, step, spread = (per_axis(f"{kind} {what}", value, axes) for what, value in
                          (("kernel", kernel), ("stride", stride), ("dilation", dilation)))
    padding = checked_padding(f"{kind} padding", padding, axes)
    expect(features % groups == 0, f"{kind} groups", f"a divisor of the {features} features", repr(groups))

    def shape(x: Any) -> tuple[int, ...]:
        """That of w."""
        expect(x.ndim >= axes + 2, "x", f"(B..., {', '.join('HW'[2 - axes:])}, C)", x, "One example needs a batch axis of 1")
        expect(x.shape[-1] % groups == 0, "x", f"channels that {groups} groups divide", x)
        return (*size, x.shape[-1] // groups, features)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        return affine_init(key, shape(x), x.dtype, bias, w_init, b_init)

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect_params(params, *("w", "b")[: 1 + bias])
        expect_floating(x=x, **params)
        w, wanted = params["w"], shape(x)
        expect(w.shape == wanted, "w", f"{wanted} for x {x.shape}", w,
               "Was init given x of another shape?")
        y = fast.correlate(correlate, rows(x, axes), w, placed(x), groups)  # B *length O
        y = plus_bias(y, params)
        return y.astype(x.dtype).reshape(*x.shape[: -axes - 1], *y.shape[1:]), x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
        w, places = params["w"], placed(x)
        x_rows, dy_rows = rows(x, axes), rows(dy, axes)
        dx = fast.pull_x(pull_x, dy_rows, w, places, groups).astype(x.dtype).reshape(x.shape)
        dw = fast.pull_w(pull_w, x_rows, dy_rows, places, groups).astype(x.dtype).reshape(w.shape)
        return {"w": dw, "b": bias_gradient(dy)} if bias else {"w": dw}, dx

    def placed(x: jax.Array) -> Windows:
        return windows(f"{kind} kernel", x.shape[-axes - 1: -1], size, step, padding, spread)

    return Layer(kind, init, forward, backward, options)


@fast.in_one_row
def correlate(x: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
    """Returns y, less b: at every place of the window, the sum over its positions k of x w[k]."""
    return lax.conv_general_dilated(
        x, w, places.stride, places.pads, places.between, places.dilation,
        feature_group_count=groups, dimension_numbers=_layout("N{}C", "{}IO", "N{}C", places))


def pull_x(dy: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
    """Returns dx: dy, stride - 1 zeros between, correlated with w flipped, I and O exchanged."""
    return correlate(dy, flipped(w, groups), places.back(), groups)


def pull_w(x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """Returns dw: x correlated with dy, stride and dilation exchanged, the batch as channels."""
    ends = zip(places.pads, places.span, places.reach, places.sizes)
    pads = [(low, span + reach - 1 - n - low) for (low, _), span, reach, n in ends]
    return lax.conv_general_dilated(
        x, dy, places.dilation, pads, rhs_dilation=places.stride, batch_group_count=groups,
        dimension_numbers=_layout("C{}N", "I{}O", "{}NC", places))


def flipped(w: jax.Array, groups: int) -> jax.Array:
    """(*kernel, I, G O) -> (*kernel, O, G I), the last position of the kernel first."""
    size = w.shape[:-2]
    w = jnp.flip(w, range(len(size)))
    w = w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)  # *K I G O
    return jnp.swapaxes(w, -1, -3).reshape(*size, w.shape[-1], groups * w.shape[-3])


def _layout(x: str, w: str, y: str, places: Windows) -> tuple[str, str, str]:
    space = "HW"[2 - len(places.size):]
    return x.format(space), w.format(space), y.format(space)


