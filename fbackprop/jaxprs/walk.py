"""What an equation of a jaxpr runs: the one place that knows calls, branches and loops of every jax version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where jit, remat, custom rules and scan keep their jaxpr


def live(jaxpr: Any, instantiate: bool = False) -> Any:
    """Returns `jaxpr` without the equations that its results do not need."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate)[0]


def body_of(eqn: Any) -> Any:
    """Returns the jaxpr that a call or a scan runs, None for an equation that runs none."""
    body = next((eqn.params[key] for key in CALLED if key in eqn.params), None)
    return getattr(body, "jaxpr", body)


def branches_here(eqn: Any) -> list[int]:
    """Returns which branches of a cond may run on this kind of device: one of a platform_dependent, else all."""
    platforms = eqn.params.get("branches_platforms")
    if not platforms:
        return list(range(len(eqn.params["branches"])))
    here = jax.default_backend()
    return [next(i for i, names in enumerate(platforms) if names is None or here in names)]


def scan_counts(params: Any) -> tuple[int, int]:
    """Returns how many constants and carries a scan has; jax 0.12 keeps them in a tree."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    constants, carries, _ = map(len, params["ft_in"].unpack())
    return constants, carries


def primitives(fn: Callable, *args: Any) -> set[str]:
    """Returns the names of the operations of `fn`, at any depth."""
    def names(jaxpr: Any) -> Iterator[str]:
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for inner in _bodies(eqn):
                yield from names(inner)

    return set(names(jax.make_jaxpr(fn)(*args).jaxpr))


def by_autodiff(fn: Callable, *args: Any) -> bool:
    """Returns whether a part of `fn` was made by jax.vjp or jax.grad: JAX names the equations that it transposes."""
    def transposed(jaxpr: Any) -> bool:
        return any("transpose(" in str(eqn.source_info.name_stack) or any(map(transposed, _bodies(eqn)))
                   for eqn in jaxpr.eqns)

    return transposed(jax.make_jaxpr(fn)(*args).jaxpr)


def narrowest_dtype(fn: Callable, x: Any, *args: Any) -> Any:
    """Returns the narrowest floating dtype that values made of `x` pass through, or None for the dtype of x."""
    found: set[Any] = set()
    own = jnp.finfo(x.dtype).bits

    def walk(jaxpr: Any, made: set[int]) -> None:
        for eqn in jaxpr.eqns:
            if not any(id(var) in made for var in eqn.invars):
                continue
            for inner in _bodies(eqn):
                walk(inner, {id(var) for var in inner.invars})
            made.update(id(var) for var in eqn.outvars)
            dtypes = [var.aval.dtype for var in eqn.outvars if hasattr(var.aval, "dtype")]
            found.update(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < own)

    jaxpr = jax.make_jaxpr(fn)(x, *args).jaxpr
    walk(jaxpr, {id(jaxpr.invars[0])})
    return max(found, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def constants(jaxpr: Any) -> Iterator[Any]:
    """Yields every array that a jaxpr holds, at any depth: text shows no numbers of an array."""
    yield from getattr(jaxpr, "consts", ())
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (var.val for var in eqn.invars if jnp.size(getattr(var, "val", 0)) > 1)
        for value in _params(eqn):
            if hasattr(getattr(value, "jaxpr", value), "eqns"):
                yield from constants(value)


def _params(eqn: Any) -> list[Any]:
    return [value for param in eqn.params.values() for value in (param if isinstance(param, (tuple, list)) else (param,))]


def _bodies(eqn: Any) -> list[Any]:
    """Returns every jaxpr among the parameters of an equation."""
    open_ = [getattr(value, "jaxpr", value) for value in _params(eqn)]
    return [value for value in open_ if hasattr(value, "eqns")]
