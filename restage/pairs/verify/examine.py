"""Checks one shard: what its pictures show by themselves, and what a CLIP says of them and their captions.

How well a picture fits its caption cannot be judged by the number alone, which depends on the CLIP and on what there is
to see. It is measured against the picture's fit to other captions (median and MAD, which outliers do not move).
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8, UInt64
from PIL import Image
from torch import Tensor
from torch.nn import functional

from restage.pairs.config import PairRule
from restage.pairs.encoding import MEMBERS, array_sha256, load_picture
from restage.pairs.files import Files
from restage.pairs.score import ImageTextModel, PairScores, rule_id, verdict_of
from restage.pairs.store import shard_name
from restage.pairs.tasks import PlanRecord
from restage.pairs.verify.shards import BadFile, Finding, StoredPair, about_pair, read_shard
from restage.records import InputError

__all__ = ["CaptionBank", "Described", "Examiner", "Look", "Seen", "judge_captions", "look_at", "make_bank"]

FLAT_LEVELS = 8
"""A picture whose channels each span at most this many of 255 levels shows one color; JPEG adds a few."""
EQUAL_LEVELS = 0.5
"""Mean absolute difference, in levels of 255, up to which two pictures are the same."""
SCORE_TOLERANCE = 0.004
"""Difference that a share or mean over pixels may have from the stored one, since pictures are rounded to bytes."""
HASH_SIZE = 8
COLOUR_GRID = 2


class Look(NamedTuple):
    """A decoded pair, and short descriptions of it."""

    source: UInt8[np.ndarray, "height width 3"]
    edited: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width"]
    pixels: int  # 64 bits of a hash of the pixels of both pictures
    pixel_sha256: str  # hash of both pictures and the mask, as in the sidecar
    shapes: tuple[int, int]  # difference hashes of the two pictures
    colours: UInt8[np.ndarray, " 24"]  # mean colors of the quarters of both pictures


def difference_hash(grey: Image.Image) -> int:
    """Return 64 bits: where brightness rises from a cell of a coarse grid to the next (dHash, N. Krawetz 2013).

    These are three lines on top of Pillow; the library imagehash would bring PyWavelets and no speed.
    """
    small = np.asarray(grey.resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def look_at(parts: Mapping[str, bytes]) -> Look:
    """Decode the pictures of a pair, given by their names in the tar."""
    modes = zip(MEMBERS, ("RGB", "RGB", "L"), strict=False)
    arrays = [np.asarray(load_picture(parts[name], name, mode)) for name, mode in modes]
    source, edited, mask = arrays
    if source.shape != edited.shape or mask.shape != source.shape[:2]:
        sizes = ", ".join("x".join(map(str, array.shape[1::-1])) for array in arrays)
        raise InputError(f"source, edited picture and mask must have one size, got {sizes}")
    images = [Image.fromarray(array) for array in (source, edited)]
    digest = hashlib.blake2b(str(source.shape).encode() + source.tobytes() + edited.tobytes(), digest_size=8)
    first, second = (difference_hash(image.convert("L")) for image in images)
    quarters = [image.resize((COLOUR_GRID, COLOUR_GRID), Image.Resampling.BOX) for image in images]
    return Look(
        source=source,
        edited=edited,
        mask=mask,
        pixels=int.from_bytes(digest.digest(), "big"),
        pixel_sha256=array_sha256(source, edited, (mask > 127).astype(np.uint8)),
        shapes=(first, second),
        colours=np.concatenate([np.asarray(image).reshape(-1) for image in quarters]),
    )


def find_faults(look: Look, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield reason and detail of what is wrong with a pair, by its pictures and the numbers stored of them."""
    for name, picture in (("source", look.source), ("edited", look.edited)):
        if (np.ptp(picture.reshape(-1, 3), axis=0) <= FLAT_LEVELS).all():
            is_black = int(picture.max()) <= FLAT_LEVELS
            detail = f"{name} picture: every pixel is {tuple(int(level) for level in picture[0, 0])}"
            yield ("black" if is_black else "constant"), detail
    change = np.abs(look.source.astype(np.int16) - look.edited.astype(np.int16)).mean()
    if change <= EQUAL_LEVELS:
        yield "identical", f"the pictures differ by {change:.2f} of 255 levels on average"
    for name in PairScores._fields:
        value = row.get(name)
        if value is not None and not math.isfinite(value) and not row.get("unscored"):
            yield "not finite", f"{name} is {value} in an accepted pair"
    for name, value in (("change", float(change) / 255), ("mask_share", float((look.mask > 127).mean()))):
        stored = row.get(name)
        if stored is not None and math.isfinite(stored) and abs(stored - value) > SCORE_TOLERANCE:
            yield "wrong scores", f"{name} is stored as {stored:.4f}, the pictures have {value:.4f}"


