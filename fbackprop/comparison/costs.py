"""Manual against automatic on the same forward: layer by layer at the values of a real batch, then the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..compose import objective
from ..gradients import auto_value_and_grad, predict, value_and_grad
from ..jaxprs.flops import count_flops
from ..layer import Layer
from ..layers.function import from_function
from ..observe.record import beside_records, recording, records
from ..observe.summary import Row, summarize
from ..observe.taps import tap
from ..params import Tree, split
from ..transform import map_layers, map_layers_with_path
from ..verify.gradient_error import gradient_error

KIND = "call"
LOSS = "loss"  # its path in an objective


@dataclass
class LayerCost:
    """One layer: how its rule differs from jax.vjp of its forward, and what both cost. Milliseconds and FLOPs of all `runs`.

    error: the largest difference of a cotangent, of params or of x, relative to the largest entry of its leaf. kept: bytes kept
    for the backward, what an earlier layer has counted there. auto_kept: the same for jax.vjp of every layer's forward.
    forward_ms is of the forward alone, the others of forward and backward together.
    """

    path: str
    layer: str
    output: str
    runs: int
    error: float
    kept: int
    auto_kept: int
    forward_flops: int
    dx_flops: int
    dparams_flops: int
    forward_ms: float
    manual_ms: float
    auto_ms: float


@dataclass
class ProgramCost:
    """Loss and gradients, jitted: median ms, XLA's temporary bytes, seconds to compile, FLOPs."""

    ms: float
    temp_bytes: int
    compile_s: float
    flops: int


@dataclass
class Comparison:
    """layers in the order they run, the loss last; time: the median ratio, manual over auto, of runs that alternate."""

    layers: list[LayerCost]
    manual: ProgramCost
    auto: ProgramCost
    time: float
    forward_flops: int
    max_gradient_error: float

    @property
    def as_json(self) -> dict[str, Any]:
        """Returns a dict, flat except for layers and the two programs; ratio holds manual over auto."""
        ratio = {"time": self.time, "memory": self.manual.temp_bytes / max(1, self.auto.temp_bytes),
                 "compile": self.manual.compile_s / self.auto.compile_s}
        return {**{key: value for key, value in asdict(self).items() if key != "time"}, "ratio": ratio}


