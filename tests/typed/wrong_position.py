"""A second option is given by position."""

from fbackprop import dense

layer = dense(3, True)
