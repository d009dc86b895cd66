"""Manual against automatic gradients, and benchmarks of a network. Imports report and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
