"""What several test files share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def quick_compile():
    """Programs are compiled faster, into slower code: for files that run each of theirs a few times."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
