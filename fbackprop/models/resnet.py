"""resnet: blocks of two convolutions beside a shortcut (He et al. 2016, batch norm after every convolution)."""

from __future__ import annotations

from collections.abc import Sequence

from ..calls import by_name
from ..checks import expect_whole, expect_wholes
from ..compose import chain, skip
from ..layer import Layer
from ..layers.branch import add, fan_out
from ..layers.conv import conv2d
from ..layers.dense import dense
from ..layers.elementwise import relu
from ..layers.norm import batch_norm
from ..layers.pool import global_avg_pool
from ..memory.schedule import scheduled
from .mlp import XAVIER


@by_name()
def resnet(stages: Sequence[int] = (32, 64, 128), *, blocks: int = 2, stem: int | None = None,
           outputs: int = 10) -> Layer:
    """x (B, H, W, C) -> (B, outputs): a 3x3 stem, `blocks` blocks a stage, the mean over all places, a dense layer.

    Every stage but the first begins with stride 2. A block that changes the shape has a 1x1 projection in its shortcut.
    stem: its channels, those of the first stage by default.
    """
    stages, blocks = expect_wholes("resnet stages", stages), expect_whole("resnet blocks", blocks)
    have = stages[0] if stem is None else expect_whole("resnet stem", stem)
    layers = [_conv_norm(have), relu()]
    for stage, channels in enumerate(stages):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            layers.append(_block(channels, stride, projected=stride > 1 or have != channels))
            have = channels
    return chain(*layers, global_avg_pool(), dense(outputs, w_init=XAVIER))


def _conv_norm(channels: int, kernel: int = 3, stride: int = 1) -> Layer:
    return chain(conv2d(channels, kernel, stride=stride, bias=False), batch_norm())  # the norm would take a bias out again


def _block(channels: int, stride: int, projected: bool) -> Layer:
    first, second = (conv2d(channels, 3, stride=step, bias=False) for step in (stride, 1))
    # the first norm and relu are recomputed from the first convolution's output: two cheap layers, one array less to keep
    main = scheduled(chain(first, batch_norm(), relu(), second, batch_norm()), (1, (3,), 1))
    both = chain(fan_out(main, _conv_norm(channels, 1, stride)), add()) if projected else skip(main)
    return chain(both, relu())
