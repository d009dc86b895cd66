"""Cases and mistakes of layers that move a window: convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...gradients import predict
from ...layer import Layer
from ...layers.conv import conv1d, conv2d
from ...layers.pool import avg_pool, global_avg_pool, global_max_pool, max_pool
from ...params import Tree
from .case import Bugs, Case, Draw, Right, Wrong, normal


def tied(*sizes: int) -> Draw:
    """Draws normal numbers with two equal neighbours above all others."""
    def draw(rng: np.random.Generator) -> Any:
        x = rng.standard_normal(sizes)
        x[:, 0, :2] = 5.0
        return x

    return draw


CASES: tuple[Case, ...] = (
    Case("conv1d", conv1d(5, 3), normal(2, 7, 3)),
    Case("conv1d", conv1d(3, 3, stride=2, dilation=2, padding=((4, 0),)),
         normal(2, 3, 7, 2), "causal, two leading axes"),
    Case("conv1d", conv1d(6, 2, groups=3, bias=False, padding="VALID"), normal(2, 5, 6)),
    Case("conv2d", conv2d(5, 3), normal(2, 5, 3, 2)),
    Case("conv2d", conv2d(3, 3), normal(2, 5, 4, 3), "square"),
    Case("conv2d", conv2d(2, (3, 2), stride=(2, 3), padding=((0, 2), (1, 1))), normal(2, 7, 5, 3)),
    Case("conv2d", conv2d(2, (2, 3), padding="VALID", dilation=(2, 1)), normal(3, 5, 7, 3)),
    Case("conv2d", conv2d(4, 3, stride=2, groups=2), normal(2, 7, 5, 6)),
    Case("conv2d", conv2d(3, 3, stride=2, groups=3), normal(2, 5, 7, 3), "depthwise"),
    Case("conv2d", conv2d(2, 1, stride=2, bias=False), normal(2, 5, 3, 7), "projection"),
    Case("conv2d", conv2d(1, 1), normal(1, 1, 1, 1), "sizes 1"),
    Case("conv2d", conv2d(5, 3), normal(0, 5, 3, 2), "empty batch"),
    Case("max_pool", max_pool(), normal(2, 4, 6, 3)),
    Case("max_pool", max_pool(), normal(2, 3, 7, 5, 2), "not divisible, two leading axes"),
    Case("max_pool", max_pool(3, stride=2, padding="SAME"), normal(2, 7, 5, 3), "overlapping"),
    Case("max_pool", max_pool((2, 3), stride=(3, 1), padding=((1, 0), (2, 1))), normal(2, 7, 5, 3)),
    Case("max_pool", max_pool((3,), stride=1), normal(2, 7, 3), "one axis"),
    Case("max_pool", max_pool(1), normal(1, 1, 1, 1), "sizes 1"),
    Case("max_pool", max_pool(), normal(0, 4, 6, 3), "empty batch"),
    Case("max_pool", max_pool(), tied(2, 4, 6, 3), "at a tie", "KINK"),
    Case("avg_pool", avg_pool(), normal(2, 5, 7, 3)),
    Case("avg_pool", avg_pool(3, stride=2, padding="SAME"), normal(2, 7, 5, 3), "overlapping"),
    Case("avg_pool",
         avg_pool((2, 3), stride=(3, 1), padding=((1, 0), (2, 1)), count_include_pad=False),
         normal(2, 7, 5, 3)),
    Case("avg_pool", avg_pool((3,), stride=1), normal(2, 7, 3), "one axis"),
    Case("global_avg_pool", global_avg_pool(), normal(2, 5, 3, 7)),
    Case("global_avg_pool", global_avg_pool(), normal(1, 1, 1, 1), "sizes 1"),
    Case("global_max_pool", global_max_pool(), normal(2, 5, 3, 7)),
    Case("global_max_pool", global_max_pool(), tied(2, 5, 3, 2), "at a tie", "KINK"),
)


def _kernel_not_flipped(right: Right) -> tuple[Tree, Any]:
    w = right.params["w"]
    return right.dparams, right.with_params(w=jnp.flip(w, range(w.ndim - 2))).dx


def _channels_not_exchanged(right: Right) -> tuple[Tree, Any]:
    w = right.params["w"]
    same = jnp.swapaxes(w, -1, -2) if w.shape[-1] == w.shape[-2] else w
    return right.dparams, right.with_params(w=same).dx


def _padding_off_by_one(right: Right) -> tuple[Tree, Any]:
    return right.given(x=jnp.roll(right.x, 1, -2)).dparams, jnp.roll(right.dx, 1, -2)


def _groups_mixed_up(right: Right) -> tuple[Tree, Any]:
    """Deals neighbouring channels out to the groups in turn, instead of in runs."""
    groups = right.x.shape[-1] // max(1, right.params["w"].shape[-2]) or 1

    def deal(a: Any) -> Any:
        if not a.size:
            return a
        return jnp.swapaxes(a.reshape(*a.shape[:-1], groups, -1), -1, -2).reshape(a.shape)

    return right.given(x=deal(right.x)).dparams, deal(right.dx)


def as_if(right: Right, maker: Callable[..., Layer], **options: Any) -> tuple[Tree, Any]:
    """Returns the gradients of the layer with these options instead.

    That layer makes at least as many windows: the additional ones get zeros.
    """
    other = right.remade(maker, **options)
    y = jax.eval_shape(predict(other.layer), other.params, other.x)
    more = [(0, b - a) for a, b in zip(right.dy.shape, y.shape)]
    return other.given(dy=jnp.pad(right.dy, more)).gradients


def _written_not_added(right: Right) -> tuple[Tree, Any]:
    """Gives an element the cotangent of the last window that it is in, alone."""
    flat = right.dy.reshape(-1)

    def of_one(i: Any, dx: Any) -> Any:
        one = jnp.where(jnp.arange(flat.size) == i, flat, 0).reshape(right.dy.shape)
        alone = right.given(dy=one).dx
        return jnp.where(alone != 0, alone, dx)

    return (), jax.lax.fori_loop(0, flat.size, of_one, jnp.zeros_like(right.x))


def _without_divisor(right: Right) -> tuple[Tree, Any]:
    """Multiplies by the largest count: a window that padding does not touch has the divisor 1."""
    window = right.options.get("window", 2)
    return (), (prod(window) if isinstance(window, tuple) else window**2) * right.dx


def _conv_bugs(maker: Callable[..., Layer]) -> dict[str, Wrong]:
    return {
        "dx made with the kernel not flipped": _kernel_not_flipped,
        "dx made with input and output channels not exchanged": _channels_not_exchanged,
        "the stride forgotten": partial(as_if, maker=maker, stride=1),
        "the dilation forgotten": partial(as_if, maker=maker, dilation=1),
        "padding off by one": _padding_off_by_one,
        "channels dealt out to the groups in turn": _groups_mixed_up,
    }


_WINDOW: dict[str, Wrong] = {
    "padding off by one": _padding_off_by_one,
    "written where the cotangents of overlapping windows add": _written_not_added,
}
BUGS: Bugs = {
    "conv1d": _conv_bugs(conv1d),
    "conv2d": _conv_bugs(conv2d),
    "max_pool": {
        **_WINDOW,
        "the stride forgotten": partial(as_if, maker=max_pool, stride=1),
        "spread over the window as that of a mean": lambda right: right.remade(avg_pool).gradients,
    },
    "avg_pool": {
        **_WINDOW,
        "the stride forgotten": partial(as_if, maker=avg_pool, stride=1),
        "the divisor missing": _without_divisor,
    },
    "global_max_pool": {
        "spread over the window as that of a mean":
            lambda right: right.remade(global_avg_pool).gradients,
    },
    "global_avg_pool": {
        "the divisor missing": lambda right: ((), prod(right.x.shape[1:-1]) * right.dx),
    },
}
