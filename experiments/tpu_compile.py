"""What do loss and gradients of the GPT-2 work need on a TPU, by hand and by jax.grad, as its compiler says without one?

Rows      K2, G3
Needs     libtpu
Command   python experiments/tpu_compile.py [--seed N] [--quick] [--out DIR]
Expected  a hand-written setting needs less temporary memory than every point of jax.grad; as each is given, by hand needs less;
          for every point of jax.grad that makes something again a hand-written one in no more memory does at most 1.02 of its
          FLOPs, against the idiomatic one at most 1.06
Time      about 30 minutes on two cores, of one compile after another; --quick 2 minutes

libtpu compiles for a TPU v5e of 16 GB and runs nothing: `pip install libtpu`, of the version that jax[tpu] asks for. The work
is gpt2-124m of fbackprop bench, batch 16, bfloat16 computing on float32 weights; jax.grad is that of the idiomatic version at
all its points. FLOPs are counted in the jaxpr, before XLA merges what is made twice; XLA's own count takes a scan's body once,
and so does its count of bytes accessed. A program that does not fit is told with what it asks for. Nothing depends on the seed.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
from bench.baselines import Baseline, of_gpts
from bench.works import of_loss, tokens
from jax.experimental import topologies
from lab import Lab, main

from fbackprop import PRECISIONS, Layer, gpt, value_and_grad, with_precision
from fbackprop.comparison.bench.program import of_chain
from fbackprop.errors import Problem
from fbackprop.jaxprs.flops import count_flops
from fbackprop.memory import every, with_schedules

CHIP = "v5e:2x2"  # the smallest there is; programs are for one of its devices
OFFLINE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
           "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
FULL = {"vocabulary": 50257, "length": 1024, "features": 768, "heads": 12, "blocks": 12}
QUICK = {"vocabulary": 16384, "length": 256, "features": 128, "heads": 2, "blocks": 2}  # less would fit beside the registers
CHUNKS = 32  # of tokens, in a chunked head
REPEAT = "0/0/2"  # where the blocks are in the net
BY_HAND: dict[str, dict[str, Any]] = {  # tile: attention's, as a share of T; keep: the input of every so-many-th block
    "all kept": {}, "chunked head": {"chunked": True}, "blocked attention": {"tile": 4},
    "blocked, chunked head": {"tile": 4, "chunked": True}, "written out, chunked head": {"chunked": True, "unroll": True},
    "checkpoint": {"keep": 1}, "checkpoint, chunked head": {"keep": 1, "chunked": True},
    "checkpoint, blocked, chunked head": {"keep": 1, "tile": 4, "chunked": True}}


def net_of(sizes: dict[str, int], batch: int, tile: int | None = None, chunked: bool = False, keep: int | None = None,
           unroll: bool = False) -> Layer:
    block, chunk = tile and sizes["length"] // tile, batch * sizes["length"] // CHUNKS if chunked else None
    net = gpt(**sizes, block=block, chunk=chunk, unroll=unroll)
    net = with_schedules(net, {REPEAT: every(keep, sizes["blocks"])}) if keep else net
    return with_precision(net, PRECISIONS["bfloat16"])


def programs(sizes: dict[str, int], batch: int, spec: Any, quick: bool) -> Iterator[tuple]:
    """Yields (who, setting, the Program). Shapes stand for the weights."""
    hand = {name: partial(net_of, sizes, batch, **options) for name, options in BY_HAND.items()}
    params = jax.eval_shape(hand["all kept"]().init, jax.random.key(0), spec)
    baseline: Baseline = of_gpts(sizes["heads"], CHUNKS, jnp.bfloat16)
    theirs = jax.eval_shape(baseline.adapt, params)
    picked = ("all kept", "checkpoint, chunked head", "idiomatic")
    for name, net in hand.items():
        if name in picked or not quick:
            yield "by hand", name, of_chain(value_and_grad(net()), params)
    for name, loss in baseline.points.items():
        if name in picked or not quick:
            yield "jax.grad", name, of_loss(loss, *theirs)


def compiled(fn: Callable, device: Any, *args: Any) -> dict[str, Any]:
    """XLA's figures for `fn(*args)` on `device`. wants_gb: all it asks for, where that is more than there is."""
    there = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), args)
    began = time.perf_counter()
    try:
        program = jax.jit(fn).trace(*args).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        wants = re.search(r"temporaries \(([\d.]+)G\) exceeds|Used ([\d.]+)G of", str(error))
        if not wants:
            raise
        return {"wants_gb": float(wants[1] or wants[2]) * 2**30 / 1e9, "compile_s": time.perf_counter() - began}
    memory, costs = program.memory_analysis(), program.cost_analysis()
    return {"temp_gb": memory.temp_size_in_bytes / 1e9, "xla_tflop": costs["flops"] / 1e12,
            "accessed_gb": costs["bytes accessed"] / 1e9, "compile_s": time.perf_counter() - began}


