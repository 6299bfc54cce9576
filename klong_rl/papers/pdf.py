"""PDF to Markdown by pdfplumber (MIT, on pdfminer.six, MIT, and pypdfium2, Apache-2.0 or BSD-3).

Headings are told by their size, or by a number before bold text; two columns are read one after the other; tables with
lines become Markdown tables; pictures are rendered to PNG. What the file doesn't hold as text (a scan) is refused:
there is no OCR here.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper, abstract_of

HEADING = 1.12  # of the body's size: larger is a heading
LEAST_CHARS_A_PAGE = 100  # less is a scan, or slides
LEAST_FIGURE = 40.0  # points on each side: smaller pictures are ornaments
FIGURE_DPI = 150
ACROSS = 0.15  # share of a page's lines that may cross its middle where it has two columns
GUTTER = 4.0  # points on each side of the middle, free of words between two columns
LEAST_SIDE = 0.2  # share of the words that each of two columns has
PARAGRAPH = 0.6  # of a line's height, between two lines: more begins a paragraph
_NUMBERED = re.compile(r"(?:\d+|[A-Z])(?:\.\d+)*\.?\s+[A-Z]\S")
_UNNUMBERED = {"abstract", "introduction", "references", "conclusion", "appendix", "acknowledgements"}


def pdf_to_markdown(source: Path, assets: Path, most_pages: int) -> Paper:
    """The paper; its figures are written to `assets`. Raises Rejected for a file that can't be read as one."""
    import pdfplumber
    from pdfminer.pdfdocument import PDFPasswordIncorrect
    from pdfplumber.utils.exceptions import PdfminerException

    if source.stat().st_size == 0:
        raise Rejected("convert: the PDF has zero bytes")
    try:
        with pdfplumber.open(source) as pdf:
            return _paper(pdf, assets, most_pages)
    except PdfminerException as error:
        cause = error.args[0] if error.args else error
        if isinstance(cause, PDFPasswordIncorrect):
            raise Rejected("convert: the PDF is encrypted; save it without a password") from error
        raise Rejected(f"convert: not a PDF that can be read ({type(cause).__name__}: {str(cause)[:100]})") from error


def _paper(pdf: Any, assets: Path, most_pages: int) -> Paper:
    if not pdf.pages:
        raise Rejected("convert: the PDF has no pages")
    if len(pdf.pages) > most_pages:
        raise Rejected(f"convert: the PDF has {len(pdf.pages)} pages, convert.most_pages={most_pages}")
    n_chars = sum(len(page.chars) for page in pdf.pages)
    if n_chars < LEAST_CHARS_A_PAGE * len(pdf.pages):
        raise Rejected(
            f"convert: the PDF has {n_chars} characters on {len(pdf.pages)} pages: a scan? Put it through OCR first"
        )
    body = Counter(round(char["size"], 1) for page in pdf.pages for char in page.chars).most_common(1)[0][0]
    title = _title(pdf.pages[0])
    blocks: list[str] = [f"# {title}"] if title else []
    for number, page in enumerate(pdf.pages, 1):
        blocks += _page(page, number, body, title, assets)
        page.close()
    markdown = "\n\n".join(blocks) + "\n"
    return Paper(title=title, abstract=abstract_of(markdown), markdown=markdown, pages=len(pdf.pages))


def _title(page: Any) -> str:
    """The lines of the largest type on the first page, if it is larger than the rest."""
    lines = page.extract_text_lines(return_chars=True)
    sizes = [_size(line) for line in lines]
    if not sizes or max(sizes) <= min(sizes):
        return lines[0]["text"] if lines else ""
    return " ".join(line["text"] for line, size in zip(lines, sizes, strict=True) if size >= max(sizes) - 0.2)[:300]


def _page(page: Any, number: int, body: float, title: str, assets: Path) -> list[str]:
    """Blocks of Markdown in reading order: text by columns, then the page's tables and figures."""
    tables = page.find_tables()
    boxes = [table.bbox for table in tables]
    text = page.filter(lambda item: item["object_type"] != "char" or not _is_in(item, boxes))
    blocks = [block for column in _columns(text) for block in _blocks(column, body, title)]
    blocks += [_table(table.extract()) for table in tables]
    return blocks + _figures(page, number, assets)


