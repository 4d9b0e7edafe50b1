"""`restage export RUN --format ...`: a folder with the accepted pairs and a data card, whole or not at all.

An export is made beside its place, file by file, and renamed at the end; one that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from restage.pairs.exchange import FORMATS
from restage.pairs.exchange.card import collect_facts, render_card
from restage.pairs.exchange.exported import open_set
from restage.pairs.files import is_url, open_files
from restage.records import InputError, Progress, content_id, read_json, write_atomically, write_json

__all__ = ["export_pairs"]

EXPORT_RECORD = "export.json"
"""In the folder of an export: what it was made from."""


def export_pairs(path: str, out: Path, form: str, *, store: str = "") -> Iterator[Progress]:
    """Export the accepted pairs of a run, so that `out` appears only when all of it is there.

    Args:
        path: a run, or a folder or URL of shards.
        out: folder to make.
        form: a name of the menu `FORMATS`.
        store: URL of the store that the run's pairs lie in, if any.

    Raises:
        InputError: there are no pairs, the form cannot be written, `out` exists and is not this same export, or a
            stopped export of another set is in the way.
    """
    writers = {name: found.export for name, found in FORMATS.items() if found.export is not None}
    if form not in writers:
        raise InputError(f"unknown format {form!r}; known: {', '.join(writers)}")
    run = None if is_url(path) or not (Path(path) / "pairs").is_dir() else Path(path)
    pair_set = open_set(open_files(run / "pairs" if run else path, store=store))
    record = {"id": content_id("export", {"form": form, "set": pair_set.id}), "form": form, "set": pair_set.id}
    if out.exists():
        if (out / EXPORT_RECORD).exists() and read_json(out / EXPORT_RECORD) == record:
            yield Progress(stage="export", done=1, total=1, note="already done")
            return
        raise InputError(f"{out} exists and is not this export; name another folder with --out")
    work = out.with_name(f".{out.name}.unfinished")
    if (work / EXPORT_RECORD).exists() and read_json(work / EXPORT_RECORD) != record:
        raise InputError(f"{work} holds a stopped export of other pairs; delete it, or name another folder with --out")
    write_json(work / EXPORT_RECORD, record)
    yield from writers[form](pair_set, work)
    with write_atomically(work / "README.md") as temporary:
        temporary.write_text(render_card(collect_facts(pair_set, run), form), encoding="utf-8")
    work.rename(out)
    total = len(pair_set.marks)
    yield Progress(stage="export", done=total, total=total, note=str(out))
