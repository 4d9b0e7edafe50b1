"""Finished pairs of earlier runs as trials of prompt forms, read from the manifests of their pairs stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from restage.prompts.forms import Form, Trial, read_form
from restage.prompts.grammar import features_of_captions
from restage.prompts.orders import Example
from restage.records import InputError, from_plain
from restage.run.layout import MANIFEST

__all__ = ["Learned", "Yield", "measure_yield", "read_trials"]

EXAMPLES_PER_FORM = 4


@dataclass(frozen=True)
class _Row:
    kind: str
    form: str
    instruction: str
    source_caption: str
    target_caption: str
    direction_similarity: float | None
    accepted: bool


class Learned(NamedTuple):
    """What was learned from earlier runs."""

    trials: tuple[Trial, ...]
    examples: dict[str, tuple[Example, ...]]  # accepted pairs by form, best first


class Yield(NamedTuple):
    """The share of pairs that were accepted, with its 95 % interval (Wilson's)."""

    share: float
    """The share; NaN if there are no pairs."""
    low: float
    high: float
    num_pairs: int


def measure_yield(trials: Sequence[Trial]) -> Yield:
    """Return the yield of some trials; that of the control slice is unbiased."""
    count, z = len(trials), 1.96
    if not count:
        return Yield(float("nan"), 0.0, 1.0, 0)
    share = sum(trial.is_accepted for trial in trials) / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return Yield(share, float(middle - half), float(middle + half), count)


def _rows(run: Path) -> Iterator[_Row]:
    import pyarrow as pa  # a fifth of what `restage prompts --help` would take
    import pyarrow.parquet as pq

    path = run / MANIFEST
    if not path.is_file():
        raise InputError(f"{path} does not exist; learn_from takes runs whose pairs are made: restage pairs {run}")
    columns = [field.name for field in fields(_Row)]
    try:
        file = pq.ParquetFile(path)
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise InputError(f"{path} has no column {missing[0]!r}; expected the manifest of a pairs stage")
        for batch in file.iter_batches(columns=columns):
            yield from from_plain(batch.to_pylist(), list[_Row], where=path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable as the manifest of a pairs stage: {reason}") from None


def _trial(row: _Row) -> Trial:
    found = read_form(row.form)
    # A pair written without forms is a fair sample of all that its kind of edit allows.
    form = found.form if found else Form((("kind", row.kind),))
    shown = features_of_captions(row.kind, row.source_caption, row.target_caption)
    features = frozenset({**shown, **form.as_dict}.items())
    return Trial(form, features, row.accepted, found is not None and found.is_control)


def read_trials(runs: Sequence[Path]) -> Learned:
    """Read every finished pair of some runs."""
    trials: list[Trial] = []
    best: dict[str, list[tuple[float, Example]]] = defaultdict(list)
    for run in runs:
        for row in _rows(run):
            trial = _trial(row)
            trials.append(trial)
            if trial.is_accepted and row.source_caption and row.direction_similarity is not None:
                example = Example(row.source_caption, row.target_caption, row.instruction)
                found = best[str(trial.form)]
                found.append((-row.direction_similarity, example))
                found.sort()
                del found[EXAMPLES_PER_FORM:]
    return Learned(tuple(trials), {form: tuple(example for _, example in found) for form, found in best.items()})
