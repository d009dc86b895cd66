"""The named works of `fbackprop bench`: nets, losses, batches, settings of the hand-written chain.

Sizes, two cores in mind: mlp 784-1024-1024-10 relu, B 128. cnn 28x28x1, two stages of a 3x3 convolution (32, 64), relu and
2x2 max pooling, dense, B 128. resnet 32x32x3, stem 32, stages 32 64 128 of two blocks, B 32. lstm input 64, H 256, T 128,
last state to 10 classes, B 32. gpt D 256, 4 heads, 8 blocks, T 512, V 1024, B 4; gpt50k the same with 4 blocks, T 256,
V 50257. gpt2-124m, for accelerators: D 768, 12 heads, 12 blocks, T 1024, V 50257, B 16, in bfloat16, weights float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

import jax

from fbackprop import convnet, gpt, lstm_classifier, mlp, resnet, softmax_cross_entropy
from fbackprop.comparison.bench.benchmark import PEERS
from fbackprop.comparison.bench.program import Look, Program, timed
from fbackprop.comparison.bench.work import FULL, Work
from fbackprop.errors import Problem
from fbackprop.layer import Layer
from fbackprop.params import Tree, merge
from fbackprop.precision import PRECISIONS, with_precision

from .baselines import BASELINES


class NamedWork(Work):
    """A work that other libraries compute too. `named` of each program gives the structure of the
    baseline's weights.
    """

    peers = PEERS

    @property
    def settings(self) -> dict[str, Callable]:
        """Returns the baseline's settings, the idiomatic one first."""
        return {**BASELINES[self.name].points}

    @property
    def settings_here(self) -> dict[str, Callable]:
        """Adds the attention that cuDNN fuses, on a GPU in bfloat16."""
        found = self.settings
        if self.narrow and jax.default_backend() == "gpu":
            found["cudnn attention"] = partial(found["idiomatic"], implementation="cudnn")
        return found

    def weights(self, seed: int) -> tuple[Tree, Tree]:
        """Returns the weights as the baseline has them, trained and carried."""
        return jax.jit(BASELINES[self.name].adapt)(self.params(seed))

    def program(self, peer: str, point: str, seed: int) -> Program:
        """Returns loss and gradients by `peer` at `point`, on the same weights for every peer."""
        if peer == "manual":
            chain = super().program(peer, point, seed)
            adapt, carried = BASELINES[self.name].adapt, chain.carried
            return chain._replace(named=lambda grads: adapt(merge(grads, carried))[0])
        if peer in ("flax", "equinox"):
            return of_module(peer, self.name, *self.weights(seed))
        return of_loss(self.settings_here[point], *self.weights(seed))

    def measure(self, peer: str, point: str, seed: int, step: bool, seconds: float) -> dict:
        """Measures a program, of PyTorch too, or a training step with it, for `seconds`."""
        if not peer.startswith("torch"):
            return super().measure(peer, point, seed, step, seconds)
        backend = "inductor" if peer == "torch-compile" else None
        batch = self.batch(seed)
        return measure_torch(self.name, *self.weights(seed), batch, step, seconds, backend)


def of_loss(loss: Callable, trained: Tree, rest: Tree) -> Program:
    """jax.grad of `loss(trained, rest, batch) -> (value, rest)`."""
    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(trained, rest, batch)
        return value, grads, rest

    return Program(run, trained, rest)


