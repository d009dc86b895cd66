"""How do memory, time and seconds to compile of loss and gradients grow with depth, width, batch, sequence and vocabulary?

Rows      K1, K2, K3
Command   python experiments/scaling.py [--seed N] [--quick] [--out DIR]
Expected  as slopes on log axes. Temporary memory over depth: 1 with all kept, at most .6 with root(n); over batch and width 1;
          over the sequence 1 with blocked attention, 2 without it and for jax.grad; over the vocabulary 1 with whole logits,
          0 in chunks of classes; over the tokens 1 with whole logits, 0 in chunks of tokens. Seconds to compile over depth: 0
          in a repeat, at least .4 written out (what is no block takes its time too). Time: 1 over depth and batch, from 1 to 2
          over width and sequence
Time      about 4 minutes on two cores; --quick 1 minute

Small gpts, and their head alone; jax.grad is that of the idiomatic version, its blocks in a Python loop. Memory is XLA's
temporary bytes of the compiled loss and gradients, and exact. Nothing but the times depends on the seed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench.baselines import of_gpts
from bench.works import of_loss, tokens
from lab import Lab, main

from fbackprop import Layer, gpt, linear_cross_entropy, value_and_grad
from fbackprop.comparison.costs import take_turns
from fbackprop.memory import root, with_schedules

HEADS, TILE, CHUNK = 4, 64, 64
MIDDLE = {"depth": 4, "width": 64, "batch": 16, "sequence": 64, "vocabulary": 256}
REPEAT = "0/0/2"  # where the blocks are in a gpt
Made = tuple[Callable, Any, Any]  # (params, batch) -> (value, gradients), and the specs of both


def by_hand(sizes: dict[str, int], rooted: bool = False, tile: int | None = None, unroll: bool = False) -> Made:
    depth = sizes["depth"]
    net = gpt(sizes["vocabulary"], sizes["sequence"], features=sizes["width"], heads=HEADS,
              blocks=depth, block=tile, chunk=CHUNK, unroll=unroll)
    net = with_schedules(net, {REPEAT: root(depth)}) if rooted else net
    batch = jax.eval_shape(tokens(sizes["vocabulary"], sizes["batch"], sizes["sequence"]), 0)
    return value_and_grad(net), jax.eval_shape(net.init, jax.random.key(0), batch), batch


def by_jax(sizes: dict[str, int]) -> Made:
    """The idiomatic gpt, its blocks in a Python loop."""
    _, params, batch = by_hand(sizes)
    baseline = of_gpts(HEADS, 1)
    trained, _ = jax.eval_shape(baseline.adapt, params)
    program = of_loss(baseline.points["idiomatic"], trained, ())
    return lambda params, batch: program.fn(params, (), batch)[:2], trained, batch


def head(sizes: dict[str, int], **options: Any) -> Made:
    """linear_cross_entropy alone; its dh is asked for as a net in front would."""
    count = sizes["batch"] * sizes["sequence"]
    h, target = jax.ShapeDtypeStruct((count, sizes["width"]), jnp.float32), jax.ShapeDtypeStruct((count,), jnp.int32)
    loss: Layer = linear_cross_entropy(sizes["vocabulary"], **options)

    def run(params: Any, batch: Any) -> Any:
        value, kept = loss.forward(params, batch)
        return value, loss.backward(params, kept, jnp.ones_like(value))

    return run, jax.eval_shape(loss.init, jax.random.key(0), (h, target)), (h, target)


class Program:
    """Compiled from shapes alone."""

    def __init__(self, made: Made) -> None:
        fn, *self.specs = made
        lowered = jax.jit(fn).lower(*self.specs)
        began = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - began
        self.bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def ready(self, seed: int) -> partial:
        """To be called: small random weights, tokens of the first classes."""
        rng = np.random.default_rng(seed)

        def draw(a: jax.ShapeDtypeStruct) -> jax.Array:
            floating = jnp.issubdtype(a.dtype, jnp.floating)
            return jnp.asarray(0.02 * rng.standard_normal(a.shape) if floating else rng.integers(0, 99, a.shape), a.dtype)

        return partial(self.compiled, *jax.tree.map(draw, self.specs))


@dataclass
class Sweep:
    """One axis, the other sizes, and what is compiled; found: by name, a program per value."""

    axis: str
    values: tuple[int, ...]
    makers: dict[str, Callable[[dict[str, int]], Made]]
    others: dict[str, int] = field(default_factory=dict)
    alone: str = ""  # what of the net is measured
    found: dict[str, list[Program]] = field(default_factory=dict)

    def compile(self) -> None:
        for name, make in self.makers.items():
            self.found[name] = [Program(make({**MIDDLE, **self.others, self.axis: value})) for value in self.values]

    def memory(self, name: str) -> list[float]:
        return [each.bytes for each in self.found[name]]

    def row(self, name: str) -> tuple:
        memory = self.memory(name)
        values = ", ".join(map(str, self.values))
        return self.axis, values, name, memory[0] / 1e6, memory[-1] / 1e6, self.slope(memory)

    def slope(self, figures: Any) -> float:
        return float(np.polyfit(np.log(self.values), np.log(figures), 1)[0])


def sweeps(lab: Lab) -> list[Sweep]:
    blocked = partial(by_hand, tile=TILE)
    beside: dict[str, Any] = lab.pick({"jax.grad": by_jax}, {})  # compiling these takes as long as all the rest
    written = lab.pick({"written out": partial(by_hand, unroll=True), **beside}, {})
    big = {"width": 16, "batch": 1, "sequence": 1024, "vocabulary": 8192}
    return [
        Sweep("depth", lab.pick((16, 64, 256), (16, 64)), {"all kept": by_hand, "root(n)": partial(by_hand, rooted=True)},
              {"width": 32}),
        Sweep("width", lab.pick((32, 64, 128, 256), (64, 256)), {"by hand": by_hand}, {"sequence": 32, "batch": 64}),
        Sweep("batch", lab.pick((16, 32, 64, 128), (16, 64)), {"by hand": by_hand}),
        Sweep("sequence", lab.pick((512, 1024, 2048, 4096), (512, 2048)),
              {"blocked": blocked, "whole": by_hand, **beside}, {"batch": 1, "depth": 2}),
        Sweep("vocabulary", lab.pick((2048, 8192, 32768), (2048, 32768)),
              {"whole logits": head, "chunks of classes": partial(head, chunk=CHUNK, axis="vocabulary")}, big, "the head"),
        Sweep("sequence", lab.pick((512, 2048, 8192), (512, 8192)),
              {"whole logits": head, "chunks of tokens": partial(head, chunk=CHUNK)}, big, "the head"),
        Sweep("depth", lab.pick((2, 4, 8, 16), (1, 2)), {"repeat": by_hand, **written},
              {"width": 32, "batch": 4})]


BOUNDS = (  # of the slopes of memory, a row for each sweep
    {"all kept": (0.9, 1.1), "root(n)": (0, 0.6)}, {"by hand": (0.9, 1.1)}, {"by hand": (0.9, 1.1)},
    {"blocked": (0.85, 1.15), "whole": (1.7, 2.1), "jax.grad": (1.7, 2.1)},
    {"whole logits": (0.9, 1.1), "chunks of classes": (-0.2, 0.2)},
    {"whole logits": (0.9, 1.1), "chunks of tokens": (-0.2, 0.2)})
COMPILING = {"repeat": (-0.2, 0.2), "written out": (0.4, 2), "jax.grad": (0.4, 2)}
TIMES = {"depth": (0.7, 1.3), "width": (0.8, 2.1), "batch": (0.7, 1.3), "sequence": (0.9, 2.1)}


def judge(lab: Lab, what: str, slope: float, bounds: tuple[float, float], **options: Any) -> None:
    low, high = bounds
    lab.expect(f"slope of {what}: {low} to {high}", slope, low <= slope <= high, **options)


def experiment(lab: Lab) -> None:
    found = sweeps(lab)
    for sweep in found:
        sweep.compile()
    *of_memory, of_compiling = found
    rows = [sweep.row(name) for sweep in of_memory for name in sweep.makers]
    lab.table(("over", "at", "gradients", "MB at first", "at last", "slope"), rows, "memory")
    for sweep, bounds in zip(of_memory, BOUNDS):
        for name in sweep.makers:
            slope = sweep.slope(sweep.memory(name))
            judge(lab, f"memory over {sweep.axis}, {name}", slope, bounds[name])
    compiling = {name: [each.compile_s for each in programs]
                 for name, programs in of_compiling.found.items()}
    for name, seconds in compiling.items():
        judge(lab, f"seconds to compile over depth, {name}", of_compiling.slope(seconds),
              COMPILING[name], timed=True)
    times = {}
    for sweep in of_memory[: len(TIMES)]:
        programs = dict(zip(map(str, sweep.values), next(iter(sweep.found.values()))))
        spent = take_turns({name: each.ready(lab.seed) for name, each in programs.items()}, lab.pick(7, 1))
        ms = times[sweep.axis] = [float(np.median(each)) for each in spent.values()]
        judge(lab, f"time over {sweep.axis}", sweep.slope(ms), TIMES[sweep.axis], timed=True)
    sizes = [{name: sweep.memory(name) for name in sweep.makers} for sweep in of_memory]
    lab.keep(ms=times, compile_s=compiling, bytes=sizes)
    if lab.figure(wide=13, high=6.5, rows=2, columns=4) is not None:
        draw(lab, found, times)


def draw(lab: Lab, found: list[Sweep], times: dict[str, list[float]]) -> None:
    from matplotlib.ticker import LogLocator

    *of_memory, of_compiling = found
    for ax, sweep in zip(lab.drawn.axes, found):
        compiling = sweep is of_compiling
        for name, programs in sweep.found.items():
            megabytes = np.array(sweep.memory(name)) / 1e6
            figures = [each.compile_s for each in programs] if compiling else megabytes
            ax.loglog(sweep.values, figures, "o-", label=f"{name}: {sweep.slope(figures):.2f}")
        ax.set(title=f"{'seconds to compile' if compiling else 'MB'} over {sweep.axis}{sweep.alone and ', ' + sweep.alone}")
    last = lab.drawn.axes[-1]
    for sweep in of_memory[: len(times)]:
        ms = np.array(times[sweep.axis])
        last.loglog(np.array(sweep.values) / sweep.values[0], ms / ms[0], "o-", label=f"{sweep.axis}: {sweep.slope(ms):.2f}")
    last.set(title="time, as multiples of the first")
    for ax, sweep in zip(lab.drawn.axes, found):
        ax.set_xticks(sweep.values, map(str, sweep.values))
    last.set_xticks((1, 2, 4, 8, 16), map(str, (1, 2, 4, 8, 16)))
    for ax in lab.drawn.axes:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.legend(fontsize=8, title="slope", title_fontsize=8)


if __name__ == "__main__":
    sys.exit(main(experiment))
