"""The workloads of `fbackprop bench`: a net, its loss, its batch, and the settings the hand-written chain is measured at.

Sizes, two cores in mind: mlp 784-1024-1024-10 relu, B 128. cnn 28x28x1, two stages of a 3x3 convolution (32, 64), relu and
2x2 max pooling, dense, B 128. resnet 32x32x3, stem 32, stages 32 64 128 of two blocks, B 32. lstm input 64, H 256, T 128,
last state to 10 classes, B 32. gpt D 256, 4 heads, 8 blocks, T 512, V 1024, B 4; gpt50k the same with 4 blocks, T 256,
V 50257. gpt2-124m, for accelerators: D 768, 12 heads, 12 blocks, T 1024, V 50257, B 16, in bfloat16, weights float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ...compose import objective
from ...errors import Problem
from ...layer import Layer
from ...losses.cross_entropy import softmax_cross_entropy
from ...models.convnet import convnet
from ...models.gpt import gpt
from ...models.lstm import lstm_classifier
from ...models.mlp import mlp
from ...models.resnet import resnet
from ...params import Tree
from ...precision import PRECISIONS, with_precision

FULL = "all kept"  # the setting every work has: the net as its maker gives it


@dataclass(frozen=True)
class Work:
    """`points`: settings of the hand-written chain by name, each the net rewritten, on the same params; the first is FULL.

    loss: None where the net ends in it. batch: a seed -> (x, target) or whatever the net takes.
    """

    name: str
    points: dict[str, Callable[[], Layer]]
    loss: Layer | None
    batch: Callable[[int], Any]
    narrow: bool = False  # computes in bfloat16

    @property
    def net(self) -> Layer:
        return self.points[FULL]()

    @property
    def counted(self) -> tuple[str, int]:
        """Names the unit of a batch, tokens or examples, and counts them."""
        x = jax.tree.leaves(jax.eval_shape(partial(self.batch, 0)))[0]
        return ("tokens", x.size) if jnp.issubdtype(x.dtype, jnp.integer) else ("examples", len(x))

    @cached_property
    def init(self) -> Callable[..., Tree]:
        """The init of net and loss; jitted, or it takes longer than the measurement."""
        return jax.jit(objective(self.net, self.loss).init)

    def params(self, seed: int) -> Tree:
        """Draws random weights."""
        spec = jax.eval_shape(partial(self.batch, 0))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), spec)
        return self.init(jax.random.key(seed, impl="unsafe_rbg"), zeros)


def images(*shape: int) -> Callable[[int], tuple[jax.Array, jax.Array]]:
    """Normal numbers and one of ten classes each."""
    def batch(seed: int) -> tuple[jax.Array, jax.Array]:
        x, target = jax.random.split(jax.random.key(seed))
        return jax.random.normal(x, shape), jax.random.randint(target, shape[:1], 0, 10)

    return batch


def tokens(vocabulary: int, *shape: int) -> Callable[[int], Any]:
    """Tokens, and the next of each."""
    def batch(seed: int) -> tuple[jax.Array, jax.Array]:
        x, target = jax.random.split(jax.random.key(seed))
        return jax.random.randint(x, shape, 0, vocabulary), jax.random.randint(target, shape, 0, vocabulary)

    return batch


def at(make: Callable[..., Layer], **settings: dict[str, Any]) -> dict[str, Callable[[], Layer]]:
    """`make` under every setting, by the setting's name in words."""
    return {FULL: make, **{name.replace("_", " "): partial(make, **options) for name, options in settings.items()}}


def _narrow_gpt(vocabulary: int, length: int, features: int, heads: int, blocks: int) -> Layer:
    return with_precision(gpt(vocabulary, length, features, heads, blocks), PRECISIONS["bfloat16"])


CLASSES = softmax_cross_entropy()
WORKS = {work.name: work for work in (
    Work("mlp", at(partial(mlp, (1024, 1024))), CLASSES, images(128, 784)),
    Work("cnn", at(convnet), CLASSES, images(128, 28, 28, 1)),
    Work("resnet", at(resnet), CLASSES, images(32, 32, 32, 3)),
    Work("lstm", at(
        partial(lstm_classifier, 256, segment=8, remake="nothing"), gates_of_8_steps_remade={"segment": 8, "remake": "gates"},
        gates_of_4_steps_remade={"segment": 4, "remake": "gates"}, remade_segments_of_8={"segment": 8, "remake": "carries"},
        remade_segments_of_4={"segment": 4, "remake": "carries"}), CLASSES, images(32, 128, 64)),
    Work("gpt", at(partial(gpt, 1024, 512), written_out={"unroll": True}, whole_attention={"block": None}), None,
         tokens(1024, 4, 512)),
    Work("gpt50k", at(partial(gpt, 50257, 256, blocks=4), written_out={"unroll": True}, chunks_of_128={"chunk": 128},
                      chunks_of_64={"chunk": 64}), None, tokens(50257, 4, 256)),
    Work("gpt2-124m", at(partial(_narrow_gpt, 50257, 1024, 768, 12, 12)), None, tokens(50257, 16, 1024), narrow=True),
)}

# The same works with small sizes, to rehearse a measurement on a CPU. Every setting of WORKS and IDIOMS fits these sizes.
SMALL = {work.name: work for work in (
    Work("mlp", at(partial(mlp, (32, 32))), CLASSES, images(8, 64)),
    Work("cnn", at(partial(convnet, (4, 8))), CLASSES, images(4, 8, 8, 1)),
    Work("resnet", at(partial(resnet, (4, 8), 1)), CLASSES, images(4, 8, 8, 3)),
    Work("lstm", at(partial(lstm_classifier, 16, segment=8, remake="nothing")), CLASSES, images(4, 16, 8)),
    Work("gpt", at(partial(gpt, 64, 32, 32, 4, 2)), None, tokens(64, 4, 32)),
    Work("gpt50k", at(partial(gpt, 512, 16, 32, 4, 1)), None, tokens(512, 4, 16)),
    Work("gpt2-124m", at(partial(_narrow_gpt, 64, 32, 48, 12, 1)), None, tokens(64, 4, 32), narrow=True),
)}


def find_work(name: str, small: bool = False) -> Work:
    """Returns a workload by its name, or the user's own file.py:function. Raises Problem where there is none."""
    if name in WORKS:
        return (SMALL if small else WORKS)[name]

    from ...train.task.config import TrainConfig
    from ...train.task.task import task_from_file

    if ".py" not in name:
        close = get_close_matches(name, WORKS, 1)
        hint = f"Did you mean {close[0]}?" if close else "Your own is named file.py:function"
        raise Problem(f"work {name!r}: expected one of {', '.join(WORKS)} or file.py:function. {hint}")
    task = task_from_file(TrainConfig.of(model=name))
    return Work(name, {FULL: lambda: task.net}, task.loss, lambda seed: jax.tree.map(jnp.asarray, task.batches(seed, 0)))
