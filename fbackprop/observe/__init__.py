"""Looks at a network as it runs: taps, records, probes, readings, the origin of a NaN. Imports layers and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
