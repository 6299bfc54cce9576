"""Papers for tests: Markdown of any length, and PDFs that are well made or spoilt in a named way."""

from __future__ import annotations

import io
import random
from pathlib import Path

PLOT = Path(__file__).parents[1] / "examples" / "papers" / "decaying-mean" / "figures" / "lag.png"
SENTENCE = "The method keeps a number of small buckets and moves one of them at each step of the run."


def markdown(title: str, seed: int, table: str = "| n | steps |\n| --- | --- |\n| 2 | 41 |\n") -> str:
    """A paper that passes the quality rules; two seeds have no 13 words in a row in common."""
    rng = random.Random(seed)
    names = [f"{rng.choice('bcdfgklmnprst')}{rng.choice('aeiou')}{rng.choice('bdgklmnprst')}{n}" for n in range(50)]

    def prose(n: int) -> str:
        return " ".join(rng.choices(names, k=n)) + "."

    parts = [f"# {title}", "## Abstract", prose(60), "## Method", prose(200), "## Results", table, prose(120)]
    return "\n\n".join(parts) + "\n"


def pdf(path: Path, *, pages: int = 1, columns: bool = False, password: str = "", scan: bool = False) -> Path:
    """A paper set by reportlab: title, abstract, headings, a table with lines, a picture."""
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen import canvas

    data = io.BytesIO()
    encryption = StandardEncryption(password) if password else None
    page = canvas.Canvas(data, pagesize=(612, 792), encrypt=encryption)
    for number in range(pages):
        if scan:
            page.drawImage(str(PLOT), 50, 100, 500, 600)
        else:
            _page(page, columns and number == 0, number)
        page.showPage()
    page.save()
    path.write_bytes(data.getvalue())
    return path


def _page(page, columns: bool, number: int) -> None:
    if number == 0:
        page.setFont("Helvetica-Bold", 18)
        page.drawString(72, 730, "Moving Buckets One by One")
    edges = (72, 320) if columns else (72,)
    for column, x in enumerate(edges):
        y = 700
        for heading in ("Abstract", "1 Method", "2 Results") if number == 0 else ("3 More",):
            page.setFont("Helvetica-Bold", 13)
            page.drawString(x, y, f"{heading} {'AB'[column]}" if columns else heading)
            page.setFont("Helvetica", 8 if columns else 10)
            for line in range(9):
                y -= 14
                page.drawString(
                    x, y, SENTENCE[: 55 if columns else 200] if line else f"Line {line} of {heading}: {SENTENCE[:25]}"
                )
            y -= 24
    if number == 0 and not columns:
        _table(page, 72, 200, [["n", "steps"], ["2", "41"], ["8", "85"]])
        page.drawImage(str(PLOT), 320, 100, 160, 100)


def _table(page, x: int, y: int, rows: list[list[str]]) -> None:
    width, height = 60, 18
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            page.rect(x + j * width, y - i * height, width, height)
            page.drawString(x + j * width + 5, y - i * height + 5, cell)
