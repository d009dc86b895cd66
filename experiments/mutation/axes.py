"""Mutations of the params of one equation: another axis of the same size, a slice or a padding that reaches one too far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Eqn = Any  # a jax.extend.core.JaxprEqn
Changed = tuple[str, dict[str, Any]]  # what is said of it, and the params that change


def axis_mutations(eqn: Eqn) -> Iterator[Changed]:
    """The axes an equation works on, exchanged for others so that no shape changes."""
    name, params = eqn.primitive.name, eqn.params
    if not eqn.invars:
        shape: tuple[int, ...] = ()
    else:
        shape = getattr(eqn.invars[0].aval, "shape", ())
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        for axes in _one_moved(params["axes"], shape):
            yield f"axes {axes}, not {params['axes']}", {"axes": axes}
    elif name == "transpose":
        p = params["permutation"]
        for i, j in _pairs(tuple(shape[k] for k in p)):
            turned = tuple(p[j] if k == i else p[i] if k == j else p[k] for k in range(len(p)))
            yield f"axes {i} and {j} exchanged", {"permutation": turned}
    elif name == "broadcast_in_dim":
        dims = params["broadcast_dimensions"]
        for other in _one_moved(dims, params["shape"]):
            if list(other) == sorted(other):
                yield f"along axes {other}, not {dims}", {"broadcast_dimensions": other}
    elif name == "rev":
        for other in _one_moved(params["dimensions"], None, len(shape)):
            yield f"axes {other}, not {params['dimensions']}", {"dimensions": other}
    elif name in ("cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod"):
        yield from ((f"axis {k}", {"axis": k}) for k in range(len(shape)) if k != params["axis"])
    elif name == "iota":
        yield from ((f"axis {k}", {"dimension": k}) for k, _ in enumerate(params["shape"]) if k != params["dimension"])
    elif name == "dot_general":
        yield from _contracted(eqn)


def _contracted(eqn: Eqn) -> Iterator[Changed]:
    """Another axis of the same size contracted, or taken for the batch, in one operand."""
    contracting, batch = eqn.params["dimension_numbers"]
    for what, dims, other in (("contracted", contracting, batch), ("batch", batch, contracting)):
        for side in (0, 1):
            shape = eqn.invars[side].aval.shape
            for moved in _one_moved(dims[side], shape):
                if not set(moved) & set(other[side]):
                    pair = (moved, dims[1]) if side == 0 else (dims[0], moved)
                    numbers = (pair, batch) if what == "contracted" else (contracting, pair)
                    yield f"{what} axes {pair}, not {dims}", {"dimension_numbers": numbers}


def reach(eqn: Eqn) -> Iterator[Changed]:
    """A slice, a padding or a convolution one element further on or back."""
    name, params = eqn.primitive.name, eqn.params
    if name == "slice":
        starts, limits, sizes = params["start_indices"], params["limit_indices"], eqn.invars[0].aval.shape
        for k, size in enumerate(sizes):
            for by in (1, -1):
                if starts[k] + by >= 0 and limits[k] + by <= size:
                    yield f"axis {k} starts {by:+d}", {
                        "start_indices": _at(starts, k, starts[k] + by), "limit_indices": _at(limits, k, limits[k] + by)}
    elif name in ("pad", "conv_general_dilated"):
        key = "padding_config" if name == "pad" else "padding"
        for k, (low, high, *rest) in enumerate(params[key]):
            for by in (1, -1):
                yield f"padding of axis {k} moved by {by:+d}", {key: _at(params[key], k, (low + by, high - by, *rest))}


def _at(values: Any, k: int, value: Any) -> tuple[Any, ...]:
    return (*values[:k], value, *values[k + 1 :])


def _one_moved(axes: Any, shape: Any, ndim: int = 0) -> Iterator[tuple[int, ...]]:
    """`axes` with one of them replaced by another, of the same size where there is a shape."""
    for i, axis in enumerate(axes):
        for other in range(len(shape) if shape is not None else ndim):
            if other not in axes and (shape is None or shape[other] == shape[axis] > 1):
                yield (*axes[:i], other, *axes[i + 1 :])


def _pairs(sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for i, size in enumerate(sizes):
        yield from ((i, j) for j in range(i + 1, len(sizes)) if sizes[j] == size > 1)
