"""The figures as a picture: time against nodes, one line a peer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt


_STYLES = {
    "chorax": ("#d62728", 2.6),
    "chorax in jit": ("#ff9896", 1.6),
    "by hand": ("#1f77b4", 1.4),
    "by hand in jit": ("#17becf", 1.4),
    "nnx": ("#2ca02c", 1.4),
    "brainstate": ("#9467bd", 1.4),
    "torch": ("#7f7f7f", 1.4),
}


def draw(figures: Mapping[tuple[str, str, int, int], Mapping[str, Any]], path: Path):
    """Draws the first and the warm call, both log-log, for the width of a phone."""
    fig, panels = plt.subplots(
        2, 1, figsize=(4.1, 8.4), sharex=True, layout="constrained"
    )
    titles = {"cold": "First call", "warm": "Same call again"}
    for panel, (figure, title) in zip(panels, titles.items(), strict=True):
        for peer, (color, width) in _STYLES.items():
            points = sorted(
                (nodes, found[figure])
                for (name, task, nodes, lanes), found in figures.items()
                if (name, task, lanes) == (peer, "create", 8)
            )
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=color,
                    lw=width,
                    ms=4,
                    label=peer,
                    zorder=3 if peer == "chorax" else 2,
                )
        panel.set(
            xscale="log", yscale="log", title=title, xlabel="nodes", ylabel="seconds"
        )
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    fig.suptitle("Making the states of N equal nodes\nin 8 lanes")
    fig.savefig(path, dpi=200)
