"""fbackprop train MODEL: a network learns through a backward pass no autodiff wrote, compared with jax.grad as it does."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from ..train.config import TrainConfig
from .options import parse, screen
from .signals import between_steps

MANY = 6  # layers whose gradient norms fit in a line


@dataclass(frozen=True)
class Options(TrainConfig):
    """Train a model by the hand-written reverse chain and measure its gradients against jax.grad's as it learns."""

    model: Positional[str]
    batch_size: int | None = None  # type: ignore[assignment]  # not given: the model's own holds
    """Examples a step (50 unless the model has its own)."""
    lr: float | None = None  # type: ignore[assignment]
    """Adam's learning rate at the start (0.003 unless the model has its own); it falls to 0 along a cosine."""
    out: str | None = None
    """The run's directory; runs/MODEL-001, the next free number, by default."""
    force: bool = False
    """Replace the run in --out."""
    config: str | None = None
    """A TOML file of these options; flags win over it."""
    quiet: bool = False
    """Nothing but the result."""
    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    began = time.perf_counter()
    options = parse(Options, "train", argv)
    config = TrainConfig.of(**{field.name: getattr(options, field.name) for field in fields(TrainConfig)})

    from ..explain.summary import summarize
    from ..train.builtin import load_task
    from ..train.loop import fit, plan, start
    from ..train.rundir import open_run

    task = load_task(config)
    total = plan(task, config)
    params, batch = start(task, config)
    directory = open_run(config, options.out, options.force)
    console = screen(options.quiet)
    if not options.quiet:
        console.print(network_table(task.name, summarize(task.net, task.loss, params, batch)))
        how = "hand-written chain" if config.backward == "manual" else "jax.value_and_grad"
        console.print(f"{total.steps} steps of Adam, rate from {config.lr:g} down a cosine, backward pass: {how}\n")
    with between_steps() as check, progress(total.steps, options.quiet) as show:
        say = lambda epoch: console.print(epoch_line(epoch), soft_wrap=True)
        _, last, error = fit(task, config, params, directory, say, lambda step: (check(), show(step)))
    seconds = time.perf_counter() - began
    result = {
        "verb": "train", "model": config.model, "backward": config.backward, "steps": total.steps,
        "epochs": None if task.steps_per_epoch is None else total.epochs, "test_accuracy": last.test_accuracy,
        **({} if last.test_accuracy is not None else {"test_loss": last.test_loss}),
        **({} if last.test_rmse is None else {"test_rmse": last.test_rmse}), **task.baseline, "train_loss": last.train_loss,
        "max_gradient_error": error, "wall_seconds": round(seconds, 2), "run_dir": str(directory)}
    good = (f"accuracy {last.test_accuracy:.4f}" if last.test_accuracy is not None else
            f"rmse {last.test_rmse:.4g}" if last.test_rmse is not None else f"loss {last.test_loss:.4g}")
    beside = "".join(f" ({name.replace('_', ' ')} {value:.4g})" for name, value in task.baseline.items())
    console.print(f"\ntest {good}{beside} in {seconds:.1f} s; largest difference from jax.grad {error:.1e} (bound 1e-05)\n"
                  f"{directory}")
    if options.json:
        print(json.dumps(result))
    return 0


def network_table(name: str, rows: list) -> Table:
    """The network as a table: layer, output, parameters, what the backward keeps, bytes."""
    table = Table(title=name, title_justify="left", caption_justify="right",
                  caption=f"{sum(r.parameters for r in rows):,} parameters, {sum(r.kept_bytes for r in rows):,} bytes kept")
    for heading, justify in (("path", "left"), ("layer", "left"), ("output", "left"), ("parameters", "right"),
                             ("backward keeps", "left"), ("bytes", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        cells = asdict(row)
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells.values()))
    return table


def epoch_line(epoch: object) -> str:
    """One epoch in one line: losses, accuracy, gradient error, gradient norm per layer."""
    e = vars(epoch)
    norms = sorted((norm, path or "net") for path, norm in e["gradient_norms"].items())
    by_layer = " ".join(f"{path}:{norm:.2g}" for path, norm in e["gradient_norms"].items())
    if len(norms) > MANY:
        by_layer = " to ".join(f"{norm:.2g} ({path})" for norm, path in (norms[0], norms[-1])) + f", {len(norms)} layers"
    trained = "         " if e["train_loss"] is None else f"{e['train_loss']:9.4f}"
    accuracy = "".join(f"  {name} {e[f'test_{name}']:.4f}" for name in ("accuracy", "rmse") if e[f"test_{name}"] is not None)
    return (f"epoch {e['epoch']:3d}/{e['epochs']}  train loss {trained}  test loss {e['test_loss']:.4f}{accuracy}"
            f"  gradient error {e['gradient_error']:.1e}  gradient norm {by_layer}")


@contextlib.contextmanager
def progress(steps: int, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr while it is a terminal, else nothing; yields what to call with the number of steps done."""
    console = Console(stderr=True)
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("train", total=steps)
        yield lambda step: bar.update(job, completed=step)
