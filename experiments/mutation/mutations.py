"""The small mistakes that can be made in one equation of a jaxpr: another primitive, sign, constant, axis, a term dropped.

A Mutation stands in for the equation: from the values of its operands it makes other results. `mutations` lists those that
keep shapes and dtypes, as far as the equation alone shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core

from .axes import axis_mutations, reach

# what is inside is mutated
CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
Eqn = Any  # a jax.extend.core.JaxprEqn: the avals of its variables are typed too loosely to ask their shapes
KINDS = ("primitive", "sign", "constant", "axis", "dropped", "order", "off by one")

SWAPS: dict[str, Sequence[Callable]] = {
    "add": (lax.sub, lax.mul), "add_any": (lax.sub, lax.mul), "sub": (lax.add,), "mul": (lax.add, lax.div), "div": (lax.mul,),
    "max": (lax.min,), "min": (lax.max,), "neg": (lax.abs,), "abs": (lax.neg,), "sin": (lax.cos,), "cos": (lax.sin,),
    "exp": (lax.expm1, lax.log1p), "expm1": (lax.exp,), "log": (lax.log1p,), "log1p": (lax.log, lax.exp),
    "tanh": (lax.logistic,), "logistic": (lax.tanh,), "erf": (lax.erfc,), "erfc": (lax.erf,), "rsqrt": (lax.sqrt,),
    "sqrt": (lax.rsqrt,), "square": (lax.abs,), "sign": (lax.abs,), "and": (lax.bitwise_or,), "or": (lax.bitwise_and,),
    "gt": (lax.ge, lax.lt), "ge": (lax.gt, lax.le), "lt": (lax.le, lax.gt), "le": (lax.lt, lax.ge), "eq": (lax.ne,),
    "ne": (lax.eq,), "not": (lambda a: a,),
}
REDUCTIONS: dict[str, Sequence[Callable]] = {
    "reduce_sum": (jnp.max, jnp.mean), "reduce_max": (jnp.min,), "reduce_min": (jnp.max,), "reduce_prod": (jnp.sum,),
}
ORDERED = ("sub", "div", "pow", "atan2", "nextafter")  # their operands may not be exchanged
TERMS = ("add", "add_any", "sub", "concatenate", "stack", "dynamic_update_slice", "scatter-add", "scatter", "select_n",
         "dot_general", "conv_general_dilated", "scan")  # an operand of zeros is a term left out
FACTORS = ("mul", "div", "max", "min")


@dataclass(frozen=True)
class Mutation:
    """What the equation does instead: `change(operands) -> results`."""

    kind: str
    text: str
    change: Callable[[list[Any]], list[Any]]


def bind(eqn: Eqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The equation itself at these operands, some of its params changed."""
    results = eqn.primitive.bind(*operands, **{**eqn.params, **changed})
    return list(results) if eqn.primitive.multiple_results else [results]


