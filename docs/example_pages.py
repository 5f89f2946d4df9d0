"""A page for each script in `examples`: its docstring, its picture, its code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


EXAMPLES = Path(__file__).parent / "examples"


def scripts() -> Iterator[Path]:
    yield from sorted(EXAMPLES.glob("*.py"))


def page_of(script: Path) -> str:
    """The script as Markdown; the first line of its docstring is the title."""
    source = script.read_text()
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree)
    assert docstring, script
    title, _, rest = docstring.partition("\n\n")
    # The docstring is the page's text already.
    first = tree.body[0].end_lineno
    code = "\n".join(source.splitlines()[first:]).strip()
    rest = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", rest)
    # A click on the picture shows it in full.
    picture = f"[![{title}]({script.stem}.png)]({script.stem}.png)"
    # One heading makes no table of contents, and code has its room.
    front = "---\nhide: [toc]\n---\n"
    parts = (f"# {title.rstrip('.')}", rest, picture, f"```python\n{code}\n```")
    return front + "\n\n".join(parts) + "\n"


def on_config(config: Any) -> Any:
    for section in config.nav:
        if "Examples" in section:
            section["Examples"] = [
                {each.name: f"examples/{each.stem}.md"} for each in scripts()
            ]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    # Links lead to the scripts, so that they work where there is no site.
    link = r"\]\(\.\./((?:\.\./)*examples/\w+)\.py\)"
    return re.sub(link, r"](\1.md)", markdown)


def on_files(files: Any, config: Any) -> Any:
    for script in scripts():
        name = f"examples/{script.stem}.md"
        files.append(File.generated(config, name, content=page_of(script)))
    return files
