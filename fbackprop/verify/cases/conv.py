"""Cases and mistakes of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...gradients import predict
from ...layer import Layer
from ...layers.conv import conv1d, conv2d
from ...params import Tree
from .case import Bugs, Case, Right, Wrong, normal

CASES: tuple[Case, ...] = (
    Case("conv1d", conv1d(5, 3), normal(2, 7, 3)),
    Case("conv1d", conv1d(3, 3, stride=2, dilation=2, padding=((4, 0),)), normal(2, 3, 7, 2), "causal, two leading axes"),
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
    deal = lambda a, n: jnp.swapaxes(a.reshape(*a.shape[:-1], n, -1), -1, -2).reshape(a.shape) if a.size else a
    groups = right.x.shape[-1] // max(1, right.params["w"].shape[-2]) or 1
    return right.given(x=deal(right.x, groups)).dparams, deal(right.dx, groups)


def as_if(right: Right, maker: Callable[..., Layer], **options: Any) -> tuple[Tree, Any]:
    """Returns the gradients of the layer with these options instead.

    That layer makes at least as many windows: the additional ones get zeros.
    """
    other = right.remade(maker, **options)
    y = jax.eval_shape(predict(other.layer), other.params, other.x)
    more = [(0, b - a) for a, b in zip(right.dy.shape, y.shape)]
    return other.given(dy=jnp.pad(right.dy, more)).gradients


def _bugs(maker: Callable[..., Layer]) -> dict[str, Wrong]:
    return {
        "dx made with the kernel not flipped": _kernel_not_flipped,
        "dx made with input and output channels not exchanged": _channels_not_exchanged,
        "the stride forgotten": partial(as_if, maker=maker, stride=1),
        "the dilation forgotten": partial(as_if, maker=maker, dilation=1),
        "padding off by one": _padding_off_by_one,
        "channels dealt out to the groups in turn": _groups_mixed_up,
    }


BUGS: Bugs = {"conv1d": _bugs(conv1d), "conv2d": _bugs(conv2d)}
