"""How the documentation is built: `make docs`. Warnings are errors, and so is a public name without an entry in api.md."""

from __future__ import annotations

import inspect
from typing import Any

import fbackprop
from fbackprop.names import PACKAGE_OF

project, author, copyright = "fbackprop", "the fbackprop developers", "the fbackprop developers, Apache-2.0"
version = release = fbackprop.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "conf.py"]
html_theme = "furo"
html_title = "fbackprop"
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = False


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are aligned by hand: paragraphs stay prose, a block whose lines stand in columns is shown as it stands."""
    text, made = inspect.cleandoc("\n".join(lines)), []
    for block in text.split("\n\n"):
        columns = any("   " in line.strip() for line in block.splitlines()) or block.startswith(" ")
        shown = ["::", "", *("    " + line for line in block.splitlines())] if columns else prose(block).splitlines()
        made += [*shown, ""]
    lines[:] = made


def prose(text: str) -> str:
    """A star outside of code is a star, not emphasis."""
    return "`".join(part.replace("*", r"\*") if i % 2 == 0 else part for i, part in enumerate(text.split("`")))


def every_public_name(app: Any, env: Any) -> None:
    """Raises unless each name of the package is documented on the page of the API."""
    from sphinx.errors import ExtensionError

    documented = {name.removeprefix("fbackprop.") for name in env.get_domain("py").objects}
    families = {f"{package}.{name}" for name, package in PACKAGE_OF.items()}
    missing = sorted({*fbackprop.__all__, *families} - documented)
    if missing:
        raise ExtensionError(f"docs/api.md: expected an entry for every public name, none for {', '.join(missing)}")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_written)
    app.connect("env-check-consistency", every_public_name)
