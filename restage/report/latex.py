r"""The report as LaTeX: `tables.tex` (booktabs) and figures to put into a paper, and `paper.tex`, which shows them all.

`\input{tables}` needs `\usepackage{booktabs,graphicx}`; nothing but what a small TeX Live has is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from restage.records import write_atomically
from restage.report.charts import draw_loss
from restage.report.summary import Summary, best_row, cell_parts
from restage.scores.definitions import METRICS
from restage.scores.tables import MethodRow

__all__ = ["escape_latex", "method_tabular", "write_latex"]

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"\u200b": "{}"},
    **{"±": r"$\pm$", "−": "$-$", "→": r"$\to$", "–": "--", "“": "``", "”": "''", "\n": " "},
}

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Opens a box that is made narrower if it is wider than the text, and left as it is otherwise."""

PAPER = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,margin=22mm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""


def escape_latex(text: str) -> str:
    """Text as LaTeX sets it; a character that LaTeX's usual fonts lack becomes a question mark."""
    text = text.replace("--", "-\u200b-")
    shown = "".join(SPECIAL.get(character, character) for character in text)
    return shown.encode("latin-1", "replace").decode("latin-1")


def write_latex(summary: Summary, folder: Path) -> Iterator[str]:
    """Write `tables.tex`, `figures/` and `paper.tex`; yields the name of each file."""
    tables = method_tabular(summary) + (gaps_tabular(summary) if summary.gaps else "")
    yield _write_text(folder / "tables.tex", tables)
    body = [PAPER, r"\section*{" + escape_latex(summary.title) + "}\n", r"\input{tables}" + "\n"]
    for number, figure in enumerate(summary.figures, start=1):
        name = f"edit-{number:02d}.png"
        buffer = io.BytesIO()
        figure.picture.save(buffer, "PNG")
        yield _write_bytes(folder / "figures" / name, buffer.getvalue())
        caption = f"{figure.entry.instruction} ({figure.entry.scene}). From left to right: {', '.join(figure.columns)}."
        body.append(_figure(f"figures/{name}", caption, f"fig:edit-{number}", records=figure.records))
    if len(summary.contents.train) > 1:
        yield _write_bytes(folder / "figures" / "loss.pdf", draw_loss(summary.contents.train, form="pdf"))
        body.append(_figure("figures/loss.pdf", "Training loss of the edit model.", "fig:loss", width=0.6))
    if summary.contents.diagnosis:
        body.append(r"\paragraph{Diagnosis.} " + escape_latex(summary.contents.diagnosis.sentence) + "\n\n")
    facts = [f"{name}: {value}" for name, value in summary.facts.items()]
    body.append(r"\paragraph{Record.} \raggedright " + r"\\ ".join(map(escape_latex, facts)) + "\n")
    yield _write_text(folder / "paper.tex", "".join(body) + "\\end{document}\n")


def method_tabular(summary: Summary) -> str:
    """The table of methods: competitors by progress, then the anchors; the best competitor of a column is bold."""
    metrics = summary.metrics
    heads = [f"{METRICS[name].label}{_unit(name)}{_arrow(name)}" for name in metrics]
    best = {name: best_row(summary.rows, name) for name in metrics}
    lines = [
        r"\begin{table}[ht]",
        r"\centering\small",
        FITTED,
        r"\begin{tabular}{ll" + "r" * len(metrics) + "}",
        r"\toprule",
        " & ".join(["Method", "Editor", *heads]) + r" \\",
        r"\midrule",
    ]
    for is_anchor in (False, True):
        rows = [row for row in summary.rows if row.is_anchor == is_anchor]
        if rows and is_anchor and len(rows) < len(summary.rows):
            lines.append(r"\midrule")
        lines += [_row(row, summary, best) for row in rows]
    caption = f"{summary.scope} Below the line: anchors, to read the others by. Run {summary.run_id}."
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{escape_latex(caption)}}}", r"\label{tab:methods}"]
    return "\n".join([*lines, r"\end{table}", ""])


def gaps_tabular(summary: Summary) -> str:
    """The table of paired differences to the best competitor."""
    best = summary.rows[0]
    lines = [
        r"\begin{table}[ht]",
        r"\centering\small",
        r"\begin{tabular}{lllrlr}",
        r"\toprule",
        r"Method & Editor & Metric & Difference & 95\,\% interval & Cases \\",
        r"\midrule",
    ]
    for gap in summary.gaps:
        digits = METRICS[gap.metric].digits
        names = [escape_latex(text) for text in (gap.method, gap.editor, METRICS[gap.metric].label)]
        mean, interval = f"${gap.mean:+.{digits}f}$", f"$[{gap.low:.{digits}f}, {gap.high:.{digits}f}]$"
        lines.append(" & ".join([*names, mean, interval, str(gap.num_pairs)]) + r" \\")
    caption = f"Differences to {best.method} ({best.editor}), case by case; intervals are over scenes."
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape_latex(caption)}}}", r"\label{tab:differences}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _row(row: MethodRow, summary: Summary, best: dict[str, MethodRow | None]) -> str:
    cells = []
    for name in summary.metrics:
        mean, error = cell_parts(row.estimates[name], name)
        shown = escape_latex(mean) if name == "seconds" else f"${mean}$" if mean else "--"
        shown = rf"\textbf{{{shown}}}".replace("$", "") if best[name] is row and mean else shown
        missing = f" ({row.estimates[name].num_scored})" if row.estimates[name].num_missing and mean else ""
        cells.append(shown + (rf" {{\scriptsize$\pm${error}}}" if error else "") + missing)
    flag = rf" {{\scriptsize({escape_latex(row.flag)})}}" if row.flag else ""
    editor = "" if row.method == "nothing" or row.editor == "none" else escape_latex(row.editor)
    return " & ".join([escape_latex(row.method) + flag, editor, *cells]) + r" \\"


def _unit(metric: str) -> str:
    return " (dB)" if METRICS[metric].unit == "dB" else ""


def _arrow(metric: str) -> str:
    return {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}[METRICS[metric].better]


def _figure(path: str, caption: str, label: str, *, width: float = 1.0, records: tuple[str, ...] = ()) -> str:
    made_of = rf" {{\scriptsize Results: \texttt{{{escape_latex(', '.join(records))}}}.}}" if records else ""
    return "\n".join(
        [
            r"\begin{figure}[ht]",
            rf"\centering\includegraphics[width={width}\linewidth]{{{path}}}",
            rf"\caption{{{escape_latex(caption)}{made_of}}}",
            rf"\label{{{label}}}",
            r"\end{figure}",
            "",
        ]
    )


def _write_text(path: Path, text: str) -> str:
    return _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> str:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return path.name
