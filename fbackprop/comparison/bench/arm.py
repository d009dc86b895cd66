"""Measures one arm of a benchmark in a process of its own, which prints one JSON line.

    python -m fbackprop.comparison.bench.arm '{"work": "cnn", ...}'

A fresh process for every measurement, so that no arm finds the caches, threads or memory another has left.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...errors import Problem
from ...gradients import auto_value_and_grad, value_and_grad
from ...jaxprs.flops import count_flops
from ...params import Tree, merge, split
from ..costs import largest_error
from .idiomatic import IDIOMS
from .own import checkpointed
from .plans import of_json, planned_for
from .works import Work, find_work

RATE = 1e-4
PEERS = Path("experiments") / "peers"
Look = Callable[[Tree], dict[str, Any]]  # takes gradients in the structure of the idiomatic weights, returns more figures


class Arm(NamedTuple):
    """`fn(trained, carried, batch) -> (value, grads, carried)`, grads like trained, and what it is given.

    named: takes grads, as NumPy arrays, to the structure of the idiomatic weights.
    """

    fn: Callable[[Tree, Tree, Any], tuple[jax.Array, Tree, Tree]]
    trained: Tree
    carried: Tree
    named: Callable[[Tree], Tree] = lambda grads: grads


def arm_of(work: Work, peer: str, point: str, seed: int, plan: dict[str, Any] | None = None) -> Arm:
    """The loss and gradients of `peer` at `point`, or of the chain by `plan`, on the same weights for every peer."""
    params = work.params(seed)
    if peer == "manual":
        net = of_json(work.net, plan) if plan else work.points[point]()
        arm = of_chain(value_and_grad(net, work.loss), params)
        return arm._replace(named=lambda grads: IDIOMS[work.name].adapt(merge(grads, host(arm.carried)))[0])
    if work.name not in IDIOMS:  # the user's own: jax.grad of the same forward
        return of_chain(auto_value_and_grad(checkpointed(work.net)[point], work.loss), params)
    idiom = IDIOMS[work.name]
    trained, rest = jax.jit(idiom.adapt)(params)
    if peer in ("jax", "jax-tuned"):
        return of_loss(settings_of(work)[point], trained, rest)
    return of_module(load_peer(peer), work.name, trained, rest)


def of_chain(fn: Callable, params: Tree) -> Arm:
    """Of `value_and_grad(net, loss)` or its automatic twin: `fn(params, batch) -> (value, grads)`."""
    def run(trained: Tree, state: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        value, grads = fn(merge(trained, state), batch)
        gradients, successors = split(grads)
        return value, gradients, split(merge(trained, successors))[1]

    return Arm(run, *split(params))


def of_loss(loss: Callable, trained: Tree, rest: Tree) -> Arm:
    """jax.grad of `loss(trained, rest, batch) -> (value, rest)`."""
    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(trained, rest, batch)
        return value, grads, rest

    return Arm(run, trained, rest)


def of_module(peer: ModuleType, name: str, trained: Tree, rest: Tree) -> Arm:
    """Of a Flax or Equinox module that `peer.program` has given these weights."""
    fn, state = peer.program(name, trained, rest)

    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        value, found = fn(peer.whole(trained, rest), batch)
        return value, *peer.parts(found)  # the gradients, and what the rest becomes

    return Arm(run, *peer.parts(state))._replace(named=lambda grads: peer.gradients(name, (grads, ())))


def load_peer(peer: str) -> ModuleType:
    """experiments/peers/PEER_peer.py of the checkout, which is the working directory."""
    path = PEERS / f"{peer.removesuffix('-compile')}_peer.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def stepping(arm: Arm) -> tuple[Callable, Any]:
    """`(carry, batch) -> (carry, value)`: a whole training step with Adam, and its first carry."""
    tx = optax.adamw(RATE)

    def run(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        trained, rest, state = carry
        value, grads, rest = arm.fn(trained, rest, batch)
        updates, state = tx.update(grads, state, trained)
        return (optax.apply_updates(trained, updates), rest, state), value

    return run, (arm.trained, arm.carried, jax.jit(tx.init)(arm.trained))


def measure_jax(arm: Arm, batch: Any, step: bool, seconds: float, look: Look | None = None) -> dict[str, Any]:
    """Compiles the arm, then runs it for `seconds`. peak_mb: of the whole process, where the device reports it."""
    def plain(carry: Any, batch: Any) -> Any:
        return arm.fn(carry[0], carry[1], batch)

    fn, carry = stepping(arm) if step else (plain, (arm.trained, arm.carried))
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
    figures = {"value": value, "ms": timed(run, seconds), "temp_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
               "compile_s": compile_s, **({"peak_mb": peak / 1e6} if peak else {})}
    return {**figures, **look(arm.named(host(run()[1])))} if look else figures


def peak_bytes() -> int | None:
    """Returns the most bytes that this process has held on the device, None where the device keeps no statistics."""
    try:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    except jax.errors.JaxRuntimeError:  # some plugins raise instead of returning None
        return None


def measure_torch(work: Work, peer: str, step: bool, seed: int, seconds: float, look: Look | None = None,
                  backend: str = "inductor") -> dict[str, Any]:
    """Measures PyTorch: compile_s is that of the first run, and XLA's temporary bytes have no counterpart.

    backend: of torch.compile. Raises Problem where JAX computes on an accelerator that PyTorch does not see.
    """
    module = load_peer(peer)
    if jax.default_backend() != "cpu" and not module.torch.cuda.is_available():
        raise Problem(f"torch {module.torch.__version__} sees no GPU")
    trained, rest = map(host, jax.jit(IDIOMS[work.name].adapt)(work.params(seed)))
    batch = host(work.batch(seed))
    began = time.perf_counter()
    run = module.program(work.name, trained, rest, batch, step, backend if peer.endswith("-compile") else None)
    value = run()
    figures = {"value": value, "compile_s": time.perf_counter() - began, "ms": timed(run, seconds), "temp_mb": None}
    if module.torch.cuda.is_available():
        figures["peak_mb"] = module.torch.cuda.max_memory_allocated() / 1e6
    return {**figures, **look(module.gradients(work.name, run))} if look else figures


def timed(run: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Median milliseconds of as many runs as fit in `seconds`, after one to find cold caches."""
    run()
    spent: list[float] = []
    while len(spent) < least or sum(spent) < seconds:
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return 1e3 * float(np.median(spent))


