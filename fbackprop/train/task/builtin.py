"""The models that have a name: each with its data, its loss and what is measured on data it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ... import data
from ...errors import Problem, as_problem
from ...layer import Layer
from ...losses import mse, softmax_cross_entropy
from ...models.convnet import convnet
from ...models.gpt import gpt
from ...models.lstm import lstm_classifier
from ...models.mlp import mlp
from ...models.recommender import recommender
from ...models.resnet import resnet
from .config import TrainConfig
from .task import Task, task_from_file

Images = Callable[[np.ndarray], np.ndarray]


def _rows(config: TrainConfig) -> int:
    if config.batch_size is None:
        raise Problem(f"batch_size: expected a whole number for {config.model}, got None")
    return config.batch_size


def _digits(config: TrainConfig, net: Layer, view: Images = lambda images: images) -> Task:
    """Returns the task of digits: the package's, 4000 / 1000, or MNIST in config.data."""
    digits = data.digits(config.data)
    (x, y), (test_x, test_y) = digits.train, digits.test
    with as_problem():
        batches = data.shuffled_batches(view(x), y, _rows(config))
    test = view(test_x), test_y
    return Task(net, softmax_cross_entropy(), batches, test, metric="accuracy", steps_per_epoch=batches.steps_per_epoch,
                name=config.model)


def _plays(config: TrainConfig) -> Task:
    """Returns the task of the next byte in eight plays, or in config.data, by a small gpt."""
    length = 64
    with as_problem():
        text = data.text(config.data)
        batches = data.windows(text.train, length, _rows(config))
        test = data.held_out_windows(text.validation, length)
    V = len(text.vocabulary)
    bigram = data.bigram_loss(text.train, text.validation, V)
    net = gpt(V, length, features=96, heads=4, blocks=3)
    return Task(net, None, batches, test, chunk=64, steps_per_epoch=batches.steps_per_epoch, baseline={"bigram_loss": bigram},
                name=config.model)


def _ratings(config: TrainConfig) -> Task:
    """Returns the task of ratings: made-up ones, or config.data in MovieLens' u.data format."""
    known = data.ratings(config.data)
    with as_problem():
        batches = data.shuffled_batches(*known.train, _rows(config))
    apart = lambda pairs, scores: ((pairs[:, 0], pairs[:, 1]), scores)
    net = recommender(known.users, known.items, rank=4, mean=known.mean)
    pairs = wraps(batches)(lambda seed, step: apart(*batches(seed, step)))
    return Task(net, mse(), pairs, apart(*known.test), metric="rmse", chunk=100_000,
                steps_per_epoch=batches.steps_per_epoch, baseline={} if known.noise is None else {"noise": known.noise},
                name=config.model)


_with_channel: Images = lambda images: images[..., None]
MODELS: dict[str, Callable[[TrainConfig], Task]] = {
    "mnist": lambda config: _digits(config, mlp()),
    "mlp": lambda config: _digits(config, mlp()),
    "convnet": lambda config: _digits(config, convnet(), _with_channel),
    "resnet": lambda config: _digits(config, resnet((16, 32, 64), blocks=1), _with_channel),
    "lstm": lambda config: _digits(config, lstm_classifier()),  # an image is a sequence of 28 rows
    "gpt": _plays,
    "recommender": _ratings,
}


def load_task(config: TrainConfig, made: Any = None) -> Task:
    """Returns the Task of `config.model`. made: what a file.py:function returned before.

    Raises Problem for a name, a file or a function that is not what it should be.
    """
    return MODELS[config.model](config) if config.model in MODELS else task_from_file(config, made)
