"""Tiles and windows, and formulations of convolution that are fast on a CPU."""
