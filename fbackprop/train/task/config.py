"""What a training run is asked to do. No jax here: the command line reads it before anything heavy is imported."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...errors import FileProblem, Problem
from ..monitor.alerts import Thresholds

# the models that have a name, and where one wants something else than the defaults below
PRESETS: dict[str, dict[str, Any]] = {
    "mnist": {},
    "mlp": {},
    "convnet": {"epochs": 6, "lr": 2e-3},
    "resnet": {"epochs": 5, "lr": 3e-3},
    "lstm": {},
    "gpt": {"steps": 600, "batch_size": 32, "lr": 3e-3},
    "recommender": {"epochs": 12, "batch_size": 512, "lr": 1e-2},
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything the numbers of a run depend on. Raises Problem for a value that makes no sense."""

    model: str
    """mnist or mlp (digits by an mlp), convnet, resnet, lstm (digits too), gpt (text), recommender (ratings), or your own
    file.py:function returning (net, loss, batches) or a Task."""
    seed: int = 0
    """Of the initialisation, the split and the batches."""
    steps: int | None = None
    """Optimizer steps; for a data set rather --epochs."""
    epochs: int | None = None
    """Passes over the data set (10 unless --steps is given)."""
    batch_size: int | None = 50
    """Examples a step; your own batches have their own."""
    lr: float = 3e-3
    """The highest learning rate."""
    optimizer: Literal["adam", "adamw", "sgd", "momentum", "rmsprop", "lion"] = "adam"
    """optax's rule for the update."""
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    """How the rate falls: not at all, to 0 along a cosine or a line, to a hundredth."""
    warmup: int = 0
    """Steps over which the rate first rises from 0; fewer than the run has."""
    weight_decay: float | None = None
    """Of adamw and lion, times the rate."""
    clip: str | None = None
    """KIND:X: value:X each number, norm:X the whole gradient, layer:X each layer's, adaptive:X relative to the weights."""
    accumulate: int = 1
    """Parts a batch is cut into, one after the other: the same gradient in less memory."""
    memory: str | None = None
    """Bytes that loss and gradients may take beside weights and gradients, as 300MB: checkpoints are placed until they fit."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What layers compute in; weights stay float32, and float16 has its loss scaled."""
    devices: int = 1
    """Over how many devices a batch is shared."""
    on_nonfinite: Literal["halt", "skip", "restore"] = "halt"
    """At a step whose loss or gradient is not finite: stop, leave the step out, or go back to a checkpoint and leave it out."""
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next (an epoch, or a tenth of the run, unless given)."""
    keep: int = 3
    """How many checkpoints are kept."""
    watch_every: int = 50
    """Steps from one look at every layer to the next; 0: never."""
    alerts: str | None = None
    """Other thresholds of what is warned of, as vanishing=1e-4:1e-3,spike=30; docs/watching.md lists them."""
    backward: Literal["manual", "auto"] = "manual"
    """The hand-written reverse chain, or jax.value_and_grad of the same forward."""
    data: str | None = None
    """In place of the data in the package: a directory of MNIST's IDX files, for gpt a text, for recommender a u.data file."""

    @classmethod
    def of(cls, **given: Any) -> TrainConfig:
        """Returns the config of what is given, else the model's preset, else the default."""
        given = {name: value for name, value in given.items() if value is not None}
        if given["model"] not in PRESETS:
            if "batch_size" in given:
                raise Problem(f"`batch_size`: {given['model']} makes its own batches. Leave `batch_size` out")
            given["batch_size"] = None
        preset = PRESETS.get(given["model"], {})
        length = {"steps", "epochs"}
        kept = {name: value for name, value in preset.items() if not (name in length and length & given.keys())}
        return cls(**{**kept, **given})

    def __post_init__(self) -> None:
        for name in ("model", "clip", "memory", "alerts", "data"):
            if not isinstance(getattr(self, name), str | None):
                raise Problem(f"{name}: expected text, got {getattr(self, name)!r}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and int(value) >= least):
                raise Problem(f"{name}: expected a whole number of at least {least}, got {value}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise Problem(f"lr: expected a finite number above 0, got {self.lr}. 0.003 is the default")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise Problem(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.weight_decay is not None:
            if self.optimizer not in DECAYING:
                raise Problem(f"weight_decay: expected one of {', '.join(DECAYING)} as the optimizer, got {self.optimizer}")
            if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
                raise Problem(f"weight_decay: expected a finite number of at least 0, got {self.weight_decay}")
        _check_clip(self.clip)
        if self.memory is not None:
            memory_bytes(self.memory)
            if self.backward != "manual":
                raise Problem(f"memory: expected backward manual beside it, got {self.backward}: jax.grad keeps what it likes")
        Thresholds.of(self.alerts)
        if self.steps is not None and self.epochs is not None:
            raise Problem("steps and epochs: expected one of them, got both. Leave one out")


LEAST = {"seed": 0, "steps": 1, "epochs": 1, "batch_size": 1, "accumulate": 1, "devices": 1,
         "checkpoint_every": 1, "keep": 1, "warmup": 0, "watch_every": 0}
CHOICES = {name: get_args(hint) for name, hint in get_type_hints(TrainConfig).items() if get_origin(hint) is Literal}
DECAYING = ("adamw", "lion")
CLIPPED = ("value", "norm", "layer", "adaptive")


def memory_bytes(text: str) -> float:
    """Returns 3e8 for "300MB"; kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024. Raises Problem."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([kKMG]?)(i?)B", text)
    if not found or not float(found[1]) > 0 or (found[3] and not found[2]):
        raise Problem(f"memory: expected a number above 0 and B, kB, MB, GB, KiB, MiB or GiB, for example 300MB, got {text!r}")
    return float(found[1]) * (1024.0 if found[3] else 1000.0) ** ("", "K", "M", "G").index(found[2].upper())


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file, with a byte-order mark or without. Raises FileProblem for no file, Problem for no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileProblem(f"{path}: expected a readable TOML file, got: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError, a deep table a RecursionError
        raise Problem(f"{path}: expected TOML, got: {error}") from error


def _check_clip(clip: str | None) -> None:
    if clip is None:
        return
    kind, _, bound = clip.partition(":")
    try:
        ok = kind in CLIPPED and math.isfinite(float(bound)) and float(bound) > 0
    except ValueError:
        ok = False
    if not ok:
        raise Problem(f"clip: expected KIND:X with KIND {', '.join(CLIPPED)} and X above 0, for example norm:1.0, got {clip!r}")
