"""PDF to Markdown, and PDFs that can't be one."""

import pytest

from klong_rl.papers.config import ConvertConfig
from klong_rl.papers.convert import convert
from klong_rl.papers.pdf import pdf_to_markdown
from klong_rl.papers.rejected import Rejected
from tests.small_papers import pdf


def test_headings_tables_and_figures_become_markdown(tmp_path):
    paper = pdf_to_markdown(pdf(tmp_path / "a.pdf"), tmp_path / "assets", 9)
    assert paper.title == "Moving Buckets One by One" and paper.pages == 1
    assert paper.markdown.startswith("# Moving Buckets One by One\n\n## Abstract\n\nLine 0 of Abstract")
    assert "## 1 Method" in paper.markdown and "## 2 Results" in paper.markdown
    assert "| n | steps |\n| --- | --- |\n| 2 | 41 |\n| 8 | 85 |" in paper.markdown
    assert paper.abstract.startswith("Line 0 of Abstract: The method")
    (figure,) = (tmp_path / "assets").iterdir()
    assert figure.read_bytes().startswith(b"\x89PNG") and f"(assets/{figure.name})" in paper.markdown


def test_two_columns_are_read_one_after_the_other(tmp_path):
    text = pdf_to_markdown(pdf(tmp_path / "a.pdf", columns=True), tmp_path / "assets", 9).markdown
    order = [
        text.index(f"## {name}") for name in ("Abstract A", "1 Method A", "2 Results A", "Abstract B", "2 Results B")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: path.write_bytes(b""), "the PDF has zero bytes"),
        (lambda path: path.write_bytes(b"%PDF-1.7 and then nothing"), "not a PDF that can be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "not a PDF that can be read|no pages"),
        (lambda path: pdf(path, password="secret"), "encrypted; save it without a password"),
        (lambda path: pdf(path, scan=True), "a scan\\? Put it through OCR"),
        (lambda path: pdf(path, pages=600), "has 600 pages, convert.most_pages=200"),
    ],
)
def test_what_is_no_readable_paper_is_refused_in_one_line(tmp_path, spoil, reason):
    path = pdf(tmp_path / "a.pdf")
    spoil(path)
    with pytest.raises(Rejected, match=reason) as refused:
        pdf_to_markdown(path, tmp_path / "assets", 200)
    assert "\n" not in str(refused.value)


async def test_a_conversion_is_bounded_in_time_and_memory(tmp_path):
    path = pdf(tmp_path / "a.pdf")
    with pytest.raises(Rejected, match="not done within convert.timeout_s=0.01"):
        await convert(path, tmp_path / "out", ConvertConfig(timeout_s=0.01))
    with pytest.raises(Rejected, match="convert: "):
        await convert(path, tmp_path / "out", ConvertConfig(memory_mb=16))
    assert (await convert(path, tmp_path / "out", ConvertConfig())).title == "Moving Buckets One by One"
