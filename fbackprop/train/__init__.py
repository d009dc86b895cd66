"""Training that can be left running. Imports verify, models and below."""

from ..names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