def mutations(eqn: Eqn, constants: Collection[Any] = ()) -> list[Mutation]:
    """All mutations of an equation; `constants` are the constvars of its jaxpr."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    found = [*_primitives(eqn, name), *_signs(eqn, name), *_constants(eqn, constants), *_dropped(eqn, name)]
    if name in ORDERED and len({v.aval.shape for v in eqn.invars}) == 1:
        found.append(Mutation("order", "operands exchanged", lambda args: bind(eqn, args[::-1])))
    if name == "select_n" and len(eqn.invars) == 3:
        found.append(Mutation("order", "cases exchanged", lambda args: bind(eqn, [args[0], args[2], args[1]])))
    if name in ("concatenate", "stack") and len(eqn.invars) > 1:
        found.append(Mutation("order", "parts in another order", lambda args: bind(eqn, [*args[1:], args[0]])))
    if name == "dot_general" and len({v.aval.shape for v in eqn.invars}) == 1:
        found.append(Mutation("order", "operands exchanged", lambda args: bind(eqn, args[::-1])))
    if "reverse" in eqn.params:
        found.append(Mutation("order", "runs the other way", partial(bind, eqn, reverse=not eqn.params["reverse"])))
    found += [Mutation("axis", text, partial(bind, eqn, **params)) for text, params in axis_mutations(eqn)]
    found += [Mutation("off by one", text, partial(bind, eqn, **params)) for text, params in reach(eqn)]
    found += [_operand(eqn, i, "off by one", f"index {by:+d}", lambda a, by=by: a + a.dtype.type(by))
              for i in _starts(eqn, name) for by in (1, -1)]
    if _floating(out) and out.shape and name != "broadcast_in_dim":
        found += [_result("axis", f"result rolled along axis {k}", eqn, partial(jnp.roll, shift=1, axis=k))
                  for k in dict.fromkeys((0, out.ndim - 1)) if out.shape[k] > 1]
    return found


def _primitives(eqn: Eqn, name: str) -> Iterator[Mutation]:
    for other in SWAPS.get(name, ()):
        yield Mutation("primitive", f"{name} is {other.__name__}", _instead(other))
    for other in REDUCTIONS.get(name, ()):
        yield Mutation("primitive", f"{name} is {other.__name__}", _instead(
            lambda a, f=other: f(a, axis=eqn.params["axes"]).astype(a.dtype)))
    if name == "integer_pow":
        yield Mutation("primitive", "power one higher", partial(bind, eqn, y=eqn.params["y"] + 1))
        yield Mutation("primitive", "power one lower", partial(bind, eqn, y=eqn.params["y"] - 1))
    if _boolean(eqn.outvars[0].aval):
        yield _result("primitive", "condition negated", eqn, lax.bitwise_not)


def _signs(eqn: Eqn, name: str) -> Iterator[Mutation]:
    for k, out in enumerate(eqn.outvars):
        if _floating(out.aval) and name not in CALLS:
            yield _result("sign", f"result {k} negated", eqn, lax.neg, k)
    if name in ("add", "sub", "add_any", "max", "min", "select_n", "concatenate", "dynamic_update_slice", "exp", "logistic",
                "pow", "rsqrt", "log", "log1p", "expm1", "erfc", "cos", "scan"):
        yield from (_operand(eqn, i, "sign", f"operand {i} negated", lax.neg)
                    for i, v in enumerate(eqn.invars) if _floating(v.aval))


def _constants(eqn: Eqn, constants: Collection[Any]) -> Iterator[Mutation]:
    for i, v in enumerate(eqn.invars):
        literal = isinstance(v, core.Literal)
        if not (literal or v in constants) or not jnp.issubdtype(v.aval.dtype, jnp.number):
            continue
        what = f"constant {v.val if literal else 'array'}"
        yield _operand(eqn, i, "constant", f"{what} + 1", lambda a: a + a.dtype.type(1))
        if not (literal and v.val == 0):
            yield _operand(eqn, i, "constant", f"{what} times 2", lambda a: a * a.dtype.type(2))


def _dropped(eqn: Eqn, name: str) -> Iterator[Mutation]:
    if name in TERMS:
        yield from (_operand(eqn, i, "dropped", f"operand {i} left out", jnp.zeros_like)
                    for i, v in enumerate(eqn.invars) if _floating(v.aval))
    if name in FACTORS:
        yield from (_operand(eqn, i, "dropped", f"factor {i} left out", jnp.ones_like)
                    for i, v in enumerate(eqn.invars) if _floating(v.aval))
    if name in ("and", "or"):
        yield from (Mutation("dropped", f"condition {i} alone", _instead(lambda *args, i=i: args[i])) for i in (0, 1))
    if name in ("reduce_sum", "reduce_max", "reduce_min"):
        at = tuple(0 if k in eqn.params["axes"] else slice(None) for k in range(eqn.invars[0].aval.ndim))
        yield Mutation("dropped", "first element, not all", lambda args: [args[0][at]])
    if name in ("neg", "cumsum", "cumlogsumexp", "exp", "expm1", "log", "log1p", "tanh", "logistic", "rsqrt", "sqrt", "sin",
                "cos", "erf", "erfc", "rev", "abs", "sign", "square", "integer_pow", "floor", "round"):
        yield Mutation("dropped", f"{name} left out", lambda args: [args[0]])


def _starts(eqn: Eqn, name: str) -> list[int]:
    """The operands that say where something starts."""
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    if name == "dynamic_slice":
        return [1 + k for k, size in enumerate(eqn.params["slice_sizes"]) if size < shape[k]]
    if name == "dynamic_update_slice":
        return [2 + k for k, size in enumerate(eqn.invars[1].aval.shape) if size < shape[k]]
    return [1] if name == "gather" or name.startswith("scatter") else []


def _instead(change: Callable) -> Callable[[list[Any]], list[Any]]:
    return lambda args: [change(*args)]


def _operand(eqn: Eqn, i: int, kind: str, text: str, change: Callable) -> Mutation:
    return Mutation(kind, text, lambda args: bind(eqn, [*args[:i], change(args[i]), *args[i + 1 :]]))


def _result(kind: str, text: str, eqn: Eqn, change: Callable, k: int = 0) -> Mutation:
    def changed(args: list[Any]) -> list[Any]:
        results = bind(eqn, args)
        return [*results[:k], change(results[k]), *results[k + 1 :]]

    return Mutation(kind, text, changed)


def _floating(aval: Any) -> bool:
    return jnp.issubdtype(getattr(aval, "dtype", None) or int, jnp.floating)


def _boolean(aval: Any) -> bool:
    return getattr(aval, "dtype", None) == jnp.bool_
