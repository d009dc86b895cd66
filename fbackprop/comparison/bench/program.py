"""A program that computes loss and gradients by JAX: compiled, run, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ...params import Tree, merge, split

RATE = 1e-4
Look = Callable[[Tree], dict[str, Any]]  # takes the gradients, returns more figures


class Program(NamedTuple):
    """`fn(trained, carried, batch) -> (value, grads, carried)`, grads like trained; its weights.

    named: converts grads, as NumPy arrays, to the structure that a Look expects.
    """

    fn: Callable[[Tree, Tree, Any], tuple[jax.Array, Tree, Tree]]
    trained: Tree
    carried: Tree
    named: Callable[[Tree], Tree] = lambda grads: grads


def of_chain(fn: Callable, params: Tree) -> Program:
    """Of value_and_grad(net, loss) or its automatic twin: `fn(params, batch) -> (value, grads)`."""
    def run(trained: Tree, state: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        value, grads = fn(merge(trained, state), batch)
        gradients, successors = split(grads)
        return value, gradients, split(merge(trained, successors))[1]

    return Program(run, *split(params))


def stepping(program: Program) -> tuple[Callable, Any]:
    """`(carry, batch) -> (carry, value)`: a whole training step with Adam, and its first carry."""
    tx = optax.adamw(RATE)

    def run(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        trained, rest, state = carry
        value, grads, rest = program.fn(trained, rest, batch)
        updates, state = tx.update(grads, state, trained)
        return (optax.apply_updates(trained, updates), rest, state), value

    return run, (program.trained, program.carried, jax.jit(tx.init)(program.trained))


def measure(program: Program, batch: Any, step: bool, seconds: float,
            look: Look | None = None) -> dict[str, Any]:
    """Compiles, then runs for `seconds`. peak_mb: of the process, where the device reports it."""
    def plain(carry: Any, batch: Any) -> Any:
        return program.fn(carry[0], carry[1], batch)

    fn, carry = stepping(program) if step else (plain, (program.trained, program.carried))
    lowered = jax.jit(fn, donate_argnums=(0,) if step else ()).lower(carry, batch)
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_s, memory = time.perf_counter() - began, compiled.memory_analysis()

    def run() -> Any:
        nonlocal carry
        out = jax.block_until_ready(compiled(carry, batch))
        if step:
            carry = out[0]
        return out

    value = float(run()[1 if step else 0])
    peak = peak_bytes()
    figures = {"value": value, "ms": timed(run, seconds),
               "temp_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
               "compile_s": compile_s, **({"peak_mb": peak / 1e6} if peak else {})}
    return {**figures, **look(program.named(jax.device_get(run()[1])))} if look else figures


def peak_bytes() -> int | None:
    """Returns the most bytes that this process has held on the device, None where the device keeps no statistics."""
    try:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    except jax.errors.JaxRuntimeError:  # some plugins raise instead of returning None
        return None


def timed(run: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Median milliseconds of as many runs as fit in `seconds`, after one to find cold caches."""
    run()
    spent: list[float] = []
    while len(spent) < least or sum(spent) < seconds:
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return 1e3 * float(np.median(spent))
