"""Schedules of checkpoints and plans for a byte budget. Imports layers, distributed and below."""

from ..facts import Tuning
from ..tuning import with_settings
from .planner import Plan, plan
from .schedule import binomial, every, recomputed, root, scheduled, with_schedules

__all__ = [
    "Plan",
    "Tuning",
    "binomial",
    "every",
    "plan",
    "recomputed",
    "root",
    "scheduled",
    "with_schedules",
    "with_settings",
]
