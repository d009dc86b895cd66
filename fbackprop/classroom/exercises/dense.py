"""Exercise: a dense layer. Level 1, about 15 minutes.

    y = x w + b        y[n, o] = sum over i of x[n, i] w[i, o], plus b[o]

    x (B, I)   w (I, O)   b (O,)   y (B, O)        B examples, I inputs, O outputs

Your task is `backward(params, residuals, dy)`. It gets the params, what `forward` kept (here x) and dy, the cotangent of y:
dy[n, o] says by how much the loss at the end grows when y[n, o] grows a little, per unit. Return `(dparams, dx)`: the
cotangents of the params, {"w": dw, "b": db}, and of x, each in the shape of what it belongs to. No autodiff: not `jax.grad`,
`jax.vjp` or the like.

Hints, from gentle to near
1. Move one weight w[i, o] a little. Which elements of y move, and each by how much? Weigh every one with its dy, and add.
   The same question for one b[o], then for one x[n, i].
2. b[o] is added to every row: it is used B times, so it collects B cotangents.
3. Look at the shapes. dw is (I, O) and made of x (B, I) and dy (B, O); dx is (B, I) and made of dy (B, O) and w (I, O).
   Which index is summed over in each?
4. Two of the three are one matrix product with one factor transposed. Nothing is divided by B: a mean belongs to the loss.

Check it:  fbackprop verify dense.py:layer
Read:      docs/derivations/dense.md
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "dense"


def dense(features):
    def init(key, x):
        w = jax.random.normal(key, (x.shape[-1], features), x.dtype)
        return {"w": w, "b": jnp.zeros(features, x.dtype)}

    def forward(params, x):
        return x @ params["w"] + params["b"], x  # (y, residuals)

    def backward(params, x, dy):
        raise NotImplementedError('return {"w": dw, "b": db}, dx')

    return Layer(f"dense({features})", init, forward, backward)


def layer():
    return dense(5), jax.ShapeDtypeStruct((3, 5), jnp.float32)
