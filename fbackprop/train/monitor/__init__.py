"""Alerts on what goes wrong in a run."""
