"""Pictures that can be read on any screen."""

import posixpath
import re
import struct
from pathlib import Path
from typing import Any


PAGES = Path(__file__).parent / "pages"
# 9 points, in the pixels of a style sheet.
LEGIBLE = 12
# The width of a page's text on a phone.
PHONE = 358
HINT = '<span class="hint">Scroll sideways to see all of it.</span>'


def smallest_text(svg: str) -> float:
    """The smallest size of text, in units of the picture."""
    return min(float(size) for size in re.findall(r'font-size="([\d.]+)"', svg))


def width_of_svg(svg: str) -> float:
    found = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    assert found, "a picture without a `viewBox`"
    return float(found[1])


def legible_width(path: Path) -> int:
    """How many pixels wide a picture has to be for its text to be legible.

    Text in pictures of Matplotlib has 10 points or more, and 72 of these are an inch.
    """
    if path.suffix == ".svg":
        svg = path.read_text()
        return round(width_of_svg(svg) * LEGIBLE / smallest_text(svg))
    width, per_metre = png_size(path)
    return round(width / (per_metre * 0.0254) * 72 * LEGIBLE / 10)


def png_size(path: Path) -> tuple[int, int]:
    """The width in pixels, and how many pixels are a metre."""
    data = path.read_bytes()
    assert data[12:16] == b"IHDR", path
    at = data.index(b"pHYs") + 4
    return struct.unpack(">I", data[16:20])[0], struct.unpack(">I", data[at : at + 4])[
        0
    ]


def on_page_content(html: str, page: Any, **_: Any) -> str:
    def legible(found: re.Match[str]) -> str:
        path = PAGES / posixpath.normpath(posixpath.join(page.url, found[1]))
        if path.suffix == ".svg" and "var(--md" in path.read_text():
            # In the page itself, it takes the colours of the page.
            width = re.search(r'width="(\d+)"', found[0])
            style = f' style="width: {width[1]}px"' if width else ""
            return path.read_text().replace("<svg", f'<svg class="drawing"{style}', 1)
        width = legible_width(path)
        style = f'style="--legible: {width}px" loading="lazy"'
        picture = f'<span class="picture">{found[0].replace("<img", f"<img {style}")}'
        return f"{picture}</span>{HINT if width > PHONE else ''}"

    return re.sub(r'<img [^>]*?src="([^":]+)"[^>]*>', legible, html)
