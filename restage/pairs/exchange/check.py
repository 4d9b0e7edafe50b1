"""Checks the pairs of a foreign data set one by one, and turns them into ours; called by `bring_in`.

Data sets differ in what marks the edited region: white, black, or holes in a copy of the picture (MagicBrush). Read the
wrong way, a mask teaches the opposite of what it shows, so the meaning is recognized by where the pictures differ, or
has to be named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from restage.pairs.config import MULTIPLE_OF
from restage.pairs.encoding import (
    ImagePair,
    array_sha256,
    decode_reference,
    make_preview,
    pixel_sha256,
    upright_picture,
)
from restage.pairs.exchange.foreign import ForeignPair, json_or_none
from restage.pairs.score import PairScores
from restage.pairs.store import prompt_columns
from restage.prompts.store import pair_of_record
from restage.records import InputError, PromptPair, canonical_json, content_id, to_plain
from restage.scenes.references import ShownPicture

__all__ = ["BadPair", "Checker", "MaskLayers", "MaskVotes", "decode_mask", "rejected_row"]

OPPOSITES = {"white": "black", "transparent": "opaque"}
MIN_CONTRAST = 0.1
"""Contrast, in [-1, 1], of the change inside and outside of the regions below which no meaning is recognized."""
COVERS_NOTHING, COVERS_ALL = 0.001, 0.999
"""Shares of the picture up to which a mask covers nothing, and at which it covers everything."""


class MaskLayers(NamedTuple):
    """A decoded mask."""

    levels: UInt8[np.ndarray, "height width"]
    """The brightest channel, so that colored regions count as white."""
    alpha: UInt8[np.ndarray, "height width"] | None
    """Opacity; None if it is the same everywhere."""

    def region(self, meaning: str) -> Bool[np.ndarray, "height width"]:
        """Return where the mask says that the picture was edited."""
        if meaning in ("transparent", "opaque"):
            alpha = np.full_like(self.levels, 255) if self.alpha is None else self.alpha
            return alpha < 128 if meaning == "transparent" else alpha >= 128
        return self.levels < 128 if meaning == "black" else self.levels >= 128


def decode_mask(content: bytes, size: int | None) -> MaskLayers:
    """Decode a mask, cropped and scaled like its pictures."""
    image = upright_picture(content, "the mask", "RGBA")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.NEAREST)
    array = np.asarray(image)
    levels, alpha = array[..., :3].max(axis=2), array[..., 3]
    if levels.max(initial=0) <= 1:  # labels 0 and 1
        levels = levels * np.uint8(255)
    return MaskLayers(levels, None if (alpha == alpha.flat[0]).all() else alpha)


@dataclass
class MaskVotes:
    """Collects what pairs say about the meaning of their masks, separately for those with and without transparency."""

    contrasts: dict[str, list[float]]

    def add(self, layers: MaskLayers, change: Float32[np.ndarray, "height width"]) -> None:
        """Count a pair whose pictures differ by `change`; masks that cover nothing or everything say nothing."""
        meaning = "white" if layers.alpha is None else "transparent"
        region = layers.region(meaning)
        if COVERS_NOTHING < region.mean() < COVERS_ALL:
            inside, outside = float(change[region].mean()), float(change[~region].mean())
            self.contrasts.setdefault(meaning, []).append((inside - outside) / max(inside + outside, 1e-9))

    def meanings(self) -> dict[str, str]:
        """Return what the masks mean, by whether they have transparency."""
        found = {}
        for meaning, contrasts in self.contrasts.items():
            contrast = float(np.mean(contrasts))
            if abs(contrast) < MIN_CONTRAST:
                raise InputError(
                    f"the masks do not show what they mean: the pictures change as much inside as outside of what is "
                    f"{meaning}; name the edited region: --mask-is white, black, transparent or opaque, or none"
                )
            found[meaning] = meaning if contrast > 0 else OPPOSITES[meaning]
        return found


def refuse_useless(shares: Iterable[float], mask_is: str) -> None:
    """Refuse masks that cover nothing, or everything, in all pairs."""
    found = np.array(list(shares))
    for what, is_so in (("nothing", found <= COVERS_NOTHING), ("everything", found >= COVERS_ALL)):
        if len(found) and is_so.all():
            raise InputError(
                f"the masks cover {what} in all {len(found)} pairs that have one (read as {mask_is}); say what marks "
                "the edited region: --mask-is white, black, transparent or opaque; or go without masks: --mask-is none"
            )


UNSCORED = "not scored by the data set that it comes from"
OUR_ID = re.compile(r"pair-[0-9a-f]{16}")
MAX_TEXT = 10_000
"""Number of characters that a caption or an instruction may have."""
MAX_FACTS = 100_000
"""Number of characters that the facts of a record may take as JSON."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no text has, but which move cursors, end lines, or cannot be written."""


