"""Training that can be left running. Imports verify, models and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