def _is_in(item: dict[str, Any], boxes: list[tuple[float, float, float, float]]) -> bool:
    x, y = (item["x0"] + item["x1"]) / 2, (item["top"] + item["bottom"]) / 2
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def _columns(page: Any) -> list[list[dict[str, Any]]]:
    """The lines of a page, or of its left and its right half where few words stand across the middle."""
    words, middle = page.extract_words(), (page.bbox[0] + page.bbox[2]) / 2
    across = sum(word["x0"] < middle + GUTTER and word["x1"] > middle - GUTTER for word in words)
    on_the_left = sum(word["x1"] <= middle for word in words)
    lines = page.extract_text_lines(return_chars=True)
    is_one = not LEAST_SIDE <= on_the_left / max(1, len(words)) <= 1 - LEAST_SIDE
    if is_one or across > ACROSS * len(lines):
        return [lines]
    left, top, right, bottom = page.bbox
    halves = (page.crop((left, top, middle, bottom)), page.crop((middle, top, right, bottom)))
    columns = [half.extract_text_lines(return_chars=True) for half in halves]
    return columns if all(columns) else [lines]


def _size(line: dict[str, Any]) -> float:
    return Counter(round(char["size"], 1) for char in line["chars"]).most_common(1)[0][0]


def _blocks(lines: list[dict[str, Any]], body: float, title: str) -> list[str]:
    """Headings and paragraphs."""
    blocks: list[str] = []
    bottom, was_heading = None, True
    for line in lines:
        text = line["text"].strip()
        if not text or text in title:
            continue
        is_heading = _is_heading(line, text, body)
        height = max(1.0, line["bottom"] - line["top"])
        begins = bottom is None or line["top"] - bottom > PARAGRAPH * height or line["top"] < bottom - height
        if is_heading:
            blocks.append(f"## {text}")
        elif begins or was_heading or not blocks:
            blocks.append(text)
        elif re.search(r"[a-z]-$", blocks[-1]) and text[0].islower():
            blocks[-1] = blocks[-1][:-1] + text
        else:
            blocks[-1] += f" {text}"
        bottom, was_heading = line["bottom"], is_heading
    return blocks


def _is_heading(line: dict[str, Any], text: str, body: float) -> bool:
    if len(text) > 120:
        return False
    if _size(line) > HEADING * body:
        return True
    bold = sum("bold" in char["fontname"].lower() for char in line["chars"]) > 0.8 * len(line["chars"])
    return bold and (_NUMBERED.match(text) is not None or text.lower().rstrip(".") in _UNNUMBERED)


def _table(rows: list[list[str | None]]) -> str:
    return markdown_table([[" ".join((cell or "").split()) for cell in row] for row in rows])


def markdown_table(rows: list[list[str]]) -> str:
    """The first row is the head.

    >>> print(markdown_table([["a", "b"], ["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    width = max((len(row) for row in rows), default=0)
    shown = [[cell.replace("|", "\\|") for cell in row] + [""] * (width - len(row)) for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in shown]
    return "\n".join([*lines[:1], "| " + " | ".join(["---"] * width) + " |", *lines[1:]]) if width else ""


def _figures(page: Any, number: int, assets: Path) -> list[str]:
    """A link to each picture of the page, rendered to a file."""
    links = []
    for index, image in enumerate(page.images, 1):
        left, right = max(page.bbox[0], image["x0"]), min(page.bbox[2], image["x1"])
        top, bottom = max(page.bbox[1], image["top"]), min(page.bbox[3], image["bottom"])
        if right - left < LEAST_FIGURE or bottom - top < LEAST_FIGURE:
            continue
        assets.mkdir(parents=True, exist_ok=True)
        name = f"page-{number}-figure-{index}.png"
        page.crop((left, top, right, bottom)).to_image(resolution=FIGURE_DPI).save(str(assets / name), quantize=False)
        links.append(f"![figure {index} of page {number}](assets/{name})")
    return links
