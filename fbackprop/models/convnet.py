"""convnet: convolution, relu and pooling, several times, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..calls import by_name
from ..checks import expect_wholes
from ..compose import chain
from ..layer import Layer
from ..layers.conv import conv2d
from ..layers.dense import dense
from ..layers.dropout import dropout
from ..layers.elementwise import relu
from ..layers.pool import max_pool
from ..layers.shape import flatten
from .mlp import XAVIER


@by_name()
def convnet(channels: Sequence[int] = (32, 64), *, hidden: Sequence[int] = (), outputs: int = 10,
            rate: float = 0.0) -> Layer:
    """x (B, H, W, C) -> (B, outputs): per entry of `channels` a 3x3 convolution, 2x2 max pooling and relu; per entry of
    `hidden` a dense layer and relu; a dense layer. rate: of dropout in front of every dense layer; 0: none.

    relu of the maximum is the maximum of relu: behind the pooling it has a quarter of the work, and of the bytes to keep.
    """
    channels = expect_wholes("convnet channels", channels)
    hidden = expect_wholes("convnet hidden", hidden)
    stages = [layer for width in channels for layer in (conv2d(width, 3), max_pool(2), relu())]
    drop = [dropout(rate)] if rate else []
    body = [layer for width in hidden for layer in (*drop, dense(width), relu())]
    return chain(*stages, flatten(), *body, *drop, dense(outputs, w_init=XAVIER))