class BadPair(Exception):
    """Why a foreign pair is not taken."""


def _decode(content: bytes | None, name: str, size: int | None) -> Float[Tensor, "3 height width"]:
    if content is None:
        raise BadPair(f"{name} is missing")
    try:
        upright = upright_picture(content, name)
    except InputError:
        raise BadPair(f"{name} cannot be decoded") from None
    if size is not None:
        upright = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).float() / 255


def clean(text: str) -> str:
    """Return a text without the characters that no text has."""
    return CONTROL.sub(" ", text)


def _prompt(pair: ForeignPair) -> tuple[PromptPair, dict[str, Any]]:
    """Return the prompt pair and the facts: those of a record of ours as they were, else what the texts say."""
    given = pair.row.get("record")
    record = json_or_none(given) if isinstance(given, str) else None
    if isinstance(record, dict):  # a column of that name need not hold records of ours
        facts = record.get("facts")
        try:
            is_short = isinstance(facts, dict) and len(canonical_json(facts).encode()) <= MAX_FACTS
            prompt = pair_of_record(record.get("prompt"))
            if not any(len(text) > MAX_TEXT or CONTROL.search(text) for text in _texts_in(to_plain(prompt))):
                return prompt, facts if isinstance(facts, dict) and is_short else {}
        except (ValueError, RecursionError):
            pass
    texts = {part: " ".join(clean(text).split()) for part, text in pair.texts.items()}
    if not texts.get("instruction"):
        raise BadPair("the instruction is missing")
    if any(len(text) > MAX_TEXT for text in texts.values()):
        raise BadPair(f"a text is longer than {MAX_TEXT} characters")
    prompt = PromptPair(
        source=texts.get("source_caption", ""),
        target=texts.get("target_caption", ""),
        instruction=texts["instruction"],
        kind=texts.get("kind", "other"),
        undo=texts.get("undo", ""),
        form="foreign",
        writer="foreign",
    )
    return prompt, {}


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts in JSON values."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts_in(item)


