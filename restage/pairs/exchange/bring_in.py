"""`restage import`: turns a foreign data set into the pairs of a run, or lists them with the reason against them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from restage.pairs.config import ImportConfig
from restage.pairs.encoding import ImagePair
from restage.pairs.exchange import FORMATS
from restage.pairs.exchange.check import BadPair, Checker, MaskVotes, refuse_useless, rejected_row
from restage.pairs.exchange.foreign import ForeignPair
from restage.pairs.files import open_files
from restage.pairs.stage import write_views
from restage.pairs.store import done_indices, done_shards, write_shard
from restage.records import InputError, Progress, content_id
from restage.run.folder import RunFolder

__all__ = ["import_folder"]

NUM_VOTES = 64
"""Number of pairs by whose pictures the meaning of masks is recognized."""
MAX_BAD = 10_000
"""Number of pairs at the start of a set after which it is given up if none of them is good."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A data set identified by what it holds, so that another one in the same place is another import."""

    config: ImportConfig
    name: str
    files: str  # hash of the names and sizes of its files


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return content_id("files", [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])


def _read(folder: Path, form: str) -> Iterator[ForeignPair]:
    """Read a data set in a form of the menu, or in the first one that it looks like."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected the folder of a data set")
    if form != "auto":
        return FORMATS[form].read(folder)
    for known in FORMATS.values():
        if known.is_in is not None and known.is_in(folder):
            return known.read(folder)
    layouts = "parquet files, tars, seeds.json with folders, image and cloth, or metadata.jsonl with pictures"
    raise InputError(f"{folder} holds no data set of a form that is known; expected {layouts}")


class _Intake:
    """Takes pairs in, in order; what it takes depends on nothing but the data set and the config."""

    def __init__(self, config: ImportConfig, checker: Checker) -> None:
        self.config, self.checker = config, checker
        self.seen: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.remarks: dict[str, None] = {}

    def take(self, pair: ForeignPair) -> tuple[ImagePair | None, dict[str, Any]]:
        """Return the pair as one of ours, and its row; None for a bad pair, whose row says why."""
        try:
            taken, row = self.checker.take(pair)
            if row["id"] in self.seen:
                raise BadPair("the same pair stands in the set before")
            self.seen.add(row["id"])
            self.remarks.setdefault(pair.remark)
        except BadPair as bad:
            if self.config.strict:
                raise InputError(f"{pair.where}: {bad}") from None
            taken, row = None, rejected_row(pair, str(bad))
        self.reasons[row["reason"]] += 1
        if not self.reasons[""] and self.reasons.total() >= MAX_BAD:
            self.refuse_empty(f"the first {MAX_BAD} pairs")
        return taken, row

    def refuse_empty(self, what: str) -> None:
        """Refuse a set of which no pair was taken."""
        if not self.reasons[""]:
            why = "; ".join(f"{count} x {reason}" for reason, count in sorted(self.reasons.items()) if count)
            raise InputError(f"{what}: holds no good pair: {why or 'it is empty'}")


def import_folder(run: RunFolder, folder: Path, config: ImportConfig) -> Iterator[Progress]:
    """Import a foreign data set as the pairs of a run; a shard that is there is not made again.

    Raises:
        InputError: the folder holds no pairs of this form, pictures or instruction are not there at all, what the masks
            mean cannot be told, no pair is good, or with `strict` one is bad.
    """
    pairs = _read(folder, config.format)
    source = _Source(config=config, name=folder.name, files=_fingerprint(folder))
    if run.is_done("pairs", source):
        yield Progress(stage="import", done=1, total=1, note="already done")
        return
    first = list(islice(pairs, NUM_VOTES))
    checker = _checker_for(first, config, is_whole=len(first) < NUM_VOTES)
    place, intake = run.path / "pairs", _Intake(config, checker)
    was_there = place.exists()
    try:
        yield from _store(run, source, intake, chain(first, pairs))
        yield from _finish(run, source, intake)
    except (InputError, OSError) as error:
        # What was refused, or found no room for its first shard, leaves nothing; what goes on later keeps its shards.
        if not was_there and (isinstance(error, InputError) or not done_indices(place)):
            shutil.rmtree(place, ignore_errors=True)
        raise


def _store(run: RunFolder, source: _Source, intake: _Intake, pairs: Iterator[ForeignPair]) -> Iterator[Progress]:
    """Write the shards that are not there yet."""
    place, config, index = run.path / "pairs", source.config, 0
    finished = done_shards(place) if place.exists() else {}
    while group := list(islice(pairs, config.pairs_per_shard)):
        content = content_id("import", {"source": source, "index": index})
        if finished.get(index, {}).get("content", content) != content:
            raise InputError(f"{place} holds pairs of another data set or another config; choose another --out")
        taken = [intake.take(pair) for pair in group]
        if index not in finished:
            good = [pair for pair, _ in taken if pair is not None]
            write_shard(place, index, pairs=good, rows=[row for _, row in taken], facts={"content": content})
        index += 1
        done = intake.reasons.total()
        yield Progress(stage="import", done=done, total=done, note=group[-1].where)


def _checker_for(pairs: Sequence[ForeignPair], config: ImportConfig, *, is_whole: bool) -> Checker:
    """Recognize what masks mean, and refuse a small set before anything of it is written."""
    checker, votes = Checker(config.size, config.mask_is), MaskVotes({})
    for pair in pairs:
        checker.vote(pair, votes)
    checker.meanings = votes.meanings()
    if is_whole:
        trial = _Intake(config, Checker(config.size, config.mask_is, checker.meanings))
        for pair in pairs:
            trial.take(pair)
        trial.refuse_empty("the data set")
        refuse_useless(trial.checker.shares, config.mask_is)
    return checker


def _finish(run: RunFolder, source: _Source, intake: _Intake) -> Iterator[Progress]:
    reasons, checker = intake.reasons, intake.checker
    intake.refuse_empty(source.name)
    refuse_useless(checker.shares, source.config.mask_is)
    total = reasons.total()
    num_accepted = write_views(run.path / "pairs", open_files(run.path / "pairs"))
    run.mark_done("pairs", source, num_pairs=total, num_accepted=num_accepted, imported_from=source.name)
    notes = [f"{num_accepted} of {total} pairs taken"]
    notes += [f"{count} x {reason}" for reason, count in sorted(reasons.items()) if reason]
    notes += [f"the edited region of masks is {meaning}" for meaning in dict.fromkeys(checker.meanings.values())]
    notes += [remark for remark in intake.remarks if remark]
    yield Progress(stage="import", done=total, total=total, note="; ".join(notes))