def of_module(library: str, name: str, trained: Tree, rest: Tree) -> Program:
    """Of the module of Flax or Equinox, with these weights."""
    peer = load_peer(library)
    fn, state = peer.program(name, trained, rest)

    def run(trained: Tree, rest: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
        value, (grads, rest) = fn((trained, rest), batch)
        return value, grads, rest

    return Program(run, *state)._replace(named=lambda grads: peer.gradients(name, (grads, ())))


def measure_torch(name: str, trained: Tree, rest: Tree, batch: Any, step: bool, seconds: float,
                  backend: str | None, look: Look | None = None) -> dict[str, Any]:
    """Measures PyTorch's module with these weights. backend: of torch.compile.

    compile_s is that of the first run. XLA's temporary bytes have no counterpart. Raises Problem
    where JAX computes on an accelerator that PyTorch does not see.
    """
    peer = load_peer("torch")
    cuda = peer.torch.cuda
    if jax.default_backend() != "cpu" and not cuda.is_available():
        raise Problem(f"torch {peer.torch.__version__} sees no GPU")
    trained, rest, batch = jax.device_get((trained, rest, batch))
    began = time.perf_counter()
    run = peer.program(name, trained, rest, batch, step, backend)
    value = run()
    figures = {"value": value, "compile_s": time.perf_counter() - began,
               "ms": timed(run, seconds), "temp_mb": None}
    if cuda.is_available():
        figures["peak_mb"] = cuda.max_memory_allocated() / 1e6
    return {**figures, **look(peer.gradients(name, run))} if look else figures


def load_peer(library: str) -> Any:
    """Imports experiments/peers/LIBRARY_peer.py."""
    return import_module(f"peers.{library}_peer")


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
        draw = partial(jax.random.randint, shape=shape, minval=0, maxval=vocabulary)
        return draw(x), draw(target)

    return batch


def work(name: str, make: Callable[..., Layer], batch: Callable[[int], Any], loss: Layer | None,
         narrow: bool = False, **settings: dict[str, Any]) -> NamedWork:
    """Returns the work of `make`, at every setting too; an underscore stands for a space."""
    points = {key.replace("_", " "): partial(make, **each) for key, each in settings.items()}
    return NamedWork(name, {FULL: make, **points}, loss, batch, narrow)


def narrow_gpt(vocabulary: int, length: int, **options: Any) -> Layer:
    return with_precision(gpt(vocabulary, length, **options), PRECISIONS["bfloat16"])


CLASSES = softmax_cross_entropy()
WORKS = {each.name: each for each in (
    work("mlp", partial(mlp, (1024, 1024)), images(128, 784), CLASSES),
    work("cnn", convnet, images(128, 28, 28, 1), CLASSES),
    work("resnet", resnet, images(32, 32, 32, 3), CLASSES),
    work("lstm", partial(lstm_classifier, 256, segment=8, remake="nothing"), images(32, 128, 64),
         CLASSES,
         gates_of_8_steps_remade={"segment": 8, "remake": "gates"},
         gates_of_4_steps_remade={"segment": 4, "remake": "gates"},
         remade_segments_of_8={"segment": 8, "remake": "carries"},
         remade_segments_of_4={"segment": 4, "remake": "carries"}),
    work("gpt", partial(gpt, 1024, 512), tokens(1024, 4, 512), None,
         written_out={"unroll": True}, whole_attention={"block": None}),
    work("gpt50k", partial(gpt, 50257, 256, blocks=4), tokens(50257, 4, 256), None,
         written_out={"unroll": True}, chunks_of_128={"chunk": 128}, chunks_of_64={"chunk": 64}),
    work("gpt2-124m", partial(narrow_gpt, 50257, 1024, features=768, heads=12, blocks=12),
         tokens(50257, 16, 1024), None, narrow=True),
)}

# The same works with small sizes, to rehearse a measurement on a CPU. All baselines fit them.
SMALL = {each.name: each for each in (
    work("mlp", partial(mlp, (32, 32)), images(8, 64), CLASSES),
    work("cnn", partial(convnet, (4, 8)), images(4, 8, 8, 1), CLASSES),
    work("resnet", partial(resnet, (4, 8), blocks=1), images(4, 8, 8, 3), CLASSES),
    work("lstm", partial(lstm_classifier, 16, segment=8, remake="nothing"), images(4, 16, 8),
         CLASSES),
    work("gpt", partial(gpt, 64, 32, features=32, heads=4, blocks=2), tokens(64, 4, 32), None),
    work("gpt50k", partial(gpt, 512, 16, features=32, heads=4, blocks=1), tokens(512, 4, 16), None),
    work("gpt2-124m", partial(narrow_gpt, 64, 32, features=48, heads=12, blocks=1),
         tokens(64, 4, 32), None, narrow=True),
)}


def find_named(name: str, small: bool = False) -> NamedWork:
    """Returns a named work. Raises Problem where there is none."""
    if name in WORKS:
        return (SMALL if small else WORKS)[name]
    close = get_close_matches(name, WORKS, 1)
    hint = f"Did you mean {close[0]}?" if close else "Your own is named file.py:function"
    raise Problem(f"work {name!r}: expected one of {', '.join(WORKS)} or file.py:function. {hint}")
