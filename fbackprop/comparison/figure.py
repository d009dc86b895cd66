"""compare's figure: bytes kept, FLOPs and time layer by layer, the hand-written rule beside jax.vjp. Needs matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.figures import CYCLE, DPI, WIDE
from .costs import Comparison, LayerCost

MANUAL, AUTO, FORWARD, GREY = CYCLE[0], CYCLE[1], "#bbbbbb", "#e5e5e5"


def compare_figure(found: Comparison, title: str) -> Figure:
    """Draws three panels side by side, a bar or two for each layer, in the order they run."""
    rows = [row for row in found.layers if row.manual_ms or row.kept]
    figure = Figure(figsize=(WIDE, 1.6 + 0.34 * len(rows)), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    kept, flops, ms = figure.subplots(1, 3, sharey=True)
    at = np.arange(len(rows))
    pairs(kept, at, [row.kept / 1e6 for row in rows], [row.auto_kept / 1e6 for row in rows])
    pairs(ms, at, [row.manual_ms for row in rows], [row.auto_ms for row in rows])
    stacked(flops, at, rows)
    kept.set(title="kept for the backward, MB", yticks=at, yticklabels=[named(row) for row in rows])
    kept.invert_yaxis()
    flops.set_title("operations, MFLOP")
    ms.set_title("forward and backward, ms")
    for ax in (kept, flops, ms):
        ax.grid(True, axis="x", color=GREY, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    kept.legend(fontsize=8)
    flops.legend(fontsize=8)
    return figure


def named(row: LayerCost) -> str:
    name = row.layer if len(row.layer) <= 26 else row.layer.partition("(")[0]
    return f"{name}  {row.path}" + (f" x{row.runs}" if row.runs > 1 else "")


def pairs(ax: Axes, at: np.ndarray, manual: list[float], auto: list[float]) -> None:
    ax.barh(at - 0.2, manual, 0.38, color=MANUAL, label="by hand")
    ax.barh(at + 0.2, auto, 0.38, color=AUTO, label="jax.vjp")


def stacked(ax: Axes, at: np.ndarray, rows: list[LayerCost]) -> None:
    left = np.zeros(len(rows))
    for label, colour, field in (("forward", FORWARD, "forward_flops"), ("dx", CYCLE[0], "dx_flops"),
                                 ("dparams", CYCLE[5], "dparams_flops")):
        widths = np.array([getattr(row, field) for row in rows]) / 1e6
        ax.barh(at, widths, 0.7, left=left, color=colour, label=label)
        left = left + widths
