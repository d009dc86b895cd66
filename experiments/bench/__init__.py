"""The named works of `fbackprop bench`, their peers, and what measures an accelerator."""
