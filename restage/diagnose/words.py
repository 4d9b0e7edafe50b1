"""A diagnosis in words: one sentence that answers, and tables for the terminal."""

from __future__ import annotations

import math

from restage.diagnose.attribution import Interval
from restage.diagnose.diagnosis import MEASURES, Diagnosis, PartResult, is_to_blame, smallest_effect
from restage.diagnose.parts import LABELS
from restage.diagnose.stages import LADDER

__all__ = ["answer", "blamed_parts", "is_difference", "sentence", "tables"]


def is_difference(diagnosis: Diagnosis) -> bool:
    """Whether the runs differ in what they reach, beyond noise and more than is of no interest."""
    total = diagnosis.attribution.total
    return total.is_clear and abs(total.mean) >= smallest_effect(diagnosis.measure, diagnosis.config)


def blamed_parts(diagnosis: Diagnosis) -> list[PartResult]:
    """Parts that make a difference, as narrow as they are known, the largest share first.

    What an edit model or a scene consists of stands for it where one of them makes a difference of its own. Masks say
    how a model is worse, not why, and stand for nothing.
    """
    num_parts, measure = sum(not part.within for part in diagnosis.parts), diagnosis.measure
    guilty = [p for p in diagnosis.parts if is_to_blame(p.share, measure, diagnosis.config, num_parts=num_parts)]
    causes = [part for part in guilty if part.share.component != "masks"]
    opened = {part.within for part in causes}
    return sorted(
        (part for part in causes if part.share.component not in opened), key=lambda part: -abs(part.share.share.mean)
    )


def answer(diagnosis: Diagnosis) -> str:
    """The name of the part with the largest share; empty if there is no difference beyond noise."""
    blamed = blamed_parts(diagnosis)
    return blamed[0].share.component if blamed else ""


def sentence(diagnosis: Diagnosis) -> str:
    """The answer."""
    blamed, total = blamed_parts(diagnosis), diagnosis.attribution.total
    means = f"{MEASURES[diagnosis.measure]} {diagnosis.means['A']:.2f} -> {diagnosis.means['B']:.2f}"
    scope = f"{means}, 95 % interval of the loss {total.low:.2f} to {total.high:.2f}, {total.num_cases} edits"
    if not blamed and not is_difference(diagnosis):
        count = sum(not part.within for part in diagnosis.parts)
        return f"No difference beyond noise between A and B ({scope}); {count} parts differ, none is to blame."
    if not blamed:
        return f"B loses {total.mean:.2f} against A ({scope}), but no single part that was swapped makes it up."
    named = sum(part.share.share.mean for part in blamed)
    if not is_difference(diagnosis):
        shares = "; ".join(_share_words(part, 1.0) for part in blamed)
        return f"No difference beyond noise between A and B as a whole ({scope}), but single parts cost: {shares}."
    verb, sign = ("loses", 1.0) if total.mean >= 0 else ("gains", -1.0)
    shares = "; ".join(_share_words(part, sign) for part in blamed)
    rest = round(sign * (total.mean - named), 2) + 0.0
    return (
        f"Of the {abs(total.mean):.2f} that B {verb} against A ({scope}), {shares}; {rest:.2f} is left to interactions "
        f"and to parts that are not clear of noise.{_where(diagnosis)}"
    )


def _share_words(part: PartResult, sign: float) -> str:
    share = part.share.share
    detail = f" ({part.detail})" if part.detail else ""
    value = f"{sign * share.mean:.2f} +- {share.standard_error:.2f}"
    return f"{value} comes from {LABELS[part.share.component]}{detail}"


def _where(diagnosis: Diagnosis) -> str:
    """At which step from truth to result the loss shows, largest first; for PSNR, at which stages."""
    if diagnosis.measure != "progress":
        parted = [row for row in diagnosis.stages if row.is_parted and row.stage != "result"]
        shown = [f"{row.stage} ({row.metric} {row.a:.2f} -> {row.b:.2f})" for row in parted]
        return " It shows in: " + "; ".join(shown) + "." if shown else ""
    steps = {name: costs["B - A"].mean for name, costs in diagnosis.ladder.items()}
    sign = 1 if diagnosis.attribution.total.mean >= 0 else -1
    shown = [name for name in steps if sign * steps[name] >= diagnosis.config.min_effect]
    shown.sort(key=lambda name: -sign * steps[name])
    if not shown:
        return ""
    return " It shows in: " + ", ".join(f"{LADDER[name]} ({sign * steps[name]:.2f})" for name in shown) + "."


def tables(diagnosis: Diagnosis) -> str:
    """All numbers as markdown: shares, the ladder, the stages, and what differs on paper."""
    return "\n\n".join(
        _table(title, header, rows)
        for title, header, rows in (
            (
                "What it comes from",
                ("part", "share", "B's part in A", "A's part in B", "how it differs"),
                _shares(diagnosis),
            ),
            ("Where it is lost", ("step", "A", "B", "B - A"), _ladder(diagnosis)),
            ("Where along the stages they part", ("stage", "number", "A", "B", "B - A", ""), _stages(diagnosis)),
            ("What differs on paper", ("where", "A", "B"), [(d.where, d.a, d.b) for d in diagnosis.differences]),
        )
        if rows
    )


def _shares(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    rows = []
    for part in diagnosis.parts:
        share = part.share
        name = ("within it: " if part.within else "") + LABELS[share.component]
        rows.append(
            (name, _with_error(share.share), _number(-share.forward.mean), _number(share.reverse.mean), part.detail)
        )
    rows.append(("remainder (interactions)", _with_error(diagnosis.attribution.remainder), "", "", ""))
    rows.append(("total", _with_error(diagnosis.attribution.total), "", "", ""))
    return rows


def _ladder(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    return [
        (LADDER[name], _number(costs["A"].mean), _number(costs["B"].mean), _with_error(costs["B - A"]))
        for name, costs in diagnosis.ladder.items()
    ]


def _stages(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    return [
        (
            row.stage,
            row.metric,
            _number(row.a),
            _number(row.b),
            _with_error(row.difference),
            "parted" if row.is_parted else "",
        )
        for row in diagnosis.stages
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _with_error(value: Interval) -> str:
    error = "" if not math.isfinite(value.standard_error) else f" +- {value.standard_error:.3f}"
    return "-" if math.isnan(value.mean) else f"{value.mean:.3f}{error}"


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = (" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
    return f"## {title}\n\n" + "\n".join(f"| {line} |" for line in cells)
