"""The code of pages that tell the way from another library, which has to be there."""

import pytest

from pages import run_page
from peers import lenient
from test_pages import PEERS


@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize("page", sorted(PEERS), ids=lambda page: page.stem)
def test_page(page, capsys):
    with lenient():
        assert run_page(page, capsys) > 0
