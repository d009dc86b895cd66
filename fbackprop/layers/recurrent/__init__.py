"""Recurrent layers: cells, a cell at every step of time, segments of time."""