def devices() -> Any:
    """Those of a TPU that is not there. Raises Problem without libtpu."""
    try:
        found = version("libtpu")
    except PackageNotFoundError as error:
        raise Problem("tpu_compile: expected libtpu, which compiles for a TPU without one; it is not installed. "
                      "`pip install libtpu`, of the version that jax[tpu] asks for") from error
    os.environ.update({name: value for name, value in OFFLINE.items() if name not in os.environ})
    jax.config.update("jax_platforms", "cpu")  # or jax would look for the TPU
    print(f"jax {jax.__version__}, libtpu {found}, {CHIP}\n", file=sys.stderr)
    return topologies.get_topology_desc(platform="tpu", topology_name=CHIP).devices


def experiment(lab: Lab) -> None:
    device, (sizes, batch) = devices()[0], lab.pick((FULL, 16), (QUICK, 64))
    spec = jax.eval_shape(tokens(sizes["vocabulary"], batch, sizes["length"]), 0)
    found = []
    for who, name, program in programs(sizes, batch, spec, lab.quick):
        args = program.trained, program.carried, spec
        flops = count_flops(program.fn, *args)
        figures = compiled(program.fn, device, *args)
        found.append({"who": who, "setting": name, "tflop": flops / 1e12, **figures})
        print(found[-1], file=sys.stderr, flush=True)
    rows = [(each["who"], each["setting"], each.get("temp_gb", f"does not fit, {each.get('wants_gb', 0):.1f} GB"),
             *(each.get(key, "") for key in ("tflop", "xla_tflop", "accessed_gb", "compile_s"))) for each in found]
    lab.table(("gradients", "setting", "temporary GB", "TFLOP", "by XLA", "accessed GB", "compile s"), rows)
    lab.keep(arms=found, chip=device.device_kind, libtpu=version("libtpu"))
    judge(lab, *([each for each in found if each["who"] == who] for who in ("by hand", "jax.grad")))


def judge(lab: Lab, mine: list[dict], theirs: list[dict]) -> None:
    inf = float("inf")
    gb = lambda each: each.get("temp_gb", inf)
    least = min(map(gb, mine)) / min(map(gb, theirs))
    lab.expect("least memory by hand over the least of jax.grad, at most 1", least, least <= 1)
    given = gb(mine[0]) / gb(theirs[0])
    lab.expect("memory as given, all kept over idiomatic, at most 1", given, given <= 1)
    if lab.quick:
        return  # the head is most of so small a net, and its logits are counted twice
    flops = {each["setting"]: min((own["tflop"] for own in mine if gb(own) <= gb(each)), default=inf) / each["tflop"]
             for each in theirs if gb(each) < inf}
    lab.keep(flops_at_equal_memory=flops)
    first = flops.pop(theirs[0]["setting"], 0.0)  # nothing to compare where it does not fit
    worst = max(flops, key=flops.__getitem__)
    lab.expect(f"FLOPs in no more memory over those of jax.grad, at most 1.02 (worst over {worst!r})", flops[worst],
               flops[worst] <= 1.02)
    lab.expect("FLOPs in no more memory over those of the idiomatic one, at most 1.06", first, first <= 1.06)


if __name__ == "__main__":
    sys.exit(main(experiment))
