"""Exercise: a convolution along time. Level 3, about 40 minutes.

    y[n, t, o] = sum over k and i of x[n, t + k, i] w[k, i, o], plus b[o]

    x (B, T, I)   w (K, I, O)   b (O,)   y (B, T - K + 1, O)        K: the length of the kernel. No padding, stride 1

`forward` adds up K products, one for each k: what position k of the kernel sees is x from k on. It keeps x.

Your task is `backward(params, residuals, dy)`, with dy the cotangent of y, in the shape of y. Return the cotangents
`({"w": dw, "b": db}, dx)`, each in the shape of what it belongs to. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. For K = 1 this is a dense layer at every (n, t). If you have not done that exercise, begin there.
2. The forward is a loop over k. The backward can be one as well: each turn is the backward of a dense layer whose input is
   x[:, k:k + S], with S = T - K + 1 the length of y.
3. dw[k] is made in turn k alone, from what the kernel's position k saw and the dy it helped to make, summed over n and t.
4. An x[n, t] is seen by up to K windows, and each adds to its cotangent. Start dx at zeros; turn k adds at the places it read:
   `dx.at[:, k:k + S].add(...)`.
5. Without the loop: dx is dy, with K - 1 zeros at both ends, convolved with w turned round in k, with I and O exchanged.

Check it:  fbackprop verify conv.py:layer
Read:      docs/derivations/conv.md
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "conv"


def conv1d(features, kernel):
    def init(key, x):
        w = jax.random.normal(key, (kernel, x.shape[-1], features), x.dtype)
        return {"w": w, "b": jnp.zeros(features, x.dtype)}

    def forward(params, x):
        w, steps = params["w"], x.shape[1] - kernel + 1
        y = sum(x[:, k:k + steps] @ w[k] for k in range(kernel)) + params["b"]
        return y, x  # (y, residuals)

    def backward(params, x, dy):
        raise NotImplementedError('return {"w": dw, "b": db}, dx')

    options = (("features", features), ("kernel", kernel), ("padding", "VALID"))
    return Layer("conv1d", init, forward, backward, options)


def layer():
    return conv1d(3, 3), jax.ShapeDtypeStruct((2, 7, 3), jnp.float32)
