"""How much deeper does a net get in the same memory when every k-th layer is kept, and what does the time cost?

Rows      K3
Command   python experiments/checkpoints.py [--seed N] [--quick] [--out DIR]
Expected  keeping every 5th layer, a net at least 2 times as deep fits in the same memory, for at most 30 % more time
Time      about 40 s on two cores; --quick 5 s

The net is n layers of layer norm, tanh and a dense layer in one scan. `checkpoint` around k of them keeps what goes into the k
and makes the rest again in the backward. A segment ends in a dense layer, whose product no rule needs: it is not recomputed, so
of k products k - 1 run a second time, and a step costs (k - 1) / 3 k more than its three products a layer. Memory is XLA's
temporary bytes of the compiled loss and gradients, which is exact; weights and gradients come on top of it, in both nets alike.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
from lab import Lab, main
from programs import Program, time_ratio

from fbackprop import Layer, chain, checkpoint, dense, layer_norm, repeat, tanh

WIDTH, BATCH = 256, 256


def net_of(depth: int, every: int) -> Layer:
    """`depth` layers, of which every `every`-th one's input is kept; 0: all is kept."""
    block = chain(layer_norm(), tanh(), dense(WIDTH))
    return repeat(checkpoint(chain(*[block] * every)), depth // every) if every else repeat(block, depth)


@cache
def program(depth: int, every: int) -> Program:
    return Program(net_of(depth, every), BATCH, WIDTH)


def reach(budget: int, every: int, segments: tuple[int, ...]) -> float:
    """The depth that fits into `budget` bytes: memory is a line in the depth, here through two compiled ones."""
    depths = [every * count for count in segments]
    slope, start = np.polyfit(depths, [program(depth, every).temp_bytes for depth in depths], 1)
    return (budget - start) / slope


def experiment(lab: Lab) -> None:
    depth, rows = lab.pick(40, 20), []
    whole = program(depth, 0)
    for every in lab.pick((2, 4, 5, 8, 10), (5,)):
        again = program(depth, every)
        ratio = float("nan") if lab.quick else time_ratio(again, whole, lab.seed, 15)
        deeper = reach(whole.temp_bytes, every, lab.pick((4, 16), (2, 8))) / depth
        rows.append((every, again.temp_bytes / whole.temp_bytes, deeper, ratio, 1 + (every - 1) / every / 3))
    lab.keep(all_kept_mb=whole.temp_bytes / 1e6, depth=depth)
    print(f"{depth} layers of {WIDTH}, batch {BATCH}, all kept: {whole.temp_bytes / 1e6:.1f} MB of temporary memory\n")
    lab.table(("every", "memory", "depth in the same memory", "time", "time by counting products"), rows, "checkpoints")
    five = next(row for row in rows if row[0] == 5)
    lab.expect("every 5th layer kept: times as deep in the same memory, at least 2", five[2], five[2] >= 2)
    lab.expect("every 5th layer kept: time of a step over that with all kept, at most 1.3", five[3], five[3] <= 1.3, timed=True)
    if lab.figure(columns=2) is not None:
        draw(lab, rows)


def draw(lab: Lab, rows: list[tuple]) -> None:
    deeper, slower = lab.drawn.axes
    every, _, depth, ratio, counted = zip(*rows)
    deeper.plot(every, depth, "o-")
    deeper.axhspan(2, 3, color="#eeeeee", zorder=0)
    deeper.set(xlabel="k: every k-th layer is kept", ylabel="times as deep in the same memory", ylim=(0, None),
               title="how much deeper (grey: 2 to 3, as usually stated)")
    slower.plot(every, ratio, "o-", label="measured")
    slower.plot(every, counted, "--", label="by counting products")
    slower.axhspan(1.2, 1.3, color="#eeeeee", zorder=0)
    slower.set(xlabel="k: every k-th layer is kept", ylabel="time of a step, over that with all kept", ylim=(1, None),
               title="how much slower (grey: 20 to 30 %)")
    slower.legend()


if __name__ == "__main__":
    sys.exit(main(experiment))
