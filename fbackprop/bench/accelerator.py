"""What experiments/accelerator.py asks of a process on the device: an arm of a row, the tuned settings, or every layer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..compose import value_and_grad
from ..explain.compare import relative
from ..flops import count_flops
from ..layer import Tree, split
from ..train.parallel import data_parallel, devices, replicate, shard
from ..verify.cases import CASES, Case
from ..verify.check import draw_params
from ..verify.oracles import Point, quick_jit
from ..verify.subject import cast, layer_subject
from .arm import Arm, arm_of, host, load_peer, matmul_peak, measure_jax, measure_torch, of_chain, of_loss, settings_of, settle_heap
from .idiomatic import IDIOMS
from .serve import one_line
from .works import Work, find_work

SEED = 0
REMAT = re.compile(r"\b(checkpoint|remat\d?)\[")  # how jax.checkpoint prints in a jaxpr


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request, whose `ask` names a function of ANSWERS.

    A small run on a CPU compiles without most optimizations: most of it is compiling, and the bytes stay the same.
    """
    small, on_cpu = request["small"], jax.default_backend() == "cpu"
    request["small"] = on_cpu if small is None else small
    request["quick"] = on_cpu and request["small"]
    jax.config.update("jax_disable_most_optimizations", request["quick"])
    return ANSWERS[request["ask"]](request)


