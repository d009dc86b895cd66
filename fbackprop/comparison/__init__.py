"""Manual against automatic gradients, and benchmarks of a network. Imports report and below."""

from ..names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
