"""first_layer.png: the weights of the first layer and their gradient on one batch as images, a row for each checkpoint kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..errors import Problem
from ..gradients import value_and_grad
from ..params import paths, split
from ..train.store.checkpoint import Stored, fill, read
from ..train.store.rundir import CHECKPOINTS
from ..train.store.saver import files
from ..train.task.recipe import start
from ..train.task.task import Task
from ..transform import layers_by_path
from .figures import DPI, WIDE
from .history import History, label

PARAMS = "params/"  # what the names of a checkpoint's weights begin with
UNITS, COLUMNS, ROWS = 16, 8, 6  # images a picture, images in its row, checkpoints a figure
SIDE = 288  # of a matrix: two pixels a number
SMALL_IMAGE = 256  # inputs that are taken for a flattened square image: at least 16 x 16
COLORS = colormaps["RdBu_r"].with_extremes(bad="#b8b8b8")  # 0 is white, so what lies between images is grey


class Moment(NamedTuple):
    """What the layer was at a step; the gradient where it is known."""

    step: int
    weights: np.ndarray
    gradient: np.ndarray | None


def first_layer(history: History, task: Task | None, names: dict[str, str]) -> tuple[Figure | None, str]:
    """Returns (the figure, a note on what is missing); None without a matrix of weights."""
    moments: list[Moment] = []
    notes: list[str] = []
    whole, path, batch, gradient = False, None, None, None
    for file in files(history.directory / CHECKPOINTS)[-ROWS:]:  # one in memory at a time
        try:
            leaves = {name: leaf for name, leaf in read(file)[1].items() if name.startswith(PARAMS)}
        except Problem as problem:
            notes.append(str(problem))
            continue
        whole, path = True, path or next((name for name, leaf in leaves.items() if _is_matrix(leaf)), None)
        if path is None:
            break
        moments.append(Moment(_step(file), _array(leaves[path]), None))
        try:
            if task is not None:
                batch, gradient = (batch, gradient) if gradient else _gradient(history, task, path)
                moments[-1] = moments[-1]._replace(gradient=gradient(leaves, file))
        except Problem as problem:
            notes.append(f"first_layer.png without a gradient at step {_step(file)}: {problem}")
    if path is None:
        what = "matrix of weights in the checkpoint" if whole else "whole checkpoint yet"
        return None, "; ".join([*notes, f"no {what}, so no first_layer.png"])
    layer, _, leaf = path.removeprefix(PARAMS).rpartition("/")
    found = layers_by_path(task.net).get(layer) if task else None
    shape = _image(moments[-1].weights, found.kind if found else "", batch)
    return _figure(moments, f"{label(layer, names)}, {leaf} {list(moments[-1].weights.shape)}", shape), "; ".join(notes)


def _step(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _is_matrix(leaf: Stored) -> bool:
    if leaf.dtype.partition(" ")[0] in ("key", "python") or leaf.array.ndim < 2:
        return False
    return jnp.issubdtype(jnp.dtype(leaf.dtype), jnp.floating) and leaf.array.size > 0


def _array(leaf: Stored) -> np.ndarray:
    return np.asarray(leaf.array.view(jnp.dtype(leaf.dtype)), np.float32)


def _gradient(history: History, task: Task, path: str) -> tuple[Any, Callable[[dict[str, Stored], Path], np.ndarray | None]]:
    """Returns the first batch and `gradient(leaves, file)`, None for weights not trained.

    In float32 on one device, however the run computes. Raises Problem when the task no longer fits itself or the checkpoint.
    """
    params, batch = start(task, replace(history.config, devices=1, accumulate=1, precision="float32", backward="manual"))
    value_and_gradient = jax.jit(value_and_grad(task.net, task.loss))

    def gradient(leaves: dict[str, Stored], file: Path) -> np.ndarray | None:
        filled = fill({"params": params}, leaves, file)["params"]
        found = paths(split(value_and_gradient(filled, batch)[1])[0]).get(path.removeprefix(PARAMS))
        return None if found is None else np.asarray(found, np.float32)

    return batch, gradient


def _image(weights: np.ndarray, kind: str, batch: Any) -> tuple[int, int] | None:
    """Returns (height, width) of a kernel, or of the image that a dense layer sees; else None."""
    if weights.ndim == 4:
        return weights.shape[0], weights.shape[1]
    if weights.ndim != 2 or kind not in ("dense", ""):
        return None
    x = batch[0] if isinstance(batch, tuple) and batch else None
    shape = tuple(n for n in getattr(x, "shape", ())[1:] if n != 1)
    if len(shape) == 2 and math.prod(shape) == len(weights):
        return shape[0], shape[1]
    side = math.isqrt(len(weights))
    return (side, side) if side * side == len(weights) >= SMALL_IMAGE else None


def picture(weights: np.ndarray, image: tuple[int, int] | None) -> np.ndarray:
    """Returns the first UNITS units as images in a grid, or a corner of the matrix."""
    if image is None:
        flat = weights.reshape(-1, weights.shape[-1])
        return (flat if flat.shape[0] <= flat.shape[1] else flat.T)[:SIDE, :SIDE]
    units = weights.reshape(*image, -1, weights.shape[-1])[:, :, 0, :UNITS]  # of a kernel the first channel that comes in
    rows = -(-units.shape[-1] // COLUMNS)
    gap = max(1, image[0] // 14)
    tall, wide = image[0] + gap, image[1] + gap
    grid = np.full((rows * tall - gap, min(COLUMNS, units.shape[-1]) * wide - gap), np.nan, np.float32)
    for i in range(units.shape[-1]):
        row, column = divmod(i, COLUMNS)
        grid[row * tall:row * tall + image[0], column * wide:column * wide + image[1]] = units[..., i]
    return grid


def _figure(moments: list[Moment], what: str, image: tuple[int, int] | None) -> Figure:
    sides = ["weights"] + ["gradient"] * any(moment.gradient is not None for moment in moments)
    grid = picture(moments[0].weights, image)
    height = max(1.9, len(grid) / 70) if image is None else max(1.2, 0.5 + WIDE / len(sides) * len(grid) / len(grid[0]))
    figure = Figure(figsize=(WIDE, 1.5 + height * len(moments)), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.12)
    figure.suptitle(f"layer {what}: {_words(moments[0].weights, image)}", fontsize=13)
    axes = figure.subplots(len(moments), len(sides), squeeze=False)
    for column, side in enumerate(sides):
        scale = _scale([getattr(moment, side) for moment in moments])
        drawn: AxesImage | None = None
        for row, moment in enumerate(moments):
            ax, values = axes[row, column], getattr(moment, side)
            ax.set_axis_off()
            if values is not None:
                norm = float(np.linalg.norm(values))
                ax.set_title(f"{side}, step {moment.step}, norm {norm:.3g}", fontsize=11)
                drawn = ax.imshow(picture(values, image), cmap=COLORS, vmin=-scale, vmax=scale,
                                  aspect="auto" if image is None else "equal", interpolation="nearest")
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=list(axes[:, column]), location="bottom", shrink=0.6, aspect=40, extend="both")
            bar.set_ticks([-scale, 0.0, scale], labels=[f"{-scale:.2g}", f"{side} 0", f"{scale:.2g}"])
    return figure


def _words(weights: np.ndarray, image: tuple[int, int] | None) -> str:
    if image is None:
        rows, columns = weights.reshape(-1, weights.shape[-1]).shape
        shown = "all its" if max(rows, columns) <= SIDE else f"its first {min(rows, SIDE)} x {min(columns, SIDE)}"
        return f"{shown} weights, rows {'down, columns across' if rows <= columns else 'across, columns down'}"
    channel = " (first channel)" if weights.ndim == 4 and weights.shape[2] > 1 else ""
    return f"the first {min(UNITS, weights.shape[-1])} units as {image[0]} x {image[1]} images{channel}"


def _scale(arrays: list[np.ndarray | None]) -> float:
    """Returns the largest magnitude that has a colour, the 99.5th percentile."""
    sizes = [np.abs(array[np.isfinite(array)]).ravel() for array in arrays if array is not None]
    largest = float(np.percentile(np.concatenate(sizes), 99.5)) if sizes and sum(map(len, sizes)) else 0.0
    return largest or 1.0
