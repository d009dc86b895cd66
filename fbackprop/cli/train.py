"""fbackprop train MODEL: a network learns through a backward pass no autodiff wrote, compared with jax.grad as it does."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import Positional

from ..errors import Problem
from ..train.task.config import TrainConfig
from .bar import Bar
from .options import numeric, parse, screen
from .signals import between_steps

if TYPE_CHECKING:
    from ..train.run.epochs import Epoch

BOUND = 1e-5  # of a gradient's difference from jax.grad's, in float32
MANY = 6  # layers whose gradient norms fit in a line
NOT_HELD_OUT = "(no held-out data)"  # beside the only loss that is known


@dataclass(frozen=True)
class Options(TrainConfig):
    """Train a model by the hand-written reverse chain and measure its gradients against jax.grad's as it learns."""

    model: Positional[str]
    batch_size: int | None = None  # not given: the model's own holds
    """Examples a step (50 unless the model has its own). Refused for your own batches, which have their own."""
    lr: float | None = None  # type: ignore[assignment]
    """The highest learning rate (0.003 unless the model has its own)."""
    out: str | None = None
    """The run's directory; runs/MODEL-001, the next free number, by default."""
    force: bool = False
    """Replace the run in --out."""
    resume: bool = False
    """Go on with the run in --out (the last of runs/MODEL-001, ... unless given) from its newest whole checkpoint."""
    force_resume: bool = False
    """With --resume: go on although the code or the data are not those of the run; the run's record says so."""
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

    from ..distributed.mesh import ask_for
    from ..observe.summary import summarize
    from ..train.run.epochs import length
    from ..train.run.log import plain
    from ..train.run.loop import fit
    from ..train.run.progress import Tell
    from ..train.store.rundir import open_run
    from ..train.task.builtin import load_task
    from ..train.task.recipe import fit_to_memory, start

    if options.force and options.resume:
        raise Problem("force and resume: expected one of them, got both. --force replaces a run, --resume goes on with it")
    if options.force_resume and not options.resume:
        raise Problem("force_resume: expected `resume` beside it. It goes on with a run whose code or data have changed")
    if config.devices > 1:
        ask_for(config.devices)
    task = load_task(config)
    total = length(task, config)
    params, batch = start(task, config)
    console = screen(options.quiet)
    if config.memory:
        task, needed = fit_to_memory(task, config, batch)
        console.print(f"loss and gradients need {needed / 1e6:.2f} MB of the {config.memory} beside weights and gradients"
                      + ", on each device" * (config.devices > 1))
    with open_run(config, options.out, options.force, options.resume) as directory:
        if not options.quiet:
            console.print(network_table(task.name, summarize(task.net, task.loss, params, batch)))
            console.print(recipe_line(config, total.steps))
        with between_steps() as check, Bar(total.steps, options.quiet) as bar:
            def say_epoch(epoch: Epoch) -> None:
                bar.epoch(epoch)
                console.print(epoch_line(epoch), soft_wrap=True)

            tell = Tell(epoch=say_epoch, step=bar.step, say=bar.say, check=check)
            _, last, error = fit(task, config, params, directory, tell, options.resume, options.force_resume)
    seconds = time.perf_counter() - began
    result = {
        "verb": "train", "model": config.model, "backward": config.backward, "steps": total.steps,
        "epochs": None if task.steps_per_epoch is None else total.epochs, "test_accuracy": last.test_accuracy,
        **({} if last.test_accuracy is not None else {"test_loss": last.test_loss}),
        **({} if last.test_rmse is None else {"test_rmse": last.test_rmse}), **task.baseline, "train_loss": last.train_loss,
        "max_gradient_error": error, "wall_seconds": round(seconds, 2), "run_dir": str(directory)}
    beside = "".join(f" ({name.replace('_', ' ')} {value:.4g})" for name, value in task.baseline.items())
    console.print(f"\n{outcome(last)}{beside} in {seconds:.1f} s; largest difference from jax.grad {error:.1e} "
                  f"(bound {BOUND:.0e})\n{directory}")
    if error > BOUND:
        again = f"fbackprop verify {options.model}" if ":" in options.model else "fbackprop verify"
        print(f"above the bound: a backward rule is wrong, or meant to be another one. {again} says which", file=sys.stderr)
    if options.json:
        print(json.dumps(plain(result), allow_nan=False))
    return 0


def recipe_line(config: TrainConfig, steps: int) -> str:
    """Returns how the run trains, in one line."""
    how = "hand-written chain" if config.backward == "manual" else "jax.value_and_grad"
    extras = [f"clipped by {config.clip}"] * bool(config.clip) + [f"in {config.accumulate} parts"] * (config.accumulate > 1)
    extras += [config.precision] * (config.precision != "float32") + [f"on {config.devices} devices"] * (config.devices > 1)
    fall = {"constant": "held", "cosine": "down a cosine"}.get(config.schedule, f"down, {config.schedule}")
    rise = f"from 0 up to {config.lr:g} in {config.warmup} steps, then" if config.warmup else f"{config.lr:g}"
    return (f"{steps} steps of {config.optimizer}, rate {rise} {fall}, backward pass: "
            + ", ".join([how, *extras]) + "\n")


def network_table(name: str, rows: list) -> Table:
    """Returns the network as a table: layer, output, parameters, what the backward keeps, bytes."""
    parameters = sum(row.parameters for row in rows)
    kept = sum(row.kept_bytes for row in rows)
    table = Table("path", "layer", "output", *numeric("parameters"), "backward keeps", *numeric("bytes"),
                  title=name, title_justify="left", caption_justify="right",
                  caption=f"{parameters:,} parameters, {kept:,} bytes kept")
    for row in rows:
        cells = asdict(row).values()
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells))
    return table


def outcome(last: Epoch) -> str:
    """Returns the number that a run is judged by, and which data it is of."""
    if last.test_accuracy is not None:
        return f"test accuracy {last.test_accuracy:.4f}"
    if last.test_rmse is not None:
        return f"test rmse {last.test_rmse:.4g}"
    if last.test_loss is not None:
        return f"test loss {last.test_loss:.4g}"
    trained = "unknown" if last.train_loss is None else f"{last.train_loss:.4g}"
    return f"train loss {trained} {NOT_HELD_OUT}"


def epoch_line(epoch: Epoch) -> str:
    """Returns one epoch in one line: losses, accuracy, gradient error, gradient norm per layer."""
    e = vars(epoch)
    norms = sorted((norm, path or "net") for path, norm in e["gradient_norms"].items())
    by_layer = " ".join(f"{path}:{norm:.2g}" for path, norm in e["gradient_norms"].items())
    if len(norms) > MANY:
        by_layer = " to ".join(f"{norm:.2g} ({path})" for norm, path in (norms[0], norms[-1])) + f", {len(norms)} layers"
    trained = "         " if e["train_loss"] is None else f"{e['train_loss']:9.4f}"
    tested = f" {NOT_HELD_OUT}" if e["test_loss"] is None else f"  test loss {e['test_loss']:.4f}"
    tested += "".join(f"  {name} {e[f'test_{name}']:.4f}" for name in ("accuracy", "rmse") if e[f"test_{name}"] is not None)
    return (f"epoch {e['epoch']:3d}/{e['epochs']}  train loss {trained}{tested}"
            f"  gradient error {e['gradient_error']:.1e}  gradient norm {by_layer}")
