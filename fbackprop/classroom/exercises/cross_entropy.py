"""Exercise: softmax and cross-entropy, as one loss. Level 2, about 20 minutes.

    p[n, v] = exp(logits[n, v]) / sum over u of exp(logits[n, u])        softmax of every row
    y       = mean over n of -log p[n, label[n]]                         one number, in nats

    logits (B, V)   labels (B,), whole numbers from 0 to V - 1   y ()        B examples, V classes

The input x of this layer is the pair (logits, labels); there are no params: `()`. `forward` keeps log p and the labels.

Your task is `backward(params, residuals, dy)`, with dy the cotangent of y, one number. Return `((), (dlogits, None))`: the
labels are whole numbers, so they have no cotangent. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. Take one row. Its loss is log(sum over u of exp(logits[u])) - logits[label]. Differentiate by one logit: first one that is
   not the label's, then the label's own. The two differ by a constant.
2. The derivative of the first term is something that you have already: its logarithm is among the residuals.
3. Write the second term with a row t that is 1 at the label and 0 elsewhere (`jax.nn.one_hot`). Each row of dlogits sums to 0.
4. The mean over n gives every row a factor. And do not forget dy, though it is 1 in most trainings.

Check it:  fbackprop verify cross_entropy.py:layer
Read:      docs/derivations/losses.md, docs/derivations/softmax.md
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "cross_entropy"


def softmax_cross_entropy():
    def init(key, x):
        return ()

    def forward(params, x):
        logits, labels = x
        log_p = jax.nn.log_softmax(logits)
        y = -jnp.mean(log_p[jnp.arange(len(labels)), labels])
        return y, (log_p, labels)  # (y, residuals)

    def backward(params, residuals, dy):
        log_p, labels = residuals
        raise NotImplementedError("return (), (dlogits, None)")

    return Layer("softmax_cross_entropy", init, forward, backward)


def layer():
    return softmax_cross_entropy(), (jax.ShapeDtypeStruct((4, 5), jnp.float32), jnp.array([3, 0, 4, 3]))
