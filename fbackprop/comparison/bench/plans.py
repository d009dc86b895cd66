"""What the planner reaches for a work, as JSON: one process plans, those that measure only rebuild the net."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from ...layer import Layer
from ...memory.planner import plans
from ...memory.schedule import Schedule, with_schedules
from ...tuning import with_settings

if TYPE_CHECKING:
    from .work import Work


def planned_for(work: Work) -> list[dict[str, Any]]:
    """A few plans between all kept and the least memory: each one's name and choices."""
    found = plans(work.net, work.loss, jax.eval_shape(partial(work.batch, 0)))
    return [{"name": f"planned, {p.temp_bytes / 1e6:.3g} MB", "plan": {"schedules": p.schedules, "settings": p.settings}}
            for p in found]


def of_json(net: Layer, plan: dict[str, Any]) -> Layer:
    """`net` by one of these plans."""
    schedules = {path: _tuples(each) for path, each in plan["schedules"].items()}
    return with_schedules(with_settings(net, plan["settings"]), schedules)


def _tuples(schedule: Any) -> Schedule:
    return tuple(_tuples(each) if isinstance(each, list) else each for each in schedule)
