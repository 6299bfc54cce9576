"""A chart of klong_rl.monitor.charts as an SVG file of its own, for the pages under docs/."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from klong_rl.monitor import charts
from klong_rl.monitor.charts import Chart

COLORS = {1: "#2a78d6", 2: "#d9622b", 3: "#12946a"}
HEAD = 44  # above the plot: title and legend
STYLE = 'font-family="system-ui, sans-serif" font-size="11" fill="#5c5b55"'


def write_svg(path: Path, chart: Chart, steps: list[int]) -> None:
    """Draw `chart`, whose series have one value for each of `steps`."""
    plot = charts.plot(chart, steps, [])
    parts = [
        f'<text x="{charts.LEFT}" y="16" font-size="14" font-weight="600" fill="#14140f">{escape(chart.title)}</text>'
    ]
    left = charts.LEFT
    for series in chart.series:
        parts.append(f'<rect x="{left}" y="27" width="14" height="3" fill="{COLORS[series.color]}"/>')
        parts.append(f'<text x="{left + 19}" y="32">{escape(series.name)}</text>')
        left += 40 + 6 * len(series.name)
    parts.append(f'<g transform="translate(0 {HEAD - charts.TOP + 12})">')
    for y, label in plot.y_ticks:
        parts.append(f'<line x1="{charts.LEFT}" x2="{chart.right}" y1="{y:g}" y2="{y:g}" stroke="#e7e6e0"/>')
        parts.append(f'<text x="{charts.LEFT - 8}" y="{y + 4:g}" text-anchor="end">{escape(label)}</text>')
    for x, label in plot.x_ticks:
        parts.append(f'<text x="{x:g}" y="{charts.BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>')
    for line, color in plot.lines:
        parts.append(f'<path d="{line}" fill="none" stroke="{COLORS[color]}" stroke-width="2" stroke-linecap="round"/>')
    height = charts.HEIGHT + HEAD
    size = f'viewBox="0 0 {chart.width} {height}" width="{chart.width}" height="{height}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {STYLE}>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</g>\n</svg>\n"
    )