BATCH_SIZE = 16
"""Number of pairs that are embedded at once."""
BANK_SIZE = 256
"""Number of captions that a picture's own caption is compared with."""
MIN_BANK_SIZE = 16
"""Number of different captions below which nothing can be said."""
MIN_DEVIATIONS = 1.3
"""A picture must fit its own caption better than those of others by this many robust deviations. In 1,938 pictures of
the miniature the least was 1.5; of captions drawn at random 88 % stay below it (docs/log/2026-11-22-campaigns.md)."""
SWAPPED_DIRECTION = -0.15
"""Direction similarity below which a pair is swapped: an accepted one has at least 0.2, and swapping turns the sign."""
CLIP_SCORES = PairScores._fields[:4]
MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


class CaptionBank(NamedTuple):
    """Captions of the set with their embeddings, which a pair's own captions are compared with."""

    clip: ImageTextModel
    texts: tuple[str, ...]
    embedded: Float[Tensor, "texts dim"]
    lock: threading.Lock
    """Held while texts are embedded: a tokenizer that several threads use at once fails with "already borrowed"."""


def _encode_texts(clip: ImageTextModel, texts: Sequence[str]) -> Float[Tensor, "b dim"]:
    """Embed texts as unit vectors; NaN for those that are too long for this CLIP."""
    try:
        return clip.encode_text(texts).cpu()
    except InputError:
        if len(texts) == 1:
            return torch.full_like(clip.encode_text(["a"]).cpu(), torch.nan)
        # One long text refuses the whole batch, so find it by trying each on its own.
        return torch.cat([_encode_texts(clip, [text]) for text in texts])


