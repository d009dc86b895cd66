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

On a CPU dw goes over a few examples at a time, the windows of each laid side by side for one matmul: they stay in cache where
XLA's own weight gradient, kept for accelerators, reads strided memory. Where jax 0.10 would run a convolution on one core, the
images are laid in one row. With one channel a group (depthwise) forward and dx are
sums of shifted products: no matmul is left to make; so is the forward of an x of one channel. A kernel of one position is a
matmul at every place. Figures in docs/derivations/conv.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import expect, expect_floating, expect_params
from ..dtypes import wide, wide_dtype
from ..facts import given
from ..layer import Layer
from ..params import Tree
from .kernels.windows import Sizes, Windows, added, checked_padding, per_axis, windows
from .rewire import after

Initializer = Callable[..., jax.Array]
FEW, LARGE = 64, 2**15  # places an example, numbers in a kernel: XLA's weight gradient is as quick then, and sooner compiled
ROWS, BYTES = 2048, 2**21 * 5 // 4  # windows laid side by side at a time: enough for a product, few enough for a cache
SMALL = 2**22  # bytes of all windows that need no loop
ONE_CORE = jax.__version_info__ < (0, 11)  # XLA's convolution on a CPU, but for a large kernel or a long row
KERNEL, ROW = 10**5, 2**23  # numbers in a kernel that is large; multiplications in a row that is long
TAPS = 32  # of one channel: so many shifted products are one pass over y, and what follows joins it


def conv1d(features: int, kernel: Any, stride: Any = 1, padding: Any = "SAME", dilation: Any = 1, groups: int = 1,
           bias: bool = True, w_init: Initializer | None = None, b_init: Initializer | None = None) -> Layer:
    """x (B..., W, C) -> y (B..., length, features); params {"w": (kernel, C // groups, features), "b": (features,)}.

    `padding`: "SAME", "VALID" or ((low, high),); `((kernel - 1, 0),)` looks only back in time. The rest as `conv2d`.
    """
    return _conv(conv1d, 1, features, kernel, stride, padding, dilation, groups, bias, w_init, b_init)


def conv2d(features: int, kernel: Any, stride: Any = 1, padding: Any = "SAME", dilation: Any = 1, groups: int = 1,
           bias: bool = True, w_init: Initializer | None = None, b_init: Initializer | None = None) -> Layer:
    """x (B..., H, W, C) -> y (B..., *length, features); params {"w": (kh, kw, C // groups, features), "b": (features,)}.

    `kernel`, `stride`, `dilation`: a whole number for both axes, or a pair. `padding`: "SAME", "VALID" or two (low, high)
    pairs. `groups=C` is depthwise. He normal over a window's inputs and zeros unless `w_init`, `b_init` are given.
    """
    return _conv(conv2d, 2, features, kernel, stride, padding, dilation, groups, bias, w_init, b_init)


