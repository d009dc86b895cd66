# Generated from fbackprop/names.py by experiments/make_stubs.py. Do not edit.

from .costs import compare as compare

__all__ = [
    "compare",
]
