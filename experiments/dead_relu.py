"""Do dead relu units stay dead, and does a leaky relu bring them back?

Rows      P7
Command   python experiments/dead_relu.py [--seed N] [--quick] [--out DIR]
Expected  30 steps at a rate too high leave over a third of 256 units at zero for every one of 4000 digits; with relu, 600
          steps at a good rate revive none; with leaky relu on the same weights most of them come back to life
Time      about 12 s on two cores; --quick 5 s

One hidden layer of 256 units on real digits of 14 x 14 pixels. A unit is dead when its relu is 0 for all 4000 training digits:
then its weights get no gradient from any of them. Counted by the relu net's probe in both arms, so a unit of the leaky
net counts as alive once its input is above 0 for some digit. The two arms share the first 30 steps, then differ only in the
layer that `replace_rules` puts in relu's place; momentum begins anew at each count, every 60 steps. Leaky relu: Maas, Hannun
and Ng 2013. The figure: units dead over the steps.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import optax
from digit_runs import accuracy, order, small_digits, start, trained
from lab import Lab, main

from fbackprop import leaky_relu, mlp, probe, replace_rules, softmax_cross_entropy, value_and_grad
from fbackprop.report.figures import CYCLE

UNITS, HARM, EVERY, SLOPE = 256, 30, 60, 0.1
RELU, LOSS = mlp((UNITS,)), softmax_cross_entropy()
LEAKY = replace_rules(RELU, "2", lambda relu: leaky_relu(SLOPE))
ARMS = {"relu": RELU, "leaky relu": LEAKY}
measure = probe(RELU, LOSS)
TOO_HIGH, GOOD = optax.sgd(2.5), optax.sgd(0.3, momentum=0.9)


def dead(params: Any) -> int:
    """Units that say 0 to every training digit."""
    _, seen, _ = measure(params, small_digits().train)
    return round(seen["2"].dead * UNITS)


def experiment(lab: Lab) -> None:
    rows, counts, scores = order(lab.seed, HARM + lab.pick(600, 120)), {}, {}
    before = start(RELU, lab.seed)
    harmed, _ = trained(value_and_grad(RELU, LOSS), TOO_HIGH, before, rows[:HARM])
    lab.expect("units dead at the start", dead(before), dead(before) < 0.05 * UNITS)
    first = dead(harmed)
    lab.expect(f"of {UNITS} units dead after {HARM} steps at a rate too high", first, first > UNITS / 3)
    for name, net in ARMS.items():
        params, counts[name], by_hand = harmed, [first], value_and_grad(net, LOSS)
        for at in range(HARM, len(rows), EVERY):
            params, _ = trained(by_hand, GOOD, params, rows[at:at + EVERY])
            counts[name].append(dead(params))
        scores[name] = accuracy(net, params)
    lab.table(["arm", "dead at first", "dead at last", "test accuracy"],
              [[name, first, counts[name][-1], scores[name]] for name in ARMS], "arms")
    lab.expect("with relu none comes back: fewest dead", min(counts["relu"]), min(counts["relu"]) >= first)
    left = counts["leaky relu"][-1] / first
    lab.expect("with leaky relu most come back: share still dead", left, left < lab.pick(0.3, 0.8))
    lab.keep(counts=counts, step=[HARM + EVERY * i for i in range(len(counts["relu"]))])
    draw(lab, counts)


def draw(lab: Lab, counts: dict[str, list[int]]) -> None:
    figure = lab.figure()
    if figure is None:
        return
    ax = figure.axes[0]
    at = HARM + EVERY * np.arange(len(counts["relu"]))
    ax.axvspan(0, HARM, color=CYCLE[1], alpha=0.15, linewidth=0)
    ax.annotate("rate too high", (HARM, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                color=CYCLE[1])
    for (name, count), color in zip(counts.items(), (CYCLE[1], CYCLE[0])):
        ax.plot([0, *at], [0, *count], "o-", color=color, markersize=4)
        ax.annotate(f"{name}: {count[-1]} dead", (at[-1], count[-1]), xytext=(0, 8), textcoords="offset points", ha="right",
                    color=color)
    ax.set(xlabel="step", ylabel=f"dead units of {UNITS}", ylim=(0, UNITS),
           title="Dead relu units stay dead; a leaky relu on the same weights revives them")


if __name__ == "__main__":
    sys.exit(main(experiment))
