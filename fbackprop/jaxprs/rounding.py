"""A function whose operations round otherwise: Monte Carlo arithmetic (Parker, 1997), on a jaxpr.

Every result that an operation rounds is moved by up to one unit in the last place of its dtype, at
random. How far the values of the function move is the rounding in them, cancellation and saturation
inside included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from .walk import scan_counts

CALLS = frozenset((
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
))
ROUNDED = frozenset((
    "add", "add_any", "sub", "mul", "div", "square", "sqrt", "rsqrt", "cbrt", "pow",
    "integer_pow", "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos",
    "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf",
    "erfc", "erf_inv", "lgamma", "digamma", "dot_general", "conv_general_dilated", "reduce_sum",
    "reduce_prod", "cumsum", "cumprod", "cumlogsumexp", "reduce_window_sum", "scatter-add",
    "scatter-mul", "convert_element_type",
))
ODD = 0x9E3779B97F4A7C15  # the golden ratio: multiples of it are spread over the 64 bits


def rounded_otherwise(fn: Callable) -> Callable:
    """Returns `(salt, *args) -> fn(*args)`, whose operations round in another way for every salt.

    A salt is a uint64; x64 has to be on.
    """

    def moved(salt: Any, *args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        results = _run(
            closed, jax.tree.leaves(args), (salt ^ np.uint64(i * ODD % 2**64) for i in count(1))
        )
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return moved


def _run(closed: core.ClosedJaxpr, args: Sequence[Any], salts: Iterator[Any]) -> list[Any]:
    """Evaluates a jaxpr. Every operation that rounds takes a salt."""
    values: dict[Any, Any] = dict(
        zip((*closed.jaxpr.constvars, *closed.jaxpr.invars), (*closed.consts, *args))
    )
    read = lambda var: var.val if isinstance(var, core.Literal) else values[var]
    for eqn in closed.jaxpr.eqns:
        results = _results(eqn, [read(var) for var in eqn.invars], salts)
        values.update(zip(eqn.outvars, results))
    return [read(var) for var in closed.jaxpr.outvars]


def _results(eqn: Any, args: list[Any], salts: Iterator[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return _run(
            next(_closed(value) for value in params.values() if _is_jaxpr(value)), args, salts
        )
    if name == "scan":
        return _scan(params, args, salts)
    if name == "while":
        return _while(params, args, salts)
    if name == "cond":
        index, *operands = args
        return lax.switch(
            index,
            [lambda *a, body=body: _run(body, a, salts) for body in params["branches"]],
            *operands,
        )
    results = eqn.primitive.bind(*args, **params)
    results = list(results) if eqn.primitive.multiple_results else [results]
    return [_moved(result, next(salts)) for result in results] if name in ROUNDED else results


def _scan(params: Any, args: list[Any], salts: Iterator[Any]) -> list[Any]:
    constants, carries = scan_counts(params)
    fixed, carry, xs = (
        args[:constants],
        args[constants : constants + carries],
        args[constants + carries :],
    )

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _run(params["jaxpr"], [*fixed, *carry, *x], salts)
        return results[:carries], results[carries:]

    carry, ys = lax.scan(step, carry, xs, length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def _while(params: Any, args: list[Any], salts: Iterator[Any]) -> list[Any]:
    of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
    asked, made, carry = (
        args[:of_cond],
        args[of_cond : of_cond + of_body],
        args[of_cond + of_body :],
    )
    goes_on = lambda carry: _run(params["cond_jaxpr"], [*asked, *carry], salts)[0]
    return lax.while_loop(
        goes_on, lambda carry: _run(params["body_jaxpr"], [*made, *carry], salts), carry
    )


def _moved(a: Any, salt: Any) -> Any:
    """Returns floating numbers moved by up to one unit in the last place.

    How far is a hash of their bits and the salt.
    """
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    bits = lax.bitcast_convert_type(a.astype(jnp.float64), jnp.uint64)
    spread = ((bits ^ salt) * np.uint64(ODD)) >> np.uint64(32)
    share = spread.astype(jnp.float64) / 2.0**31 - 1
    return a + (a * (share * float(jnp.finfo(a.dtype).eps)).astype(a.dtype)).astype(a.dtype)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _closed(jaxpr: Any) -> core.ClosedJaxpr:
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())
