"""Workloads, and how what computes their loss and gradients is measured."""