def about(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the device, and of each work its FLOPs and the unit of its batch."""
    first = jax.devices()[0]
    works = {name: facts(find_work(name, request["small"])) for name in request["works"]}
    return {"backend": jax.default_backend(), "device": first.device_kind, "count": jax.local_device_count(),
            "small": request["small"], "works": works}


def facts(work: Work) -> dict[str, Any]:
    """Counts the FLOPs of loss and gradients by hand, and what a batch holds. Nothing runs."""
    unit, count = work.counted
    params, batch = jax.eval_shape(partial(work.params, SEED)), jax.eval_shape(partial(work.batch, SEED))
    return {"dtype": "bfloat16" if work.narrow else "float32", "unit": unit, "batch": count,
            "params": sum(leaf.size for leaf in jax.tree.leaves(split(params)[0])),
            "flops": count_flops(value_and_grad(work.net, work.loss), params, batch)}


def peak(request: dict[str, Any]) -> dict[str, Any]:
    """Measures the best matrix product in both dtypes; a CPU has no bfloat16 of its own."""
    narrow = None if jax.default_backend() == "cpu" else matmul_peak(True, request["seconds"])["flops_per_s"]
    return {"float32": matmul_peak(False, request["seconds"])["flops_per_s"], "bfloat16": narrow}


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Measures an arm; its gradients are compared with those that the first arm of the row has left in a file."""
    settle_heap()
    work, peer, seconds = find_work(request["work"], request["small"]), request["peer"], request["seconds"]
    look = partial(compared, Path(request["gradients"]), request["first"])
    if peer.startswith("torch"):
        if request["quick"]:
            load_peer(peer).torch.set_num_threads(1)  # its threads wait busily, which a small work on few cores suffers from
        return measure_torch(work, peer, False, SEED, seconds, look, request["compiler"])
    arm, batch = arm_of(work, peer, request["point"], SEED), work.batch(SEED)
    if request["all_devices"]:
        arm, batch = shared(work, arm, batch)
    return measure_jax(arm, batch, False, seconds, look)


def shared(work: Work, arm: Arm, batch: Any) -> tuple[Arm, Any]:
    """Returns the arm by hand, and its batch, over all devices."""
    mesh = devices()
    fn = of_chain(data_parallel(value_and_grad(work.net, work.loss), mesh), ()).fn
    return Arm(fn, *(replicate(each, mesh) for each in (arm.trained, arm.carried)), arm.named), shard(batch, mesh)


def compared(path: Path, first: bool, grads: Tree) -> dict[str, Any]:
    """Saves the gradients of the first arm; returns how far those of any other are from them, relative to each leaf's largest."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if first:
        np.savez(path, *leaves)
        return {}
    if not path.exists():
        return {}
    with np.load(path) as saved:
        return {"gradient_difference": relative(leaves, list(saved.values()))}


def tuned(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the settings of jax.grad, without running them, and picks two: see `picked`."""
    work = find_work(request["work"], request["small"])
    batch = jax.eval_shape(partial(work.batch, SEED))
    theirs = jax.eval_shape(lambda: IDIOMS[work.name].adapt(work.params(SEED)))
    settings = settings_of(work)

    def size(name: str) -> int:
        fn = of_loss(settings[name], *theirs).fn
        return jax.jit(fn).lower(*theirs, batch).compile().memory_analysis().temp_size_in_bytes

    sizes, failed = in_threads(size, list(settings), request["seconds"])
    plain = [name for name in sizes if not REMAT.search(str(jax.make_jaxpr(settings[name])(*theirs, batch)))]
    return {**picked(sizes, plain), "settings": len(settings), "compiled": len(sizes), "failed_settings": failed,
            "temp_mb": {name: each / 1e6 for name, each in sizes.items()}}


def picked(sizes: dict[str, int], plain: list[str]) -> dict[str, str | None]:
    """Picks the setting with the fewest bytes, and the one with the fewest that is not idiomatic and recomputes nothing."""
    others = [name for name in sizes if name in plain and name != "idiomatic"]
    return {"least": min(sizes, key=sizes.__getitem__, default=None), "plain": min(others, key=sizes.__getitem__, default=None)}


def in_threads(fn: Callable[[str], Any], names: list[str], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs `fn` of every name on all cores. Returns the results after at most `seconds`, and the reason of each failure.

    None starts in the second half of the time, so that few are left running.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    futures: dict[str, Future] = {name: pool.submit(fn, name) for name in names}
    wait(futures.values(), timeout=seconds / 2)
    pool.shutdown(wait=False, cancel_futures=True)
    wait([future for future in futures.values() if future.running()], timeout=seconds / 2)
    done = {name: future for name, future in futures.items() if future.done() and not future.cancelled()}
    failed = {name: one_line(error) for name, future in done.items() if (error := future.exception())}  # type: ignore[arg-type]
    return {name: future.result() for name, future in done.items() if name not in failed}, failed


def layers(request: dict[str, Any]) -> dict[str, Any]:
    """Compares the gradients of one case of every layer with the CPU's, or on a CPU with those in float64."""
    cases: dict[str, Case] = {}
    for case in CASES:
        if case.verdict == "OK":
            cases.setdefault(case.of, case)
    found, failed = in_threads(lambda name: of_layer(cases[name]), list(cases), request["seconds"])
    against = "float64 on the same CPU" if jax.default_backend() == "cpu" else "float32 on the CPU"
    return {"against": against, "layers": len(cases), "differences": found, "failed_layers": failed}


def of_layer(case: Case) -> float:
    """Returns the largest difference of a leaf's gradient, relative to the leaf's largest entry."""
    rng, here, cpu = np.random.default_rng(SEED), jax.devices()[0], jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        with jax.default_device(cpu):
            x = cast(case.x(rng), np.float64)
            subject, theta, fixed = layer_subject(case.layer, draw_params(case.layer, x, rng), x)
            size = jax.eval_shape(subject.f, theta, fixed).size
            point = Point(np.asarray(theta), fixed, rng.standard_normal(size)).astype(np.float32)
        rule = quick_jit(subject.rule)
        reference = point.astype(np.float64) if here == cpu else point
        a, b = (host(rule(*jax.device_put((at.theta, at.fixed, at.dy), there))) for at, there in ((point, here), (reference, cpu)))
    return relative([a[leaf.slice] for leaf in subject.leaves], [b[leaf.slice] for leaf in subject.leaves])


ANSWERS = {"about": about, "peak": peak, "arm": measured, "tuned": tuned, "layers": layers}
