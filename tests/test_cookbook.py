"""Pages of the cookbook say how long their code is, and are short."""

import ast
import re
from pathlib import Path

import pytest

from pages import PAGES


COOKBOOK = PAGES / "cookbook"
INDEX = (COOKBOOK / "index.md").read_text()
RECIPES = sorted((PAGES / "recipes").glob("*.md"))
JOBS = sorted(page for page in COOKBOOK.glob("*.md") if page.name != "index.md")
SHARED, OURS, BY_HAND = "Shared code", "With chorax", "By hand"
SAYS = r"^Lines of code: (\d+) with chorax, (\d+) by hand$"


def is_counted(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.Assert):
        return False
    return not re.match(r"print\(", ast.unparse(node))


def count(code: str) -> int:
    """The lines of what is neither an import, a class, an assertion nor a print."""
    rows = code.splitlines()
    counted = 0
    for node in filter(is_counted, ast.parse(code).body):
        above = [decorator.lineno for decorator in getattr(node, "decorator_list", [])]
        lines = rows[min([node.lineno, *above]) - 1 : node.end_lineno]
        counted += sum(not re.match(r"\s*(#|$)", line) for line in lines)
    return counted


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)


def sections_of(page: Path) -> dict[str, list[str]]:
    """The blocks of code of a page, by the titles of its sections."""
    sections = re.split(r"^## ", page.read_text(), flags=re.M)[1:]
    return {section.splitlines()[0]: blocks_of(section) for section in sections}


def test_what_counts():
    code = "\n".join(
        [
            "import os",
            "class A:",
            "    x: int",
            "# Why.",
            "@f",
            "def g(x):",
            "    # Why.",
            "",
            "    return x",
            "y = g(",
            "    1,",
            ")",
            "print(y)",
            "assert y == 1",
        ]
    )
    assert count(code) == 6


def test_there_are_six_jobs():
    assert len(JOBS) == 6
    assert {page.name for page in JOBS} == set(re.findall(r"\((\w+\.md)\) \|", INDEX))


@pytest.mark.parametrize("page", JOBS, ids=lambda page: page.stem)
def test_pages_are_short_and_say_how_short(page):
    text, sections = page.read_text(), sections_of(page)
    shared, ours, by_hand = (
        sum(map(count, sections[name])) for name in (SHARED, OURS, BY_HAND)
    )
    ours, by_hand = shared + ours, shared + by_hand
    assert ours <= 40
    assert ours < by_hand
    [said] = re.findall(SAYS, text, re.M)
    assert tuple(map(int, said)) == (ours, by_hand)
    title = text.splitlines()[0].removeprefix("# ")
    assert f"| [{title}]({page.name}) | {ours} | {by_hand} |" in INDEX


@pytest.mark.parametrize("page", [*JOBS, *RECIPES], ids=lambda page: page.stem)
def test_lines_are_not_long(page):
    for block in blocks_of(page.read_text()):
        assert max(map(len, block.splitlines())) <= 88
        # Nor are there two statements on one of them.
        nodes = ast.walk(ast.parse(block))
        lines = [node.lineno for node in nodes if isinstance(node, ast.stmt)]
        assert len(lines) == len(set(lines))


@pytest.mark.parametrize("page", JOBS, ids=lambda page: page.stem)
def test_both_are_compared(page):
    sections = {name: "\n".join(blocks) for name, blocks in sections_of(page).items()}
    assert not re.search(r"\b(chorax|lanes)\b", sections[BY_HAND])
    assert "assert jnp.allclose(" in sections["The same numbers"]


def test_the_index_lists_all_recipes():
    linked = dict(re.findall(r"^- \[(.*)\]\(\.\./recipes/(\w+)\.md\)$", INDEX, re.M))
    titles = [page.read_text().splitlines()[0] for page in RECIPES]
    stems = [page.stem for page in RECIPES]
    found = {
        title.removeprefix("# "): x for title, x in zip(titles, stems, strict=True)
    }
    assert linked == found


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_recipes_are_short_and_compared(page):
    blocks = blocks_of(page.read_text())
    assert sum(map(count, blocks)) <= 45
    assert any("assert" in block and "for " in block for block in blocks)
