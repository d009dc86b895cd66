"""windows: where a window that slides over the spatial axes looks. Geometry alone, shared by conv and pool.

Shapes    x (B, *sizes, C); a window has `size` positions an axis, and stands at `length` places an axis
Terms     reach = (size - 1) dilation + 1, what a window covers; sizes + low + high = the padded x; length = (padded - reach)
          // stride + 1. SAME: length = ceil(sizes / stride), the odd zero at the high end
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ...checks import expect, is_whole

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
Size1d: TypeAlias = int | tuple[int]
Size2d: TypeAlias = int | tuple[int, int]
Pair: TypeAlias = tuple[int, int]
Padding1d: TypeAlias = Literal["SAME", "VALID"] | tuple[Pair]
Padding2d: TypeAlias = Literal["SAME", "VALID"] | tuple[Pair, Pair]


@dataclass(frozen=True)
class Windows:
    """Every place of a sliding window over axes of `sizes`, resolved to numbers: one entry an axis.

    between: how far apart the elements are, with zeros between them.
    """

    sizes: Sizes
    size: Sizes
    stride: Sizes
    dilation: Sizes
    pads: Pads
    between: Sizes

    @property
    def reach(self) -> Sizes:
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation))

    @property
    def length(self) -> Sizes:
        return tuple((n + sum(p) - r) // s + 1 for n, p, r, s in zip(self.sizes, self.pads, self.reach, self.stride))

    @property
    def span(self) -> Sizes:
        """From the first to the last element that one position of the window meets."""
        return tuple((n - 1) * s + 1 for n, s in zip(self.length, self.stride))

    def offsets(self) -> Iterator[Sizes]:
        """Every position of the window, in the order of its elements, as an offset into the padded x."""
        return product(*(range(0, k * d, d) for k, d in zip(self.size, self.dilation)))

    def by_axis(self) -> tuple[Windows, Windows]:
        """Of two axes, the first without stride: the window's second over x, and its first over (B, *length, C).

        That looks back from every row of x at the places that met it, the window's last position first.
        """
        (h, _), (n, _), (k, m), (reach, _), ((low, _), _) = self.sizes, self.length, self.size, self.reach, self.pads
        along = replace(self, size=(1, m), pads=((0, 0), self.pads[1]))
        pads = (reach - 1 - low, h + low - n)
        return along, replace(self, sizes=self.length, size=(k, 1), stride=(1, 1), pads=(pads, (0, 0)))

    def still(self) -> Windows:
        """Of one position, over what this window has found."""
        ones = (1,) * len(self.size)
        return Windows(self.length, ones, ones, ones, ((0, 0),) * len(ones), ones)

    def back(self) -> Windows:
        """From an element of x over what the windows that met it found, the last position first."""
        ones = (1,) * len(self.size)
        low = [reach - 1 - p for reach, (p, _) in zip(self.reach, self.pads)]
        ends = zip(low, self.sizes, self.reach, self.span)
        pads = tuple((a, n + reach - 1 - span - a) for a, n, reach, span in ends)
        return replace(self, sizes=self.length, stride=ones, pads=pads, between=self.stride)

    def pad(self, x: jax.Array, value: float = 0) -> jax.Array:
        """(B, *sizes, C) -> the padded x."""
        return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), *((*p, 0) for p in self.pads), (0, 0, 0)))

    def look(self, padded: jax.Array, offset: Sizes) -> jax.Array:
        """What this position of the window meets at every place: (B, *length, C)."""
        start, stop = (0, *offset, 0), (len(padded), *(o + n for o, n in zip(offset, self.span)), padded.shape[-1])
        return lax.slice(padded, start, stop, (1, *self.stride, 1))

    def looks(self, x: jax.Array) -> list[jax.Array]:
        """What every position of the window meets."""
        padded = self.pad(x)
        return [self.look(padded, offset) for offset in self.offsets()]

    def put(self, dy: jax.Array, offset: Sizes) -> jax.Array:
        """The transpose of `look(pad(x), offset)`: every element back to where it came from, (B, *sizes, C)."""
        low = [o - p for o, (p, _) in zip(offset, self.pads)]  # negative: it fell on padding and is cut off
        edges = ((a, n - a - m, s - 1) for a, n, m, s in zip(low, self.sizes, self.span, self.stride))
        return lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def windows(what: str, sizes: Sizes, size: Sizes, stride: Sizes, padding: str | Pads, dilation: Sizes | None = None) -> Windows:
    """`padding` resolved for axes of `sizes`. ValueError for a window that reaches beyond the padded x."""
    dilation = dilation or (1,) * len(size)
    reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilation))
    pads = tuple(lax.padtype_to_pads(sizes, reach, stride, padding)) if isinstance(padding, str) else padding
    padded = tuple(n + sum(p) for n, p in zip(sizes, pads))
    expect(all(n > 0 and r <= p for n, r, p in zip(sizes, reach, padded)), what, f"at most the padded input, {padded}",
           f"a window that reaches over {reach}", "Is x channels last, (B, ..., spatial axes, C)?")
    return Windows(sizes, size, stride, dilation, pads, (1,) * len(size))


def added(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum over a window's positions."""
    return reduce(jnp.add, terms)


def per_axis(what: str, value: Any, axes: int) -> Sizes:
    """A whole number for every axis, or one each; all at least 1."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    ok = len(numbers) == axes and all(is_whole(number, 1) for number in numbers)
    expect(ok, what, f"a whole number of at least 1, or {axes} of them", repr(value))
    return tuple(map(int, numbers))


def checked_padding(what: str, padding: Any, axes: int) -> str | Pads:
    """"SAME", "VALID", or one (low, high) pair of whole numbers an axis."""
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        return padding
    try:
        pads = tuple((low, high) for low, high in padding)
    except (TypeError, ValueError):
        pads = ()
    ok = len(pads) == axes and all(is_whole(number, 0) for pair in pads for number in pair)
    expect(ok, what, f"'SAME', 'VALID' or {axes} (low, high) pairs of numbers >= 0, one an axis", repr(padding))
    return tuple((int(low), int(high)) for low, high in pads)
