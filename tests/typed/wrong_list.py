"""A list of layers stands where layers are asked for."""

from fbackprop import chain, dense

net = chain([dense(3)])
