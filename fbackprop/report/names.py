"""Names of layers as a report shows them."""

from __future__ import annotations

import re

from ..layer import Layer
from ..train.task.task import Task
from ..transform import map_layers_with_path


def layer_names(task: Task | None) -> dict[str, str]:
    """By path: a layer without parts, or the outermost that has weights of its own there."""
    found: dict[str, str] = {}

    def see(path: str, layer: Layer) -> Layer:
        found.setdefault(path, layer.name)  # parts come before the whole
        return layer

    if task is not None:
        map_layers_with_path(task.net, see)
    return found


def label(path: str, names: dict[str, str]) -> str:
    """A layer as people read it: its path and what it is, without the insides of a combinator."""
    name = names.get(re.sub(r"\[\d+\]", "", path), "")  # a repeat's block has a number of its own: 2/0[3]/1
    return f"{path or 'net'} {name if len(name) <= 40 else name.partition('(')[0]}".rstrip()


def place(path: str) -> tuple[list[int], list[int]]:
    """Sorts paths as the net is written: 2 before 10, all blocks of a layer together."""
    return ([int(part) for part in re.sub(r"\[\d+\]", "", path).split("/") if part.isdigit()],
            [int(number) for number in re.findall(r"\[(\d+)\]", path)])
