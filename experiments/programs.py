"""Loss and gradients of a net that maps (B, D) to (B, D), as a compiled program: its bytes exactly, its time in turns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from fbackprop import Layer, mse, value_and_grad
from fbackprop.comparison.costs import take_turns


class Program:
    """Compiled from shapes alone. temp_bytes: XLA's temporary memory."""

    def __init__(self, net: Layer, batch: int, width: int, how: Any = value_and_grad) -> None:
        self.net, self.x = net, jax.ShapeDtypeStruct((batch, width), np.float32)
        params = jax.eval_shape(net.init, jax.random.key(0), self.x)
        self.compiled = jax.jit(how(net, mse())).lower(params, (self.x, self.x)).compile()
        self.temp_bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def ready(self, seed: int) -> partial:
        """To be called: at random weights and a random batch."""
        x = jax.random.normal(jax.random.key(seed), self.x.shape)
        return partial(self.compiled, jax.jit(self.net.init)(jax.random.key(seed + 1), x), (x, x))


def time_ratio(one: Program, other: Program, seed: int, rounds: int) -> float:
    """Median of time of `one` over `other`, which take turns."""
    spent = take_turns({"one": one.ready(seed), "other": other.ready(seed)}, rounds)
    return float(np.median(spent["one"] / spent["other"]))
