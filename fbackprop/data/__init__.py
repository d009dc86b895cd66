"""data: small data sets, checked once when they are read, and batches that are a pure function of (seed, step).

NumPy only: reading data never imports jax.
"""

from .batches import Batches, shuffled_batches
from .digits import DataSet, LabelError, check_labels, digits, load_idx, load_mnist5k, split
from .files import DataError
from .ratings import RatingSet, generate_ratings, load_ratings, ratings
from .text import TextSet, Windows, bigram_loss, held_out_windows, load_plays, text, windows

__all__ = ["Batches", "DataError", "DataSet", "LabelError", "RatingSet", "TextSet", "Windows", "bigram_loss", "check_labels",
           "digits", "generate_ratings", "held_out_windows", "load_idx", "load_mnist5k", "load_plays", "load_ratings",
           "ratings", "shuffled_batches", "split", "text", "windows"]
