"""Exercise: the chain. Level 2, about 15 minutes.

    x -> layer 0 -> x1 -> layer 1 -> x2 -> ... -> y

A layer is a forward `(params, x) -> (y, residuals)` and a backward `(params, residuals, dy) -> (dparams, dx)`. Three are given
below, with their backward; you need not change them. A chain of layers is a layer again. Its params are a tuple, one entry for
each layer, in the order of the forward; so are its residuals.

Your task is the chain's `backward(params, residuals, dy)`, for any layers. It gets dy, the cotangent of the chain's output.
Return `(dparams, dx)`: dparams a tuple with one entry for each layer, in the order of the params, and dx the cotangent of the
chain's own input. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. Only one layer's output has a cotangent that is known at the start: dy belongs to the output of the last.
2. A layer's dx is the cotangent of its input. That input is another layer's output.
3. So there is one loop, and in it one variable that is replaced again and again, as x is in the forward. Which way does it run?
4. Layer i wants its own params[i] and residuals[i]. The dparams come in the order of your loop; is it that of the params?

Check it:  fbackprop verify chain.py:layer
Read:      docs/derivations/composition.md
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "chain"


def scale():
    return Layer("scale", lambda key, x: {"s": jnp.ones(x.shape[-1], x.dtype)},
                 lambda params, x: (x * params["s"], x),
                 lambda params, x, dy: ({"s": jnp.sum(x * dy, axis=0)}, dy * params["s"]))


def sine():
    return Layer("sine", lambda key, x: (), lambda params, x: (jnp.sin(x), x), lambda params, x, dy: ((), jnp.cos(x) * dy))


def running_sum():
    return Layer("running_sum", lambda key, x: (), lambda params, x: (jnp.cumsum(x, axis=1), ()),
                 lambda params, _, dy: ((), jnp.cumsum(dy[:, ::-1], axis=1)[:, ::-1]))


def chain(*layers):
    def init(key, x):
        return tuple(layer.init(key, x) for layer in layers)  # these layers keep the shape of x

    def forward(params, x):
        residuals = []
        for i, layer in enumerate(layers):
            x, kept = layer.forward(params[i], x)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params, residuals, dy):
        raise NotImplementedError("return dparams, dx")

    return Layer("chain", init, forward, backward)


def layer():
    return chain(scale(), sine(), running_sum(), scale()), jax.ShapeDtypeStruct((3, 5), jnp.float32)
