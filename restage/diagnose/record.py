"""Writes a diagnosis: `diagnosis.json` for the report and for machines, `diagnosis.md` for people, and the figure."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restage.diagnose.diagnosis import Diagnosis
from restage.diagnose.figure import draw
from restage.diagnose.parts import LABELS
from restage.diagnose.stages import LADDER
from restage.diagnose.words import answer, blamed_parts, is_difference, sentence, tables
from restage.records import write_atomically, write_json

__all__ = ["LIMITS", "to_record", "write_diagnosis"]

LIMITS = (
    "Shares are the mean of two swaps, the part of B in A and the part of A in B: Shapley values for two parts, their "
    "two outermost terms for more. Parts that only matter together show up as remainder.",
    "Intervals are over scenes and the noise of edits. That two trainings of one recipe with other seeds differ is not "
    "in them: if only the seed of training differs, its share is what that seed happened to cost.",
    "Code, package versions and machine are listed, not swapped: both runs are tried with what is installed now.",
)


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> None:
    """Write everything into a folder, `diagnosis.json` last."""
    figure = draw(diagnosis, folder)
    with write_atomically(folder / "diagnosis.md") as temporary:
        limits = "\n".join(f"- {limit}" for limit in (*diagnosis.limits, *LIMITS))
        parts = (
            "# Diagnosis",
            sentence(diagnosis),
            f"![From A to B]({figure})",
            tables(diagnosis),
            "## Limits",
            limits,
        )
        temporary.write_text("\n\n".join(parts) + "\n")
    write_json(folder / "diagnosis.json", to_record(diagnosis, figure))


def to_record(diagnosis: Diagnosis, figure: str) -> dict[str, Any]:
    """The diagnosis as JSON values; NaN and infinite become null."""
    return _finite(
        {
            "version": 1,
            "runs": {side: path.as_posix() for side, path in diagnosis.runs.items()},
            "sentence": sentence(diagnosis),
            "answer": answer(diagnosis),
            "is_difference": is_difference(diagnosis),
            "blamed": [part.share.component for part in blamed_parts(diagnosis)],
            "measure": diagnosis.measure,
            "means": diagnosis.means,
            "total": asdict(diagnosis.attribution.total),
            "remainder": asdict(diagnosis.attribution.remainder),
            "parts": [
                {
                    "part": part.share.component,
                    "label": LABELS[part.share.component],
                    "within": part.within,
                    "detail": part.detail,
                    "share": asdict(part.share.share),
                    "forward": asdict(part.share.forward),
                    "reverse": asdict(part.share.reverse),
                    "interaction": part.share.interaction,
                }
                for part in diagnosis.parts
            ],
            "ladder": [
                {"step": name, "label": LADDER[name], **{side: asdict(cost) for side, cost in costs.items()}}
                for name, costs in diagnosis.ladder.items()
            ],
            "stages": [asdict(row) for row in diagnosis.stages],
            "differences": [asdict(difference) for difference in diagnosis.differences],
            "cases": [{"scene": case.scene, "edit": case.edit} for case in diagnosis.cases],
            "limits": [*diagnosis.limits, *LIMITS],
            "config": asdict(diagnosis.config),
            "figure": figure,
            "figure_svg": "diagnosis.svg",
            "table": "diagnosis.md",
            "cpu_seconds": diagnosis.seconds,
        }
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
