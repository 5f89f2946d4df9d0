"""Pages that are made: one for each script in `examples`, an overview of these, and
those that the code host looks for in this folder."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
# Where the code host finds them, and where the site has them.
FROM_HERE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def scripts() -> Iterator[Path]:
    yield from sorted(EXAMPLES.glob("*.py"))


def parts_of(script: Path) -> tuple[str, str, str]:
    """The title, the text and the code: the docstring's first line is the title."""
    source = script.read_text()
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree)
    assert docstring, script
    title, _, text = docstring.partition("\n\n")
    text = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", text)
    # The docstring is the page's text already.
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    return title.replace("\n", " ").rstrip("."), text, code


def page_of(script: Path) -> str:
    title, text, code = parts_of(script)
    # A click on the picture shows it in full.
    picture = f"[![{title}]({script.stem}.png)]({script.stem}.png)"
    # One heading makes no table of contents, and code has its room.
    front = "---\nhide: [toc]\n---\n"
    parts = (f"# {title}", text, picture, f"```python\n{code}\n```")
    return front + "\n\n".join(parts) + "\n"


def overview() -> str:
    """What each example shows, with its picture."""
    rows = ["# Examples\n\nWhole experiments, each a script that runs on its own.\n"]
    for script in scripts():
        title, text, _ = parts_of(script)
        first = text.partition("\n\n")[0]
        page = f"{script.stem}.md"
        rows.append(f"## [{title}]({page})\n\n{first}\n")
        rows.append(f"[![{title}]({script.stem}.png)]({page})\n")
    return "---\nhide: [toc]\n---\n" + "\n".join(rows)


def on_config(config: Any) -> Any:
    for section in config.nav:
        if "Examples" in section:
            pages = [
                {parts_of(each)[0]: f"examples/{each.stem}.md"} for each in scripts()
            ]
            section["Examples"] = [{"Overview": "examples/index.md"}, *pages]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    # Links lead to the scripts, so that they work where there is no site.
    link = r"\]\(\.\./((?:\.\./)*examples/\w+)\.py\)"
    return re.sub(link, r"](\1.md)", markdown)


def on_files(files: Any, config: Any) -> Any:
    made = {f"examples/{each.stem}.md": page_of(each) for each in scripts()}
    made["examples/index.md"] = overview()
    for name, page in FROM_HERE.items():
        made[page] = (HERE / name).read_text().replace("](pages/", "](")
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files
