"""From what the probe reads in a picture to what is right about it, and from verdicts to shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miniature.probe import Readings
from restage.world.grammar import COLORS, GROUNDS, KINDS, TIMES, Description

__all__ = ["Seen", "Verdict", "accuracies", "accuracies_by_count", "judge", "seen_in", "shares_by_word"]


class Seen(NamedTuple):
    """What the probe reads in one picture."""

    colors: dict[str, str]
    """Of each kind that is there, its color."""
    count: int
    ground: str
    time: str


class Verdict(NamedTuple):
    """What is right about one picture."""

    kinds_there: dict[str, bool]
    """For each kind of the caption, whether it is there."""
    colors: dict[str, bool]
    """For each kind of the caption that is there, whether its object has the caption's color."""
    kind: bool
    """All kinds of the caption are there and no other."""
    count: bool
    ground: bool
    time: bool

    @property
    def is_all_right(self) -> bool:
        """Whether kinds, colors, number of objects, ground and light are those of the caption."""
        return self.kind and all(self.colors.values()) and self.count and self.ground and self.time


def seen_in(readings: Readings) -> list[Seen]:
    """Name what a batch of readings says, picture by picture."""
    found = []
    for index in range(len(readings.count)):
        kinds = [i for i in range(len(KINDS)) if readings.present[index, i] == 1]
        found.append(
            Seen(
                {KINDS[i]: COLORS[int(readings.colors[index, i])] for i in kinds},
                int(readings.count[index]),
                GROUNDS[int(readings.ground[index])],
                TIMES[int(readings.time[index])],
            )
        )
    return found


def judge(seen: Seen, description: Description) -> Verdict:
    """Compare what a picture shows with what its caption says."""
    wanted = {item.kind: item.color for item in description.objects}
    return Verdict(
        kinds_there={kind: kind in seen.colors for kind in wanted},
        colors={kind: seen.colors[kind] == color for kind, color in wanted.items() if kind in seen.colors},
        kind=set(seen.colors) == set(wanted),
        count=seen.count == len(description.objects),
        ground=seen.ground == description.ground,
        time=seen.time == description.time,
    )


def accuracies(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares that are right, in [0, 1].

    `color` is the share of the captions' objects, among those whose kind is there (what has no such object has no
    color to read; `kind` counts it); all others are shares of pictures.
    """
    colors = [is_right for verdict in verdicts for is_right in verdict.colors.values()]
    shares = {
        "color": float(np.mean(colors)) if colors else float("nan"),
        **{name: float(np.mean([getattr(v, name) for v in verdicts])) for name in ("kind", "ground", "time", "count")},
        "all": float(np.mean([verdict.is_all_right for verdict in verdicts])),
    }
    return {f"{name}_accuracy": share for name, share in shares.items()}


def accuracies_by_count(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """The same for captions of one, two and three objects apart, with the number of captions."""
    table = {}
    for count in sorted({len(verdict.kinds_there) for verdict in verdicts}):
        chosen = [verdict for verdict in verdicts if len(verdict.kinds_there) == count]
        table[str(count)] = {"captions": float(len(chosen)), **accuracies(chosen)}
    return table


def _share_by(pairs: Sequence[tuple[str, bool]], order: Sequence[str]) -> dict[str, float]:
    found = {name: [is_right for other, is_right in pairs if other == name] for name in order}
    return {name: round(float(np.mean(values)), 3) for name, values in found.items() if values}


def shares_by_word(verdicts: Sequence[Verdict], descriptions: Sequence[Description]) -> dict[str, dict[str, float]]:
    """For each word: how often what it names is there (kinds) or right (colors, grounds, times)."""
    both = list(zip(verdicts, descriptions, strict=True))
    colors = [(o.color, v.colors[o.kind]) for v, d in both for o in d.objects if o.kind in v.colors]
    places = {name: [(getattr(d, name), getattr(v, name)) for v, d in both] for name in ("ground", "time")}
    return {
        "kind": _share_by([item for v, _ in both for item in v.kinds_there.items()], KINDS),
        "color": _share_by(colors, COLORS),
        "ground": _share_by(places["ground"], GROUNDS),
        "time": _share_by(places["time"], TIMES),
    }
