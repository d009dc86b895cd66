"""Shares a batch between devices. Imports gradients and below."""

from .. import lazy_names

__getattr__ = lazy_names(__name__)
