r"""Tables as LaTeX, to be read into a paper with ``\input``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.report.build import BuiltTable
from harness.report.layout import Entry, Grid, layout

_HEAD = r"""% {command}
% Needs \usepackage{{booktabs}} and \usepackage{{xcolor}}.{engine}
"""
_OTHER_ENGINE = """
% Labels hold characters that pdfLaTeX lacks: use LuaLaTeX or XeLaTeX."""
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{EN DASH}": r"\textendash{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # \\ at the end of a row would take what follows for its option
    "]": "{]}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it stands, without control characters."""
    text = re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)
    shown = "".join(_ESCAPES.get(c, c) if c.isprintable() else " " for c in text)
    return re.sub(r"([-`',!?<>])(?=[-`',<>])", r"\1{}", shown)  # ligatures


def to_latex(table: BuiltTable) -> str:
    """Return a table as LaTeX: one ``table`` float a grid, with the notes that it refers to."""
    shown = layout(table)
    parts = []
    for number, grid in enumerate(shown.grids):
        below = [f"{_superscript([mark])} {escape(shown.notes[mark])}" for mark in grid.marks()]
        if number == 0:
            below += [escape(shown.caption), *(escape(f"{text}.") for text in shown.remarks)]
        if number == len(shown.grids) - 1:
            below += [escape(f"{text}.") for text in shown.verdicts]
        label = shown.name if number == 0 else f"{shown.name}-{number + 1}"
        parts.append("\n".join(_float(grid, f"{shown.title}. {grid.title}", label, below)))
    text = "\n\n".join(parts) + "\n"
    lacking = any(ord(character) > 0xFF for character in text)
    head = _HEAD.format(command=shown.command, engine=_OTHER_ENGINE if lacking else "")
    return head + "\n" + text


def _superscript(marks: Sequence[int]) -> str:
    return rf"\textsuperscript{{{','.join(str(mark + 1) for mark in marks)}}}" if marks else ""


def _float(grid: Grid, caption: str, label: str, below: Sequence[str]) -> Iterator[str]:
    labels, columns = grid.num_labels, len(grid.header)
    yield r"\begin{table}[htbp]"
    yield rf"\centering\small\caption{{{escape(caption)}}}\label{{tab:{label}}}"
    # Centred on the text, also where it is wider: else it would run off the page on the right.
    yield r"\makebox[\linewidth]{%"
    yield rf"\begin{{tabular}}{{{'l' * labels}{'r' * (columns - labels)}}}"
    yield r"\toprule"
    yield _row([escape(text) for text in grid.header])
    yield r"\midrule"
    for row in grid.rows:
        yield _row([_entry(entry) for entry in row])
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    if lines := [line for line in below if line]:
        yield r"\par\smallskip\parbox{\linewidth}{\footnotesize\raggedright"
        yield "\\par\n".join(lines) + "}"
    yield r"\end{table}"


def _row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _entry(entry: Entry) -> str:
    text = escape(entry.text)
    if entry.incomplete:
        text = rf"\textcolor{{gray}}{{{text}}}"
    return text + _superscript(entry.marks)
