"""Every block of Python in README and docs/ runs as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
QUICK = ("README.md", "quickstart.md", "adding-a-layer.md", "training.md")  # the others take long or are many
PEERS = ("other-frameworks.md",)
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
CHAPTERS = sorted((ROOT / "docs" / "story").glob("[0-9]*.md"))


def code_of(page):
    return Sybil(parsers=[PythonCodeBlockParser()]).parse(page).examples()


def marks(page):
    return [pytest.mark.peers] * (page.name in PEERS) + [pytest.mark.slow] * (page.name not in QUICK)


@pytest.mark.parametrize("page", [
    pytest.param(page, marks=marks(page), id=page.relative_to(ROOT).as_posix()) for page in WITH_CODE])
def test_the_code_of_a_page_runs(page):
    x64 = jax.config.jax_enable_x64
    try:
        for example in code_of(page):
            example.evaluate()
    finally:
        jax.config.update("jax_enable_x64", x64)  # a page may work in float64


COMMANDS = [page for page in PAGES if "```sh\n" in page.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_run(page, tmp_path):
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "fbackprop", line
            done = subprocess.run([sys.executable, "-m", "fbackprop", *words], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_a_chapter_opens_as_a_notebook_with_the_same_code(page):
    cells = [cell.source.strip() for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    assert cells
    assert cells == [example.parsed.strip() for example in code_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+\.(?:md|py|txt|png|cff))\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