def captions_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the captions of a row; pairs of others may have none, which are empty then."""
    return row.get("source_caption") or "", row.get("target_caption") or ""


def make_bank(clip: ImageTextModel, texts: Sequence[str]) -> CaptionBank:
    """Embed up to `BANK_SIZE` different captions, evenly chosen from those given, in one fixed order."""
    distinct = sorted(set(texts))
    picks = np.linspace(0, max(len(distinct) - 1, 0), min(BANK_SIZE, len(distinct))).round().astype(int)
    kept, parts = [], []
    for start in range(0, len(picks), BATCH_SIZE):
        batch = [distinct[pick] for pick in picks[start : start + BATCH_SIZE]]
        embedded = _encode_texts(clip, batch)
        is_right = embedded.isfinite().all(dim=1)
        kept += [text for text, right in zip(batch, is_right.tolist(), strict=True) if right]
        parts.append(embedded[is_right])
    return CaptionBank(clip, tuple(kept), torch.cat(parts) if parts else torch.zeros(0, 1), threading.Lock())


def _deviations(fit: Tensor, own: Sequence[str], fits: Tensor, bank: CaptionBank) -> Tensor:
    """Return by how many robust deviations a picture fits its own caption better than others; NaN if they are few."""
    is_other = torch.tensor([[text != caption for text in bank.texts] for caption in own])
    others = torch.where(is_other, fits, torch.nan)
    median = others.nanmedian(dim=1).values
    spread = MAD_TO_DEVIATION * (others - median[:, None]).abs().nanmedian(dim=1).values
    result = (fit - median) / spread.clamp(min=1e-6)
    return torch.where(is_other.sum(1) >= MIN_BANK_SIZE, result, torch.nan)


class Judged(NamedTuple):
    """What a CLIP says of a pair."""

    faults: Sequence[tuple[str, str]] = ()  # reasons, each with a detail
    gap: float = math.nan
    """Largest absolute difference between stored scores and those computed again; NaN if there are none. Whether this
    is a fault depends on the whole set, which another CLIP may have scored."""
    is_too_long: bool = False
    """Whether the pair could not be judged, since a caption is too long for this CLIP."""


def judge_captions(looks: Sequence[Look], rows: Sequence[Mapping[str, Any]], bank: CaptionBank) -> list[Judged]:
    """Judge the pairs of a batch, all of one size."""
    captions = [captions_of(row)[side] for side in range(2) for row in rows]
    with bank.lock:
        text = _encode_texts(bank.clip, captions)
    pictures = np.stack([look.source for look in looks] + [look.edited for look in looks])
    embedded = bank.clip.encode_images(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255).cpu()
    before, after = embedded.chunk(2)
    text_before, text_after = text.chunk(2)
    direction = functional.cosine_similarity(after - before, text_after - text_before, dim=1)
    own = (embedded * text).sum(1)
    nothing = torch.full_like(own, torch.nan)
    above = _deviations(own, captions, embedded @ bank.embedded.T, bank) if bank.texts else nothing
    scores = torch.stack([(before * after).sum(1), direction, *own.chunk(2)], dim=1).tolist()
    found = []
    for place, row in enumerate(rows):
        faults = []
        if direction[place] < SWAPPED_DIRECTION:
            faults.append(("swapped", f"direction similarity is {float(direction[place]):.2f}"))
        for name, fit in zip(("source", "edited"), (above[place], above[place + len(rows)]), strict=True):
            if fit < MIN_DEVIATIONS:
                faults.append(("wrong caption", f"{name} fits by {float(fit):.1f} deviations, {MIN_DEVIATIONS} needed"))
        stored = [row.get(name) for name in CLIP_SCORES]
        gaps = [abs(a - b) for a, b in zip(stored, scores[place], strict=True) if a is not None]
        gap = max((gap for gap in gaps if math.isfinite(gap)), default=math.nan)
        is_too_long = bool((text_before[place] + text_after[place]).isnan().any())
        found.append(Judged(faults, gap, is_too_long))
    return found


class Described(NamedTuple):
    """Short descriptions of the pairs of a shard whose pictures were looked at, some 80 bytes a pair."""

    shard: int
    ids: np.ndarray  # ids of the pairs, as ASCII
    pixels: UInt64[np.ndarray, " n"]
    shapes: UInt64[np.ndarray, "n 2"]
    colours: UInt8[np.ndarray, "n 24"]
    score_gaps: Float32[np.ndarray, " n"]
    """Differences between stored scores and those computed again; NaN if not compared."""
    num_too_long: int  # number of pairs with a caption that is too long for the CLIP to judge


class Seen(NamedTuple):
    """What was seen of one shard."""

    index: int
    findings: list[Finding]
    ids: UInt64[np.ndarray, " pairs"]
    """The ids of all pairs as numbers, accepted or not; empty if the shard is bad as a whole."""
    is_judged: bool  # whether a rule has judged the pairs
    num_accepted: int
    num_bytes: int
    described: Described | None = None


def bits_of(pair_id: str) -> int:
    """Return 64 bits that stand for an id: its own, if it has the form of ours, else those of a hash."""
    digits = pair_id.rpartition("-")[2]
    if len(digits) == 16 and set(digits) <= set("0123456789abcdef"):
        return int(digits, 16)
    return int.from_bytes(hashlib.blake2b(pair_id.encode(), digest_size=8).digest(), "big")


_Row = tuple[bytes, int, tuple[int, int], np.ndarray, float, bool]
"""Short description of a pair, in the order of `Described`."""


def _describe(index: int, rows: Sequence[_Row]) -> Described | None:
    if not rows:
        return None
    ids, pixels, shapes, colours, gaps, is_too_long = zip(*rows, strict=True)
    return Described(
        shard=index,
        ids=np.array(ids),
        pixels=np.array(pixels, np.uint64),
        shapes=np.array(shapes, np.uint64),
        colours=np.stack(colours),
        score_gaps=np.array(gaps, np.float32),
        num_too_long=sum(is_too_long),
    )


@dataclass(frozen=True)
class Examiner:
    """Examines shards; several threads may use the same examiner."""

    files: Files
    left_out: Mapping[str, str]  # pairs whose pictures are not judged again
    bank: CaptionBank | None
    """Captions to compare with; None if captions are not judged."""
    has_pictures: bool  # whether pictures are decoded at all
    plan: PlanRecord = PlanRecord(id="")  # plan that the shards are made by
    rule: PairRule | None = None
    """Rule that holds now; None if verdicts stand as stored."""

    def examine(self, index: int) -> Seen:
        """Run all checks of one shard."""
        try:
            if index >= (self.plan.num_tasks or index + 1):
                detail = f"the plan has {self.plan.num_tasks} shards only"
                raise BadFile("foreign", shard_name(index, "done"), detail)
            shard = read_shard(self.files, index, maker=self.plan.maker)
            pairs = [pair for pair in shard.pairs if pair.id not in self.left_out] if self.has_pictures else []
            findings: list[Finding] = []
            described = self._judge(index, pairs, findings)
        except BadFile as bad:
            return Seen(index, [bad.finding(index)], np.zeros(0, np.uint64), False, 0, 0)
        ids = np.array([bits_of(row["id"]) for row in shard.rows], np.uint64)
        rows, rule = shard.rows, self.rule
        if rule is not None and shard.mark.rule not in ("", rule_id(rule)):
            rows = [verdict_of(row, rule) for row in rows]
        num_accepted = sum(row["accepted"] for row in rows)
        return Seen(index, findings, ids, bool(shard.mark.rule), num_accepted, shard.num_bytes, described)

    def _judge(self, index: int, pairs: Sequence[StoredPair], findings: list[Finding]) -> Described | None:
        """Judge the pictures a batch at a time, and add what is wrong to `findings`."""
        rows: list[_Row] = []
        for start in range(0, len(pairs), BATCH_SIZE):
            looks = list(self._decode(index, pairs[start : start + BATCH_SIZE], findings))
            for _, group in groupby(looks, key=lambda item: item[1].source.shape):
                rows += self._judge_batch(index, list(group), findings)
        return _describe(index, rows)

    def _decode(
        self, index: int, pairs: Sequence[StoredPair], findings: list[Finding]
    ) -> Iterator[tuple[StoredPair, Look]]:
        for pair in pairs:
            try:
                look = look_at(pair.parts)
            except InputError as error:
                findings.append(about_pair(index, pair.id, "unreadable", str(error)))
                continue
            if pair.row.get("pixel_sha256", "") not in ("", look.pixel_sha256):
                detail = f"{pair.id}: its pixels are not those that the sidecar names"
                raise BadFile("mismatch", shard_name(index, "tar"), detail)
            yield pair, look

    def _judge_batch(
        self, index: int, batch: Sequence[tuple[StoredPair, Look]], findings: list[Finding]
    ) -> Iterator[_Row]:
        """Describe pairs of one size, and add what is wrong with them to `findings`."""
        captioned = [(pair, look) for pair, look in batch if all(captions_of(pair.row))]
        judged: dict[str, Judged] = {}
        if self.bank is not None and captioned:
            of_pairs = judge_captions([look for _, look in captioned], [pair.row for pair, _ in captioned], self.bank)
            judged = {pair.id: of_pair for (pair, _), of_pair in zip(captioned, of_pairs, strict=True)}
        for pair, look in batch:
            by_clip = judged.get(pair.id, Judged())
            # What a black picture shows need not be said twice.
            faults = list(find_faults(look, pair.row)) or by_clip.faults[:1]
            findings.extend(about_pair(index, pair.id, *fault) for fault in faults)
            # A pair that is wrong anyway must not sway the judgment whether the same CLIP has scored the set.
            gap = math.nan if faults else by_clip.gap
            pair_id = pair.id.encode("ascii", "replace")
            yield pair_id, look.pixels, look.shapes, look.colours, gap, by_clip.is_too_long
