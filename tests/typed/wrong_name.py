"""A name is unknown."""

from fbackprop import no_such_name

layer = no_such_name()
