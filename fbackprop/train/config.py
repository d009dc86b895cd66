"""What a training run is asked to do. No jax here: the command line reads it before anything heavy is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..problem import Problem

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
    file.py:function returning (net, loss, batches)."""
    seed: int = 0
    """Of the initialisation, the split and the batches."""
    steps: int | None = None
    """Optimizer steps; for a data set rather --epochs."""
    epochs: int | None = None
    """Passes over the data set (10 unless --steps is given)."""
    batch_size: int = 50
    """Examples a step."""
    lr: float = 3e-3
    """Adam's learning rate at the start; it falls to 0 along a cosine."""
    backward: Literal["manual", "auto"] = "manual"
    """The hand-written reverse chain, or jax.value_and_grad of the same forward."""
    data: str | None = None
    """In place of the data in the package: a directory of MNIST's IDX files, for gpt a text, for recommender a u.data file."""

    @classmethod
    def of(cls, **given: Any) -> TrainConfig:
        """What is given, then the model's preset, then the defaults; None is nothing given."""
        given = {name: value for name, value in given.items() if value is not None}
        preset = PRESETS.get(given["model"], {})
        length = {"steps", "epochs"}
        kept = {name: value for name, value in preset.items() if not (name in length and length & given.keys())}
        return cls(**{**kept, **given})

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        for name in ("steps", "epochs", "batch_size"):
            _at_least(name, getattr(self, name), 1)
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise Problem(f"lr: expected a finite number above 0, got {self.lr}. 0.003 is the default")
        if self.backward not in ("manual", "auto"):
            raise Problem(f"backward: expected manual or auto, got {self.backward!r}")
        if self.steps is not None and self.epochs is not None:
            raise Problem("steps and epochs: expected one of them, got both. Leave one out")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise Problem(f"{name}: expected a whole number of at least {least}, got {value}")
