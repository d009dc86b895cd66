"""Many training steps as one compiled program: what most experiments train with. They are small and many, so most of the time
goes into compiling, and the compiler is told to take less care."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from fbackprop import Layer, init_opt_state, update

See = Callable[[Any, Any], Any]
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


def start(net: Layer, seed: int, x: Any) -> Any:
    """`net`'s params at the start, by a key that compiles in less than half the time of the usual one."""
    return compiled(net.init)(jax.random.key(seed, impl="unsafe_rbg"), x)


def train(value_and_grad: Callable, tx: Any, params: Any, batches: Any,
          see: See = lambda params, grads: ()) -> tuple[Any, jax.Array, Any]:
    """`(params, losses, seen)` after a step on each of `batches`, whose leaves have an axis of steps in front.

    see: what is kept of the params before a step and of its gradients, stacked in `seen`.
    """

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state = carry
        value, grads = value_and_grad(params, batch)
        return update(tx, params, grads, opt_state), (value, see(params, grads))

    run = compiled(lambda params, opt_state, batches: jax.lax.scan(step, (params, opt_state), batches))
    (params, _), (losses, seen) = run(params, init_opt_state(tx, params), batches)
    return params, losses, seen
