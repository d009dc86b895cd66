"""compare's second figure: milliseconds over temporary memory, a colour for each peer. Needs matplotlib."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...report.figures import CYCLE, DPI, WIDE
from .benchmark import PEERS
from .measure import Point, frontier

COLOURS = dict(zip(("manual", *PEERS), CYCLE))
GAP, ROOM = 0.04, 0.25  # what the words beside a point take, as shares of the axes


def frontier_figure(points: list[Point], title: str) -> Figure:
    """Every point of every peer, full and joined where none of its peer beats it; without memory a line at its time."""
    figure = Figure(figsize=(WIDE, 6.5), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    for peer in dict.fromkeys(p.peer for p in points):
        draw(ax, peer, [p for p in points if p.peer == peer])
    scale(ax, "x", [p.temp_mb for p in points if p.temp_mb is not None])
    scale(ax, "y", [p.time for p in points])
    ax.margins(0.08)
    ax.autoscale_view()  # words are placed by it
    name_each(ax, [p for p in points if p.peer == "manual" and p.temp_mb is not None])
    ax.set(title=title, xlabel="temporary memory, MB", ylabel="loss and gradients, ms")
    ax.grid(True, color="#e5e5e5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw(ax: Axes, peer: str, points: list[Point]) -> None:
    colour, words = COLOURS[peer], "by hand" if peer == "manual" else peer
    for p in points:
        if p.temp_mb is None:
            ax.axhline(p.time, color=colour, linestyle="--", label=words, gid=f"{peer} time")
    told = [p for p in points if p.temp_mb is not None]
    if told:
        ax.plot(*places(told), "o", color=colour, markerfacecolor="white", zorder=3, gid=f"{peer} points")
        # post: with memory between two points it takes the time of the one that needs less
        ax.step(*places(frontier(told)[::-1]), "o-", where="post", color=colour, label=words, zorder=3,
                gid=f"{peer} frontier")


def places(points: list[Point]) -> tuple[list[float], list[float]]:
    return [p.temp_mb for p in points], [p.time for p in points]


def scale(ax: Axes, name: Literal["x", "y"], values: list[float]) -> None:
    """Logarithmic, but where they lie so close that it would have few numbers."""
    if values and min(values) > 0 and max(values) > 4 * min(values):
        ax.set(**{f"{name}scale": "log"})
        axis = getattr(ax, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def name_each(ax: Axes, points: list[Point]) -> None:
    """Words beside each point and below the marks, pushed up where others stand."""
    taken: list[tuple[float, float]] = []
    to_axes = ax.transData + ax.transAxes.inverted()
    for p in sorted(points, key=lambda p: p.time):
        x, y = to_axes.transform((p.temp_mb, p.time)) + (0, 0.03)  # the line goes on to the right
        while any(abs(x - a) < ROOM and abs(y - b) < GAP for a, b in taken):
            y += GAP / 4
        taken.append((x, y))
        left = x > 1 - ROOM
        ax.annotate(p.name, (p.temp_mb, p.time), xytext=(x + (-0.012 if left else 0.012), y), textcoords="axes fraction",
                    fontsize=9, ha="right" if left else "left", va="center", color=COLOURS["manual"], zorder=2,
                    bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8})