def _conv(maker: Callable, axes: int, features: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
          bias: bool, w_init: Initializer | None, b_init: Initializer | None) -> Layer:
    kind = maker.__name__
    options = given(maker, features, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
                    w_init=w_init, b_init=b_init)
    (features,), (groups,) = per_axis(f"{kind} features", features, 1), per_axis(f"{kind} groups", groups, 1)
    size, step, spread = (per_axis(f"{kind} {what}", value, axes) for what, value in
                          (("kernel", kernel), ("stride", stride), ("dilation", dilation)))
    padding = checked_padding(f"{kind} padding", padding, axes)
    expect(features % groups == 0, f"{kind} groups", f"a divisor of the {features} features", repr(groups))
    w_init = w_init or jax.nn.initializers.he_normal()
    b_init = b_init or jax.nn.initializers.zeros
    names = ("w", "b") if bias else ("w",)

    def expect_x(x: jax.Array) -> None:
        expect(x.ndim >= axes + 2, "x", f"(B..., {', '.join('HW'[2 - axes:])}, C)", x, "One example needs a batch axis of 1")
        expect(x.shape[-1] % groups == 0, "x", f"channels that {groups} groups divide", x)

    def init(key: jax.Array, x: Any) -> Tree:
        expect_floating(x=x)
        expect_x(x)
        w_key, b_key = jax.random.split(key)
        shape = (*size, x.shape[-1] // groups, features)
        w = w_init(w_key, shape, x.dtype) if prod(shape) else jnp.zeros(shape, x.dtype)  # He divides by the width
        return {"w": w, "b": b_init(b_key, (features,), x.dtype)} if bias else {"w": w}

    def forward(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        expect_params(params, *names)
        expect_floating(x=x, **params)
        expect_x(x)
        wanted = (*size, x.shape[-1] // groups, features)
        expect(params["w"].shape == wanted, "w", f"{wanted} for x {x.shape}", params["w"], "Was init given x of another shape?")
        rows, places = _rows(x, axes), placed(x)
        y = _correlate(rows, params["w"], places, groups)  # B *length O
        if bias:
            expect(params["b"].shape == (features,), "b", f"({features},)", params["b"])
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        return y.astype(x.dtype).reshape(*x.shape[: -axes - 1], *y.shape[1:]), x

    def backward(params: Tree, x: jax.Array, dy: jax.Array) -> tuple[Tree, jax.Array]:
        rows, drows, places = _rows(x, axes), _rows(dy, axes), placed(x)
        dx = _dx(drows, params["w"], places, groups).astype(x.dtype).reshape(x.shape)
        dw = _dw(rows, drows, places, groups).astype(x.dtype).reshape(params["w"].shape)
        if not bias:
            return {"w": dw}, dx
        db = jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=wide_dtype(dy.dtype)).astype(x.dtype)
        return {"w": dw, "b": db}, dx  # db: the visible sum of the broadcast

    def placed(x: jax.Array) -> Windows:
        return windows(f"{kind} kernel", x.shape[-axes - 1: -1], size, step, padding, spread)

    return Layer(kind, init, forward, backward, options)


def _rows(x: jax.Array, axes: int) -> jax.Array:
    """All leading axes as one: (B..., *sizes, C) -> (B, *sizes, C)."""
    return x.reshape(prod(x.shape[: -axes - 1]), *x.shape[-axes - 1:])


def _correlate(x: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
    """The forward without bias; in the wide dtype where the sum over the window is ours."""
    outputs = w.shape[-1]
    if w.shape[-2] == 1 and (groups == outputs > 1 or (groups == 1 and prod(places.size) <= TAPS)):
        padded, taps = places.pad(wide(x)), wide(w).reshape(-1, outputs)
        shape = (len(x), *places.length, outputs)
        looks = (jnp.broadcast_to(places.look(padded, offset), shape) for offset in places.offsets())
        return added(a * jnp.broadcast_to(tap, shape) for a, tap in zip(looks, taps))
    if prod(places.size) == groups == 1:  # one product: on a CPU XLA's convolution takes up to five times as long
        seen, = (places.look(places.pad(x), offset) for offset in places.offsets())
        return jnp.matmul(seen, w.reshape(w.shape[-2:]), preferred_element_type=wide_dtype(x.dtype))
    return _slide(x, w, places.stride, places.pads, (1,) * len(places.size), places, groups)


def _dx(dy: jax.Array, w: jax.Array, places: Windows, groups: int) -> jax.Array:
    """The forward's transpose: dy with stride - 1 zeros between, correlated with the kernel flipped, I and O exchanged."""
    if w.shape[-2] == 1 and groups == w.shape[-1] > 1:  # depthwise
        taps, dy = wide(w).reshape(-1, groups), wide(dy)
        return added(places.put(dy * jnp.broadcast_to(tap, dy.shape), offset) for tap, offset in zip(taps, places.offsets()))
    if prod(places.size) == groups == 1:
        dseen = jnp.matmul(dy, w.reshape(w.shape[-2:]).T, preferred_element_type=wide_dtype(dy.dtype))
        return added(places.put(dseen, offset) for offset in places.offsets())
    w = jnp.flip(w, range(len(places.size))).reshape(*w.shape[:-1], groups, w.shape[-1] // groups)  # *K I G O
    w = jnp.swapaxes(w, -1, -3).reshape(*places.size, w.shape[-1], groups * w.shape[-3])  # *K O (G I)
    low = [r - 1 - p for r, (p, _) in zip(places.reach, places.pads)]
    pads = [(a, n + r - 1 - m - a) for a, n, r, m in zip(low, places.sizes, places.reach, places.span)]
    return _slide(dy, w, (1,) * len(pads), pads, places.stride, places, groups)


def _slide(x: jax.Array, w: jax.Array, stride: Sizes, pads: Sequence[tuple[int, int]], between: Sizes, places: Windows,
           groups: int) -> jax.Array:
    """XLA's convolution of x, with so many zeros less one `between` its elements."""
    def slide(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, stride, pads, between, places.dilation, feature_group_count=groups,
                                        dimension_numbers=_layout("N{}C", "{}IO", "N{}C", places))

    def in_one_row(x: jax.Array, w: jax.Array) -> jax.Array:
        row = jnp.moveaxis(jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0))), 0, 1)  # H B W C
        y = slide(row.reshape(1, len(row), -1, x.shape[-1]), w)[0]  # H (B W) O
        return jnp.moveaxis(y.reshape(len(y), *row.shape[1:3], -1)[:, :, : x.shape[2]], 1, 0)

    plain = len(pads) == 2 and max(*stride, *between, groups) == 1 and sum(pads[1]) == places.reach[1] - 1
    gap = max(pads[-1])
    if ONE_CORE and plain and x.dtype == jnp.float32 and w.size < KERNEL and len(x) * (x.shape[2] + gap) * w.size >= ROW:
        return lax.platform_dependent(x, w, cpu=in_one_row, default=slide)
    return slide(x, w)


def _dw(x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """(*kernel, I, O) in the wide dtype: what each position of the window met, times the dy it helped to make, summed."""
    if groups == x.shape[-1] == dy.shape[-1] > 1:  # depthwise
        padded, dy, summed = places.pad(wide(x)), wide(dy), tuple(range(x.ndim - 1))
        return jnp.stack([jnp.sum(places.look(padded, offset) * dy, axis=summed) for offset in places.offsets()])
    in_parts, as_convolution = (lambda x, dy, f=f: wide(f(x, dy, places, groups)) for f in (_dw_of_parts, _dw_as_convolution))
    if prod(places.length) <= FEW and prod(places.size) * x.shape[-1] * dy.shape[-1] >= groups * LARGE:
        return as_convolution(x, dy)
    return lax.platform_dependent(x, dy, cpu=in_parts, default=as_convolution)


def _dw_of_parts(x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """(*kernel, I, O): the windows side by side, transposed, times dy; a few examples at a time, or all where that is little.

    Where that is less to lay out, a window's columns are x shifted along its rows, and its rows are dy shifted up and down.
    """
    if groups > 1:
        apart = (a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups) for a in (x, dy))
        dw = jax.vmap(lambda x, dy: _dw_of_parts(x, dy, places, 1), in_axes=-2, out_axes=-2)(*apart)  # *K I G O
        return dw.reshape(*dw.shape[:-2], dy.shape[-1])
    batch, channels, features, acc = len(x), x.shape[-1], dy.shape[-1], wide_dtype(x.dtype)
    halves = len(places.size) == 2 and places.stride[0] == 1 and features < places.size[1] * channels
    along, back = places.by_axis() if halves else (places, places.still())
    rows, widths = prod(along.length), (prod(along.size) * channels, prod(back.size) * features)
    row = (widths[0] + halves * widths[1]) * x.dtype.itemsize  # bytes laid out
    at_once = prod(places.size) == 1 or batch * rows * row <= SMALL  # of 1: x itself is the windows
    most = batch if at_once else min(ROWS, BYTES // row) // rows
    part = next((n for n in range(min(batch, max(1, most)), 1, -1) if batch % n == 0), min(batch, 1))

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        a, b = (jnp.concatenate(seen, -1).reshape(len(x) * rows, width)
                for seen, width in zip((along.looks(x), back.looks(dy)[::-1]), widths))
        if halves and widths[0] <= widths[1]:  # on a CPU what is read down its columns is transposed first: the narrower
            return jnp.matmul(a.T, b, preferred_element_type=acc)
        return jnp.matmul(b.T, a, preferred_element_type=acc).T

    def add(dw: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        return dw + product(*(lax.dynamic_slice_in_dim(a, start, part) for a in (x, dy))), None

    if part == batch:
        dw = product(*after(x, dy))  # or XLA lays out the windows as soon as it has x, and keeps them until dy is there
    else:
        dw, _ = lax.scan(add, jnp.zeros(widths, acc), jnp.arange(0, batch, part))
    dw = jnp.moveaxis(dw.reshape(prod(along.size), channels, prod(back.size), features), 2, 0)
    return dw.reshape(*places.size, channels, features)


def _dw_as_convolution(x: jax.Array, dy: jax.Array, places: Windows, groups: int) -> jax.Array:
    """(*kernel, I, O): x correlated with dy, stride and dilation exchanged, the batch in the place of channels."""
    pads = [(p, m + r - 1 - n - p) for (p, _), m, r, n in zip(places.pads, places.span, places.reach, places.sizes)]
    return lax.conv_general_dilated(x, dy, places.dilation, pads, rhs_dilation=places.stride, batch_group_count=groups,
                                    dimension_numbers=_layout("C{}N", "I{}O", "{}NC", places))


def _layout(x: str, w: str, y: str, places: Windows) -> tuple[str, str, str]:
    space = "HW"[2 - len(places.size):]
    return x.format(space), w.format(space), y.format(space)
