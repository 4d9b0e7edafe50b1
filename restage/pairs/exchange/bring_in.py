"""Turns foreign pairs into a run: each is checked and stored as ours are, or listed with the reason against it."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from restage.pairs.encoding import ImagePair, pixel_sha256
from restage.pairs.exchange import FORMATS
from restage.pairs.exchange.foreign_pair import ForeignPair
from restage.pairs.score import PairScores
from restage.pairs.sheet import make_preview
from restage.pairs.stage import write_views
from restage.pairs.store import done_shards, write_shard
from restage.records import InputError, Progress, PromptPair, content_id
from restage.run.folder import RunFolder

__all__ = ["ImportConfig", "import_folder"]

MULTIPLE_OF = 8
"""The sides of pictures must be multiples of this, since autoencoders work on cells of 8 pixels."""
UNSCORED = "not scored by the data set that it comes from"


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How foreign pairs are imported."""

    format: str = "hf"
    """Form of the data set: `hf` (parquet files with pictures), `webdataset` (tars), or `instruct-pix2pix` (its
    folders)."""
    size: int | None = None
    """Number of pixels a side: pictures are cropped to a square in the middle and scaled to it. None leaves them as
    they are; they must then have one size, whose sides are multiples of 8."""
    pairs_per_shard: int = 64
    """Number of pairs in a shard."""
    strict: bool = False
    """Refuse a data set with any bad pair, instead of listing that pair as rejected."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"unknown format {self.format!r}; known: {', '.join(FORMATS)}")
        if self.size is not None and (self.size < MULTIPLE_OF or self.size % MULTIPLE_OF):
            raise InputError(f"size must be a multiple of {MULTIPLE_OF} pixels, got {self.size}")
        if self.pairs_per_shard < 1:
            raise InputError(f"pairs_per_shard must be at least 1, got {self.pairs_per_shard}")


class _BadPair(Exception):
    """Why a foreign pair is not taken."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A data set identified by what it holds, so that another one in the same place is another import."""

    config: ImportConfig
    name: str
    files: str
    """Hash of the names and sizes of its files."""


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return content_id("files", [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])


def _decode(content: bytes | None, name: str, mode: str, size: int | None) -> Float[Tensor, "channels h w"]:
    if content is None:
        raise _BadPair(f"{name} is missing")
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise _BadPair(f"{name} cannot be decoded") from None
    if size is not None:
        method = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.LANCZOS
        upright = ImageOps.fit(upright, (size, size), method)
    array = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
    return array.view(upright.height, upright.width, -1).permute(2, 0, 1).float() / 255


