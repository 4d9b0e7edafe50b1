"""`restage study`: runs or goes on with a study, and prints its table.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from restage.records import InputError
from restage.run.layout import SCORES
from restage.run.progress import show_progress

__all__ = ["build_study"]

StudyArgument = Annotated[
    Path, arg(metavar="STUDY", help="A Python file with a STUDY, or the folder of a study that was begun.")
]


def build_study() -> Callable[..., None]:
    """Build `restage study`."""
    from restage.work.interface import EngineConfig

    def study(
        study: Positional[StudyArgument],
        *,
        out: Path | None = None,
        engine: Annotated[EngineConfig, arg(name="")] = EngineConfig(),  # noqa: B008
    ) -> None:
        """Compare methods on scenes, edits, editors and seeds that a Python file names; only what is missing runs.

        Example: restage study benchmarks/truth_study.py --out runs/truth --workers 2

        Ctrl-C stops it at any time, a machine may fail: the same command goes on from there, on any engine, and ends
        with the same numbers. With --engine ray all machines have to see the study's folder and the models that it
        names under the same paths. The folder is a run: restage report runs/truth

        Args:
            study: What to compare.
            out: Folder of the study; default: runs/ and the file's name.
            engine: Where the study runs; each worker computes with one thread unless --threads says otherwise.
        """
        from restage.scores.rows import read_scores
        from restage.scores.tables import markdown_table, method_table
        from restage.studies.file import load_study
        from restage.studies.run import run_study

        if out is not None and study.is_dir():
            raise InputError(f"{study} is the folder of a study already; omit --out")
        folder = study if study.is_dir() else out or Path("runs") / study.stem
        file = study / "study.py" if study.is_dir() else study
        show_progress(run_study(load_study(file), folder, engine=engine, file=file))
        print(markdown_table(method_table(read_scores(folder / SCORES))), end="")

    return study
