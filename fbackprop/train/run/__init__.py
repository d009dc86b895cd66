"""The loop of a run: steps, epochs, progress, log."""
