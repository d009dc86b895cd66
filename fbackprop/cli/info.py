"""fbackprop info: what is installed and what is here, for bug reports and for finding one's way."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import metadata

from .. import __all__ as names
from .. import __version__
from .options import parse


@dataclass(frozen=True)
class Options:
    """Versions, devices, data and public names."""

    json: bool = False
    """The last line of stdout is one JSON object."""


def run(argv: list[str]) -> int:
    options = parse(Options, "info", argv)

    import jax

    from ..data import DataError, load_mnist5k

    try:
        images, _ = load_mnist5k()
        digits = f"{len(images)} digits, SHA-256 checked"
    except DataError as error:
        digits = str(error)
    facts = {
        "verb": "info", "fbackprop": __version__, "python": platform.python_version(), "system": platform.platform(),
        **{name: _version(name) for name in ("jax", "jaxlib", "optax", "chex", "numpy", "rich", "tyro", "matplotlib")},
        "backend": jax.default_backend(), "devices": [str(device) for device in jax.devices()], "mnist5k": digits,
        "names": names}
    for key, value in facts.items():
        if key != "verb":
            print(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")
    if options.json:
        print(json.dumps(facts))
    return 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
