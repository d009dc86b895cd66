"""The models that have a name: each with its data, its loss and what is measured on data it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import data
from ..layer import Layer
from ..losses import softmax_cross_entropy
from ..models.convnet import convnet
from ..models.lstm import lstm_classifier
from ..models.mlp import mlp
from ..models.resnet import resnet
from ..problem import Problem
from .config import TrainConfig
from .task import Task, own_task

Images = Callable[[np.ndarray], np.ndarray]


def _digits(config: TrainConfig, net: Layer, view: Images = lambda images: images) -> Task:
    """Handwritten digits: the 5000 in the package, split 4000 / 1000, or all of MNIST from config.data."""
    digits = data.digits(config.data)
    (x, y), (test_x, test_y) = digits.train, digits.test
    batches, test = _batches(view(x), y, config), (view(test_x), test_y)
    return Task(config.model, net, softmax_cross_entropy(), batches, batches.steps_per_epoch, test, "accuracy")


def _batches(x: Any, y: Any, config: TrainConfig) -> data.Batches:
    try:
        return data.shuffled_batches(x, y, config.batch_size)
    except ValueError as error:
        raise Problem(str(error)) from error


def _with_channel(images: np.ndarray) -> np.ndarray:
    return images[..., None]


MODELS: dict[str, Callable[[TrainConfig], Task]] = {
    "mnist": lambda config: _digits(config, mlp()),
    "mlp": lambda config: _digits(config, mlp()),
    "convnet": lambda config: _digits(config, convnet(), _with_channel),
    "resnet": lambda config: _digits(config, resnet((16, 32, 64), blocks=1), _with_channel),
    "lstm": lambda config: _digits(config, lstm_classifier()),  # an image is a sequence of 28 rows
}


def load_task(config: TrainConfig, made: Any = None) -> Task:
    """The Task `config.model` names, or the user's own: of `made`, what its function returned, when that is known already.

    Raises Problem for a name, a file or a function that is not what it should be.
    """
    return MODELS[config.model](config) if config.model in MODELS else own_task(config, made)
