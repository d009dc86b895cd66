"""Exercise: the cell of an LSTM. Level 3, about 30 minutes.

    (i, f, g, o) = a + h w, cut in four        then i, f, o = sigmoid of each, and g = tanh of it
    c'  = f c + i g                            the new cell state: forget some of the old, write some of the new
    h'  = o tanh(c')                           the new output

    h, c, h', c' (B, H)   a (B, 4 H)   w (H, 4 H)        B examples, H units; a is the step's input, already projected

A cell maps (carry, input) to (carry, output): here ((h, c), a) to ((h', c'), h'). So h' goes two ways, on to the next step and
out to the next layer, and its cotangent comes from both. `forward` keeps h, c, the four gates and t = tanh(c').

Your task is `backward(params, residuals, dy)`, with dy = ((dh', dc'), dout) the cotangents of the output, in its structure.
Return `({"w": dw}, ((dh, dc), da))`, those of params and input, in theirs. No autodiff: not `jax.grad`, `jax.vjp` or the like.

Hints, from gentle to near
1. A value that is used twice has the sum of the two cotangents. Here that holds for h', and once more for c': dc' comes in from
   the next step, and c' was also used to make h'. Complete both before you use them.
2. From then on go back line by line; each is a product or a sum. From c' = f c + i g come df, dc, di and dg.
3. A gate's own derivative from its value: sigmoid s has s (1 - s), tanh t has 1 - t^2.
4. Put the four together in the order they were cut (`jnp.concatenate` on the last axis): that is da.
5. a + h w is a dense layer. dw and dh are made of da as there.

Check it:  fbackprop verify lstm.py:layer
Read:      docs/derivations/recurrent.md; Hochreiter and Schmidhuber 1997, Gers et al. 2000 (the forget gate)
"""

import jax
import jax.numpy as jnp

from fbackprop import Layer

EXERCISE = "lstm"


def lstm_cell(units):
    def init(key, x):
        return {"w": jax.random.normal(key, (units, 4 * units), x[1].dtype)}

    def forward(params, x):
        (h, c), a = x
        i, f, g, o = jnp.split(a + h @ params["w"], 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c_next = f * c + i * g
        t = jnp.tanh(c_next)
        h_next = o * t
        return ((h_next, c_next), h_next), (h, c, i, f, g, o, t)  # (y, residuals)

    def backward(params, residuals, dy):
        h, c, i, f, g, o, t = residuals
        (dh_next, dc_next), dout = dy
        raise NotImplementedError('return {"w": dw}, ((dh, dc), da)')

    return Layer(f"lstm_cell({units})", init, forward, backward)


def layer():
    array = lambda width: jax.ShapeDtypeStruct((3, width), jnp.float32)
    return lstm_cell(4), ((array(4), array(4)), array(16))
