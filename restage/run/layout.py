"""What lies where in the folder of a run: the names of its files, in one place."""

from __future__ import annotations

from pathlib import Path

__all__ = ["STAGES", "is_stage_done"]

STAGES = ("prompts", "pairs", "train", "world", "scenes", "edit", "compare", "report")
"""Stages in the order data flows; each has a folder of its name."""


def is_stage_done(run: Path, stage: str) -> bool:
    """Whether a stage of the run in this folder has been finished."""
    return (run / stage / "stage.json").exists()
