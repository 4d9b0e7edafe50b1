"""Draws a diagnosis: the way from A's progress to B's, part by part, and where along the stages it is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from restage.diagnose.attribution import Interval
from restage.diagnose.diagnosis import MEASURES, Diagnosis
from restage.diagnose.parts import LABELS
from restage.diagnose.stages import LADDER
from restage.records import write_atomically

__all__ = ["draw"]

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
