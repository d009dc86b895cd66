"""losses: layers on (y, target) with a scalar output; the target's cotangent is that of a function of two arguments."""

from .cross_entropy import softmax_cross_entropy
from .elementwise import binary_cross_entropy_with_logits, half_squared_error, huber, mse
from .linear import linear_cross_entropy
from .weight import batch_size, token_weight

__all__ = [
    "batch_size",
    "binary_cross_entropy_with_logits",
    "half_squared_error",
    "huber",
    "linear_cross_entropy",
    "mse",
    "softmax_cross_entropy",
    "token_weight",
]