def _pictures(pair: ForeignPair, size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return source, edited picture and mask; without a mask everything may differ."""
    source = _decode(pair.source, "the source picture", "RGB", size)
    edited = _decode(pair.edited, "the edited picture", "RGB", size)
    if source.shape != edited.shape:
        raise _BadPair("the pictures differ in size")
    if source.shape[1] % MULTIPLE_OF or source.shape[2] % MULTIPLE_OF:
        raise _BadPair(f"a side is not a multiple of {MULTIPLE_OF} pixels")
    mask = torch.ones(1, *source.shape[1:]) if pair.mask is None else _decode(pair.mask, "the mask", "L", size)
    if mask.shape[1:] != source.shape[1:]:
        raise _BadPair("the mask has another size than the pictures")
    return source, edited, (mask[0] > 0.5).float()


def _prompt(pair: ForeignPair) -> tuple[PromptPair, dict[str, Any]]:
    """Return the prompt pair and the facts: those of a record of ours as they were, else what the texts say."""
    with_record = pair.row.get("record")
    if isinstance(with_record, str):
        try:
            record = json.loads(with_record)
            return PromptPair.from_plain(record["prompt"]), dict(record["facts"])
        except (ValueError, KeyError, TypeError):
            pass  # not a record of ours: a column that has its name
    for part in ("source_caption", "target_caption", "instruction"):
        if part not in pair.texts:
            raise _BadPair(f"the {part.replace('_', ' ')} is missing")
    prompt = PromptPair(
        source=pair.texts["source_caption"],
        target=pair.texts["target_caption"],
        instruction=pair.texts["instruction"],
        kind=pair.texts.get("kind", "other"),
        form="foreign",
        writer="foreign",
    )
    return prompt, {}


def _score(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _scores(pair: ForeignPair, pictures: tuple[Tensor, Tensor, Tensor]) -> PairScores:
    """Take the scores of the data set, if it has any, and measure what the pictures alone can tell."""
    source, edited, mask = pictures
    known = {name: _score(pair.row.get(name)) for name in PairScores._fields}
    measured = {"change": float((source - edited).abs().mean()), "mask_share": float(mask.mean())}
    return PairScores(**{**known, **measured})


@dataclass
class _Importer:
    """Checks pairs one after the other; the first good one decides the size of all."""

    config: ImportConfig
    size: tuple[int, int] | None = None

    def take(self, pair: ForeignPair) -> tuple[ImagePair | None, dict[str, Any]]:
        """Return the pair as one of ours, and its row; None for a bad pair, whose row says why."""
        try:
            prompt, facts = _prompt(pair)
            source, edited, mask = _pictures(pair, self.config.size)
            found = (source.shape[2], source.shape[1])
            self.size = self.size or found
            if found != self.size:
                raise _BadPair("another size than the first picture; --size brings all to one")
        except _BadPair as bad:
            if self.config.strict:
                raise InputError(f"{pair.where}: {bad}") from None
            return None, _rejected_row(pair, str(bad))
        pixels = pixel_sha256(source, edited, mask)
        given = pair.texts.get("id", "")
        is_ours = given.startswith("pair-") and len(given) == 21
        pair_id = given if is_ours else content_id("pair", {"prompt": prompt, "pixels": pixels})
        image_pair = ImagePair(
            id=pair_id, source=source, edited=edited, mask=mask, prompt=prompt, facts={**facts, "from": pair.where}
        )
        row = _row(image_pair, _scores(pair, (source, edited, mask)), pair)
        return image_pair, row


def _row(pair: ImagePair, scores: PairScores, foreign: ForeignPair) -> dict[str, Any]:
    is_scored = all(math.isfinite(value) for value in scores)
    return {
        "id": pair.id,
        "prompt_id": pair.prompt.id,
        "kind": pair.prompt.kind,
        "instruction": pair.prompt.instruction,
        "source_caption": pair.prompt.source,
        "target_caption": pair.prompt.target,
        "form": pair.prompt.form,
        "sample": int(pair.facts.get("sample", 0)),
        "seed": _int_or_none(pair.facts.get("seed", foreign.row.get("seed"))),
        "self_share": _score(pair.facts.get("self_share", foreign.row.get("p2p_threshold"))),
        "control": str(pair.facts.get("control", "")),
        "rule_version": int(pair.facts.get("rule_version", 0)),
        **scores._asdict(),
        "unscored": "" if is_scored else UNSCORED,
        "from": foreign.where,
        "accepted": True,
        "reason": "",
        "preview": make_preview(pair.source, pair.edited, pair.mask),
    }


def _int_or_none(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _rejected_row(pair: ForeignPair, reason: str) -> dict[str, Any]:
    grey = torch.full((3, 8, 8), 0.5)
    prompt = PromptPair(source="unknown", target="unknown", instruction="unknown", kind="other")
    row = _row(
        ImagePair(
            id=content_id("pair", {"from": pair.where, "texts": dict(pair.texts)}),
            source=grey,
            edited=grey,
            mask=grey[0],
            prompt=prompt,
            facts={},
        ),
        PairScores(*[math.nan] * len(PairScores._fields)),
        pair,
    )
    texts = {name: pair.texts.get(name, "") for name in ("source_caption", "target_caption", "instruction")}
    return {**row, **texts, "prompt_id": "", "accepted": False, "reason": reason}


def import_folder(run: RunFolder, folder: Path, config: ImportConfig) -> Iterator[Progress]:
    """Import a foreign data set as the pairs of a run; a shard that is there is not made again.

    Args:
        run: the run that gets a `pairs` stage.
        folder: folder of the data set.
        config: how to import it.

    Raises:
        InputError: the folder holds no pairs of this form, captions or instruction are not there at all, no pair is
            good, or with `strict` one is bad.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected the folder of a data set")
    source = _Source(config=config, name=folder.name, files=_fingerprint(folder))
    if run.is_done("pairs", source):
        yield Progress(stage="import", done=1, total=1, note="already done")
        return
    place, importer, index = run.path / "pairs", _Importer(config), 0
    finished = done_shards(place) if place.exists() else {}
    pairs, seen, reasons = FORMATS[config.format].read(folder), set[str](), Counter[str]()
    while group := list(islice(pairs, config.pairs_per_shard)):
        content = content_id("import", {"source": source, "index": index})
        if finished.get(index, {}).get("content", content) != content:
            raise InputError(f"{place} holds pairs of another data set or another config; choose another --out")
        taken = [_once(importer.take(pair), seen, config) for pair in group]
        reasons.update(row["reason"] for _, row in taken)
        if index not in finished:
            good = [pair for pair, _ in taken if pair is not None]
            write_shard(place, index, pairs=good, rows=[row for _, row in taken], facts={"content": content})
        index += 1
        yield Progress(stage="import", done=sum(reasons.values()), total=sum(reasons.values()), note=group[-1].where)
    yield from _finish(run, source, reasons)


def _once(
    taken: tuple[ImagePair | None, dict[str, Any]], seen: set[str], config: ImportConfig
) -> tuple[ImagePair | None, dict[str, Any]]:
    """Return the pair, unless one with its id was taken before."""
    pair, row = taken
    if row["id"] in seen:
        if config.strict:
            raise InputError(f"{row['from']}: the same pair stands in the set before")
        other = content_id("pair", {"from": row["from"], "again": row["id"]})
        return None, {**row, "id": other, "accepted": False, "reason": "the same pair stands in the set before"}
    seen.add(row["id"])
    return pair, row


def _finish(run: RunFolder, source: _Source, reasons: Mapping[str, int]) -> Iterator[Progress]:
    total = sum(reasons.values())
    if not reasons.get("", 0):
        why = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "it is empty"
        raise InputError(f"{source.name} holds no good pair: {why}")
    num_accepted = write_views(run.path / "pairs")
    run.mark_done("pairs", source, num_pairs=total, num_accepted=num_accepted, imported_from=source.name)
    note = f"{num_accepted} of {total} pairs taken"
    rejected: Sequence[tuple[str, int]] = sorted((reason, count) for reason, count in reasons.items() if reason)
    for reason, count in rejected:
        note += f"; {count} x {reason}"
    yield Progress(stage="import", done=total, total=total, note=note)
