"""A page from each notebook in `pages`: run while the site is built, shown with what
its cells return."""

import functools
import html
from pathlib import Path
from typing import Any

import jupytext
import nbclient
from mkdocs.structure.files import File, Files
from traitlets.config import Config


PAGES = Path(__file__).parent / "pages"


def notebooks() -> list[Path]:
    return sorted(PAGES.glob("**/*.py"))


@functools.cache
def run(source: str) -> Any:
    """The notebook with its outputs; an error in a cell is an error of the build.

    Remembered, since `mkdocs serve` builds all pages when one has changed.
    """
    notebook = jupytext.reads(source, fmt="py:percent")
    # By files rather than ports, which others on the machine could read.
    config = Config(AsyncKernelManager={"transport": "ipc"})
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=120, config=config
    )
    client.execute()
    return notebook


def to_markdown(notebook: Any) -> str:
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_shown(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _shown(output: Any) -> str:
    data: dict[str, str] = output.get("data", {})
    if "text/html" in data:
        # One line, where Markdown would take empty ones for the end of it.
        return f'<div class="output">{_one_line(data["text/html"])}</div>'
    text = output.get("text") or data.get("text/plain") or ""
    return f'<div class="output"><pre>{html.escape(text)}</pre></div>' if text else ""


def _one_line(text: str) -> str:
    return text.replace("\n", "&#10;") if "<pre" in text else text.replace("\n", " ")


def on_files(files: Files, config: Any) -> Files:
    for path in notebooks():
        source = path.relative_to(PAGES)
        files.remove(files.src_uris[str(source)])
        content = to_markdown(run(path.read_text()))
        name = str(source.with_suffix(".md"))
        files.append(File.generated(config, name, content=content))
    return files
