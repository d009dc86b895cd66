"""Problem, symptom, cause, solution: does an alert name each of the four, and does its own advice cure it?

Rows      P8
Command   python experiments/problem_table.py [--seed N] [--quick] [--out DIR]
Expected  4 of 4: vanishing, exploding, dead, slow. The monitor's first alert is the right one; with what its text advises, and
          nothing else changed, it no longer comes and the loss at the end is at most half
Time      about 40 s on two cores; --quick, the dead units alone, 5 s

Runs of experiments/alert_runs.py: real digits of 14 x 14 pixels, 300 steps (slow: 600), a look inside every 20. "The rate is
too low; try ten times as much" is followed as often as it is said. The figure: the loss of each run with the alert, and after
the cure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from alert_runs import Run, records, scaled, shifted
from lab import Lab, main

from fbackprop.report.figures import CYCLE, smooth
from fbackprop.train import Alert, Monitor


@dataclass(frozen=True)
class Problem:
    run: Run
    advice: str  # words of the alert's text
    cured: Run  # the run with that advice taken
    steps: int = 300


PLAIN = Run("", "", 0.0).alter  # weights and biases as they are made
VANISHING = Run("deep relu", "sgd", 0.05, sick="vanishing", why="weights a tenth of He's", alter=scaled(0.1))
EXPLODING = Run("deep relu", "adam", 0.001, sick="exploding", why="weights eight times He's", alter=scaled(8))
DEAD = Run("relu", "sgd", 0.1, sick="dead relu", why="biases at -5", alter=shifted(-5, "5"))
SLOW = Run("relu", "sgd", 1e-5, sick="rate too low", why="rate 0.00001")
PROBLEMS = [
    Problem(VANISHING, "larger weights (He, Xavier)", replace(VANISHING, alter=PLAIN)),
    Problem(EXPLODING, "start from smaller weights", replace(EXPLODING, alter=PLAIN)),
    Problem(DEAD, "start again from He's weights", replace(DEAD, alter=PLAIN)),
    Problem(SLOW, "try ten times as much", replace(SLOW, rate=1e-4), steps=600),
]


def watched(run: Run, seed: int, steps: int) -> tuple[list[float], list[Alert]]:
    """The loss of each step and the alerts, in order."""
    monitor, losses, alerts = Monitor(), [], []
    for number, loss, layers, seen in records(run, seed, steps):
        if seen is not None:
            alerts += monitor.probe(number, seen)
        alerts += monitor.step(number, loss, layers)
        losses.append(loss)
    return losses, [alert for alert in alerts if not alert.ended]


def cured(problem: Problem, seed: int, steps: int) -> tuple[Run, list[float], list[Alert]]:
    """After the advice was taken; where it says ten times as much, as often as it says so."""
    run, kind = problem.cured, problem.run.sick
    losses, alerts = watched(run, seed, steps)
    while problem.run is SLOW and kind in [alert.kind for alert in alerts] and run.rate < 1:
        print(f"rate {run.rate:g}: {alerts[0].text}")
        run = replace(run, rate=10 * run.rate)
        losses, alerts = watched(run, seed, steps)
    return run, losses, alerts


def experiment(lab: Lab) -> None:
    rows, curves, solved = [], [], 0
    problems = lab.pick(PROBLEMS, PROBLEMS[2:3])
    for problem in problems:
        kind, steps = problem.run.sick, lab.pick(problem.steps, 100)
        losses, alerts = watched(problem.run, lab.seed, steps)
        first = alerts[0] if alerts else Alert(0, "", "", 0.0, "nothing said")
        print(f"{kind}, step {first.step}: {first.text}")
        named = first.kind == kind and problem.advice in first.text
        lab.expect(f"{kind}: the first alert names it, with the cure", first.kind, named)
        run, after, left = cured(problem, lab.seed, steps)
        gone = kind not in [alert.kind for alert in left]
        lab.expect(f"{kind}: the advice taken, no such alert; alerts left", [alert.kind for alert in left], gone)
        ends = [float(np.mean(curve[-20:])) for curve in (losses, after)]
        lab.expect(f"{kind}: the loss at the end, over that without the cure", ends[1] / ends[0], ends[1] < 0.5 * ends[0])
        solution = f"rate {run.rate:g}" if problem.run is SLOW else problem.advice
        rows.append([kind, f"{first.number:.2g} in {first.layer or 'all layers'}", problem.run.why, solution, *ends])
        curves.append((kind, first.step, solution, losses, after))
        solved += named and gone and ends[1] < 0.5 * ends[0]
        print()
    lab.table(["problem", "symptom", "cause", "solution", "loss", "loss cured"], rows, "problems")
    lab.expect("problems named by an alert and cured by its advice", f"{solved} of {len(problems)}", solved == len(problems))
    draw(lab, curves)


def draw(lab: Lab, curves: list[tuple[Any, ...]]) -> None:
    figure = lab.figure(12.0, 4.0, columns=len(curves))
    if figure is None:
        return
    for ax, (kind, step, solution, losses, after) in zip(figure.axes, curves):
        at = np.arange(1, len(losses) + 1)
        ax.plot(at, smooth(losses, 10), color=CYCLE[1])
        ax.plot(at, smooth(after, 10), color=CYCLE[0])
        ax.axvline(step, color=CYCLE[1], linewidth=1, linestyle="--")
        ax.annotate("alert", (step, 0.88), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                    color=CYCLE[1])
        ax.set_title(kind, fontweight="bold")
        ax.set_xlabel(f"step\ncure: {solution}", color=CYCLE[0])
        if losses[-1] > 100 * after[-1]:
            ax.set_yscale("log")
    figure.axes[0].set_ylabel("training loss (nats)")
    figure.suptitle("Each problem is named by an alert, and cured by what the alert advises")


if __name__ == "__main__":
    sys.exit(main(experiment))
