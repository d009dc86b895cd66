"""Every block of Python in README and docs/ runs as it stands."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
QUICK = ("README.md", "adding-a-layer.md", "training.md", "watching.md")  # the others take half a minute or are many
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", [
    pytest.param(page, marks=[pytest.mark.slow] * (page.name not in QUICK), id=page.relative_to(ROOT).as_posix())
    for page in WITH_CODE])
def test_the_code_of_a_page_runs(page):
    for example in Sybil(parsers=[PythonCodeBlockParser()]).parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+\.(?:md|py|txt))\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
