"""Names in running text lead to their entries: of this reference, or of another's."""

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import elsewhere
import yaml
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor


API = Path(__file__).parent / "pages" / "api"
# As pages write them.
PREFIXES = {
    "eqx.": "equinox.",
    "jnp.": "jax.numpy.",
    "jtu.": "jax.tree_util.",
    "lanes.": "chorax.lanes.",
    "filters.": "chorax.filters.",
    "delta.": "chorax.StateDelta.",
    "ensemble.": "chorax.lanes.Ensemble.",
}
# Words that also mean something else.
WORDS = {"Any", "All", "Not", "groups", "partition", "scan", "vmap", "where"}
# These are too many, and known to every reader.
PYTHON = set(elsewhere.urls()) - {
    name for name in elsewhere.urls() if "." in name or name == "UserWarning"
}


def entries() -> list[str]:
    """The names that the reference has an entry for."""
    found: list[str] = []
    for page in sorted(API.glob("*.md")):
        for name, options in re.findall(
            r"^::: (\S+)\n((?:    .*\n)*)", page.read_text() + "\n", re.MULTILINE
        ):
            found.append(name)
            known: Any = yaml.safe_load(options) or {}
            members = known.get("options", {}).get("members") or []
            found += [f"{name}.{member}" for member in members]
    return found


def targets() -> dict[str, str]:
    """What a name in running text means."""
    found = {name: name for name in elsewhere.urls() if name not in PYTHON}
    for name in entries():
        if "._" in name:
            continue
        found[name] = name
        owner, _, last = name.rpartition(".")
        if owner in ("chorax", "chorax.filters", "chorax.lanes"):
            found.setdefault(last, name)
        else:
            found[f"{owner.rpartition('.')[2]}.{last}"] = name
    return {name: target for name, target in found.items() if name not in WORDS}


def target_of(text: str, known: dict[str, str]) -> str | None:
    """The entry that a piece of code is about: `one = lanes.take(x, 0)` is `take`'s."""
    found = re.match(
        r"(?:[\w, ]+ = )?@?([A-Za-z_][\w.]*)(?:\(.*\)(?:\[\w+\])?)?$",
        text.replace("\n", " "),
    )
    if found is None:
        return None
    name = found[1]
    for short, full in PREFIXES.items():
        if name.startswith(short):
            return known.get(full + name.removeprefix(short))
    return known.get(name)


class _Linker(Treeprocessor):
    def __init__(self, md: Markdown, known: dict[str, str]) -> None:
        super().__init__(md)
        self._known = known

    def run(self, root: Element) -> None:
        for index, child in enumerate(root):
            if child.tag in ("a", "autoref", "pre", "h1", "h2", "h3", "h4"):
                continue
            target = None
            if child.tag == "code":
                target = target_of(child.text or "", self._known)
            if target is None:
                self.run(child)
                continue
            link = Element("autoref", identifier=target)
            link.tail, child.tail = child.tail, None
            root[index] = link
            link.append(child)


class _Links(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        # After everything else: code is in place, headings are known.
        md.treeprocessors.register(_Linker(md, targets()), "names", -10)


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(_Links())
    for name, url in elsewhere.urls().items():
        config.plugins["autorefs"].register_url(name, url)
    return config
