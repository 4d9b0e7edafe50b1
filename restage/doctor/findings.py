"""What the checks of `restage doctor` find, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from restage.records import InputError

__all__ = ["Finding", "is_healthy", "show_table", "to_json"]

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    advice: str = ""
    """What to do; empty if all is well."""
    is_problem: bool = False
    """Whether something that is needed is broken; else advice is a note on what is slow, missing or odd."""
    group: str = ""

    def __post_init__(self) -> None:
        if self.is_problem and not self.advice:
            raise InputError(f"{self.name}: a problem needs advice")

    @property
    def status(self) -> str:
        """One of the keys of `STYLES`."""
        return "problem" if self.is_problem else "note" if self.advice else "ok"


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Return whether nothing that is needed is broken."""
    return not any(finding.is_problem for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: `ok`, the number of each status, and every finding."""
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    rows = [{**asdict(finding), "status": finding.status} for finding in findings]
    return json.dumps({"ok": is_healthy(findings), "counts": counts, "findings": rows})


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
    verdict = f"{num_problems} problems" if num_problems else "nothing that is needed is broken"
    console.print(f"{verdict}, {sum(finding.status == 'note' for finding in findings)} notes", style="bold")
