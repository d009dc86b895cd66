"""gpt: a decoder of pre-norm blocks that ends in its loss (Radford et al. 2019, section 2.3)."""

from __future__ import annotations

from math import sqrt

import jax

from ..calls import by_name
from ..checks import expect_whole
from ..compose import chain, skip
from ..layer import Layer
from ..layers.attention import attention
from ..layers.branch import parallel
from ..layers.dense import dense
from ..layers.elementwise import gelu, identity
from ..layers.embedding import embedding, learned_positions
from ..layers.norm import layer_norm
from ..layers.repeat import repeat
from ..layers.rewire import checkpoint, tied
from ..losses.linear import linear_cross_entropy

SMALL = 0.02  # standard deviation of every weight at the start
TILE = 128  # larger ones only where two cover the sequence, or causal attention would leave nothing out


@by_name()
def gpt_block(features: int, heads: int, *, blocks: int = 1, block: int | None = None) -> Layer:
    """x (B, T, D) -> (B, T, D): causal attention, then an mlp of width 4 D, each behind a norm and beside a skip.

    blocks: how many there are in the net; what they add to x starts smaller by the root of 2 blocks. block: attention's tile.
    checkpoint keeps a norm's and a gelu's input alone: the dense behind each recomputes what it needs, at next to no cost.
    """
    features, blocks = expect_whole("gpt features", features), expect_whole("gpt blocks", blocks)
    small, smaller = jax.nn.initializers.normal(SMALL), jax.nn.initializers.normal(SMALL / sqrt(2 * blocks))
    attend = chain(checkpoint(chain(layer_norm(), dense(3 * features, w_init=small))),
                   attention(heads, causal=True, block=block), dense(features, w_init=smaller))
    think = chain(checkpoint(chain(layer_norm(), dense(4 * features, w_init=small))),
                  checkpoint(chain(gelu(), dense(features, w_init=smaller))))
    return chain(skip(attend), skip(think))


@by_name()
def gpt(vocabulary: int, length: int, *, features: int = 256, heads: int = 4, blocks: int = 8,
        block: int | None = 256, chunk: int | None = 256, unroll: bool = False) -> Layer:
    """(tokens (B, T), target (B, T)) -> the mean cross-entropy of the next token; T <= length. The head is the embedding.

    Out of training, `inference(net)` gives logits (B, T, vocabulary). block: attention's tile, but beyond 128 no more than half
    of the length, None for T x T; chunk: tokens whose logits exist at a time, None for all; unroll: blocks written out rather
    than scanned, quicker to run and longer to compile.
    """
    length = expect_whole("gpt length", length)
    half = max(TILE, -(-length // 2))
    tile = None if block is None else min(expect_whole("gpt block", block), half)
    one = gpt_block(features, heads, blocks=blocks, block=tile)
    body = chain(embedding(vocabulary, features), learned_positions(length),
                 repeat(one, blocks, unroll=unroll), layer_norm())
    head = linear_cross_entropy(vocabulary, chunk=chunk)
    return tied(chain(parallel(body, identity()), head), {"1/w": "0/0/0/w"})
