"""Exercise: relu. Level 1, about 5 minutes.

    y = x where x > 0, and 0 elsewhere

x and y have the same shape, here (3, 5). There are no params: `()`.

Your task is `backward(params, residuals, dy)`. It gets what `forward` kept (here x) and dy, the cotangent of y: dy[i, j] says
by how much the loss at the end grows when y[i, j] grows a little, per unit. Return the pair `(dparams, dx)`: the cotangent of
the params, which is `()` here, and that of x, in the shape of x. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. Every y[i, j] depends on x[i, j] alone. So dx[i, j] needs dy[i, j] alone, and a number that depends on x[i, j].
2. That number is the slope of the curve y(x) at x[i, j]. It takes only two values. Draw the curve.
3. What decides is the sign of x, not that of dy. At x = 0 take the slope 0.

Check it:  fbackprop verify relu.py:layer
Read:      docs/derivations/elementwise.md
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "relu"


def relu():
    def init(key, x):
        return ()

    def forward(params, x):
        return jnp.where(x > 0, x, 0), x  # (y, residuals)

    def backward(params, x, dy):
        raise NotImplementedError("return (), dx")

    return Layer("relu", init, forward, backward)


def layer():
    return relu(), jax.ShapeDtypeStruct((3, 5), jnp.float32)
