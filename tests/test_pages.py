"""Every block of code on every page runs, and prints what the page says."""

import pytest

from pages import PAGES, run_page


# These need a library that they tell the way from.
PEERS = {PAGES / "coming_from" / "brainstate.md"}
WITH_CODE = [
    page
    for page in sorted(PAGES.rglob("*.md"))
    if page not in PEERS and "```python" in page.read_text()
]


@pytest.mark.slow
@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_page(page, capsys):
    assert run_page(page, capsys) > 0


def test_pages_are_found():
    assert {"index", "all_of_chorax"} <= {page.stem for page in WITH_CODE}
