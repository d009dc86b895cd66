"""Formulations of convolution and pooling that are fast on a CPU."""
