"""Answers the requests of experiments/accelerator.py, in a process on the device."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbackprop import value_and_grad
from fbackprop.comparison.bench.process import counts, matmul_peak, settle_heap
from fbackprop.comparison.bench.program import Program, measure, of_chain
from fbackprop.comparison.costs import relative
from fbackprop.distributed import data_parallel, devices, replicate, shard
from fbackprop.params import Tree
from fbackprop.verify.cases import CASES, Case
from fbackprop.verify.check import draw_params
from fbackprop.verify.oracles import Point, quick_jit
from fbackprop.verify.subject import cast, layer_subject

from .worker import one_line
from .works import NamedWork, find_named, load_peer, measure_torch, of_loss

SEED = 0
REMAT = re.compile(r"\b(checkpoint|remat\d?)\[")  # how jax.checkpoint prints in a jaxpr


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request, whose `ask` names one of ANSWERS. small: None for small on a CPU.

    A small run on a CPU spends most of its time on compiling, so it leaves optimizations out.
    XLA's temporary bytes hardly change.
    """
    small, on_cpu = request["small"], jax.default_backend() == "cpu"
    request["small"] = on_cpu if small is None else small
    request["quick"] = on_cpu and request["small"]
    jax.config.update("jax_disable_most_optimizations", request["quick"])
    return ANSWERS[request["ask"]](request)


def about(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the device, and the facts of each work."""
    works = {name: facts(find_named(name, request["small"])) for name in request["works"]}
    return {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind,
            "count": jax.local_device_count(), "small": request["small"], "works": works}


def facts(work: NamedWork) -> dict[str, Any]:
    """Counts what a batch holds, the weights, and the FLOPs of loss and gradients by hand."""
    x = jax.tree.leaves(jax.eval_shape(partial(work.batch, SEED)))[0]
    text = jnp.issubdtype(x.dtype, jnp.integer)
    return {"dtype": "bfloat16" if work.narrow else "float32",
            "unit": "tokens" if text else "examples", "batch": x.size if text else len(x),
            **counts(work)}


def peak(request: dict[str, Any]) -> dict[str, Any]:
    """Measures the best matrix product in both dtypes; a CPU computes bfloat16 by float32."""
    of = lambda narrow: matmul_peak(narrow, request["seconds"])["flops_per_s"]
    return {"float32": of(False), "bfloat16": None if jax.default_backend() == "cpu" else of(True)}


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Measures a program, and compares its gradients with those of the row's first program."""
    settle_heap()
    work, peer = find_named(request["work"], request["small"]), request["peer"]
    batch, seconds = work.batch(SEED), request["seconds"]
    look = partial(compared, Path(request["gradients"]), request["first"])
    if peer.startswith("torch"):
        if request["quick"]:
            load_peer("torch").torch.set_num_threads(1)  # busy threads disturb each other
        backend = request["compiler"] if peer == "torch-compile" else None
        return measure_torch(work.name, *work.weights(SEED), batch, False, seconds, backend, look)
    program = work.program(peer, request["point"], SEED)
    if request["all_devices"]:
        program, batch = shared(work, program, batch)
    return measure(program, batch, False, seconds, look)


def shared(work: NamedWork, program: Program, batch: Any) -> tuple[Program, Any]:
    """Returns the program by hand and its batch, shared by all devices."""
    mesh = devices()
    fn = of_chain(data_parallel(value_and_grad(work.net, work.loss), mesh), ()).fn
    trained, carried = (replicate(each, mesh) for each in (program.trained, program.carried))
    return program._replace(fn=fn, trained=trained, carried=carried), shard(batch, mesh)


def compared(path: Path, first: bool, grads: Tree) -> dict[str, Any]:
    """Saves the gradients of the first program. Compares others, relative to a leaf's largest."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if first:
        np.savez(path, *leaves)
    if first or not path.exists():
        return {}
    with np.load(path) as saved:
        return {"gradient_difference": relative(leaves, list(saved.values()))}


def tuned(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the settings of jax.grad, runs none, and picks two of them."""
    work = find_named(request["work"], request["small"])
    batch = jax.eval_shape(partial(work.batch, SEED))
    weights = jax.eval_shape(partial(work.weights, SEED))
    settings = work.settings_here

    def size(name: str) -> int:
        fn = of_loss(settings[name], *weights).fn
        analysis: Any = jax.jit(fn).lower(*weights, batch).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def recomputes(name: str) -> bool:
        return bool(REMAT.search(str(jax.make_jaxpr(settings[name])(*weights, batch))))

    sizes, failed = in_threads(size, list(settings), request["seconds"])
    plain = [name for name in sizes if not recomputes(name)]
    return {**picked(sizes, plain), "settings": len(settings), "compiled": len(sizes),
            "failed_settings": failed, "temp_mb": {name: n / 1e6 for name, n in sizes.items()}}


def picked(sizes: dict[str, int], plain: list[str]) -> dict[str, str | None]:
    """Picks the setting with the least bytes, and of the others in `plain` that with the least."""
    others = [name for name in plain if name != "idiomatic"]
    least = partial(min, key=sizes.__getitem__, default=None)
    return {"least": least(sizes), "plain": least(others)}


def in_threads(fn: Callable[[str], Any], names: list[str],
               seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs `fn` of every name on all cores: results after at most `seconds`, reasons of failures.

    No call starts after the first third of the time, so that few still run at its end.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    futures: dict[str, Future] = {name: pool.submit(fn, name) for name in names}
    wait(futures.values(), timeout=seconds / 3)
    pool.shutdown(wait=False, cancel_futures=True)
    wait([each for each in futures.values() if not each.cancelled()], timeout=2 * seconds / 3)
    done = {name: each for name, each in futures.items() if each.done() and not each.cancelled()}
    errors = {name: each.exception() for name, each in done.items()}
    failed = {name: one_line(error) for name, error in errors.items() if error}
    return {name: each.result() for name, each in done.items() if name not in failed}, failed


def layers(request: dict[str, Any]) -> dict[str, Any]:
    """Compares one case of every layer with the CPU's float32, on a CPU with its float64."""
    cases: dict[str, Case] = {}
    for case in CASES:
        if case.verdict == "OK":
            cases.setdefault(case.of, case)
    of = lambda name: layer_difference(cases[name])
    found, failed = in_threads(of, list(cases), request["seconds"])
    on_cpu = jax.default_backend() == "cpu"
    against = "float64 on the same CPU" if on_cpu else "float32 on the CPU"
    return {"against": against, "layers": len(cases), "differences": found, "failed_layers": failed}


def layer_difference(case: Case) -> float:
    """Returns the largest difference of a gradient, relative to the largest entry of its leaf."""
    rng, here, cpu = np.random.default_rng(SEED), jax.devices()[0], jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        with jax.default_device(cpu):
            x = cast(case.x(rng), np.float64)
            subject, theta, fixed = layer_subject(case.layer, draw_params(case.layer, x, rng), x)
            size = jax.eval_shape(subject.f, theta, fixed).size
            point = Point(np.asarray(theta), fixed, rng.standard_normal(size)).astype(np.float32)
        rule = quick_jit(subject.rule)

        def gradients(at: Point, device: Any) -> list[Any]:
            found = jax.device_get(rule(*jax.device_put((at.theta, at.fixed, at.dy), device)))
            return [found[leaf.slice] for leaf in subject.leaves]

        reference = point.astype(np.float64) if here == cpu else point
        return relative(gradients(point, here), gradients(reference, cpu))


ANSWERS = {"about": about, "peak": peak, "run": measured, "tuned": tuned, "layers": layers}
