"""Floating-point operations of a function, counted in its jaxpr: by formula, before anything runs.

A matrix product or a convolution counts 2 for each multiply and add, padding included; an elementwise operation 1 for each
number it makes, a reduction 1 for each it takes. What only moves numbers (reshape, transpose, slice, gather, a cast) counts 0.
A scan's body counts as often as it runs, a while's once, of a cond's branches the dearest; what the results do not need, and
what does not run on this kind of device, counts 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from .walk import body_of, branches_here, live

MOVES = {
    "reshape", "transpose", "broadcast_in_dim", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "concatenate",
    "pad", "rev", "squeeze", "copy", "iota", "convert_element_type", "bitcast_convert_type", "stop_gradient",
    "optimization_barrier", "device_put", "split", "expand_dims"}
REDUCTIONS = ("reduce_", "argmax", "argmin", "cum", "scatter", "sort")


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the FLOPs of `fn(*args)`; the arguments may be ShapeDtypeStructs."""
    return flops_of(jax.make_jaxpr(fn)(*args).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """Counts the FLOPs of a jaxpr."""
    return _total(jaxpr, _flops)


def traffic_of(jaxpr: Any) -> int:
    """Counts the bytes that products read and write and loops copy: the cost of small tiles."""
    return _total(jaxpr, _traffic)


def _total(jaxpr: Any, of: Callable[[Any], int]) -> int:
    return sum(_of_equation(eqn, of) for eqn in live(jaxpr).eqns)


def _of_equation(eqn: Any, of: Callable[[Any], int]) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return max(_total(params["branches"][i].jaxpr, of) for i in branches_here(eqn))
    if name == "while":
        return _total(params["body_jaxpr"].jaxpr, of)
    body = body_of(eqn)
    return of(eqn) if body is None else params.get("length", 1) * _total(body, of)


def _flops(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    made, taken = eqn.outvars[0].aval, (eqn.invars or eqn.outvars)[0].aval
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        return 2 * prod(made.shape) * prod(taken.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        zeros = prod(params["lhs_dilation"])  # put between the numbers of x, never multiplied by those who know
        return 2 * prod(made.shape) * prod(kernel[axis] for axis in numbers[1:]) // zeros
    if name in MOVES or not jnp.issubdtype(made.dtype, jnp.floating):
        return 0
    return prod(taken.shape if name.startswith(REDUCTIONS) else made.shape)


def _traffic(eqn: Any) -> int:
    name = eqn.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        return sum(map(_bytes, (*eqn.invars, *eqn.outvars)))
    if name not in ("dynamic_slice", "dynamic_update_slice"):
        return 0
    block, starts = (eqn.outvars[0], eqn.invars[1:]) if name == "dynamic_slice" else (eqn.invars[1], eqn.invars[2:])
    whole = block.aval.size == eqn.invars[0].aval.size
    # a consumer reads a slice at a constant offset in place; a slice at a loop's offset is copied
    return 0 if whole or all(isinstance(start, Literal) for start in starts) else _bytes(block)


def _bytes(var: Any) -> int:
    return var.aval.size * var.aval.dtype.itemsize
