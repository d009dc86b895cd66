"""Programs of a named work by jax.grad and by other libraries, whose modules are in experiments/peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax

from fbackprop.comparison.bench.program import Look, Program, host, timed
from fbackprop.errors import Problem
from fbackprop.params import Tree


def of_loss(loss: Callable, trained: Tree, rest: Tree) -> Program:
    """jax.grad of `loss(trained, rest, batch) -> (value, rest)`."""
    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(trained, rest, batch)
        return value, grads, rest

    return Program(run, trained, rest)


def of_module(library: str, name: str, trained: Tree, rest: Tree) -> Program:
    """Of the module of Flax or Equinox, with these weights."""
    peer = load_peer(library)
    fn, state = peer.program(name, trained, rest)

    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        value, (grads, rest) = fn((trained, rest), batch)
        return value, grads, rest

    trained, rest = state
    return Program(run, trained, rest, lambda grads: peer.gradients(name, (grads, ())))


def measure_torch(name: str, trained: Tree, rest: Tree, batch: Any, step: bool, seconds: float,
                  backend: str | None, look: Look | None = None) -> dict[str, Any]:
    """Measures PyTorch's module with these weights. backend: of torch.compile.

    compile_s is that of the first run. XLA's temporary bytes have no counterpart. Raises Problem
    where JAX computes on an accelerator that PyTorch does not see.
    """
    peer = load_peer("torch")
    cuda = peer.torch.cuda
    if jax.default_backend() != "cpu" and not cuda.is_available():
        raise Problem(f"torch {peer.torch.__version__} sees no GPU")
    trained, rest, batch = map(host, (trained, rest, batch))
    began = time.perf_counter()
    run = peer.program(name, trained, rest, batch, step, backend)
    value = run()
    figures = {"value": value, "compile_s": time.perf_counter() - began,
               "ms": timed(run, seconds), "temp_mb": None}
    if cuda.is_available():
        figures["peak_mb"] = cuda.max_memory_allocated() / 1e6
    return {**figures, **look(peer.gradients(name, run))} if look else figures


def load_peer(library: str) -> Any:
    """Imports experiments/peers/LIBRARY_peer.py."""
    return import_module(f"peers.{library}_peer")
