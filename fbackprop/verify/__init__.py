"""The checker of reverse rules. Imports observe, memory and below."""

from .check import assert_rule, check_gradient, check_layer, check_loss, check_network

__all__ = ["assert_rule", "check_gradient", "check_layer", "check_loss", "check_network"]
