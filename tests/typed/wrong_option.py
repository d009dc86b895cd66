"""An option is misspelt."""

from fbackprop import dense

layer = dense(8, biass=False)
