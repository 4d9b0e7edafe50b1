"""What a check finds wrong, and how it is told: the checks of image pairs and of a run's records both say it so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FileFinding", "describe_findings"]

MAX_LINES = 5
"""Number of findings of a reason that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class FileFinding:
    """One thing that is wrong with a file."""

    reason: str
    file: str  # path within the folder that was checked
    detail: str  # what was expected and what was found


def describe_findings(findings: Sequence[FileFinding], meanings: Mapping[str, str]) -> Iterator[str]:
    """Yield the findings by reason, in the order of the reasons' meanings."""
    for reason, meaning in meanings.items():
        found = [finding for finding in findings if finding.reason == reason]
        if found:
            yield f"{reason} ({len(found)}): {meaning}"
        for finding in found[:MAX_LINES]:
            yield f"  {getattr(finding, 'pair', '') or finding.file}: {finding.detail}"
        if len(found) > MAX_LINES:
            yield f"  and {len(found) - MAX_LINES} more; --json lists all"
