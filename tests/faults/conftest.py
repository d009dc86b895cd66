"""One run that nobody disturbed, and what its processes compiled."""

from __future__ import annotations

import time

import pytest
import runs


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, cache):
    """`(directory, seconds)` of the second of two runs: the first compiles."""
    runs.finish(tmp_path_factory.mktemp("first") / "run", cache)
    out = tmp_path_factory.mktemp("unbroken") / "run"
    began = time.monotonic()
    runs.finish(out, cache)
    return out, time.monotonic() - began