def settings_of(work: Work) -> dict[str, Callable]:
    """Returns the idiom's settings, and on a GPU in bfloat16 the attention that cuDNN fuses."""
    found: dict[str, Callable] = {**IDIOMS[work.name].points}
    if not work.narrow or jax.default_backend() != "gpu":
        return found
    return {**found, "cudnn attention": partial(found["idiomatic"], implementation="cudnn")}


def matmul_peak(narrow: bool, seconds: float) -> dict[str, Any]:
    """FLOPs a second of this device's best square product: what every share is a share of."""
    on_cpu = jax.default_backend() == "cpu"
    n, dtype = 2048 if on_cpu else 8192, jnp.bfloat16 if narrow and not on_cpu else jnp.float32
    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    return {"flops_per_s": 2 * n**3 / timed(lambda: jax.block_until_ready(product(a, a)), seconds) * 1e3, "n": n}


def checked(work: Work, seed: int) -> dict[str, Any]:
    """At these very sizes: the hand-written gradients' error against the oracle, and the FLOPs of loss and gradients."""
    params, batch = work.params(seed), work.batch(seed)
    flops = count_flops(value_and_grad(work.net, work.loss), params, batch)
    return {"gradient_error": None if work.narrow else largest_error(work.net, work.loss, params, batch), "flops": flops,
            "params": sum(leaf.size for leaf in jax.tree.leaves(split(params)[0])), "device": jax.devices()[0].device_kind,
            "jax": jax.__version__}


def host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def settle_heap() -> None:
    """Bring glibc's thresholds to where every process has them that once freed an array of 32 MB, a data set for one.

    Below, whether what a run frees goes back to the system, to be taken and cleared again by the next run, is up to the holes
    that the making of an arm's weights left in the heap: 0.4 of the mlp's time, for the same instructions.
    """
    np.empty(2**25 - 2**16, np.uint8)  # the largest that still moves them; freed at once


def main(request: dict[str, Any]) -> dict[str, Any]:
    """What `measure.ask` asks for: an arm measured, the check of the gradients, the planner's plans, or the device's peak."""
    work, peer, seed, seconds = find_work(request["work"]), request["peer"], request["seed"], request["seconds"]
    if peer == "peak":
        return matmul_peak(work.narrow, seconds)
    if peer == "check":
        return checked(work, seed)
    if peer == "plans":
        return {"plans": planned_for(work)}
    settle_heap()
    if peer.startswith("torch"):
        return measure_torch(work, peer, request["step"], seed, seconds)
    arm = arm_of(work, peer, request["point"], seed, request["plan"])
    return measure_jax(arm, work.batch(seed), request["step"], seconds)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
