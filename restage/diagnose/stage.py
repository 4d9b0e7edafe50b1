"""The stage `diagnose`: from two run folders to `<run B>/diagnose`, with the answer in words, tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from restage.diagnose.attribution import LADDER, Interval
from restage.diagnose.diagnosis import (
    MEASURES,
    DiagnoseConfig,
    Diagnosis,
    PartResult,
    diagnose,
    is_to_blame,
    smallest_effect,
)
from restage.diagnose.parts import LABELS, RunParts
from restage.records import InputError, Progress, write_atomically, write_json
from restage.run.models import Models
from restage.work.task import EngineConfig

__all__ = ["LIMITS", "answer", "blamed_parts", "draw", "is_difference", "run_diagnose", "sentence", "tables"]
__all__ += ["to_record", "write_diagnosis"]


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
    ladder = [
        (LADDER[name], _number(costs["A"].mean), _number(costs["B"].mean), _with_error(costs["B - A"]))
        for name, costs in diagnosis.ladder.items()
    ]
    return "\n\n".join(
        _table(title, header, rows)
        for title, header, rows in (
            (
                "What it comes from",
                ("part", "share", "B's part in A", "A's part in B", "how it differs"),
                _shares(diagnosis),
            ),
            ("Where it is lost", ("step", "A", "B", "B - A"), ladder),
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


LOSS, GAIN, ENDS, INNER = "#b5473c", "#3c7d5a", "#5b6770", "#dba39c"
STEP_COLORS = ("#3f6fa3", "#8d6cab", "#c98a3a", "#7a8288")
SETTINGS: Any = {"svg.hashsalt": "restage", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(diagnosis: Diagnosis, folder: Path) -> str:
    """Write `diagnosis.png` and `diagnosis.svg`; returns the name of the PNG."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        top = sum(not part.within for part in diagnosis.parts) + 3
        inner = len(diagnosis.parts) - top + 3
        figure = Figure(figsize=(8.4, 1.9 + 0.36 * (top + inner) + 1.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(0.36 * (top + inner), 1.5))
        _draw_way(upper, diagnosis)
        _draw_ladder(lower, diagnosis)
        for name, metadata in (("diagnosis.svg", {"Date": None}), ("diagnosis.png", {"Software": None})):
            with write_atomically(folder / name) as temporary:
                figure.savefig(temporary, dpi=150, metadata=metadata)
    return "diagnosis.png"


def _draw_way(axes: Any, diagnosis: Diagnosis) -> None:
    """A waterfall: A, minus the share of each part, to B; what a part consists of is thin, below it."""
    labels, position = ["A"], diagnosis.means["A"]
    axes.barh(0, position, color=ENDS)
    axes.annotate(f"{position:.2f}", (position, 0), (4, 0), textcoords="offset points", va="center")
    row, inner_start = 1, position
    for part in diagnosis.parts:
        share = part.share.share
        labels.append(("   within: " if part.within else "") + LABELS[part.share.component])
        if part.within:
            _bar(axes, row, start=inner_start, share=share, is_inner=True)
            inner_start -= share.mean
        else:
            _bar(axes, row, start=position, share=share, is_inner=False)
            inner_start, position = position, position - share.mean
        row += 1
    labels += ["interactions", "B"]
    _bar(axes, row, start=position, share=diagnosis.attribution.remainder, is_inner=False)
    end = diagnosis.means["B"]
    axes.barh(row + 1, end, color=ENDS)
    axes.annotate(f"{end:.2f}", (max(end, 0), row + 1), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{MEASURES[diagnosis.measure]}, on held-out views; lines: 95 % interval of the share")
    axes.set_title("From A to B, one part at a time", loc="left")


def _bar(axes: Any, row: int, *, start: float, share: Interval, is_inner: bool) -> None:
    end = start - share.mean
    color = (INNER if is_inner else LOSS) if share.mean >= 0 else GAIN
    axes.barh(row, end - start, left=start, height=0.45 if is_inner else 0.8, color=color)
    if share.high - share.low < 10:
        axes.plot([start - share.high, start - share.low], [row, row], color="black", linewidth=1)
    place = max(start, end, start - share.low if share.high - share.low < 10 else start)
    axes.annotate(f"{round(-share.mean, 2) + 0.0:+.2f}", (place, row), (4, 0), textcoords="offset points", va="center")


def _draw_ladder(axes: Any, diagnosis: Diagnosis) -> None:
    """All that is missing to progress 1, of both runs, by the step at which it is lost."""
    for row, side in enumerate("AB"):
        below, above = 0.0, 0.0
        for color, name in zip(STEP_COLORS, LADDER, strict=True):
            cost = diagnosis.ladder[name][side].mean
            start = above if cost >= 0 else below
            axes.barh(row, cost, left=start, color=color, label=name if row == 0 else None, height=0.6)
            above, below = (above + cost, below) if cost >= 0 else (above, below + cost)
    axes.set_yticks([0, 1], ["A", "B"])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("progress that is missing, by where it is lost")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.32), frameon=False)


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
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
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
                    **{name: asdict(getattr(part.share, name)) for name in ("share", "forward", "reverse")},
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


def run_diagnose(
    a: Path,
    b: Path,
    config: DiagnoseConfig,
    *,
    models: Models,
    out: Path | None = None,
    cache: Path | None = None,
    engine: EngineConfig | None = None,
    stores: tuple[str, ...] = (),
    device: str = "cpu",
) -> Iterator[Progress]:
    """Explain why run B does worse, or better, than run A; what was tried before is not tried again.

    The answer goes into `out` (default: `diagnose` in B's folder), trials into `cache` (default: in `out`), which
    diagnoses can share. `models` are the edit model that both trainings went on from, and a CLIP to look at pairs;
    `stores` are the URLs where the runs' pairs lie, if not in their folders. Scenes are fitted and edited on `device`.
    """
    if a.resolve() == b.resolve():
        raise InputError(f"expected two runs, got {a} twice")
    runs = [RunParts.open(run, config.method, stores=stores) for run in (a, b)]
    folder = out or b / "diagnose"
    where = {"folder": folder, "cache": cache, "engine": engine, "device": device}
    diagnosis = yield from diagnose(*runs, models=models, config=config, **where)
    write_diagnosis(diagnosis, folder)
    yield Progress(stage="diagnose", done=1, total=1, note=sentence(diagnosis))