def _score(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= 1e6 else math.nan


def _whole(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -(2**63) <= number < 2**63 else None


@dataclass
class Checker:
    """Checks pairs one after the other; the first good one decides the size of all."""

    size: int | None
    mask_is: str  # what masks mean; `auto` goes by `meanings`
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What was recognized, of masks with and without transparency."""
    shares: list[float] = field(default_factory=list)
    """Shares of the picture that masks cover, of masks whose meaning is recognized or named by the user."""
    found_size: tuple[int, int] | None = None

    def vote(self, pair: ForeignPair, votes: MaskVotes) -> None:
        """Let a pair say what its mask means; bad ones say nothing."""
        if pair.mask is None or self._named_meaning(pair) != "auto":
            return
        try:
            source, edited = (_decode(part, "a picture", self.size) for part in (pair.source, pair.edited))
            layers = decode_mask(pair.mask, self.size)
        except (BadPair, InputError):
            return
        if source.shape == edited.shape and source.shape[1:] == layers.levels.shape:
            votes.add(layers, (source - edited).abs().mean(0).numpy())

    def _named_meaning(self, pair: ForeignPair) -> str:
        """What is said of the pair's mask: by the user, by its layout, or by being a record of ours."""
        if self.mask_is != "auto":
            return self.mask_is
        return pair.mask_is or ("white" if isinstance(pair.row.get("record"), str) else "auto")

    def take(self, pair: ForeignPair) -> tuple[ImagePair, dict[str, Any]]:
        """Return the pair as one of ours, and its row."""
        prompt, facts = _prompt(pair)
        source, edited, mask = self._pictures(pair)
        reference = _reference(pair)
        found = (source.shape[2], source.shape[1])
        self.found_size = self.found_size or found
        if found != self.found_size:
            raise BadPair("another size than the first picture; --size brings all to one")
        given = pair.texts.get("id", "")
        pixels = pixel_sha256(source, edited, mask)
        content = {"prompt": prompt, "pixels": pixels}
        if reference is not None:
            content["reference"] = [array_sha256(x.numpy()) for x in reference if x is not None]
        pair_id = given if OUR_ID.fullmatch(given) else content_id("pair", content)
        facts = {**facts, "from": clean(pair.where)}
        shown = {"source": source, "edited": edited, "mask": mask, "reference": reference}
        image_pair = ImagePair(id=pair_id, prompt=prompt, facts=facts, **shown)
        known = {name: _score(pair.row.get(name)) for name in PairScores._fields}
        measured = {"change": float((source - edited).abs().mean()), "mask_share": float(mask.mean())}
        is_told = self.mask_is == "auto" and self._named_meaning(pair) != "auto"
        if pair.mask is not None and self.mask_is != "none" and not is_told:
            self.shares.append(measured["mask_share"])
        return image_pair, _row(image_pair, PairScores(**{**known, **measured}), pair)

    def _pictures(self, pair: ForeignPair) -> tuple[Tensor, Tensor, Tensor]:
        """Return source, edited picture and mask; without a mask everything may differ."""
        source = _decode(pair.source, "the source picture", self.size)
        edited = _decode(pair.edited, "the edited picture", self.size)
        if source.shape != edited.shape:
            raise BadPair("the pictures differ in size")
        if source.shape[1] % MULTIPLE_OF or source.shape[2] % MULTIPLE_OF:
            raise BadPair(f"a side is not a multiple of {MULTIPLE_OF} pixels; --size brings all to one size")
        if pair.mask is None or self.mask_is == "none":
            return source, edited, torch.ones(source.shape[1:])
        try:
            layers = decode_mask(pair.mask, self.size)
        except InputError:
            raise BadPair("the mask cannot be decoded") from None
        if layers.levels.shape != source.shape[1:]:
            raise BadPair("the mask has another size than the pictures")
        named, own = self._named_meaning(pair), "white" if layers.alpha is None else "transparent"
        region = layers.region(self.meanings.get(own, own) if named == "auto" else named)
        return source, edited, torch.from_numpy(region).float()


def _reference(pair: ForeignPair) -> ShownPicture | None:
    """Decode what a pair refers to, of any size."""
    if pair.reference is None:
        return None
    try:
        return decode_reference(pair.reference, pair.reference_mask)
    except InputError:
        raise BadPair("the reference or its mask cannot be decoded, or they do not fit") from None


def _row(pair: ImagePair, scores: PairScores, foreign: ForeignPair) -> dict[str, Any]:
    is_scored = all(math.isfinite(value) for value in scores)
    return {
        **prompt_columns(pair),
        "sample": _whole(pair.facts.get("sample")) or 0,
        "seed": _whole(pair.facts.get("seed", foreign.row.get("seed"))),
        "self_share": _score(pair.facts.get("self_share", foreign.row.get("p2p_threshold"))),
        "control": clean(str(pair.facts.get("control", "")))[:100],
        "rule_version": _whole(pair.facts.get("rule_version")) or 0,
        **scores._asdict(),
        "unscored": "" if is_scored else UNSCORED,
        "from": clean(foreign.where),
        "accepted": True,
        "reason": "",
        "preview": make_preview(pair.source, pair.edited, pair.mask),
    }


def rejected_row(pair: ForeignPair, reason: str) -> dict[str, Any]:
    """Return the row of a pair that is not taken."""
    gray = torch.full((3, MULTIPLE_OF, MULTIPLE_OF), 0.5)
    texts = {part: clean(text)[:MAX_TEXT] for part, text in pair.texts.items()}
    prompt = PromptPair(source="unknown", target="unknown", instruction="unknown", kind="other")
    pair_id = content_id("pair", {"from": clean(pair.where), "texts": texts})
    empty = ImagePair(id=pair_id, source=gray, edited=gray, mask=gray[0], prompt=prompt, facts={})
    row = _row(empty, PairScores(*[math.nan] * len(PairScores._fields)), pair)
    kept = {name: texts.get(name, "") for name in ("source_caption", "target_caption", "instruction")}
    return {**row, **kept, "prompt_id": "", "accepted": False, "reason": reason}
