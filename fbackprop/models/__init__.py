"""Networks with a name. Imports observe, memory and below."""

from .convnet import convnet
from .gpt import gpt
from .lstm import lstm_classifier
from .mlp import mlp
from .recommender import recommender
from .resnet import resnet

__all__ = [
    "convnet",
    "gpt",
    "lstm_classifier",
    "mlp",
    "recommender",
    "resnet",
]