def compare(net: Layer, loss: Layer | None, params: Tree, batch: Tree, *, pairs: int = 20, layers: bool = True) -> Comparison:
    """Measures both programs on one batch, in turns, `pairs` times. layers=False skips the layers.

    Raises what the layers raise on a wrong batch or wrong params.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    rows = of_layers(net, loss, params, batch, max(3, pairs // 2)) if layers else []
    programs, measured = {}, {}
    both = {"manual": value_and_grad(net, loss), "auto": auto_value_and_grad(net, loss)}
    for name, fn in both.items():
        lowered, began = jax.jit(fn).lower(params, batch), time.perf_counter()
        compiled = lowered.compile()
        seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
        programs[name] = partial(compiled, params, batch)
        measured[name] = ProgramCost(0.0, memory.temp_size_in_bytes if memory else 0, seconds,
                                     count_flops(fn, params, batch))
    spent = take_turns(programs, pairs)
    for name, each in measured.items():
        each.ms = float(np.median(spent[name]))
    return Comparison(rows, measured["manual"], measured["auto"], float(np.median(spent["manual"] / spent["auto"])),
                      count_flops(partial(value_of, net, loss), params, batch),
                      largest_error(net, loss, params, batch))


def largest_error(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> float:
    """Returns the largest gradient error of any leaf; its noise is the largest of a dozen draws."""
    measure = gradient_error(net, loss)
    draws = [measure(params, batch, seed)[0] for seed in range(4)]
    return float(np.max([np.min([draw[path] for draw in draws]) for path in draws[0]], initial=0.0))  # NaN stays NaN


def value_of(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> Any:
    """Returns the loss without gradients: the cost of inference."""
    return predict(objective(net, loss))(params, batch)


def take_turns(programs: Mapping[str, Callable[[], Any]], pairs: int) -> dict[str, np.ndarray]:
    """Returns milliseconds of each program in each round. In turns, so that a drift is fair."""
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(pairs + 2):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(programs[name]())
            if turn >= 2:  # the first compile, and find cold caches
                spent[name].append(1e3 * (time.perf_counter() - began))
    return {name: np.array(each) for name, each in spent.items()}


def of_layers(net: Layer, loss: Layer | None, params: Tree, batch: Tree, rounds: int) -> list[LayerCost]:
    """Returns a LayerCost per layer without parts, the loss last."""
    found = calls(net, loss, params, batch)
    auto_kept = {row.path: row.kept_bytes for row in summarize(automatic(objective(net, loss)), None, params, batch)}
    return [of_layer(row, auto_kept[row.path], found[row.path], rounds)
            for row in summarize(net, loss, params, batch) if row.path in found]


def of_layer(row: Row, auto_kept: int, call: Call, rounds: int) -> LayerCost:
    """Measures one layer by itself, jitted, at the values it was given."""
    forward = jax.jit(predict(call.layer))
    manual, auto = (jax.jit(there_and_back(layer)) for layer in (call.layer, automatic(call.layer)))
    given = (call.params, call.x, call.dy)
    error = relative(manual(*given)[1:], auto(*given)[1:])
    spent = take_turns({"forward": lambda: forward(*given[:2]), "manual": lambda: manual(*given), "auto": lambda: auto(*given)},
                       rounds)
    return LayerCost(row.path, row.layer, row.output, call.runs, error, row.kept_bytes, auto_kept, *flops_of(call),
                     *(call.runs * float(np.median(ms)) for ms in spent.values()))


def flops_of(call: Call) -> tuple[int, int, int]:
    """Returns FLOPs of all runs of a layer: of the forward, of dx only, of dparams only."""
    _, residuals = jax.eval_shape(call.layer.forward, call.params, call.x)
    back, given = call.layer.backward, (call.params, residuals, call.dy)
    flops = (count_flops(predict(call.layer), call.params, call.x), count_flops(lambda *args: back(*args)[1], *given),
             count_flops(lambda *args: split(back(*args)[0])[0], *given))
    forward, dx, dparams = (call.runs * each for each in flops)
    return forward, dx, dparams


def there_and_back(layer: Layer) -> Callable[..., Any]:
    """Returns `(params, x, dy) -> (y, gradients, dx)`, forward and backward of one layer."""
    def run(params: Tree, x: Any, dy: Any) -> tuple[Any, Tree, Any]:
        y, residuals = layer.forward(params, x)
        dparams, dx = layer.backward(params, residuals, dy)
        return y, split(dparams)[0], dx

    return run


def automatic(net: Layer) -> Layer:
    """Returns `net` with every layer but the combinators differentiated by jax.vjp."""
    def rule_by_jax(layer: Layer) -> Layer:
        twin = from_function(lambda params, x: layer.forward(params, x)[0])
        return layer if layer.parts else replace(layer, forward=twin.forward, backward=twin.backward)

    return map_layers(net, rule_by_jax)


def relative(a: Any, b: Any) -> float:
    """Returns the largest difference of two trees, relative to the leaf's largest entry in b."""
    worst = 0.0
    for mine, right in zip(map(np.asarray, jax.tree.leaves(a)), map(np.asarray, jax.tree.leaves(b)), strict=True):
        apart, size = np.max(np.abs(mine - right), initial=0.0), np.max(np.abs(right), initial=0.0)
        worst = np.maximum(worst, 0.0 if apart == 0 else apart / size if size else np.inf)  # NaN stays NaN
    return float(worst)


class Call(NamedTuple):
    """A layer, how often it runs, and what it is given in the last of its runs; a cell is given all steps at once."""

    layer: Layer
    runs: int
    params: Tree
    x: Any
    dy: Any


def calls(net: Layer, loss: Layer | None, params: Tree, batch: Tree) -> dict[str, Call]:
    """Returns, by path, every layer without parts that the backward comes to, the loss last."""
    layers: dict[str, Layer] = {}
    losses: dict[str, Layer] = {}

    def recalled(path: str, layer: Layer) -> Layer:
        if not layer.parts:
            layers[path], layer = layer, recalling(layer)
        return layer

    recorded = map_layers_with_path(net, recalled)

    @jax.jit
    def run(params: Tree, batch: Tree) -> Any:
        _, grads = value_and_grad(recorded, loss)(beside_records(recorded, loss, params, batch), batch)
        to_loss: dict[str, Any] = {}

        def see(path: str, layer: Layer, params: Tree, x: Any, y: Any, residuals: Any) -> None:
            if path == LOSS:
                losses[path], to_loss[path] = layer, x

        predict(tap(objective(net, loss), see))(params, batch)
        return records(grads, KIND), to_loss

    seen, to_loss = run(params, batch)
    found: dict[str, Call] = {}
    for path in layers:
        mark, *given = seen[path].value
        found[path] = Call(layers[path], mark.size, *jax.tree.map(lambda a, axes=mark.ndim: a[(-1,) * axes], given))
    for path, x in to_loss.items():
        found[path] = Call(losses[path], 1, (), x, jnp.ones((), jax.tree.leaves(x)[0].dtype))
    return found


def recalling(layer: Layer) -> Layer:
    """Returns `layer` with a Record of (mark, params, x, dy). A repeat gives them all an axis."""
    def read(params: Tree, x: Any, residuals: Any, dy: Any, dparams: Tree, dx: Any) -> Tree:
        return jnp.zeros(()), params, x, dy

    return recording(layer, KIND, jnp.zeros(()), read, note=lambda x, y: x)
