"""Looks at a network as it runs: taps, records, probes, readings, the origin of a NaN. Imports layers and below."""

from .origin import first_bad
from .probes import probe, watch
from .reading import readings
from .record import activation_gradients
from .taps import tap

__all__ = ["activation_gradients", "first_bad", "probe", "readings", "tap", "watch"]
