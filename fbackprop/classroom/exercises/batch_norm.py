"""Exercise: batch normalization, with the batch's own statistics. Level 3, about 40 minutes.

    mean[c] = mean over n of x[n, c]        var[c] = mean over n of (x[n, c] - mean[c])^2
    rstd    = 1 / sqrt(var + 1e-5)          h      = (x - mean) rstd          y = h scale + bias

    x, h, y (B, C)   scale, bias, mean, var, rstd (C,)        B examples, C channels; every channel is by itself

`forward` keeps h and rstd.

Your task is `backward(params, residuals, dy)`, with dy the cotangent of y, in the shape of y. Return the cotangents
`({"scale": dscale, "bias": dbias}, dx)`, each in the shape of what it belongs to. No autodiff: not `jax.grad`, `jax.vjp` or the
like.

Hints, from gentle to near
1. Start at the end: y = h scale + bias is like a dense layer with one weight for each channel. It gives dscale, dbias and dh.
2. One x[n, c] moves y in every row of its channel, for it moves mean and var. So dx has three parts: directly through
   x - mean, through the mean, and through the variance. With rstd dh alone the last two are missing.
3. Write the small changes, one channel at a time. mean' = mean of x'. var' = 2 mean of (x - mean) x', and from it
   rstd' = -rstd^2 mean of (h x'). Put both into h' = rstd (x' - mean') + (x - mean) rstd'.
4. You now have h' = rstd (x' - A x' - B x'), where A x' takes a mean and B x' takes h times the mean of h times something. Both
   are symmetric, that is their own transposes: what is done to x' there is done to dh here.
5. Two tests by hand: in every channel dx sums to 0, and (nearly) so does dx h. Why must it be so?

Check it:  fbackprop verify batch_norm.py:layer
Read:      docs/derivations/norm.md; Ioffe and Szegedy 2015, section 3
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "batch_norm"


def batch_norm():
    def init(key, x):
        return {"scale": jnp.ones(x.shape[-1], x.dtype), "bias": jnp.zeros(x.shape[-1], x.dtype)}

    def forward(params, x):
        mean = jnp.mean(x, axis=0)
        rstd = 1 / jnp.sqrt(jnp.mean((x - mean) ** 2, axis=0) + 1e-5)
        h = (x - mean) * rstd
        return h * params["scale"] + params["bias"], (h, rstd)  # (y, residuals)

    def backward(params, residuals, dy):
        h, rstd = residuals
        raise NotImplementedError('return {"scale": dscale, "bias": dbias}, dx')

    return Layer("batch_norm", init, forward, backward)


def layer():
    return batch_norm(), jax.ShapeDtypeStruct((7, 3), jnp.float32)
