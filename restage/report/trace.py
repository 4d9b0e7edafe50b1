"""Leads each number and picture of the page back: to its row, its result's record, and the command that makes it again.

`restage.report.stage` calls `trace_results` for the list of records and `rows_data` for the page's script.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import InputError, Score
from restage.report.read import EditEntry, ResultEntry, RunContents, read_contents
from restage.run.layout import EDIT_RECORD, SCORES, STAGE_MARK
from restage.scores.definitions import METRICS

__all__ = ["Trace", "again_commands", "describe_row", "rows_data", "trace_results"]

Key = tuple[str, str, str, str, str]
"""Scene, edit, method, editor, seed."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where one result comes from."""

    number: int  # number of its place on the page, `#record-<number>`
    entry: EditEntry
    result: ResultEntry
    numbers: Sequence[tuple[int, Score]]
    """Its numbers, each with its row in `compare/scores.parquet`, from 0."""
    again: str  # shell commands that make it again, alone

    @property
    def inputs(self) -> Mapping[str, str]:
        """Content ids and hashes of what it was made from."""
        return {name: str(value) for name, value in self.result.record.inputs.items() if value}

    @property
    def record(self) -> str:
        """Its record as JSON, without the hashes of files."""
        shown = {name: value for name, value in self.result.plain.items() if name != "files"}
        return json.dumps(shown, indent=1, ensure_ascii=False)


def trace_results(contents: RunContents) -> dict[Key, Trace]:
    """Every result of a run with what its record says, in the order of the page."""
    rows: dict[Key, list[tuple[int, Score]]] = {}
    for row, score in enumerate(contents.scores):
        key = (score.scene, score.edit, score.method, score.editor, str(score.seed))
        rows.setdefault(key, []).append((row, score))
    traces: dict[Key, Trace] = {}
    for entry in contents.edits:
        for result in entry.results:
            key = (entry.scene, entry.edit, result.method, result.editor, result.seed)
            numbers = [number for name in entry.names for number in rows.get((key[0], name, *key[2:]), [])]
            again = again_commands(contents, result)
            number = len(traces) + 1
            traces[key] = Trace(number=number, entry=entry, result=result, numbers=numbers, again=again)
    return traces


def describe_row(run: Path, row: int) -> list[str]:
    """Where one number comes from, in lines: its row, its result's record, inputs, and commands."""
    contents = read_contents(run)
    if not 0 <= row < len(contents.scores):
        raise InputError(f"{run} has {len(contents.scores)} rows of scores, counted from 0, got {row}")
    score = contents.scores[row]
    value = score.reason if math.isnan(score.value) else f"{score.value:.6g}"
    who = f"{score.scene} {score.edit} {score.method}-{score.editor} seed {score.seed}"
    lines = [f"row {row} of {SCORES}: {score.metric} of {who} is {value}"]
    if score.metric in METRICS:
        lines.append(f"which is: {METRICS[score.metric].definition}")
    for trace in trace_results(contents).values():
        if any(number == row for number, _ in trace.numbers):
            folder, num_files = trace.result.folder, len(trace.result.record.files)
            lines.append(f"result: {folder}, “{trace.entry.request.instruction}”")
            lines += [f"made from {name}: {value}" for name, value in trace.inputs.items()]
            if note := trace.result.record.drift_note:
                lines.append(note)
            lines.append(f"record: {run / folder / EDIT_RECORD} ({num_files} files with hashes)")
            lines += ["to make it again:", *(f"  {line}" for line in trace.again.splitlines())]
    return lines


def again_commands(contents: RunContents, result: ResultEntry) -> str:
    """Shell commands that make one result again, in a copy of the run: without it, the run's own command makes it.

    A run goes on with whatever is missing, and the same inputs give the same result.
    """
    command = contents.record.command
    if not command:
        return ""
    marks = [f"{stage}/{STAGE_MARK}" for stage in ("edit", "compare", "report")]
    gone = shlex.join([result.folder, *marks])
    return f"rm -rf {gone}   # in the folder of the run, or a copy\n{shlex.join(command)}   # where it was begun"


def rows_data(
    scores: Sequence[Score], traces: Mapping[Key, Trace], names: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """All rows in the form that the page's script filters: by metric, lists of [result, value or null, reason, row]."""
    results: dict[Key, int] = {}
    cells: dict[str, list[list[Any]]] = {}
    for row, score in enumerate(scores):
        edit = names.get((score.scene, score.edit), score.edit)
        key = (score.scene, edit, score.method, score.editor, str(score.seed))
        index = results.setdefault(key, len(results))
        value = None if math.isnan(score.value) else score.value
        cells.setdefault(score.metric, []).append([index, value, score.reason, row])
    return {
        "results": [[*key, traces[key].number if key in traces else None] for key in results],
        "metrics": {
            name: {"label": metric.label, "unit": metric.unit, "definition": metric.definition, "source": metric.source}
            for name, metric in METRICS.items()
            if name in cells
        },
        "cells": cells,
    }
