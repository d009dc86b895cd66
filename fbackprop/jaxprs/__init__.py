"""Reads jaxprs: equations, FLOPs, traffic. Imports nothing of this package."""

from .flops import count_flops

__all__ = ["count_flops"]
