"""data: small real data sets, checked once when they are read, and batches that are a pure function of (seed, step).

NumPy only: reading data never imports jax.
"""

from .digits import (
    Batches,
    DataError,
    DataSet,
    LabelError,
    check_labels,
    digits,
    load_idx,
    load_mnist5k,
    shuffled_batches,
    split,
)

__all__ = ["Batches", "DataError", "DataSet", "LabelError", "check_labels", "digits", "load_idx", "load_mnist5k",
           "shuffled_batches", "split"]
