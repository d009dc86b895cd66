"""recommender: the score of an item for a user from what is learned about each (Koren, Bell and Volinsky 2009)."""

from __future__ import annotations

import jax

from ..calls import by_name
from ..compose import chain
from ..layer import Layer
from ..layers.branch import add, dot, fan_out, parallel
from ..layers.embedding import embedding
from ..layers.shape import reshape


@by_name()
def recommender(users: int, items: int, *, rank: int = 8, mean: float = 0.0) -> Layer:
    """(user numbers (B,), item numbers (B,)) -> scores (B,): the product of two vectors of `rank`, and a bias of each.

    mean: where the items' biases start, the mean rating.
    """
    factors = jax.nn.initializers.normal(0.1)
    biases = (jax.nn.initializers.zeros, jax.nn.initializers.constant(mean))
    tastes = chain(parallel(embedding(users, rank, w_init=factors), embedding(items, rank, w_init=factors)), dot())
    likes = chain(parallel(*(embedding(n, 1, w_init=init) for n, init in zip((users, items), biases))), add(), reshape())
    return chain(fan_out(tastes, likes), add())
