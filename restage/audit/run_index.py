"""A page over many runs: a picture of each, its scores, who made it, when, from which commit. For `restage ls --index`.

The page is one file that opens from disk and asks no server; a few lines of its own script filter the rows.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from restage.audit.listing import UNREADABLE, ListedRun
from restage.records import InputError, Progress, write_atomically
from restage.run.layout import HELD_OUT, PAGE, SCORES

__all__ = ["write_index"]

THUMBNAIL_PX = 120
MAX_SCORES = 4
"""Rows of a run's table of methods that are shown."""
PICTURES = (f"edit/*/*/*/*/{HELD_OUT}/*.png", f"scenes/*/{HELD_OUT}/*.png", "scenes/*/around.png")
PICTURES += ("pairs/contact_sheet.png", "train/loss.png")
"""Where a picture of a run may lie, the best first."""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'unsafe-inline'">
<title>Runs</title><style>
:root{color-scheme:light dark;--line:#8884}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:80rem;padding:0 1rem}
input{font:inherit;padding:.4rem .6rem;width:min(28rem,100%);box-sizing:border-box}
table{border-collapse:collapse;width:100%;margin-top:1rem}
th,td{text-align:left;vertical-align:top;padding:.5rem .7rem;border-bottom:1px solid var(--line)}
img{display:block;width:120px;border-radius:4px}
code{font-size:.85em;overflow-wrap:anywhere}
small{opacity:.75;display:block;overflow-wrap:anywhere}
.failed,.unreadable{color:light-dark(#b3261e,#ff8a80)}
@media(max-width:45rem){thead{display:none}tr,td{display:block;border:0;padding:.15rem 0}
tr{border-bottom:1px solid var(--line);padding:.8rem 0}}
</style></head><body><h1>Runs</h1>
"""
TAIL = """</tbody></table><script>
const find=name=>document.querySelector(name),box=find("input"),said=find("output");
const rows=[...document.querySelectorAll("tbody tr")];
box.oninput=()=>{const words=box.value.toLowerCase().split(/\\s+/);let shown=0;
for(const row of rows){row.hidden=!words.every(word=>row.textContent.toLowerCase().includes(word));shown+=!row.hidden}
said.textContent=shown+" of "+rows.length+" runs"}
</script></body></html>
"""


def write_index(runs: Sequence[ListedRun], page: Path) -> Iterator[Progress]:
    """Write the page; yields a step for each run.

    Raises:
        InputError: the page's name does not end in .html, or a folder is there.
    """
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise InputError(f"expected the name of a page such as runs.html, got {page}")
    parts = [
        HEAD,
        f'<p><label>Filter <input type="search" placeholder="method, user, commit, status"></label> '
        f"<output>{len(runs)} of {len(runs)} runs</output></p>",
        "<table><thead><tr><th></th><th>run</th><th>results</th><th>who, when</th><th>code</th></tr></thead><tbody>",
    ]
    for done, run in enumerate(runs, start=1):
        parts.append(_row(run, page))
        yield Progress(stage="index", done=done, total=len(runs), note=run.path)
    page.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(page) as temporary:
        temporary.write_text("\n".join([*parts, TAIL]), encoding="utf-8")


def _row(run: ListedRun, page: Path) -> str:
    path, report = html.escape(run.path), Path(run.path) / PAGE
    if report.is_file():
        place = quote(Path(os.path.relpath(report, page.parent)).as_posix())
        path = f'<a href="{html.escape(place, quote=True)}">{path}</a>'
    told = html.escape(run.problem or " ".join((*run.stages, *(f"({stage})" for stage in run.begun))))
    command = html.escape(" ".join(run.command))
    status = html.escape(run.status)
    kind = status if run.status in ("failed", UNREADABLE) else ""
    commit = "uncommitted changes" if run.is_dirty else "as committed" if run.is_clean else ""
    when = f"{run.wall_s:.0f} s of work" if run.wall_s else ""
    cells = (
        _thumbnail(Path(run.path)),
        f'<b>{path}</b> <span class="{kind}">{status}</span><small>{told}</small><code>{command}</code>',
        _scores(run),
        f"{html.escape(run.user)}<small>{run.started}</small><small>{when}</small>",
        f"<code>{html.escape(run.git_commit[:12])}</code><small>{commit}</small>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _thumbnail(run: Path) -> str:
    """Return a small picture of a run as HTML; empty where there is none that can be read."""
    from PIL import Image

    for pattern in PICTURES:
        for path in sorted(run.glob(pattern))[:1]:
            try:
                with Image.open(path, formats=("PNG",)) as picture:
                    picture.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
                    content = io.BytesIO()
                    picture.convert("RGB").save(content, format="JPEG", quality=80)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
            encoded = base64.b64encode(content.getvalue()).decode()
            label = html.escape(path.relative_to(run).as_posix(), quote=True)
            return f'<img alt="{label}" src="data:image/jpeg;base64,{encoded}">'
    return ""


def _scores(run: ListedRun) -> str:
    """Return the head of a run's table of methods as HTML, or the methods that it has results of."""
    from restage.scores.rows import read_scores
    from restage.scores.tables import method_table

    path = Path(run.path) / SCORES
    names = "".join(f"<small>{html.escape(name)}</small>" for name in run.contenders[:MAX_SCORES])
    if not path.is_file():
        return names
    try:
        table = method_table(read_scores(path))
    except InputError as error:
        return f'<span class="unreadable">{html.escape(str(error))}</span>'
    lines = []
    for row in table[:MAX_SCORES]:
        shown = (f"{name} {row.estimates[name].mean:.3f}" for name in ("progress", "spill") if name in row.estimates)
        lines.append(f"{html.escape(f'{row.method}, {row.editor}')}<small>{', '.join(shown)}</small>")
    more = f"<small>and {len(table) - MAX_SCORES} more</small>" if len(table) > MAX_SCORES else ""
    return "".join(lines) + more
