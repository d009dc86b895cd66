"""Exercises: files with a complete forward and a blank backward, each a module of this package that is copied out.

A learner's file says which it is by `EXERCISE = "name"`; how files are judged: fbackprop/classroom/grading. No jax here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exercise:
    """One file. level: 1 to 3; minutes: a guess for somebody who has seen the chain rule and little NumPy."""

    name: str
    learned: str
    level: int
    minutes: int

    @property
    def file(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.py")


EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in (
    Exercise("relu", "what a backward is: a derivative, element by element, times dy", 1, 5),
    Exercise("dense", "the two transposed products, and why a broadcast ends in a sum", 1, 15),
    Exercise("cross_entropy", "softmax and its loss together: p - t, and where 1/B belongs", 2, 20),
    Exercise("chain", "how rules compose: backwards, each with what came out of the next", 2, 15),
    Exercise("conv", "weights that are used at many places; the kernel that turns round", 3, 40),
    Exercise("batch_norm", "paths through a mean and a variance: every example moves every other", 3, 40),
    Exercise("lstm", "a cell with two carries: every use of a value adds a cotangent", 3, 30),
    Exercise("attention", "softmax in the middle, products on both sides, a causal mask", 3, 45),
)}
