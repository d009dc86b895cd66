"""Does the memory of the backward pass grow with depth times batch times width?

Rows      K2
Command   python experiments/memory_growth.py [--seed N] [--quick] [--out DIR]
Expected  temporary memory grows like each of the three: slopes 1 +- .1 on log axes, for hand-written and automatic gradients;
          by hand it is depth x batch x width x 4 bytes, a value a layer, to 25 %; inference does not grow with depth at all
Time      about 10 s on two cores; --quick 5 s

tanh and dense layers in one scan: tanh keeps its y, which is the dense layer's x. Memory is XLA's temporary bytes of the
compiled loss and gradients. Nothing is computed and nothing depends on the seed.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from lab import Lab, main
from programs import Program

from fbackprop import auto_value_and_grad, chain, dense, repeat, tanh, value_and_grad
from fbackprop.comparison.costs import value_of

MIDDLE = {"depth": 32, "batch": 512, "width": 64}
SWEEPS = {"depth": (16, 32, 64, 128), "batch": (256, 512, 1024, 2048), "width": (32, 64, 128, 256)}
ARMS = {"manual": value_and_grad, "auto": auto_value_and_grad, "inference": lambda net, loss: partial(value_of, net, loss)}


def experiment(lab: Lab) -> None:
    found = {}
    for axis, values in SWEEPS.items():
        for value in values[:: lab.pick(1, 3)]:
            sizes = {**MIDDLE, axis: value}
            net = repeat(chain(tanh(), dense(sizes["width"])), sizes["depth"])
            made = {arm: Program(net, sizes["batch"], sizes["width"], how).temp_bytes for arm, how in ARMS.items()}
            found[axis, value] = {**made, "product": 4 * sizes["depth"] * sizes["batch"] * sizes["width"]}
    rows = [(axis, value, *(each[name] / 1e6 for name in ("product", "manual", "auto", "inference")))
            for (axis, value), each in found.items()]
    lab.table(("grows", "to", "depth x batch x width, MB", "by hand, MB", "jax.grad, MB", "inference, MB"), rows, "memory")
    for axis in SWEEPS:
        for arm in ("manual", "auto"):
            points = [(value, each[arm]) for (name, value), each in found.items() if name == axis]
            slope = float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0])
            lab.expect(f"slope of memory over {axis}, {arm}: 1 +- .1", slope, abs(slope - 1) <= 0.1)
    off = max(abs(each["manual"] / each["product"] - 1) for each in found.values())
    lab.expect("by hand: largest deviation from depth x batch x width x 4 bytes, at most .25", off, off <= 0.25)
    inference = {each["inference"] for (axis, _), each in found.items() if axis == "depth"}
    lab.expect("inference: the same bytes at every depth", sorted(inference), len(inference) == 1)
    if lab.figure(wide=10, high=3.6, columns=3, sharey=True) is not None:
        draw(lab, found)


def draw(lab: Lab, found: dict) -> None:
    for ax, axis in zip(lab.drawn.axes, SWEEPS):
        values = [value for name, value in found if name == axis]
        for arm, label in (("auto", "jax.grad"), ("manual", "by hand"), ("inference", "inference")):
            ax.loglog(values, [found[axis, value][arm] / 1e6 for value in values], "o-", label=label)
        ax.loglog(values, [found[axis, value]["product"] / 1e6 for value in values], ":", color="#777777",
                  label="depth x batch x width")
        ax.set(xlabel=axis, title=f"over {axis}")
        ax.set_xticks(values, map(str, values))
        ax.minorticks_off()
    lab.drawn.axes[0].set_ylabel("temporary memory, MB")
    lab.drawn.axes[0].legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main(experiment))
