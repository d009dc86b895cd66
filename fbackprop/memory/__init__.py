"""Schedules of checkpoints and plans for a byte budget. Imports layers, distributed and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
