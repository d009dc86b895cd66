"""Reads jaxprs: equations, FLOPs, traffic. Imports nothing of this package."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
