"""Networks to be killed, starved and poisoned: quick to compile, with every kind of leaf a run carries."""

import numpy as np

from fbackprop import batch_norm, chain, dense, dropout, relu, softmax_cross_entropy


def batches(seed, step):
    rng = np.random.default_rng([seed, step])
    x = rng.standard_normal((16, 6)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int32)


def function():
    return chain(dense(16), batch_norm(), relu(), dropout(0.1), dense(2)), softmax_cross_entropy(), batches
