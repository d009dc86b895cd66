"""mlp: dense layers with one activation between them."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ..calls import by_name
from ..checks import expect, expect_wholes
from ..compose import chain
from ..layer import Layer
from ..layers import elementwise
from ..layers.dense import dense
from ..layers.elementwise import Activation
from ..layers.shape import flatten

HE, XAVIER = jax.nn.initializers.he_normal(), jax.nn.initializers.glorot_uniform()
# Xavier keeps the variance of functions that are linear at 0 (Glorot and Bengio 2010); He makes up for the half that relu
# and its relatives cut off (He et al. 2015)
INIT_BEFORE = {"sigmoid": XAVIER, "tanh": XAVIER, "identity": XAVIER}


@by_name()
def mlp(hidden: Sequence[int] = (512,), *, outputs: int = 10,
        activation: Activation = "relu") -> Layer:
    """x (B, ...) -> (B, outputs): flatten, then a dense layer and `activation` per hidden width, then a dense layer.

    activation: a name of the elementwise table; it chooses He or Xavier initialisation. The last layer is Xavier's.
    """
    expect(activation in elementwise.TABLE, "mlp activation", f"one of {', '.join(elementwise.TABLE)}", repr(activation))
    hidden = expect_wholes("mlp hidden", hidden)
    init = INIT_BEFORE.get(activation, HE)
    layers = [layer for width in hidden for layer in (dense(width, w_init=init), getattr(elementwise, activation)())]
    return chain(flatten(), *layers, dense(outputs, w_init=XAVIER))
