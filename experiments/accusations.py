"""Short runs of `fbackprop train` over many rates: none may say that a right rule is wrong.

python experiments/accusations.py [--models mnist convnet lstm recommender] [--rates 25]
                                  [--steps 24]

Prints one line a run and exits with 1 if a run accuses a rule. Rates from 1e-4 to 10, evenly in
their logarithm, each with a seed of its own. 100 runs take about 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fbackprop.cli import main as fbackprop

MODELS = ("mnist", "convnet", "lstm", "recommender")
ACCUSED = "above the bound"  # what `train` says of a wrong rule


class Run(NamedTuple):
    """How a run ended; error: the largest gradient error of an epoch that is a number."""

    model: str
    rate: float
    code: int
    error: float
    accused: bool


def short_run(model: str, rate: float, seed: int, steps: int, batch_size: int = 32) -> Run:
    """Trains in a directory of its own."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        argv = ["train", model, "--steps", str(steps), "--lr", f"{rate:.3g}", "--seed", str(seed),
                "--batch-size", str(batch_size), "--out", str(out), "--quiet"]
        with contextlib.redirect_stderr(said):
            code = fbackprop(argv)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    errors = [row["gradient_error"] for row in rows if "gradient_error" in row]
    error = max((float(error) for error in errors if error != "nan"), default=0.0)
    return Run(model, rate, code, error, ACCUSED in said.getvalue())


def short_runs(models: tuple[str, ...], rates: int, steps: int) -> Iterator[Run]:
    """Yields every run of every model."""
    for model in models:
        for seed, rate in enumerate(np.logspace(-4, 1, rates)):
            yield short_run(model, float(rate), 100 + seed, steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rates", type=int, default=25)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # most of a short run is compiling
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        return judged(tuple(options.models), options.rates, options.steps)


def judged(models: tuple[str, ...], rates: int, steps: int) -> int:
    """Prints every run, then the sum. Returns 1 if a run accused a rule."""
    runs = []
    for run in short_runs(models, rates, steps):
        runs.append(run)
        print(f"{run.model:12} rate {run.rate:.2g}  exit code {run.code}  error {run.error:.1e}"
              + "  ACCUSED" * run.accused, flush=True)
    accused = sum(run.accused for run in runs)
    largest = max(run.error for run in runs)
    print(f"{len(runs)} runs, {accused} that accuse a right rule, largest error {largest:.1e}")
    return int(accused > 0)


if __name__ == "__main__":
    sys.exit(main())
