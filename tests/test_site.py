"""The built pages: every name has an entry, every link a target, every title is found.

Builds them, unless `SITE` names a folder that has them.
"""

import html
import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import chorax
from chorax import filters, lanes


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOST = "https://chorax.readthedocs.io/en/latest/"
SOURCE = "https://github.com/chorax/chorax/blob/main/"
RAW = "https://raw.githubusercontent.com/chorax/chorax/main/"

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page links to, the places in it, and its code outside of links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.plain_code: list[str] = []
        self._inside: list[str] = []
        self._article = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.ids |= {known.get("id") or "", known.get("name") or ""}
        self._article |= tag == "article"
        for name in ("href", "src"):
            if tag != "link" or known.get("rel") == "stylesheet":
                self.links += [link for link in [known.get(name)] if link]
        if tag in ("a", "pre", "code", "h1", "h2", "h3", "h4"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        self._article &= tag != "article"
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def handle_data(self, data):
        if self._article and self._inside == ["code"]:
            self.plain_code.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    where = ["-f", str(DOCS / "mkdocs.yml"), "--site-dir", str(folder)]
    subprocess.run([*command, *where], check=True)
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    """The pages by their address below the site's."""
    files = site.rglob("index.html")
    return {address_of(file, site): Page(file.read_text()) for file in files}


def address_of(file: Path, site: Path) -> str:
    return f"{file.parent.relative_to(site).as_posix()}/".removeprefix("./")


MODULES = ("chorax.filters", "chorax.lanes")
PUBLIC = sorted(
    [f"chorax.{name}" for name in chorax.__all__ if name != "__version__"]
    + [f"chorax.lanes.{name}" for name in lanes.__all__]
    + [f"chorax.filters.{name}" for name in filters.__all__]
)


def module_of_docs(name: str) -> Any:
    """One of the modules by which the pages are built."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def entries() -> list[str]:
    return module_of_docs("names").entries()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_has_an_entry(name, pages):
    with_it = [address for address, page in pages.items() if name in page.ids]
    assert len(with_it) == 1
    assert with_it[0].startswith("api/")


def test_every_public_member_has_an_entry():
    documented = set(entries())
    for cls in (chorax.StateDelta, chorax.Explanation, lanes.Ensemble):
        name = next(name for name in PUBLIC if name.endswith(f".{cls.__name__}"))
        own = {*vars(cls), *getattr(cls, "__annotations__", {})}
        # What the constructor is given by chorax alone, and what Equinox adds.
        private = {"before", "after", "leaves", "path_tags", "size_when_made", "mapped"}
        public = {x for x in own if not x.startswith("_")} - private
        assert {f"{name}.{member}" for member in public} <= documented


SIGNS = {"__call__": "(", "__getitem__": "[", "__or__": " | ", "__len__": "len("}


def examples_of(name: str, site: Path) -> list[str]:
    """The lines of code in the part of the reference that an entry begins."""
    for page in (site / "api").rglob("index.html"):
        for part in re.split(r"(?=<h[1-6] id=)", page.read_text()):
            if part.startswith(tuple(f'<h{n} id="{name}"' for n in range(1, 7))):
                lines = re.sub(r"<[^>]+>", "", part).splitlines()
                return [line for line in lines if "&gt;&gt;&gt;" in line]
    raise AssertionError(name)


@pytest.mark.parametrize("name", sorted({*PUBLIC} - {*MODULES}))
def test_every_entry_has_an_example(name, site):
    assert examples_of(name, site)


@pytest.mark.parametrize("name", [name for name in entries() if name not in PUBLIC])
def test_every_member_is_in_an_example(name, site):
    owner, _, last = name.rpartition(".")
    if owner in PUBLIC:
        sign = SIGNS.get(last, " in ") if last.startswith("__") else f".{last}"
        lines = examples_of(name, site) or examples_of(owner, site)
        assert any(sign in line for line in lines)


def test_every_entry_leads_to_a_page_that_teaches_it():
    for page in sorted((DOCS / "pages" / "api").glob("*.md")):
        for part in page.read_text().split("\n::: ")[1:]:
            assert re.search(r"^\*Taught in \[", part, re.MULTILINE), part


def test_every_link_has_a_target(site, pages):
    missing = []
    for address, page in pages.items():
        for link in page.links:
            parts = urlsplit(urljoin(HOST + address, link))
            there = parts._replace(fragment="", query="").geturl()
            if not there.startswith(HOST):
                continue
            path = unquote(there.removeprefix(HOST))
            if path in pages:
                if parts.fragment and unquote(parts.fragment) not in pages[path].ids:
                    missing.append((address, link))
            elif not (site / path).is_file():
                missing.append((address, link))
    assert not missing


def test_every_name_in_a_page_leads_to_its_entry(pages):
    names = {name: name for name in entries()}
    names |= {name.removeprefix("chorax."): name for name in names if "lanes." in name}
    loose = [
        (address, code)
        for address, page in pages.items()
        for code in page.plain_code
        if re.sub(r"\(.*", "", code) in names
    ]
    assert not loose


ELSEWHERE = r"(eqx|equinox|jax|jnp|jtu|jaxtyping)\.\w"


def test_names_of_other_libraries_lead_to_theirs(pages):
    loose = {
        code
        for page in pages.values()
        for code in page.plain_code
        if re.match(ELSEWHERE, code) and re.fullmatch(r"[\w.]+(\(\w*\))?", code)
    }
    # Modules and settings, which have no entry.
    assert loose <= {"eqx.nn", "jax.numpy"}


def test_search_finds_every_title(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    rows = {row["location"]: row["title"] for row in index["docs"]}
    for file in site.rglob("index.html"):
        text = file.read_text()
        title = re.search(r"<h1[^>]*>(.*?)</h1>", text, re.DOTALL)
        assert title, file
        plain = re.sub(r"<a class=\"headerlink\".*", "", title[1], flags=re.DOTALL)
        plain = re.sub(r"<[^>]+>", "", plain).strip()
        address = address_of(file, site)
        assert plain.replace("&nbsp;", "") in rows[address], (address, rows[address])
        # All of its words, as a search has them.
        words = {word.lower() for word in re.findall(r"\w+", plain)}
        hits = [
            location
            for location, title in rows.items()
            if words <= {word.lower() for word in re.findall(r"\w+", title)}
        ]
        assert address in hits


# What people type, and where it leads.
SEARCHED = {
    "early stopping": "cookbook/early_stopping/",
    "bootstrap": "recipes/bootstrap/",
    "learning rate per member": "recipes/learning_rates/",
    "members different shapes": "workflows/different_members/",
    "crossover": "recipes/crossover/",
    "gymnax environments": "recipes/gymnax/",
    "lanes data mesh": "recipes/lanes_and_data/",
    "weight decay": "workflows/sweeps/#weight-decay-and-swept-values",
    "swept values": "workflows/sweeps/#weight-decay-and-swept-values",
    "noise per lane": "workflows/populations/#noise-per-lane-and-path",
    "checkpoints": "workflows/checkpoints/",
    "optimiser state": "workflows/checkpoints/#orbax",
    "batchnorm": "examples/batchnorm_ensemble/",
    "lora": "recipes/lora/",
    "ema": "recipes/ema/",
    "target networks": "recipes/ema/",
}


@pytest.mark.parametrize("words", SEARCHED)
def test_search_finds_recipes_by_what_people_type(words, site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    titles = {row["location"]: row["title"].lower() for row in index["docs"]}
    title = re.findall(r"\w+", titles[SEARCHED[words]])
    assert set(words.split()) <= set(title)


def test_signatures_show_defaults_and_no_private_names(site):
    for page in (site / "api").rglob("index.html"):
        signatures = re.findall(
            r'<div class="[^"]*doc-signature[^"]*">.*?</pre>',
            page.read_text(),
            re.DOTALL,
        )
        assert signatures, page
        for signature in signatures:
            text = re.sub(r"<[^>]+>", "", signature)
            assert not re.search(r"[\[| :]_[A-Z]\w*", text), text
            assert 'title="chorax._' not in signature, text
            assert max(map(len, text.splitlines())) <= 88, text
    calls = re.sub(r"<[^>]+>", "", (site / "api/calls/index.html").read_text())
    assert calls.count("\nexplain(\n") == calls.count("\nvmap_call_all_fns(\n") == 1
    default = 'Literal[ "raise", "pass", "none", "warn" ] = "raise",'
    plain = html.unescape(re.sub(r"\s+", " ", calls))
    assert plain.count(default) == 3
    both = ") -> ( tuple[T, StateDelta[T]] | tuple[T, StateDelta[T], dict[str, Any]] )"
    assert both in plain


def test_a_notebook_shows_what_its_cells_return(site):
    text = (site / "notebook" / "index.html").read_text()
    before, _, after = text.partition('id="with-treescope"')
    for shown in (
        "StateDelta: 4 written leaves",
        "4 calls of 1 kind",
        "Ensemble: 5 lanes",
    ):
        assert re.search(f"<table><caption>[^<]*{shown}", before), shown
    assert before.count("treescope-container") == 0
    assert len(re.findall("treescope-run-here", after)) >= 3


PICTURES = sorted((DOCS / "pages").rglob("*.svg")) + sorted(
    (DOCS / "pages").rglob("*.png")
)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_text_in_pictures_can_be_read_on_a_phone(picture):
    pictures = module_of_docs("pictures")
    if picture.stem != "logo":
        assert pictures.legible_width(picture) <= pictures.PHONE


@pytest.mark.parametrize(
    "script", [*DOCS.glob("examples/*.py"), ROOT / "tests" / "benchmarks" / "plot.py"]
)
def test_text_of_figures_has_ten_points(script):
    sizes = re.findall(r"\b(?:font|label)?size=(\d+)", script.read_text())
    assert all(int(size) >= 10 for size in sizes)


def test_links_of_the_readme():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(HOST):
            page = link.removeprefix(HOST).rstrip("/") or "index"
            assert (DOCS / "pages" / f"{page}.md").is_file(), link
        for place in (SOURCE, RAW):
            if link.startswith(place):
                assert (ROOT / link.removeprefix(place)).is_file(), link
