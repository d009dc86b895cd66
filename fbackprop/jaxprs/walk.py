"""What an equation of a jaxpr runs: the one place that knows calls, branches and loops of every jax version."""

from __future__ import annotations

from typing import Any

import jax
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
