"""LaTeX to Markdown."""

import pytest

from klong_rl.papers.converter import paper_of
from klong_rl.papers.latex import latex_to_markdown, main_file
from klong_rl.papers.rejected import Rejected

HEAD = "\\documentclass{article}\n\\title{T \\\\ U}\n\\newcommand{\\rate}{\\alpha}\n\\begin{document}\\maketitle\n"
END = "\n\\end{document}\n"


def convert(tmp_path, body: str) -> str:
    path = tmp_path / "main.tex"
    path.write_text(HEAD + body + END)
    return latex_to_markdown(tmp_path, path, tmp_path / "assets").markdown


def test_structure_becomes_markdown(tmp_path):
    made = convert(
        tmp_path,
        "\\begin{abstract}Short.\\end{abstract}\\section{One}A \\textbf{b} \\emph{c} \\texttt{d}~\\cite{e}. % gone\n"
        "\\begin{itemize}\\item x\\item y\\end{itemize}\\url{https://github.com/a/b}\\footnote{small}",
    )
    assert made.startswith("# T U\n\n## Abstract\n\nShort.\n\n## One\n\n")
    assert "A **b** *c* `d`" in made and "[e]" in made and "gone" not in made
    assert "\n- x\n- y" in made.replace("- x ", "- x") and "https://github.com/a/b (small)" in made


def test_formulas_are_kept_with_the_papers_own_commands_written_out(tmp_path):
    made = convert(tmp_path, "Let $\\rate > 0$.\\begin{equation}x = \\rate y\\end{equation}")
    assert "$\\alpha > 0$" in made and "$$\nx = \\alpha y\n$$" in made and "rate" not in made


def test_a_table_becomes_one(tmp_path):
    made = convert(tmp_path, "\\begin{tabular}{ll}\\hline a & b|c \\\\ \\hline 1 & $x$ \\\\ \\end{tabular}")
    assert "| a | b\\|c |\n| --- | --- |\n| 1 | $x$ |" in made


def test_verbatim_is_not_touched(tmp_path):
    assert "```\n\\x{1} # $\n```" in convert(tmp_path, "\\begin{verbatim}\n\\x{1} # $\n\\end{verbatim}")


def test_figures_are_copied_and_what_is_missing_is_said(tmp_path):
    (tmp_path / "f.png").write_bytes(b"png")
    made = convert(tmp_path, "\\includegraphics[width=1cm]{f}\\includegraphics{../secret}\\includegraphics{g}")
    assert "![f](assets/f.png)" in made and (tmp_path / "assets" / "f.png").read_bytes() == b"png"
    assert "(figure g: no such file)" in made and "(figure ../secret: no such file)" in made


def test_inputs_are_read_inside_the_folder_and_nowhere_else(tmp_path):
    folder = tmp_path / "paper"
    folder.mkdir()
    (tmp_path / "outside.tex").write_text("SECRET")
    (folder / "part.tex").write_text("Inside.")
    (folder / "a.tex").write_text(HEAD + "\\input{part}\\input{../outside}" + END)
    made = paper_of(folder, tmp_path / "assets", 1).markdown
    assert "Inside." in made and "SECRET" not in made
    assert main_file(folder).name == "a.tex"


def test_a_file_that_inputs_itself_is_refused(tmp_path):
    (tmp_path / "part.tex").write_text("\\input{main}")
    with pytest.raises(Rejected, match="inputs itself"):
        convert(tmp_path, "\\input{part}")


@pytest.mark.parametrize("body", ["\\section{open", "$x", "\\begin{table} a & b", "{{{{", "\\verb|x", "\\item" * 50])
def test_broken_latex_is_read_as_far_as_it_goes_or_refused(tmp_path, body):
    try:
        assert isinstance(convert(tmp_path, body), str)
    except Rejected as rejected:
        assert str(rejected).startswith("convert: ")
