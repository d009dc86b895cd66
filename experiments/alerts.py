"""How good are the monitor's alerts: does it name what is wrong with a sick training, and is it silent about a healthy one?

Rows      P4 P8
Command   python experiments/alerts.py [--net NAME] [--seed N] [--quick] [--out DIR]
Expected  at least 95 % of the sick runs are named with the right cause, at most 1 healthy run in 30 has any alert
Time      about 4 minutes on one core; --quick, on one of the nets, 8 s

The thresholds were tuned on runs drawn with 0, 1 and 2, so runs are drawn with 100 + the seed, which decides weights and
batches; healthy ones with the number after it too. The runs are those of experiments/alert_runs.py: 300 steps, a probe
every 20. "named": the right cause was among a run's alerts, "first": it came first. A healthy run with any alert is a false
alarm. Figure: of each kind, how many sick runs there were, were named, were named first.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any

import jax
from alert_runs import HEALTHY, NETS, SICK, Run, records
from lab import Lab, main

from fbackprop.train.monitor.monitor import Monitor

UNSEEN = 100  # seeds from here on have not been looked at
QUICK = ("relu",)  # of NETS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", action="append", choices=NETS, metavar="NAME",
                        help=f"runs of this net alone, may be repeated: {', '.join(NETS)}")


def experiment(lab: Lab) -> None:
    nets = lab.options.net or NETS
    runs, rows = lab.pick([run for run in [*SICK, *HEALTHY] if run.net in nets], quick()), []
    jax.config.update("jax_disable_most_optimizations", True)  # the programs are small and many: compiling is most of the time
    try:
        for run in runs:
            first = UNSEEN + lab.seed
            rows += [judged(run, seed) for seed in range(first, first + (1 if run.sick or lab.quick else 2))]
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    kinds = summed(rows)
    lab.table(("what is wrong", "runs", "named", "named first", "other kinds named"), kinds, "kinds")
    sick, named, first = (sum(row[i] for row in kinds) for i in (1, 2, 3))
    healthy = [row for row in rows if not row["sick"]]
    false = sum(bool(row["alerts"]) for row in healthy)
    lab.keep(sick=sick, named=named, first=first, healthy=len(healthy), false=false, runs=rows)
    lab.expect("sick runs named with the right cause, of all", (named, sick), named >= 0.95 * sick)
    lab.expect("healthy runs with any alert, of all", (false, len(healthy)), false <= len(healthy) / 30)
    draw(lab, kinds)


def quick() -> list[Run]:
    first = {run.sick: run for run in reversed(SICK) if run.net in QUICK}
    return [*first.values(), *[run for run in HEALTHY if run.net in QUICK and run.optimizer != "momentum" and run.batch == 64]]


def judged(run: Run, seed: int) -> dict[str, Any]:
    """The run with (step, kind) of every alert, in order; what is otherwise than expected is printed."""
    monitor, alerts = Monitor(), []
    for number, loss, layers, seen in records(run, seed):
        if seen is not None:
            alerts += monitor.probe(number, seen)
        alerts += monitor.step(number, loss, layers)
    said = [(alert.step, alert.kind) for alert in alerts if not alert.ended]
    named = any(kind in (run.sick, run.also) for _, kind in said)
    if not named if run.sick else said:
        heard = ", ".join(f"{kind} at {step}" for step, kind in said) or "nothing said"
        print(f"{run.sick or 'healthy'}: {run.net}, {run.optimizer} {run.rate:g}, {run.why}, seed {seed}: {heard}")
    return {"sick": run.sick, "net": run.net, "optimizer": run.optimizer, "rate": run.rate, "why": run.why, "seed": seed,
            "named": named, "first": said[:1] != [] and said[0][1] in (run.sick, run.also), "alerts": said}


def summed(rows: list[dict]) -> list[tuple]:
    """Of each kind: runs, named, named first, and what else was said."""
    groups = defaultdict(list)
    for row in rows:
        if row["sick"]:
            groups[row["sick"]].append(row)
    found = []
    for kind, mine in groups.items():
        others = sorted({other for row in mine for _, other in row["alerts"]} - {kind})
        found.append((kind, len(mine), sum(row["named"] for row in mine), sum(row["first"] for row in mine), ", ".join(others)))
    return found


def draw(lab: Lab, kinds: list[tuple]) -> None:
    figure = lab.figure(8, 5)
    if figure is None:
        return
    ax = figure.axes[0]
    for column, (label, color) in enumerate((("runs", "#dddddd"), ("named", "#9ecae1"), ("named first", "#0072B2")), 1):
        ax.barh([row[0] for row in kinds], [row[column] for row in kinds], height=1 - 0.22 * column, color=color, label=label)
    ax.invert_yaxis()
    ax.set_xlabel("sick runs")
    ax.set_title("What is wrong is named, mostly first")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    sys.exit(main(experiment, add_options=add_options))
