"""A run as figures, 1200 pixels wide: training.png and layers.png. Needs matplotlib; nothing here touches its global state."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .history import GRADIENT, RATIO, UPDATE, WEIGHTS, History, label, layer_series, place, series

DPI, WIDE = 100, 12.0
# told apart by colour-blind eyes too (Okabe and Ito 2008); without the yellow, which is pale on white
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
RAW, EVENT_RED, ALERT_BROWN, OVER = "#9ecae1", "#b2182b", "#8c5109", "#777777"
USUAL = 1e-3  # of the update-to-weight ratio, where training goes neither too fast nor too slowly
LABELS, LEGEND = 24, 22  # how many there is room for
FLOORS = (0.02, 0.3, 0.58)  # where the words of lines that lie close together begin


def panels(heights: list[float]) -> tuple[Figure, list[Axes]]:
    """Returns a Figure of panels, one above the other, sharing the steps. heights: in inches."""
    figure = Figure(figsize=(WIDE, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    axes = list(grid[:, 0])
    for ax in axes:
        ax.grid(True, color="#e5e5e5", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def training(history: History) -> Figure | None:
    """Draws the loss of each step, the test loss, accuracy or rmse, and what happened."""
    score = next((key for key in ("test_accuracy", "test_rmse") if series(history.epochs, key)[0]), None)
    if not (history.steps or history.epochs or history.marks):
        return None
    figure, axes = panels([4.6] + [2.2] * (score is not None))
    figure.suptitle(f"{history.config.model}: {history.step} steps, {history.status}", fontsize=13)
    _loss(axes[0], history)
    if score is not None:
        steps, values = series(history.epochs, score)
        axes[1].plot(steps, values, "o-", color=CYCLE[2], markersize=4)
        axes[1].set_ylabel(score.replace("_", " "))
        if np.isfinite(values[-1]):
            axes[1].annotate(f"{values[-1]:.4g}", (steps[-1], values[-1]), xytext=(0, -14), textcoords="offset points",
                             ha="right", color=CYCLE[2])
    for ax in axes:
        _mark(ax, history, written=ax is axes[0])
    return figure


def _loss(ax: Axes, history: History) -> None:
    steps, losses = series(history.steps, "loss")
    at, test = series(history.epochs, "test_loss")
    width = max(1, len(losses) // 40)
    color, thickness = (RAW, 0.9) if width > 1 else (CYCLE[0], 1.4)
    name = "loss of a step" if at else "train loss of a step (no held-out data)"
    ax.plot(steps, losses, color=color, linewidth=thickness, label=name)
    if width > 1:
        ax.plot(steps, smooth(losses, width), color=CYCLE[0], linewidth=2, label=f"its mean over {width} steps")
    if at:
        ax.plot(at, test, "o-", color=CYCLE[1], linewidth=1.4, markersize=4, label="test loss")
    _log(ax, [*losses, *test])
    ax.set_ylabel("loss")
    ax.legend(loc="upper right", framealpha=0.9)


def smooth(values: list[float], width: int) -> np.ndarray:
    """Returns the mean of the finite ones of `width` values around each, NaN for none."""
    x = np.asarray(values, np.float64)
    good = np.isfinite(x)
    window = np.ones(min(width, len(x)))
    total, count = (np.convolve(a, window, "same") for a in (np.where(good, x, 0.0), good.astype(float)))
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _log(ax: Axes, values: list[float]) -> None:
    """Sets a log axis unless a number is below 0 or none is above."""
    finite = [value for value in values if np.isfinite(value)]
    if finite and min(finite) >= 0 and max(finite) > 0:
        ax.set_yscale("log", nonpositive="mask")
        if max(finite) < 10 * min(finite):  # within a decade 4.2 reads better than 4.2 x 10^0
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")


def _mark(ax: Axes, history: History, written: bool) -> None:
    """Draws a line for each mark, with its words where there is room."""
    low, high = ax.get_xlim()
    before, height, said = -np.inf, FLOORS[0], 0
    for mark in sorted(history.marks, key=lambda mark: mark.step):
        color = OVER if mark.ended else ALERT_BROWN if mark.alert else EVENT_RED
        ax.axvline(mark.step, color=color, linewidth=1.2, linestyle="--" if mark.alert else "-", alpha=0.8)
        near = mark.step - before < 0.025 * (high - low)
        if not written or said >= LABELS or (near and height == FLOORS[-1]):
            continue
        height = FLOORS[FLOORS.index(height) + 1] if near else FLOORS[0]
        before, said = mark.step, said + 1
        words = " ".join([mark.kind, *([mark.layer] * bool(mark.layer)), *(["ended"] * mark.ended)])
        ax.annotate(words, (mark.step, height), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
                    rotation=90, va="bottom", fontsize=9, color=color,
                    bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8})


def layers(history: History, names: dict[str, str]) -> Figure | None:
    """Draws gradient norm, update-to-weight ratio and weight norm of every layer over the steps.

    A run without looks at its layers shows the whole net.
    """
    shown = [(GRADIENT, "gradient norm"), (RATIO, "update norm / weight norm"), (WEIGHTS, "weight norm")]
    found = {key: layer_series(history, key) or _whole(history, key) for key, _ in shown}
    shown = [(key, words) for key, words in shown if found[key]]
    if not shown:
        return None
    order = sorted({path for key, _ in shown for path in found[key]}, key=lambda path: (path == WHOLE, place(path)))
    styles = {WHOLE: ("#555555", "-"), **_styles([path for path in order if path != WHOLE])}
    figure, axes = panels([3.0] * len(shown))
    figure.suptitle(f"{history.config.model}: its layers over {history.step} steps", fontsize=13)
    for ax, (key, words) in zip(axes, shown):
        for path, (steps, values) in found[key].items():
            color, style = styles[path]
            dots = "o" if len(steps) <= 30 else ""
            ax.plot(steps, values, color=color, linestyle=style, linewidth=1.4, marker=dots, markersize=3)
        if key != WEIGHTS:  # these hardly change
            _log(ax, [value for _, values in found[key].values() for value in values])
        ax.set_ylabel(words)
        if key == RATIO:
            ax.axhline(USUAL, color="black", linewidth=1, linestyle=(0, (1, 2)))
            ax.annotate(f"usual: {USUAL:g}", (0.005, USUAL), xycoords=("axes fraction", "data"), fontsize=9, va="bottom",
                        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8}, zorder=5)
    _legend(figure, axes, order, names, styles)
    return figure


WHOLE = "the whole net"


def _whole(history: History, key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns the series of the steps' rows, whose norms are over all layers."""
    if key != RATIO:
        steps, values = series(history.steps, key)
    else:
        rows = [{"step": row["step"], RATIO: row[UPDATE] / row[WEIGHTS]} for row in history.steps
                if isinstance(row.get(UPDATE), float) and isinstance(row.get(WEIGHTS), float) and row[WEIGHTS]]
        steps, values = series(rows, RATIO)
    return {WHOLE: (steps, values)} if steps else {}


def _styles(order: list[str]) -> dict[str, tuple]:
    """Returns (colour, line style) by path: few layers by colour; many by depth, dark first."""
    if len(order) <= len(CYCLE):
        return {path: (CYCLE[i], "-") for i, path in enumerate(order)}
    depth = colormaps["viridis"]
    return {path: (depth(0.92 * i / (len(order) - 1)), STYLES[i % 4]) for i, path in enumerate(order)}


def _legend(figure: Figure, axes: list[Axes], order: list[str], names: dict[str, str], styles: dict[str, tuple]) -> None:
    every = -(-len(order) // LEGEND)
    handles = []
    for path in order[::every]:
        color, style = styles[path]
        words = WHOLE if path == WHOLE else label(path, names)
        handles += axes[0].plot([], [], color=color, linestyle=style, linewidth=2, label=words)
    title = "layer" if every == 1 else f"every {every}th of {len(order)} layers"
    figure.legend(handles=handles, loc="outside right upper", title=title, fontsize=9, frameon=False)
