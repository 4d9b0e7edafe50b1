"""What a CLIP says of a pair's pictures and captions: swapped pictures, wrong captions, wrong scores.

How well a picture fits its caption cannot be judged by the number alone, which depends on the CLIP and on what there is
to see. It is measured against the picture's fit to other captions (median and MAD, which outliers do not move).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.pairs.score import ImageTextModel
from restage.pairs.verify.pictures import Look
from restage.records import InputError

__all__ = ["BATCH_SIZE", "CaptionBank", "CaptionFault", "Judged", "captions_of", "judge_captions", "make_bank"]

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
MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


class CaptionBank(NamedTuple):
    """Captions of the set with their embeddings, which a pair's own captions are compared with."""

    clip: ImageTextModel
    texts: tuple[str, ...]
    embedded: Float[Tensor, "texts dim"]
    lock: threading.Lock
    """Held while texts are embedded: a tokenizer that several threads use at once fails with "already borrowed"."""


class CaptionFault(NamedTuple):
    """Something that is wrong with a pair of a batch."""

    position: int
    """Position of the pair in the batch."""
    reason: str
    detail: str


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
    return row["source_caption"] or "", row["target_caption"] or ""


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


def _to_tensor(pictures: Sequence[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _deviations(fit: Tensor, own: Sequence[str], fits: Tensor, bank: CaptionBank) -> Tensor:
    """Return by how many robust deviations a picture fits its own caption better than others; NaN if they are few."""
    is_other = torch.tensor([[text != caption for text in bank.texts] for caption in own])
    others = torch.where(is_other, fits, torch.nan)
    median = others.nanmedian(dim=1).values
    spread = MAD_TO_DEVIATION * (others - median[:, None]).abs().nanmedian(dim=1).values
    result = (fit - median) / spread.clamp(min=1e-6)
    return torch.where(is_other.sum(1) >= MIN_BANK_SIZE, result, torch.nan)


class Judged(NamedTuple):
    """What a CLIP says of a batch."""

    faults: list[CaptionFault]
    gaps: list[float]
    """Largest absolute difference between each pair's stored scores and those computed again; NaN if there are none.
    Whether this is a fault depends on the whole set, which another CLIP may have scored."""
    is_too_long: list[bool]
    """Whether each pair could not be judged, since a caption is too long for this CLIP."""


def judge_captions(looks: Sequence[Look], rows: Sequence[Mapping[str, Any]], bank: CaptionBank) -> Judged:
    """Judge the pairs of a batch, all of one size."""
    captions = [captions_of(row) for row in rows]
    with bank.lock:
        text = _encode_texts(bank.clip, [pair[0] for pair in captions] + [pair[1] for pair in captions])
    images = _to_tensor([look.source for look in looks] + [look.edited for look in looks])
    embedded = bank.clip.encode_images(images).cpu()
    before, after = embedded.chunk(2)
    text_before, text_after = text.chunk(2)
    direction = functional.cosine_similarity(after - before, text_after - text_before, dim=1)
    own = (embedded * text).sum(1)
    scores = {
        "image_similarity": (before * after).sum(1),
        "direction_similarity": direction,
        "source_text": own[: len(looks)],
        "target_text": own[len(looks) :],
    }
    return Judged(
        faults=list(_find(captions, direction, own, embedded, bank)),
        gaps=[_furthest(row, {name: float(v[i]) for name, v in scores.items()}) for i, row in enumerate(rows)],
        is_too_long=(text_before + text_after).isnan().any(dim=1).tolist(),
    )


def _find(
    captions: Sequence[tuple[str, str]], direction: Tensor, own: Tensor, embedded: Tensor, bank: CaptionBank
) -> Iterator[CaptionFault]:
    texts = [pair[0] for pair in captions] + [pair[1] for pair in captions]
    above = _deviations(own, texts, embedded @ bank.embedded.T, bank) if bank.texts else torch.full_like(own, torch.nan)
    for position in range(len(captions)):
        if direction[position] < SWAPPED_DIRECTION:
            yield CaptionFault(position, "swapped", f"direction similarity is {float(direction[position]):.2f}")
        for name, index in (("source", position), ("edited", position + len(captions))):
            if above[index] < MIN_DEVIATIONS:
                detail = f"{name} fits by {float(above[index]):.1f} deviations, {MIN_DEVIATIONS} needed"
                yield CaptionFault(position, "wrong caption", detail)


def _furthest(row: Mapping[str, Any], scores: Mapping[str, float]) -> float:
    stored = {name: row.get(name) for name in scores}
    gaps = [abs(value - scores[name]) for name, value in stored.items() if value is not None]
    return max((gap for gap in gaps if math.isfinite(gap)), default=math.nan)
