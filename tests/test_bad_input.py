"""A net that cannot work says so while it is traced: which layer, what was expected, what came, what may be the cause."""

import jax
import jax.numpy as jnp
import pytest

from fbackprop import (
    attention,
    batch_norm,
    chain,
    conv2d,
    dense,
    embedding,
    global_avg_pool,
    group_norm,
    identity,
    lstm,
    max_pool,
    parallel,
    rotary,
    tied,
)

FLOAT, BOOL = jnp.float32, jnp.bool_


def spec(*shape, dtype=FLOAT):
    return jax.ShapeDtypeStruct(shape, dtype)


MISTAKES = {
    "a kernel larger than the padded input": (
        chain(identity(), conv2d(4, 5, padding="VALID")), spec(2, 3, 3, 1), ["1 conv2d", "(3, 3)", "(5, 5)", "channels last"]),
    "a window larger than the input": (
        chain(identity(), max_pool(4)), spec(2, 3, 3, 1), ["1 max_pool(4)", "(3, 3)", "(4, 4)"]),
    "heads that do not divide the width": (
        chain(dense(32), attention(5)), spec(2, 7, 8), ["1 attention(5)", "15 C", "float32[2,7,32]", "dense(15 * C)"]),
    "a mask of the wrong shape": (
        chain(parallel(dense(12), identity()), attention(2)), (spec(2, 7, 8), spec(7, dtype=BOOL)),
        ["1 attention(2)", "bool[2, 7]", "bool[7]"]),
    "an odd rotary width": (chain(dense(7), rotary()), spec(2, 3, 8), ["1 rotary()", "even", "float32[2,3,7]"]),
    "a sequence of no steps, attention": (
        chain(dense(12), attention(2)), spec(2, 0, 8), ["1 attention(2)", "at least one position"]),
    "a sequence of no steps, lstm": (chain(identity(), lstm(4)), spec(2, 0, 8), ["1/1 recurrent", "T at least 1"]),
    "a mean over no places": (
        chain(identity(), global_avg_pool()), spec(2, 0, 3, 4), ["1 global_avg_pool()", "float32[2,0,3,4]"]),
    "groups that do not divide the channels": (
        chain(identity(), group_norm(4)), spec(2, 3, 6), ["1 group_norm(4)", "4 groups divide", "float32[2,3,6]"]),
    "groups of a convolution that do not divide": (
        chain(identity(), conv2d(4, 3, groups=4)), spec(2, 5, 5, 6), ["1 conv2d", "4 groups divide", "float32[2,5,5,6]"]),
    "a tied path that does not exist": (
        tied(chain(embedding(5, 3), dense(5)), {"1/v": "0/w"}), spec(2, 7, dtype=jnp.int32), ["'1/v'", "0/w", "1/w"]),
    "tied weights of two shapes": (
        tied(chain(embedding(5, 3), dense(5)), {"1/w": "0/w"}), spec(2, 7, dtype=jnp.int32),
        ["'1/w'", "float32[5,3]", "float32[3,5]", "(V, D)"]),
    "State under tied": (
        tied(chain(batch_norm(), batch_norm()), {"1/mean": "0/mean"}), spec(4, 3), ["'1/mean'", "trainable", "State"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_while_tracing(mistake):
    net, x, words = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as error:
        jax.eval_shape(net.init, jax.random.key(0), x)
    said = str(error.value)
    assert [word for word in [*words, "expected", "got"] if word not in said] == [], said
