"""Shares a batch between devices. Imports gradients and below."""

from .mesh import ask_for, data_parallel, devices, replicate, shard

__all__ = ["ask_for", "data_parallel", "devices", "replicate", "shard"]
