"""From what the probe reads in a picture to what is right about it, and from verdicts to shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from miniature.probe import Readings
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.world.description import COLORS, GROUNDS, KINDS, PATTERNS, TIMES, Description, Place
from restage.world.places import holds_in_picture, object_words

__all__ = ["JUDGED_PLACES", "Seen", "Verdict", "accuracies", "accuracies_by_count", "judge", "place_is_right"]
__all__ += ["place_accuracies", "seen_in", "shares_by_word"]

LOOKS = ("color", "pattern")
JUDGED_PLACES = ("on", "between", "toward", "away", "left", "right")
"""Relations that can be told by cells of exact renders. Fronts, the sunny side and the shadow cannot, and of renders in
which a thing is merely next to another a fifth would be called wrong."""


class Seen(NamedTuple):
    """What the probe reads in one picture."""

    colors: dict[str, str]
    """Of each kind that is there, its color."""
    count: int
    ground: str
    time: str
    patterns: Mapping[str, str] = {}
    """Of each kind that is there, its pattern, empty for none; without any from a probe that knows no patterns."""


class Verdict(NamedTuple):
    """What is right about one picture."""

    kinds_there: dict[str, bool]
    """For each kind of the caption, whether it is there."""
    colors: dict[str, bool]
    """For each kind of the caption that is there and has a named color, whether its object has it, or of a pattern one
    of the two."""
    kind: bool
    """All kinds of the caption are there and no other."""
    count: bool
    ground: bool
    time: bool
    patterns: Mapping[str, bool] = {}
    """For each kind of the caption that is there, whether its object has the caption's pattern, or none; without those
    that the probe does not read."""

    @property
    def is_all_right(self) -> bool:
        """Whether kinds, colors, number of objects, ground and light are those of the caption; patterns count apart."""
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
                {KINDS[i]: ("", *PATTERNS)[number] for i in kinds if (number := int(readings.patterns[index, i])) >= 0},
            )
        )
    return found


def judge(seen: Seen, description: Description) -> Verdict:
    """Compare what a picture shows with what its caption says."""
    wanted = {item.kind: item for item in description.objects}
    there = {kind: item for kind, item in wanted.items() if kind in seen.colors}
    return Verdict(
        kinds_there={kind: kind in seen.colors for kind in wanted},
        colors={
            kind: seen.colors[kind] in (item.color, item.second_color)
            for kind, item in there.items()
            if item.color in object_words(item)
        },
        kind=set(seen.colors) == set(wanted),
        count=seen.count == len(description.objects),
        ground=seen.ground == description.ground,
        time=seen.time == description.time,
        patterns={kind: seen.patterns[kind] == there[kind].pattern for kind in there if kind in seen.patterns},
    )


def place_is_right(place: Place, classes: Int64[Tensor, "16 16"]) -> bool | None:
    """Return whether a picture shows a place, by what its cells are read as; None if it is none of `JUDGED_PLACES`."""
    if place.relation not in JUDGED_PLACES:
        return None
    cells = classes.numpy()
    return holds_in_picture(place, {kind: cells == FIRST_KIND_CLASS + i for i, kind in enumerate(KINDS)})


def accuracies(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares that are right, in [0, 1].

    `color` and `pattern` are shares of the captions' objects, among those whose kind is there (what has no such object
    has no color to read; `kind` counts it); all others are shares of pictures.
    """
    looks = {name: [is_right for v in verdicts for is_right in getattr(v, f"{name}s").values()] for name in LOOKS}
    shares = {
        **{name: float(np.mean(found)) if found else float("nan") for name, found in looks.items()},
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


def place_accuracies(judged: Sequence[tuple[Place, bool]]) -> dict[str, float]:
    """Return the share of places that are right: of all, and of each relation."""
    relations = [(place.relation, is_right) for place, is_right in judged]
    return {"all": float(np.mean([is_right for _, is_right in judged])), **_share_by(relations, JUDGED_PLACES)}


def _share_by(pairs: Sequence[tuple[str, bool]], order: Sequence[str]) -> dict[str, float]:
    found = {name: [is_right for other, is_right in pairs if other == name] for name in order}
    return {name: round(float(np.mean(values)), 3) for name, values in found.items() if values}


def shares_by_word(verdicts: Sequence[Verdict], descriptions: Sequence[Description]) -> dict[str, dict[str, float]]:
    """For each word: how often what it names is there (kinds) or right (colors, grounds, times)."""
    both = list(zip(verdicts, descriptions, strict=True))
    colors = [(o.color, v.colors[o.kind]) for v, d in both for o in d.objects if o.kind in v.colors and not o.pattern]
    places = {name: [(getattr(d, name), getattr(v, name)) for v, d in both] for name in ("ground", "time")}
    return {
        "kind": _share_by([item for v, _ in both for item in v.kinds_there.items()], KINDS),
        "color": _share_by(colors, COLORS),
        "ground": _share_by(places["ground"], GROUNDS),
        "time": _share_by(places["time"], TIMES),
    }
