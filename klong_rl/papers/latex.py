r"""LaTeX source to Markdown by pylatexenc (MIT), which parses it; what its structure means in Markdown stands here.

Sections, lists, emphasis, code, links, tables (`tabular`), figures (`\includegraphics`: PNG and JPEG are copied, of a
PDF the first page is rendered), formulas (kept as LaTeX), and what `\input` and `\include` name. Pandoc does more,
under the GPL.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from klong_rl.papers.pdf import FIGURE_DPI, markdown_table
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper, abstract_of

DEEPEST_INPUT = 10
MOST_BYTES = 4_000_000  # of all the source: more is data, and takes minutes to parse
POINTS_AN_INCH = 72
_INPUT = re.compile(r"(?<!\\)\\(?:input|include|subfile)\s*\{([^}]+)\}")
_COMMENT = re.compile(r"(?<!\\)%.*")
_DEFINITION = re.compile(r"\\(?:re|provide)?newcommand\*?\s*\{?\\([A-Za-z]+)\}?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SECTIONS = {"chapter": 2, "section": 2, "subsection": 3, "subsubsection": 4, "paragraph": 5}
_AROUND = {"textbf": "**", "emph": "*", "textit": "*", "texttt": "`", "verb": "`", "lstinline": "`"}
_DROPPED = {
    *("documentclass", "usepackage", "newcommand", "renewcommand", "providecommand", "def", "bibliographystyle"),
    *("maketitle", "label", "hline", "toprule", "midrule", "bottomrule", "centering", "vspace", "hspace", "thanks"),
    *("author", "date", "setlength", "addtolength", "pagestyle", "newtheorem", "graphicspath", "bibliography"),
}
_CITES = {"cite", "citep", "citet", "ref", "eqref", "autoref", "cref"}
_CODE = {"verbatim", "lstlisting", "minted"}
_FORMULAS = {"equation", "align", "gather", "multline", "eqnarray", "displaymath", "math"}
_LISTS = {"itemize", "enumerate", "description"}


def latex_to_markdown(folder: Path, main: Path, assets: Path) -> Paper:
    """The paper whose main file is `main`; figures are copied to `assets`. Raises Rejected."""
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    source = _expanded(_with_inputs(main, folder, set(), 0))
    if len(source.encode()) > MOST_BYTES:
        raise Rejected(f"convert: {len(source.encode())} bytes of LaTeX, more than {MOST_BYTES}")
    writer = _Writer(source, folder, assets)
    try:
        nodes, _, _ = LatexWalker(source, tolerant_parsing=True).get_latex_nodes()
    except (LatexWalkerError, RecursionError) as error:
        raise Rejected(f"convert: LaTeX that can't be parsed ({type(error).__name__}: {str(error)[:100]})") from error
    text = _BLANK_LINES.sub("\n\n", writer.text(nodes)).strip()
    title = " ".join(writer.title.split())
    markdown = f"# {title}\n\n{text}\n" if title else f"{text}\n"
    return Paper(title=title, abstract=abstract_of(markdown), markdown=markdown)


def main_file(folder: Path) -> Path | None:
    """The file with the document class; of several main.tex or paper.tex, else the largest."""
    found = [path for path in sorted(folder.rglob("*.tex")) if r"\documentclass" in _read(path)]
    return min(found, key=lambda path: (path.stem not in ("main", "paper"), -path.stat().st_size), default=None)


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


def _with_inputs(path: Path, folder: Path, above: set[Path], depth: int) -> str:
    """The source with what it inputs in place; files outside of `folder` are left out."""
    if depth > DEEPEST_INPUT or path in above:
        raise Rejected(f"convert: {path.name} inputs itself, or {DEEPEST_INPUT} levels deep")

    def replaced(match: re.Match[str]) -> str:
        name = match[1].strip()
        for candidate in (folder / name, folder / f"{name}.tex", path.parent / f"{name}.tex"):
            inside = candidate.resolve().is_relative_to(folder.resolve())
            if inside and candidate.is_file():
                return _with_inputs(candidate, folder, above | {path}, depth + 1)
        return ""

    return _INPUT.sub(replaced, _COMMENT.sub("", _read(path)))


def _expanded(source: str) -> str:
    """Commands without arguments that the paper defines, in place of their names: formulas are kept as LaTeX."""
    short = {name: text for name, text in _DEFINITION.findall(source)}
    source = _DEFINITION.sub("", source)
    for name, text in short.items():
        source = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, text=text: text, source)
    return source


class _Writer:
    """Markdown of one document's nodes; `title` is found on the way."""

    def __init__(self, source: str, folder: Path, assets: Path) -> None:
        from pylatexenc.latex2text import LatexNodes2Text

        self._source, self._folder, self._assets = source, folder, assets
        self._plain = LatexNodes2Text(keep_comments=False)
        self.title = ""

    def text(self, nodes: Any) -> str:
        return "".join(self._node(node) for node in nodes or ())

    def _node(self, node: Any) -> str:
        from pylatexenc import latexwalker as walker

        if isinstance(node, walker.LatexCharsNode):
            return node.chars
        if isinstance(node, walker.LatexMathNode):
            return node.latex_verbatim()
        if isinstance(node, walker.LatexGroupNode):
            return self.text(node.nodelist)
        if isinstance(node, walker.LatexEnvironmentNode):
            return self._environment(node)
        if isinstance(node, walker.LatexMacroNode):
            return self._macro(node)
        return "" if isinstance(node, walker.LatexCommentNode) else self._plain.nodelist_to_text([node])

    def _arguments(self, node: Any) -> list[str]:
        """The texts of the braced arguments that the parser took for this macro's or environment's."""
        found = node.nodeargd.argnlist if node.nodeargd is not None else None
        return [
            self.text([each]).strip() for each in found or () if each is not None and each.latex_verbatim()[:1] != "["
        ]

    def _macro(self, node: Any) -> str:
        name, arguments = node.macroname, self._arguments(node)
        last = arguments[-1] if arguments else ""
        if name == "title":
            self.title = last.replace("\n", " ")
            return ""
        if name in _DROPPED:
            return ""
        if name in _SECTIONS:
            return f"\n\n{'#' * _SECTIONS[name]} {' '.join(last.split())}\n\n"
        if name in _AROUND:
            return f"{_AROUND[name]}{last}{_AROUND[name]}" if last else ""
        if name in _CITES:
            return f"[{last}]"
        if name in ("\\", "newline", "par"):
            return "\n\n" if name == "par" else "\n"
        return self._linked(name, arguments, node)

    def _linked(self, name: str, arguments: list[str], node: Any) -> str:
        last = arguments[-1] if arguments else ""
        if name == "url":
            return last
        if name == "href" and len(arguments) == 2:
            return f"[{arguments[1]}]({arguments[0]})"
        if name == "includegraphics":
            return self._figure(last)
        if name == "footnote":
            return f" ({last})"
        if name == "item":
            return f"\n- {last} " if last else "\n- "
        if name == "bibitem":
            return "\n\n- "  # its key is the group that follows
        if name == "caption":
            return "\n\nCaption: "  # the parser leaves its argument as the group that follows
        return self._plain.nodelist_to_text([node])

    def _environment(self, node: Any) -> str:
        name = node.environmentname.rstrip("*")
        if name == "abstract":
            return f"\n\n## Abstract\n\n{self.text(node.nodelist)}\n\n"
        if name == "tabular":
            return f"\n\n{self._table(node)}\n\n"
        if name in _FORMULAS:
            return f"\n\n$$\n{self._inside(node).strip()}\n$$\n\n"
        if name in _CODE:
            return f"\n\n```\n{self._inside(node).strip()}\n```\n\n"
        if name == "thebibliography":
            return f"\n\n## References\n\n{self.text(node.nodelist[1:])}"  # the first is its widest label
        return f"\n\n{self.text(node.nodelist)}\n\n" if name not in _LISTS else f"\n{self.text(node.nodelist)}\n\n"

    def _inside(self, node: Any) -> str:
        """The source between begin and end."""
        verbatim = node.latex_verbatim()
        return verbatim[verbatim.index("}") + 1 : verbatim.rindex(r"\end")]

    def _table(self, node: Any) -> str:
        from pylatexenc.latexwalker import LatexMacroNode

        rows: list[list[list[Any]]] = [[[]]]
        for each in node.nodelist or ():
            if isinstance(each, LatexMacroNode) and each.macroname == "\\":
                rows.append([[]])
            elif each.latex_verbatim() == "&":
                rows[-1].append([])
            else:
                rows[-1][-1].append(each)
        cells = [[" ".join(self.text(cell).split()) for cell in row] for row in rows]
        return markdown_table([row for row in cells if any(row)])

    def _figure(self, name: str) -> str:
        """A link to the figure's file among the assets; to its name, where there is no such file."""
        found = [path for path in (self._folder / name, *self._folder.glob(f"{name}.*")) if path.is_file()]
        found = [path for path in found if path.resolve().is_relative_to(self._folder.resolve())]
        if not found:
            return f"(figure {name}: no such file)"
        self._assets.mkdir(parents=True, exist_ok=True)
        target = self._assets / found[0].name
        if found[0].suffix.lower() == ".pdf":
            target = target.with_suffix(".png")
            render(found[0], target)
        else:
            shutil.copyfile(found[0], target)
        return f"\n\n![{found[0].stem}](assets/{target.name})\n\n"


def render(pdf: Path, png: Path) -> None:
    """The first page of a figure in PDF."""
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf)
    try:
        document[0].render(scale=FIGURE_DPI / POINTS_AN_INCH).to_pil().save(png)
    finally:
        document.close()
