"""The named works of `fbackprop bench`, their programs by other libraries, and the accelerator's."""
