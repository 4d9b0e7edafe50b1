"""Find what there is to compare in a run: every scene x edit with every method, editor and seed, missing ones too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError
from restage.run.layout import result_folder
from restage.run.reading import EditRecord, read_results

__all__ = ["Contender", "Result", "find_results"]


@dataclass(frozen=True, order=True, kw_only=True)
class Contender:
    """What competes: a method with an editor and a seed."""

    method: str
    editor: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contender's go at one edit of one scene."""

    scene: str
    edit: str
    kind: str
    contender: Contender
    folder: Path
    """Of the edit stage; need not exist."""
    record: EditRecord | None
    """What its record says; None if the edit was never finished."""

    @property
    def problem(self) -> str:
        """Why it cannot be scored; empty if it can."""
        return self.record.problem if self.record else "no result: the edit was not run or not finished"


def find_results(run_path: Path) -> list[Result]:
    """All contenders that occur anywhere in the run's edit folder, crossed with all edits that occur there."""
    records = read_results(run_path)
    if not records:
        raise InputError(f"{run_path / 'edit'} holds no finished edits; run: restage edit")
    contenders = sorted({Contender(method=r.method, editor=r.editor, seed=r.seed) for r in records.values()})
    kinds = {(record.scene, record.edit): record.kind for record in records.values()}
    results = []
    for scene, edit in sorted(kinds):
        for contender in contenders:
            name = f"{contender.method}-{contender.editor}"
            folder = result_folder(run_path, scene, edit, contender=name, seed=contender.seed)
            results.append(
                Result(
                    scene=scene,
                    edit=edit,
                    kind=kinds[scene, edit],
                    contender=contender,
                    folder=folder,
                    record=records.get(folder),
                )
            )
    return results
