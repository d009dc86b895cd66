"""A word stands where a number is asked for."""

from fbackprop import dense

layer = dense("a lot")
