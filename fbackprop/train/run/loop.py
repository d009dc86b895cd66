"""fit: the five steps (forward, loss, backward, update, next mini-batch) over and over, measured, watched, saved as it goes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ...errors import Failure, Interrupted, Problem, as_problem
from ...params import Tree
from ..monitor.alerts import Alert, Thresholds
from ..monitor.monitor import Monitor
from ..step.optimizer import optimizer
from ..step.training import NORMS, Training, begin, make_training_step, trained_layers
from ..store.checkpoint import machine
from ..store.rundir import write_config
from ..store.saver import Saver
from ..task.config import TrainConfig
from ..task.recipe import gradients, net_in_precision, placement, start
from ..task.task import Task
from .epochs import Epoch, length, make_measure
from .fingerprint import differences, digest, fingerprint, is_sampled
from .log import Log
from .progress import Progress, Taken, Tell, enough_memory, layer_rows
from .step_probe import StepProbe

IN_A_ROW = 10  # steps left out before a run that skips gives up
RESTORES = 3  # times a run goes back before it gives up


def fit(task: Task, config: TrainConfig, params: Tree, directory: Path, tell: Tell | None = None,
        resume: bool = False, force_resume: bool = False) -> tuple[Tree, Epoch, float]:
    """Trains, giving `params` up; returns (params, the last Epoch, the largest gradient error seen).

    Writes metrics.jsonl and checkpoints, the last step's always. resume: goes on from the newest whole checkpoint, bit for bit
    as if it had never stopped. force_resume: with other code or other data too. Raises Failure when the numbers are no longer
    finite or memory runs out, Interrupted when `tell.check` does, after a checkpoint; FileProblem when something cannot be
    written; Problem for a wrong batch, and for other code or data.
    """
    with Saver(directory, config) as saver:
        run = Run(task, config, params, directory, tell or Tell(), saver)
        with enough_memory(lambda: run.at.step, config):
            run.go_on(force_resume) if resume else run.start()
            run.all_steps()
            return run.training.params, run.last_epoch(), run.at.gradient_error


class Run:
    """What `fit` carries from step to step."""

    def __init__(self, task: Task, config: TrainConfig, params: Tree, directory: Path, tell: Tell, saver: Saver) -> None:
        self.task, self.config, self.directory, self.tell, self.saver = task, config, directory, tell, saver
        self.length = length(task, config)
        self.tx = optimizer(config, self.length.steps)
        self.step = make_training_step(gradients(task, config), self.tx, config.on_nonfinite == "skip")
        self.place, self.place_batch = placement(config)
        self.training = self.first(params)
        self.at = Progress()
        self.measure = make_measure(task, config, self.length)
        self.probe = StepProbe(net_in_precision(task, config), task.loss, config)
        self.layers, self.monitor = trained_layers(params), self.watcher()
        self.every = config.checkpoint_every or self.length.per_epoch
        self.fingerprint = self.take_fingerprint()
        self.waiting: list[Taken] = []
        # a step that is left out must be known before the next one changes the params it was taken from
        self.behind = int(config.on_nonfinite != "skip" and config.precision != "float16")

    # ---- from the start, from a checkpoint

    def first(self, params: Tree) -> Training:
        """Returns the Training before its first step, which takes the memory of `params`."""
        return self.place(begin(params, self.tx, self.config.precision == "float16"))

    def start(self) -> None:
        self.log, self.began = Log(self.directory), time.perf_counter()
        self.record(self.measure_epoch(None))

    def go_on(self, insist: bool) -> None:
        header = self.load()
        if header is None:
            write_config(self.directory, self.config)
            self.tell.say(f"{self.directory}: no checkpoint to go on from, starting at step 0")
            self.start()
            return
        if self.at.step > self.length.steps:
            raise Problem(f"steps: expected at least {self.at.step}, which {self.directory} has taken, "
                          f"got {self.length.steps}. Give as many or more, or `out` another name for another run")
        changed, noted = differences(header, {"fingerprint": self.fingerprint, **machine()})
        batches = {number: digest(self.task.batches(self.config.seed, int(number))) for number in self.at.batches}
        if batches != self.at.batches and "data" not in changed:
            changed.append("data")
        if changed and not insist:
            raise Problem(f"{self.directory}: {' and '.join(changed)}: expected the same as before step {self.at.step}, found "
                          f"another{''.join(f'; {note}' for note in noted)}. Bring that back, give `force_resume` to go on all "
                          "the same, or `out` another name for another run")
        self.at.batches = batches
        write_config(self.directory, self.config)
        self.log, self.began = Log(self.directory, self.at.lines), time.perf_counter()
        for difference in [f"other {name}" for name in changed] + noted:
            self.log.add({"step": self.at.step, "event": f"went on: {difference}"})
            self.tell.say(f"{self.directory}: {difference}. Its numbers may not be those of the run undisturbed")
        self.tell.say(f"{self.directory}: going on after step {self.at.step}")

    def load(self) -> dict[str, Any] | None:
        """Takes up the newest whole checkpoint. Returns its header, None where there is none."""
        found = self.saver.newest(self.training, self.tell.say)
        if found is None:
            return None
        self.training, self.at = self.place(found[0]), Progress.of(found[1])
        self.monitor = self.watcher()
        return found[1]

    def take_fingerprint(self) -> dict[str, Any]:
        """Returns the run's fingerprint. Its step is that of a run of a fixed length: the length may change."""
        tx = optimizer(self.config, self.config.warmup + 1)
        step = make_training_step(gradients(self.task, self.config), tx, self.config.on_nonfinite == "skip")
        return fingerprint(self.task, step, self.training, self.place_batch(self.task.batches(self.config.seed, 0)))

    # ---- forward, loss, backward, update

    def all_steps(self) -> None:
        with self.log:
            while self.at.step < self.length.steps:
                restores = self.at.restores
                self.one_step()
                if self.due():
                    self.judge(0)
                    if self.at.restores == restores:  # a checkpoint gone back to was due once already
                        self.settle()
                try:
                    self.tell.check()
                except Interrupted as error:
                    raise self.interrupted(error) from None
            self.saver.wait()

    def one_step(self) -> None:
        number = self.at.step + 1
        batch = self.task.batches(self.config.seed, self.at.data)
        if is_sampled(self.at.data):
            self.at.batches[str(self.at.data)] = digest(batch)
        with as_problem(f"{self.task.name}: batch of step {number}: "):
            self.training, metrics = self.step(self.training, self.place_batch(batch))
        self.waiting.append(Taken(number, self.at.data, batch, metrics))
        self.at.step, self.at.data = number, self.at.data + 1
        watched = self.config.watch_every and number % self.config.watch_every == 0
        self.judge(0 if watched else self.behind)
        if watched and self.at.step == number:
            self.watch(batch)

    def judge(self, behind: int) -> None:
        """Looks at the metrics of all steps but the last `behind`: the device is not waited for while it works."""
        while len(self.waiting) > behind:
            taken = self.waiting.pop(0)
            metrics = jax.device_get(taken.metrics)
            if metrics["finite"]:
                row = {"step": taken.number, "loss": float(metrics["loss"]), **{name: float(metrics[name]) for name in NORMS}}
                self.log.add(row)
                self.tell.step(row)
                norms = {path: dict(zip(NORMS, column)) for path, column in zip(self.layers, metrics["layers"].T.tolist())}
                self.alert(self.monitor.step(taken.number, row["loss"], norms))
                self.at.loss_sum, self.at.losses = self.at.loss_sum + row["loss"], self.at.losses + 1
            else:
                self.not_finite(taken, metrics)

    def watch(self, batch: Any) -> None:
        """Looks at every layer, on the batch of the step just taken. Changes nothing."""
        readings = self.probe.readings(self.training, batch)
        alerts = self.monitor.probe(self.at.step, readings)
        seen = self.monitor.describe()
        self.log.add({"step": self.at.step, "look": layer_rows(seen), "gradient_spread": seen["gradient_spread"]})
        self.alert(alerts)

    def watcher(self) -> Monitor:
        """Returns a Monitor that knows what it knew at this point of the run."""
        thresholds = Thresholds.of(self.config.alerts)
        return Monitor.of(self.at.monitor, thresholds) if self.at.monitor else Monitor(thresholds)

    def alert(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            words = asdict(alert)
            self.log.add({"step": words.pop("step"), "alert": words.pop("kind"), **words})
            self.tell.say(f"step {alert.step}: {alert.text if alert.ended else f'{alert.kind}: {alert.text}'}")

    def due(self) -> bool:
        return self.epoch_ends() or self.at.step % self.every == 0

    def epoch_ends(self) -> bool:
        return self.at.step % self.length.per_epoch == 0 or self.at.step == self.length.steps

    def settle(self) -> None:
        """Measures an epoch that ends and saves a checkpoint that is due."""
        if self.epoch_ends():
            epoch = self.measure_epoch(self.train_loss())
            self.at.loss_sum, self.at.losses = 0.0, 0
            self.record(epoch)
        if self.at.step % self.every == 0 or self.at.step == self.length.steps:
            self.save()

    def train_loss(self) -> float | None:
        """Returns the mean loss of the steps since the last epoch; None where none counted."""
        return self.at.loss_sum / self.at.losses if self.at.losses else None

    def last_epoch(self) -> Epoch:
        """Returns what is known where the run is: of the epoch that ends there, else measured now."""
        last = self.at.epoch
        return Epoch(**last) if last and last["step"] == self.at.step else self.measure_epoch(self.train_loss())

    def measure_epoch(self, train_loss: float | None) -> Epoch:
        with as_problem(f"{self.task.name}: batch of step {self.at.step + 1}: "):
            epoch = self.measure(self.training.params, self.at.step, train_loss)
        self.at.gradient_error = max(self.at.gradient_error, epoch.gradient_error)
        return epoch

    def record(self, epoch: Epoch) -> None:
        self.log.add({**asdict(epoch), "seconds": time.perf_counter() - self.began})
        self.at.epoch = asdict(epoch)
        self.tell.epoch(epoch)

    def save(self) -> None:
        self.at.lines, self.at.monitor = self.log.sync(), self.monitor.state()
        self.saver.save(self.at.step, self.training, {"progress": asdict(self.at), "fingerprint": self.fingerprint})

    # ---- when something happens

    def interrupted(self, error: Interrupted) -> Interrupted:
        self.judge(0)
        self.save()
        self.saver.wait()
        return Interrupted(error.number, f" after step {self.at.step}, which is saved. The same command with `out` "
                           f"{self.directory} `resume` goes on")

    def not_finite(self, taken: Taken, metrics: dict[str, Any]) -> None:
        """Does what `config.on_nonfinite` says. The guard lowers a scale that was too high."""
        cause = self.probe.cause(self.training, taken.batch, lost=bool(metrics["lost"]))
        loss = float(metrics["loss"])
        event = {"step": taken.number, "loss": loss,
                 "origin": cause.words, "layer": cause.layer, "side": cause.side}
        if metrics["overflow"] and self.training.guard.scale is not None:
            scale = float(self.training.guard.scale.scale)
            self.log.add({**event, "event": "overflow", "scale": scale})
            self.tell.say(f"step {taken.number}: left out, {cause.words} overflowed; the loss is scaled by {scale:g} now")
            return
        what = f"step {taken.number}: expected finite numbers, got a loss of {loss:g}; it began in {cause.words}"
        row = int(self.training.guard.skipped)
        if self.config.on_nonfinite == "skip" and not metrics["lost"] and row < IN_A_ROW:
            self.log.add({**event, "event": "left out"})
            self.tell.say(f"{what}. The step is left out")
        elif self.config.on_nonfinite == "restore" and self.at.restores < RESTORES:
            self.go_back(taken, event, what)
        else:
            back = self.at.restores
            tried = f", {row} steps in a row" * (row > 1) + f", after going back {back} times" * (back > 0)
            self.halt(taken, event, f"{what}{tried}. {cause.cure(self.config)}", lost=bool(metrics["lost"]))

    def halt(self, taken: Taken, event: dict[str, Any], what: str, lost: bool) -> None:
        """Saves the state before the step, which no later step has changed. Raises Failure."""
        self.waiting.clear()
        self.at.step, self.at.data = taken.number - 1, taken.data
        if not lost:
            self.training = self.training._replace(guard=self.training.guard._replace(halted=jnp.bool_(False)))
            self.save()
            self.saver.wait()
        self.log.add({**event, "event": "halted"})
        raise Failure(what)

    def go_back(self, taken: Taken, event: dict[str, Any], what: str) -> None:
        """Returns to the newest checkpoint, skips the batch, and saves it against a kill."""
        restores, self.waiting = self.at.restores + 1, []
        if self.load() is None:
            self.training, self.at = self.first(start(self.task, self.config)[0]), Progress()
            self.monitor = self.watcher()
        self.at.restores, self.at.data = restores, taken.data + 1
        self.log.add({**event, "event": "went back", "to": self.at.step})
        self.save()
        self.tell.say(f"{what}. Back to step {self.at.step}, and on with batch {self.at.data}")
