"""Exercise: causal attention, one head. Level 3, about 45 minutes.

    s[t, u] = q[t] . k[u] / sqrt(C) where u <= t, and -infinity elsewhere        a step sees itself and the past
    p       = softmax of every row of s
    y[t]    = sum over u of p[t, u] v[u]

    q, k, v, y (B, T, C)   s, p (B, T, T)        B examples, T steps, C channels

The input x (B, T, 3 C) is q, k and v side by side; there are no params: `()`. `forward` keeps q, k, v and p.

Your task is `backward(params, residuals, dy)`, with dy the cotangent of y, in the shape of y. Return `((), dx)`, where dx
(B, T, 3 C) is dq, dk and dv side by side, the cotangents of q, k and v. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. Three steps back: y = p v gives dv and dp; p = softmax(s) gives ds; s = q k^T / sqrt(C) gives dq and dk.
2. The first and the last are matrix products, for every example: C = A B gives dA = dC B^T and dB = A^T dC. As einsum, for
   y[b, t, c] = sum over u of p[b, t, u] v[b, u, c]: to get dv, put dy for y and sum over t instead.
3. Softmax, one row: p[u] moves with every s[w], p' = p (s' - sum of p s'). Put that into the sum of dp p' and collect what
   stands in front of each s'[w]. The sum inside must not be forgotten.
4. The mask needs no line of its own: where p is 0, ds is 0. But 1 / sqrt(C) belongs to both dq and dk.

Check it:  fbackprop verify attention.py:layer
Read:      docs/derivations/attention.md, docs/derivations/softmax.md; Vaswani et al. 2017, section 3.2.1
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "attention"


def attention():
    def init(key, x):
        return ()

    def forward(params, x):
        q, k, v = jnp.split(x, 3, axis=-1)
        s = jnp.einsum("btc,buc->btu", q, k) / jnp.sqrt(q.shape[-1]).astype(x.dtype)
        past = jnp.tril(jnp.ones(s.shape[1:], bool))
        p = jax.nn.softmax(jnp.where(past, s, -jnp.inf))
        y = jnp.einsum("btu,buc->btc", p, v)
        return y, (q, k, v, p)  # (y, residuals)

    def backward(params, residuals, dy):
        q, k, v, p = residuals
        raise NotImplementedError("return (), dx")

    return Layer("attention", init, forward, backward, options=(("heads", 1), ("causal", True)))


def layer():
    return attention(), jax.ShapeDtypeStruct((2, 5, 9), jnp.float32)
