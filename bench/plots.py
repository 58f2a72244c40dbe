"""Bar charts as small SVG files: a title, and a label and value with unit for each bar."""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, BAR, GAP = 640, 230, 16, 8
COLOURS = ("#3b6ea5", "#c7702e", "#5a8f4f", "#8a5a9e")
STYLE = "font-family:sans-serif;font-size:12px;fill:#777"
"""Grey text is readable on white and on dark pages."""


def draw_bars(
    path: Path, title: str, bars: Mapping[str, float], *, unit: str, groups: Mapping[str, int] | None = None
) -> None:
    """Writes horizontal bars, the longest value at full width; `groups` maps a bar to the number of its colour."""
    largest = max(bars.values(), default=0) or 1
    height = 30 + len(bars) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{STYLE}">',
        f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (label, value) in enumerate(bars.items()):
        y = 28 + number * (BAR + GAP)
        length = (WIDTH - LEFT - 110) * value / largest
        colour = COLOURS[(groups or {}).get(label, 0) % len(COLOURS)]
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}">{value:,.4g} {escape(unit)}</text>',
        ]
    path.write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")
