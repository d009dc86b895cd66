"""The checker of reverse rules. Imports observe, memory and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
