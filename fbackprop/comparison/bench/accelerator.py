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
import numpy as np

from ...distributed.mesh import data_parallel, devices, replicate, shard
from ...gradients import value_and_grad
from ...jaxprs.flops import count_flops
from ...params import Tree, split
from ...verify.cases import CASES, Case
from ...verify.check import draw_params
from ...verify.oracles import Point, quick_jit
from ...verify.subject import cast, layer_subject
from ..costs import relative
from . import arm as arms
from .idiomatic import IDIOMS
from .worker import one_line
from .works import Work, find_work

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
    works = {name: facts(find_work(name, request["small"])) for name in request["works"]}
    return {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind,
            "count": jax.local_device_count(), "small": request["small"], "works": works}


def facts(work: Work) -> dict[str, Any]:
    """Counts what a batch holds, and the FLOPs of loss and gradients by hand. Runs nothing."""
    unit, count = work.counted
    params, batch = jax.eval_shape(lambda: (work.params(SEED), work.batch(SEED)))
    return {"dtype": "bfloat16" if work.narrow else "float32", "unit": unit, "batch": count,
            "params": sum(leaf.size for leaf in jax.tree.leaves(split(params)[0])),
            "flops": count_flops(value_and_grad(work.net, work.loss), params, batch)}


def peak(request: dict[str, Any]) -> dict[str, Any]:
    """Measures the best matrix product in both dtypes; a CPU computes bfloat16 by float32."""
    of = lambda narrow: arms.matmul_peak(narrow, request["seconds"])["flops_per_s"]
    return {"float32": of(False), "bfloat16": None if jax.default_backend() == "cpu" else of(True)}


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Measures an arm, and compares its gradients with those of the first arm of the row."""
    arms.settle_heap()
    work, peer = find_work(request["work"], request["small"]), request["peer"]
    seconds = request["seconds"]
    look = partial(compared, Path(request["gradients"]), request["first"])
    if peer.startswith("torch"):
        if request["quick"]:
            arms.load_peer(peer).torch.set_num_threads(1)  # busy threads disturb each other
        return arms.measure_torch(work, peer, False, SEED, seconds, look, request["compiler"])
    arm, batch = arms.arm_of(work, peer, request["point"], SEED), work.batch(SEED)
    if request["all_devices"]:
        arm, batch = shared(work, arm, batch)
    return arms.measure_jax(arm, batch, False, seconds, look)


def shared(work: Work, arm: arms.Arm, batch: Any) -> tuple[arms.Arm, Any]:
    """Returns the arm by hand and its batch, shared by all devices."""
    mesh = devices()
    fn = arms.of_chain(data_parallel(value_and_grad(work.net, work.loss), mesh), ()).fn
    trained, carried = (replicate(each, mesh) for each in (arm.trained, arm.carried))
    return arm._replace(fn=fn, trained=trained, carried=carried), shard(batch, mesh)


def compared(path: Path, first: bool, grads: Tree) -> dict[str, Any]:
    """Saves the gradients of the first arm. Compares others, relative to each leaf's largest."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if first:
        np.savez(path, *leaves)
    if first or not path.exists():
        return {}
    with np.load(path) as saved:
        return {"gradient_difference": relative(leaves, list(saved.values()))}


def tuned(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the settings of jax.grad, runs none, and picks two of them."""
    work = find_work(request["work"], request["small"])
    batch = jax.eval_shape(partial(work.batch, SEED))
    weights = jax.eval_shape(lambda: IDIOMS[work.name].adapt(work.params(SEED)))
    settings = arms.settings_of(work)

    def size(name: str) -> int:
        fn = arms.of_loss(settings[name], *weights).fn
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
            found = arms.host(rule(*jax.device_put((at.theta, at.fixed, at.dy), device)))
            return [found[leaf.slice] for leaf in subject.leaves]

        reference = point.astype(np.float64) if here == cpu else point
        return relative(gradients(point, here), gradients(reference, cpu))


ANSWERS = {"about": about, "peak": peak, "arm": measured, "tuned": tuned, "layers": layers}
