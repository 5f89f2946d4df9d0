"""What the package says of itself: its version, its public names, where it lives."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import chorax
from chorax import filters, lanes


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_that_of_the_metadata(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"chorax": "1.2.3"}.__getitem__)
    assert chorax.__version__ == "1.2.3"


def test_the_version_is_not_looked_up_before_it_is_asked_for():
    code = """
import equinox
from importlib import metadata
metadata.version = None  # Which nothing can call.
import chorax
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_of_what_is_not_installed(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(AttributeError, match="chorax is not installed"):
        chorax.__version__  # noqa: B018
    assert not hasattr(chorax, "__version__")


def test_other_names_are_missed_as_in_any_module():
    message = "^module 'chorax' has no attribute 'vmap_call'$"
    with pytest.raises(AttributeError, match=message):
        chorax.vmap_call  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("module", [chorax, filters, lanes], ids=lambda m: m.__name__)
def test_dir_shows_public_names_only(module):
    shown = {name for name in dir(module) if not name.startswith("_")}
    assert shown == {*module.__all__} - {"__version__"}
    assert all(hasattr(module, name) for name in module.__all__)
    assert [*module.__all__] == sorted(module.__all__)


def test_the_version_is_the_same_everywhere():
    version = PROJECT["version"]
    citation = (ROOT / "docs" / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    changelog = (ROOT / "docs" / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == version


def test_addresses_are_the_same_everywhere():
    site, source = PROJECT["urls"]["Documentation"], PROJECT["urls"]["Source"]
    pages = (ROOT / "docs" / "mkdocs.yml").read_text()
    citation = (ROOT / "docs" / "CITATION.cff").read_text()
    assert f"\nsite_url: {site}\n" in pages
    assert f"\nrepo_url: {source}\n" in pages
    assert f"\nurl: {site}\n" in citation
    assert f"\nrepository-code: {source}\n" in citation
    readme = (ROOT / PROJECT["readme"]).read_text()
    assert f"({site})" in readme
    assert f"({source}/blob/main/docs/CONTRIBUTING.md)" in readme
    assert "\npip install chorax\n" in readme
