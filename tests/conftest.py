"""What several test files share. Half of a test's time is compiling: here XLA does it in one piece and the quick way."""

from __future__ import annotations

import gc
import os
from importlib.metadata import version

import pytest

OLD_XLA = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)  # later ones have no other emitters
FLAGS = ["--xla_cpu_parallel_codegen_split_count=1", *["--xla_cpu_use_fusion_emitters=false"] * OLD_XLA]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
# Tracing makes many objects and few circles: else a tenth of the time is looking for them.
gc.set_threshold(100_000, 50, 50)


@pytest.fixture
def quick_compile(monkeypatch):
    """Programs are compiled faster, into slower code: for files that run each of theirs a few times."""
    import jax

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes that a test starts
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
