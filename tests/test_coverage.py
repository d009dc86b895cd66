"""The table of what is covered: every row once, every link leads somewhere, and only what is known to be missing is not yet."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SIZES = {"W": 9, "C": 8, "L": 6, "G": 4, "P": 8, "K": 5, "U": 6}
IDS = [f"{letter}{n}" for letter, size in SIZES.items() for n in range(1, size + 1)]
NOT_YET = {"L3", "L4", "U4"}  # and of W4 the live part


def table():
    lines = (DOCS / "coverage.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| [A-Z]\d ", line)]
    return {row[0]: row[1:] for row in cells}, [row[0] for row in cells]


def test_every_row_stands_once_and_in_order():
    assert table()[1] == IDS


@pytest.mark.parametrize("name", IDS)
def test_a_row_has_code_a_test_and_an_experiment_or_a_page(name):
    what, code, tests, experiments, pages = table()[0][name]
    if name in NOT_YET:
        assert [code, tests, experiments, pages] == ["not yet"] * 4
        return
    assert ("not yet" in what) == (name == "W4")
    links = {kind: re.findall(r"\]\(([^)]+)\)", cell) for kind, cell in
             {"code": code, "tests": tests, "experiments": experiments, "pages": pages}.items()}
    assert links["code"]
    assert links["tests"]
    assert links["experiments"] + links["pages"]
    for kind, targets in links.items():
        folder = {"code": "../fbackprop/", "tests": "../tests/", "experiments": "../experiments/", "pages": ""}[kind]
        for target in targets:
            assert target.startswith(folder), target
            assert (DOCS / target.partition("#")[0]).is_file(), target


@pytest.mark.parametrize("path", sorted((DOCS.parent / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_an_experiment_stands_in_the_rows_it_names(path):
    found = re.search(r"^Rows +(.+)$", path.read_text(encoding="utf-8"), re.M)
    rows = [] if found is None else re.findall(r"[A-Z]\d", re.sub(r"([A-Z])(\d) to \1(\d)", spelled, found[1]))
    for row in rows:
        assert path.name in table()[0][row][3], row


def test_every_experiment_stands_on_the_page_of_experiments():
    there = {path.stem for path in (DOCS.parent / "experiments").glob("*.py") if "\ndef experiment(" in path.read_text("utf-8")}
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+)\]\(\.\./experiments/", page, re.M)) == there


def spelled(match):
    """W1 to W9 -> W1 W2 ... W9."""
    letter, first, last = match.groups()
    return " ".join(f"{letter}{n}" for n in range(int(first), int(last) + 1))
