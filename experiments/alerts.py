"""Do the monitor's alerts name what is wrong with a sick training, and are they silent about a healthy one?

Rows      P4
Command   python experiments/alerts.py [--seed N] [--quick] [--out DIR]
Expected  at least 95 % of the sick runs are named with the right cause, at most 1 healthy run in 30 has any alert
Time      about 4 minutes on one core; --quick, six of the runs, 10 s

The thresholds were tuned on seeds 0, 1 and 2 of weights and batches; here they are 100 + 2 N for --seed N, and the next one for
a second of each healthy run. The runs are those of alert_runs.py: 300 steps, a probe every 20. "named": the right cause was
among a run's alerts, "first": it came first. A healthy run with any alert is a false alarm.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import jax
from alert_runs import HEALTHY, SICK, Run, records
from lab import Lab, main

from fbackprop.train.monitor import Monitor

QUICK = {"dead relu", "rate too high", "early plateau", "vanishing"}  # of a small net


def experiment(lab: Lab) -> None:
    runs, rows = quick() if lab.quick else [*SICK, *HEALTHY], []
    jax.config.update("jax_disable_most_optimizations", True)  # the programs are small and many: compiling is most of the time
    try:
        for run in runs:
            first = 100 + 2 * lab.seed
            rows += [judged(run, seed) for seed in range(first, first + (1 if run.sick or lab.quick else 2))]
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    sums = counted(lab, rows)
    lab.keep(runs=rows, **sums)
    share = sums["named"] / sums["sick"]
    lab.expect(f"share of {sums['sick']} sick runs named, at least .95", share, share >= 0.95)
    lab.expect(f"of {sums['healthy']} healthy runs, those with an alert: at most one in 30", sums["false"],
               sums["false"] <= sums["healthy"] / 30)


def quick() -> list[Run]:
    """The first run of some kinds, and two healthy ones."""
    sick = {run.sick: run for run in reversed(SICK) if run.net in ("relu", "deep relu") and run.sick in QUICK}
    return [*sick.values(), *HEALTHY[:2]]


def judged(run: Run, seed: int) -> dict:
    """The run with (step, kind) of every alert, in order; what went otherwise than expected is printed."""
    monitor, alerts = Monitor(), []
    for number, loss, layers, seen in records(run, seed):
        if seen is not None:
            alerts += monitor.probe(number, seen)
        alerts += monitor.step(number, loss, layers)
    said = [(alert.step, alert.kind) for alert in alerts if not alert.ended]
    if run.sick not in [kind for _, kind in said] if run.sick else said:
        heard = ", ".join(f"{kind} at {step}" for step, kind in said) or "nothing said"
        print(f"{run.sick or 'healthy'}: {run.net}, {run.optimizer} {run.rate:g}, {run.why}, seed {seed}: {heard}")
    return {"sick": run.sick, "net": run.net, "optimizer": run.optimizer, "rate": run.rate, "why": run.why, "seed": seed,
            "alerts": said}


def counted(lab: Lab, rows: list[dict]) -> dict[str, int]:
    """Prints a row per kind; returns the sums."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["sick"]].append([kind for _, kind in row["alerts"]])
    healthy = groups.pop("")
    lines = []
    for kind, said in groups.items():
        others = sorted({other for kinds in said for other in kinds} - {kind})
        lines.append((kind, len(said), sum(kind in kinds for kinds in said), sum(kinds[:1] == [kind] for kinds in said),
                      ", ".join(others)))
    lab.table(("what is wrong", "runs", "named", "first", "other kinds named"), lines, "kinds")
    sick, named, first = (sum(line[i] for line in lines) for i in (1, 2, 3))
    return {"sick": sick, "named": named, "first": first, "healthy": len(healthy), "false": sum(map(bool, healthy))}


if __name__ == "__main__":
    sys.exit(main(experiment))
