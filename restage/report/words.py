"""Numbers, names, values and charts as the page and its kin print them.

On the page charts are inline SVG, whose colours and fonts come from its style sheet and so follow light and dark.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from restage.records import from_plain, to_plain
from restage.run.reading import TrainingStep

__all__ = ["as_json", "as_text", "as_words", "count_of", "draw_loss", "format_duration", "format_number"]
__all__ += ["hardware_in_words", "interval_mark", "loss_curve", "nice_ticks", "quoted", "smooth"]
__all__ += ["unbroken_duration"]


def format_number(value: float, digits: int) -> str:
    """A number with so many digits after the point and a real minus; a dash for NaN."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def quoted(text: str) -> str:
    """The text in one line in quotation marks."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{' '.join(text.split())}\N{RIGHT DOUBLE QUOTATION MARK}"


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `one edit`, `3 edits`."""
    return f"one {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


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


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from at least `low` to at most `high`, about `count`."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smooth(values: Sequence[float], *, reach: int) -> list[float]:
    """Mean over up to `reach` values to both sides, of as many to each side as there are, so that it never lags."""
    sums = [0.0, *itertools.accumulate(values)]
    result = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        result.append((sums[index + near + 1] - sums[index - near]) / (2 * near + 1))
    return result


def loss_curve(train: Sequence[TrainingStep], *, width: int = 760, height: int = 260, max_points: int = 600) -> Markup:
    """Loss over training steps: every value pale, their moving average strong.

    Values that are not finite are left out. Long runs are thinned to `max_points` after smoothing.
    """
    pairs = [(float(step.step), step.values["loss"]) for step in train if math.isfinite(step.values["loss"])]
    if len(pairs) < 2:
        return Markup("")
    shown = sorted(loss for _, loss in pairs)
    top = shown[min(len(shown) - 1, math.ceil(0.995 * (len(shown) - 1)))]
    averages = smooth([loss for _, loss in pairs], reach=max(len(pairs) // 40, 1))
    low, high = min(0.0, shown[0]), max(top, max(averages)) * 1.05 or 1.0
    left, right, upper, lower = 56, 30, 12, 54
    first_step, last_step = pairs[0][0], pairs[-1][0]

    def across(step: float) -> float:
        return left + (width - left - right) * (step - first_step) / max(last_step - first_step, 1e-9)

    def up(loss: float) -> float:
        return height - lower - (height - upper - lower) * (min(loss, high) - low) / (high - low)

    every = max(1, math.ceil(len(pairs) / max_points))
    raw = " ".join(f"{across(step):.1f},{up(loss):.1f}" for step, loss in pairs[::every])
    kept = sorted({*range(0, len(pairs), every), len(pairs) - 1})
    average = " ".join(f"{across(pairs[i][0]):.1f},{up(averages[i]):.1f}" for i in kept)
    parts = []
    for tick in nice_ticks(low, high, count=4):
        y = up(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in nice_ticks(first_step, last_step, count=6):
        parts.append(f'<text x="{across(tick):.1f}" y="{height - 32}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 5}" text-anchor="middle">step</text>')
    parts.append(f'<polyline class="raw" points="{raw}"/><polyline class="average" points="{average}"/>')
    label = f"Loss over {last_step:g} steps, from {averages[0]:.3g} to {averages[-1]:.3g} (moving average)"
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def interval_mark(mean: float, standard_error: float, *, low: float, high: float, width: int = 132) -> Markup:
    """A dot at `mean` with a line of one standard error to both sides, on a scale from `low` to `high`.

    The page lays it beside the number, which carries the meaning; to a screen reader it is hidden.
    """
    if not math.isfinite(mean):
        return Markup("")

    def across(value: float) -> float:
        return 5 + (width - 10) * (min(max(value, low), high) - low) / (high - low)

    parts = [f'<line class="grid" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="9" y2="9"/>']
    parts += [f'<line class="zero" x1="{across(at):.1f}" x2="{across(at):.1f}" y1="3" y2="15"/>' for at in (0.0, 1.0)]
    if math.isfinite(standard_error):
        ends = across(mean - standard_error), across(mean + standard_error)
        parts.append(f'<line class="error" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="9" y2="9"/>')
    parts.append(f'<circle class="dot" cx="{across(mean):.1f}" cy="9" r="4"/>')
    box = f'viewBox="0 0 {width} 18" width="{width}" height="18"'
    return Markup(f'<svg class="mark" {box} aria-hidden="true">{"".join(parts)}</svg>')


def draw_loss(train: Sequence[TrainingStep], *, form: str) -> bytes:
    """The loss curve as a file for paper and slides: `pdf` or `png`; the same losses give the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 2.2), layout="constrained")
    axes = figure.subplots()
    steps, losses = [step.step for step in train], [step.values["loss"] for step in train]
    axes.plot(steps, losses, color="#bbbbbb", linewidth=0.6)
    axes.plot(steps, smooth(losses, reach=max(len(losses) // 40, 1)), color="#a63d1e")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if form == "pdf" else {"Software": None}
    figure.savefig(buffer, format=form, metadata=metadata, dpi=300)
    return buffer.getvalue()
