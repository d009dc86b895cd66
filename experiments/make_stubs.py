"""Writes the `.pyi` files of the packages that load names on first use, from the table of names.

    python experiments/make_stubs.py

Editors and type checkers read them in place of `__init__.py`. A test compares them with the table.
"""

from __future__ import annotations

from pathlib import Path

import fbackprop
from fbackprop.names import PACKAGES, names_of

ROOT = Path(fbackprop.__file__).parent
LAZY = ("", "comparison", "train")
HEADER = "# Generated from fbackprop/names.py by experiments/make_stubs.py. Do not edit.\n"


def stub(package: str) -> str:
    """Returns the text of a package's `__init__.pyi`; "" stands for the top level."""
    names = names_of(package)
    prefix = f"{package}." if package else ""
    modules = "" if package else "".join(f"from . import {name} as {name}\n" for name in PACKAGES)
    imports = "".join(f"from .{names[name].removeprefix(prefix)} import {name} as {name}\n"
                      for name in sorted(names, key=lambda name: (names[name], _order(name))))
    version = "" if package else "\n__version__: str\n"
    public = "".join(f'    "{name}",\n' for name in sorted(names))
    return f"{HEADER}\n{modules}{imports}{version}\n__all__ = [\n{public}]\n"


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions, as ruff sorts imports."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def stubs() -> dict[Path, str]:
    """Returns the text of every stub."""
    return {ROOT / package / "__init__.pyi": stub(package) for package in LAZY}


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
        print(path)
