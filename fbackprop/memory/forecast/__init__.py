"""Predicts the bytes of a compiled program from its jaxpr."""
