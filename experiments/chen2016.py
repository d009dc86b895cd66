"""Does memory grow with the square root of the depth when a net of n layers keeps the input of every sqrt(n)-th?

Rows      K3
Command   python experiments/chen2016.py [--seed N] [--quick] [--out DIR]
Expected  temporary memory grows like n with all kept, like sqrt(n) with sqrt(n) segments (slopes 1 and .5 on log axes, +- .1);
          of all segment lengths about sqrt(n) needs the least; a step costs one more forward: at most 40 % more time
Time      about 60 s on two cores; --quick 5 s

Repeats the finding of Chen, Xu, Zhang and Guestrin 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174,
sections 4.1 and 5: memory O(sqrt n) for one more forward pass. Theirs are residual and recurrent nets on a GPU, the memory
what the framework allocates; ours a scan over n dense layers with tanh on a CPU, the memory XLA's temporary bytes.
"""

from __future__ import annotations

import sys
from functools import cache
from math import isqrt

import numpy as np
from lab import Lab, main
from programs import Program, time_ratio

from fbackprop import Layer, chain, checkpoint, dense, repeat, tanh

WIDTH, BATCH = 256, 256


def net_of(depth: int, segment: int) -> Layer:
    """Segments of `segment` layers, of each only the input kept; 0: all kept."""
    block = chain(tanh(), dense(WIDTH))
    return repeat(checkpoint(repeat(block, segment)), depth // segment) if segment else repeat(block, depth)


@cache
def program(depth: int, segment: int) -> Program:
    return Program(net_of(depth, segment), BATCH, WIDTH)


def experiment(lab: Lab) -> None:
    depths = lab.pick((16, 64, 256, 1024), (64, 256))
    kept = [program(depth, 0).temp_bytes for depth in depths]
    rooted = [program(depth, isqrt(depth)).temp_bytes for depth in depths]
    lab.table(("layers", "all kept, MB", "sqrt(n) segments, MB", "ratio"),
              [(n, a / 1e6, b / 1e6, a / b) for n, a, b in zip(depths, kept, rooted)], "memory")
    slope = lambda sizes: float(np.polyfit(np.log(depths[-3:]), np.log(sizes[-3:]), 1)[0])
    lab.expect("slope of memory over depth, all kept: 1 +- .1", slope(kept), abs(slope(kept) - 1) <= 0.1)
    lab.expect("slope with sqrt(n) segments: .5 +- .1", slope(rooted), abs(slope(rooted) - 0.5) <= 0.1)

    n = depths[-2]
    sizes = {length: program(n, length).temp_bytes for length in lab.pick((2, 4, 8, 16, 32, 64, 128), (2, 8, 32))}
    best = min(sizes, key=sizes.__getitem__)
    lab.keep(by_segment={"layers": n, "bytes": sizes})
    lab.expect(f"of {n} layers in segments of {min(sizes)} to {max(sizes)}, {isqrt(n)} or a neighbour needs least", best,
               isqrt(n) / 2 <= best <= 2 * isqrt(n))
    if not lab.quick:
        ratio = time_ratio(program(n, isqrt(n)), program(n, 0), lab.seed, 15)
        lab.expect("time of a step over that with all kept, at most 1.4", ratio, ratio <= 1.4, timed=True)
    if lab.figure(columns=2) is not None:
        draw(lab, depths, kept, rooted, sizes, n)


def draw(lab: Lab, depths: tuple[int, ...], kept: list[int], rooted: list[int], sizes: dict[int, int], n: int) -> None:
    growth, choice = lab.drawn.axes
    growth.loglog(depths, np.array(kept) / 1e6, "o-", label="all kept: grows like n")
    growth.loglog(depths, np.array(rooted) / 1e6, "o-", label="sqrt(n) segments: like sqrt(n)")
    growth.set(xlabel="layers n", ylabel="temporary memory, MB", title="memory over depth")
    growth.legend()
    choice.loglog(list(sizes), np.array(list(sizes.values())) / 1e6, "o-")
    choice.axvline(isqrt(n), color="#777777", linestyle=":")
    choice.annotate("sqrt(n)", (isqrt(n), max(sizes.values()) / 1e6), textcoords="offset points", xytext=(5, -5))
    choice.set(xlabel="layers in a segment", ylabel="temporary memory, MB", title=f"{n} layers: the best length is sqrt(n)")


if __name__ == "__main__":
    sys.exit(main(experiment))
