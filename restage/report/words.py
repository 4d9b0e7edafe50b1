"""Numbers, names and values as the page and its kin print them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restage.records import from_plain, to_plain

__all__ = ["as_json", "as_text", "as_words", "count_of", "format_duration", "format_number", "hardware_in_words"]
__all__ += ["unbroken_duration"]


def format_number(value: float, digits: int) -> str:
    """A number with so many digits after the point and a real minus; a dash for NaN."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: `one edit`, `3 edits`."""
    return f"one {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(seconds: float) -> str:
    """Seconds as people say them: `0.8 s`, `41 s`, `7 min 5 s`, `2 h 10 min`."""
    seconds = max(seconds, 0.0)  # a clock that was set back makes no time negative
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def as_words(name: str) -> str:
    """A name in code as people write it."""
    return name.replace("_", " ")


def as_text(value: Any) -> str:
    """A JSON value in one line, numbers short."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(to_plain(value), ensure_ascii=False)


def as_json(value: Any) -> str:
    """A JSON value to be read."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False)


def unbroken_duration(seconds: float) -> str:
    """As `format_duration`, for narrow columns: no line ends between a number and its unit."""
    return re.sub(r"(?<=\d) ", "\N{NO-BREAK SPACE}", format_duration(seconds))


@dataclass(frozen=True)
class _Machine:
    gpus: tuple[str, ...] = ()
    cpu_count: int | None = None
    processor: str = ""


def hardware_in_words(machine: Mapping[str, Any]) -> str:
    """What a run was made on, from the `machine` of its record: GPUs, then cores; runs from before say less."""
    known = from_plain(machine, _Machine, where="run.json: machine")
    gpus = Counter(known.gpus)
    parts = [name if count == 1 else f"{count} \N{MULTIPLICATION SIGN} {name}" for name, count in gpus.items()]
    if known.cpu_count:
        processor = re.sub(r"\((R|TM)\)", "", known.processor)
        parts.append(count_of(known.cpu_count, "core") + (f" of {processor}" if processor else ""))
    return ", ".join(parts) or "see the record"
