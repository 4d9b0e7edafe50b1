"""Find what there is to compare in a run: every scene x edit with every method, editor and seed, missing ones too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import InputError, read_json

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
    record: dict[str, Any] | None
    """The content of `record.json`; None if the edit was never finished."""

    @property
    def problem(self) -> str:
        """Why it cannot be scored; empty if it can."""
        if self.record is None:
            return "no result: the edit was not run or not finished"
        if self.record.get("status") != "done":
            return f"failed: {self.record.get('reason') or 'no reason recorded'}"
        return ""


def find_results(run_path: Path) -> list[Result]:
    """All contenders that occur anywhere in the run's edit folder, crossed with all edits that occur there.

    Raises:
        InputError: the run has no finished edit at all, or a record is not readable.
    """
    records = {path.parent: read_json(path) for path in sorted((run_path / "edit").glob("*/*/*/*/record.json"))}
    if not records:
        raise InputError(f"{run_path / 'edit'} holds no finished edits; run: restage edit")
    contenders = sorted({_contender(record) for record in records.values()})
    edits = sorted({(record["scene"], record["edit"]) for record in records.values()})
    kinds = {(record["scene"], record["edit"]): record.get("kind", "") for record in records.values()}
    results = []
    for scene, edit in edits:
        for contender in contenders:
            name = f"{contender.method}-{contender.editor}"
            folder = run_path / "edit" / scene / edit / name / str(contender.seed)
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


def _contender(record: dict[str, Any]) -> Contender:
    try:
        return Contender(method=record["method"], editor=record["editor"], seed=record["seed"])
    except KeyError as error:
        raise InputError(f"a record.json of the edit stage lacks {error}; delete its folder and edit again") from None
