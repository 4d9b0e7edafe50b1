"""`restage export RUN --format ...` and `restage import`: image pairs to and from the forms that others use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from restage.pairs.exchange import EXPORTERS, READERS
from restage.pairs.exchange.bring_in import ImportConfig, import_pairs
from restage.pairs.exchange.card import collect_facts, render_card
from restage.pairs.exchange.exported import export_to, open_set
from restage.pairs.files import is_url
from restage.records import InputError, Progress, write_atomically
from restage.run.folder import RunFolder

__all__ = ["ImportConfig", "export_pairs", "import_folder"]


def export_pairs(path: str, out: Path, form: str) -> Iterator[Progress]:
    """Export the accepted pairs of a run, with a data card, so that `out` appears whole or not at all.

    Args:
        path: a run, or a folder or URL of shards.
        out: folder to make.
        form: a name of the menu `EXPORTERS`.

    Raises:
        InputError: there are no pairs, the form is unknown, or `out` is something else.
    """
    if form not in EXPORTERS:
        raise InputError(f"unknown format {form!r}; known: {', '.join(EXPORTERS)}")
    run = None if is_url(path) or not (Path(path) / "pairs").is_dir() else Path(path)
    pair_set = open_set(run / "pairs" if run else path if is_url(path) else Path(path))

    def finish(folder: Path) -> None:
        with write_atomically(folder / "README.md") as temporary:
            temporary.write_text(render_card(collect_facts(pair_set, run), form), encoding="utf-8")

    yield from export_to(pair_set, out, form=form, exporter=EXPORTERS[form], finish=finish)


def import_folder(run: RunFolder, folder: Path, config: ImportConfig) -> Iterator[Progress]:
    """Take a data set in as the pairs of a run; see `pairs.exchange.bring_in.import_pairs`."""
    yield from import_pairs(run, folder, config, read=READERS[config.format])
