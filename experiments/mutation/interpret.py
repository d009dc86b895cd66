"""A jaxpr run equation by equation, with another one in the place of one of them, inside scan, while, cond and jit as well.

A path says where: the number of the equation, or number, body, number, ... down into an equation that has bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from fbackprop.jaxprs.walk import branches_here

from .mutations import CALLS, bind

LONGEST = 1000  # steps of a while
BODIES = {"scan": ("jaxpr",), "while": ("body_jaxpr",), "cond": ("branches",)}


def equations(jaxpr: Any, path: tuple[int, ...] = (), floats: bool = False) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """(path, equation, constvars) of all that the results depend on, bodies included; `floats`: no counter of a while."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    live = []
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if needed.intersection(eqn.outvars):
            live.append((i, eqn))
            needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
    for i, eqn in reversed(live):
        if not floats or jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            yield (*path, i), eqn, jaxpr.constvars
        for b, body in enumerate(_bodies(eqn)):
            if eqn.primitive.name != "cond" or b in branches_here(eqn):
                yield from equations(body.jaxpr, (*path, i, b), floats or eqn.primitive.name == "while")


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs an equation runs, all closed."""
    name = eqn.primitive.name
    keys = BODIES.get(name, ("jaxpr", "call_jaxpr") if name in CALLS else ())
    found = chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in (eqn.params[k] for k in keys if k in eqn.params))
    return [body if isinstance(body, core.ClosedJaxpr) else core.ClosedJaxpr(body, ()) for body in found]


def evaluate(closed: Any, args: Any, path: tuple[int, ...] = (), change: Callable | None = None) -> list[Any]:
    """The jaxpr at `args`, equation by equation, with `change(operands)` in place of the one at `path`."""
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args)))
    read = lambda v: jnp.asarray(v.val, v.aval.dtype) if hasattr(v, "val") else values[v]
    for i, eqn in enumerate(jaxpr.eqns):
        operands, here = [read(v) for v in eqn.invars], path[1:] if path[:1] == (i,) else None
        if here == () and change is not None:
            results = change(operands)
            for got, v in zip(results, eqn.outvars):
                if got.shape != v.aval.shape or got.dtype != v.aval.dtype:
                    raise ValueError(f"{got.dtype}{got.shape} where {v.aval} was")
        else:
            results = _run(eqn, operands, here, change)
        values.update(zip(eqn.outvars, results))
    return [read(v) for v in jaxpr.outvars]


def _run(eqn: Any, operands: list[Any], path: tuple[int, ...] | None, change: Callable | None) -> list[Any]:
    """An equation whose bodies may hold the changed one: then a scan or a while is a loop here, for it compiles nothing new."""
    name, bodies = eqn.primitive.name, _bodies(eqn)
    if name == "cond" or name in CALLS:
        number = min(max(int(operands.pop(0)), 0), len(bodies) - 1) if name == "cond" else 0
        return evaluate(bodies[number], operands, path[1:] if path and path[0] == number else (), change)
    if not path:
        return bind(eqn, operands)
    step = lambda args: evaluate(bodies[0], args, path[1:], change)
    return _while(eqn, operands, step) if name == "while" else _scan(eqn, operands, bodies[0].jaxpr, step)


def _scan(eqn: Any, operands: list[Any], body: Any, step: Callable) -> list[Any]:
    """What is stacked has one axis more than in the body; its params name the parts in other ways in other versions of jax."""
    outs = [inner.aval.ndim == outer.aval.ndim for inner, outer in zip(body.outvars, eqn.outvars)]
    whole = sum(inner.aval.ndim == outer.aval.ndim for inner, outer in zip(body.invars, eqn.invars))
    carried = sum(outs)
    consts, carry, xs = operands[: whole - carried], operands[whole - carried : whole], operands[whole:]
    steps = range(eqn.params["length"])
    rows: dict[int, list[Any]] = {}
    for i in reversed(steps) if eqn.params["reverse"] else steps:
        results = step([*consts, *carry, *(x[i] for x in xs)])
        carry, rows[i] = results[:carried], results[carried:]
    return [*carry, *(jnp.stack([rows[i][k] for i in steps]) for k in range(len(outs) - carried))]


def _while(eqn: Any, operands: list[Any], step: Callable) -> list[Any]:
    skip, own = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, consts, carry = operands[:skip], operands[skip : skip + own], operands[skip + own :]
    for _ in range(LONGEST):
        if not evaluate(eqn.params["cond_jaxpr"], [*cond_consts, *carry])[0]:
            return carry
        carry = step([*consts, *carry])
    raise ValueError(f"still running after {LONGEST} steps")
