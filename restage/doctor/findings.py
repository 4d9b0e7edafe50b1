"""What the checks of `restage doctor` find, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

from restage.records import InputError

__all__ = ["Finding", "is_healthy", "show_table", "to_json"]

Status = Literal["ok", "note", "problem"]
STYLES: dict[Status, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    group: str
    """Section of the report."""
    name: str
    """What was checked."""
    status: Status
    """`ok`; `note` for what is slower, missing or odd but not needed; `problem` for something needed that is broken."""
    found: str
    """What was found."""
    advice: str = ""
    """What to do; never empty for a note or a problem."""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise InputError(f"{self.group}, {self.name}: a {self.status} needs advice")


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Return whether nothing that is needed is broken."""
    return all(finding.status != "problem" for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: `ok`, the number of each status, and every finding."""
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    return json.dumps({"ok": is_healthy(findings), "counts": counts, "findings": [asdict(f) for f in findings]})


def show_table(findings: Sequence[Finding], *, file: TextIO | None = None) -> None:
    """Print the findings as one table, group by group."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for ratio in (None, None, 3, 3):
        table.add_column(ratio=ratio, overflow="fold", no_wrap=ratio is None)
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row(Text(group, style="bold"))
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(Text(f"  {finding.name}"), status, Text(finding.found), Text(finding.advice))
    console = Console(file=file)
    console.print(table)
    num_problems = sum(finding.status == "problem" for finding in findings)
    num_notes = sum(finding.status == "note" for finding in findings)
    verdict = f"{num_problems} problems" if num_problems else "nothing that is needed is broken"
    console.print(f"{verdict}, {num_notes} notes", style="bold")
