"""Turns image pairs into what the edit model is trained on: latents, masks on the latent grid, text embeddings.

Pairs are encoded once and kept as safetensors files named by their content, so that a second start only reads them.
Called by `restage.train.stage`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from array import array
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.references import prepare_reference
from restage.records import InputError, Progress, PromptPair, canonical_json, derive_seed
from restage.scenes.references import ShownPicture
from restage.train.chunks import ChunkFile, FileRows, StoredRows, check_or_make, hash_tensors

__all__ = ["Examples", "ExactPair", "TrainingPair", "can_be_mirrored", "encode_examples"]

CHUNK_SIZE = 128
"""Number of pairs in a cache file, which is what a kill costs at most."""
ENCODE_BATCH_SIZE = 16
CHANGE_THRESHOLD = 0.03
"""Mean absolute difference of the pictures, over channels, at which a place counts as changed."""
TEXT_BATCH_SIZE = 64
TEXT_CHUNK_SIZE = 8 * TEXT_BATCH_SIZE
"""Number of embedded texts in a cache file: 60 MB at Stable Diffusion's width."""

LEAVE_ALONE = ("leave it as it is", "change nothing", "keep everything as it is", "do not change anything")
"""Instructions of examples that teach the model to change nothing."""
FIRST_TEXTS = ("", *LEAVE_ALONE)
SETTLED_KINDS = frozenset({"recolour", "reshape", "ground", "time", "remove", "move", "pattern", "look", "swap"})
"""Kinds of edit that ask for a state, so that nothing is left to do if they are asked for again."""
SETTLED_BACKWARDS = SETTLED_KINDS - {"remove", "swap"} | {"add"}
"""Kinds of edit whose way back asks for a state."""
SIDE_WORDS = re.compile(
    r"\b(left|right|clockwise|counterclockwise|anticlockwise|east\w*|west\w*|mirror\w*|flip\w*|text|letters?|sign)\b",
    re.IGNORECASE,
)
"""Words that name a side, or something that reads wrong when mirrored."""


@runtime_checkable
class TrainingPair(Protocol):
    """What training needs of an image pair; the records of the pair store have all of it."""

    @property
    def source(self) -> Float[Tensor, "3 h w"]:
        """Picture before the edit, in [0, 1]."""
        ...

    @property
    def edited(self) -> Float[Tensor, "3 h w"]:
        """Picture after it."""
        ...

    @property
    def mask(self) -> Float[Tensor, "h w"]:
        """Where the edit is meant to change the picture, in [0, 1]."""
        ...

    @property
    def prompt(self) -> PromptPair:
        """Captions and instruction."""
        ...

    @property
    def reference(self) -> ShownPicture | None:
        """Picture that the instruction refers to, if it does."""
        ...


class ExactPair(NamedTuple):
    """A pair that was rendered rather than generated, to measure what generating costs."""

    source: Float[Tensor, "3 h w"]
    edited: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"]
    prompt: PromptPair
    reference: ShownPicture | None = None


def can_be_mirrored(prompt: PromptPair) -> bool:
    """Whether the mirrored pictures still fit the texts: none of them names a side."""
    texts = (prompt.instruction, prompt.undo, prompt.source, prompt.target)
    return not any(SIDE_WORDS.search(text) for text in texts)


@dataclass(frozen=True, eq=False)
class Examples:
    """All encoded pairs of a training set; a row is a pair or its mirror image."""

    source: Float[Tensor, "rows channels height width"] | StoredRows
    """Unit-variance latents of the pictures before the edit, in half precision."""
    edited: Float[Tensor, "rows channels height width"] | StoredRows
    masks: Float[Tensor, "rows height width"] | StoredRows  # share of each latent pixel that the stored mask covers
    mirrored: Int[Tensor, " rows"]  # row of the mirror image; the row itself if there is none
    text: Int[Tensor, " rows"]  # row of the instruction in `texts`
    settled_text: Int[Tensor, " rows"]
    """Row of an instruction that leaves the edited picture as it is; -1 if there is none but those of `leave_alone`."""
    undo_text: Int[Tensor, " rows"]  # row of the instruction that leads back to the picture before the edit, or -1
    settled_undo: Int[Tensor, " rows"]
    """Row of an instruction that leaves the picture before the edit as it is, or -1."""
    texts: Float[Tensor, "texts tokens width_of_text"] | Int[Tensor, "texts tokens"] | StoredRows
    """Embedded texts in half precision, or their tokens if the text encoder is trained as well; row 0 is the empty
    text, and those of `leave_alone` follow."""
    num_pairs: int  # number of pairs; they are the first rows, and their mirror images follow
    id: str  # content id
    references: Float[Tensor, "rows channels_and_subject height width"] | StoredRows | None = None
    """Latents of the references and where their subjects are, zeros for none; None where none are looked at."""

    @property
    def leave_alone(self) -> tuple[int, ...]:
        """Rows in `texts` of the instructions that ask for no change."""
        return tuple(range(1, 1 + len(LEAVE_ALONE)))


def _fingerprint(backbone: Backbone) -> str:
    """Name what the encodings depend on besides the pairs: the weights of VAE and text encoder."""
    hashes = [hash_tensors(module.state_dict()) for module in (backbone.vae, backbone.text_encoder)]
    return canonical_json([backbone.vae.config.get("scaling_factor"), *hashes])


def changed_mask(pair: TrainingPair) -> Float[Tensor, "h w"]:
    """Return the part of a pair's mask in which the pictures really differ, smoothed over 5x5 pixels.

    A mask made from attention says where a pair was allowed to change, and reaches beyond what did change.
    """
    change = (pair.edited - pair.source).abs().mean(dim=0)
    smooth = functional.avg_pool2d(change[None, None], kernel_size=5, stride=1, padding=2)[0, 0]
    return pair.mask * (smooth > CHANGE_THRESHOLD)


CROP_ZOOM, CROP_SHIFT = (0.9, 1.5), 0.12
"""How the squares around the subjects of references vary, so that no place in them means a place in the view."""


def _cut_out(reference: ShownPicture | None, side: int, seed: int) -> Float[Tensor, "4 side side"]:
    """Cut out a reference at random, or return one without a subject."""
    if reference is None:
        return torch.zeros(4, side, side)
    rng = np.random.default_rng(seed)
    zoom, (down, across) = rng.uniform(*CROP_ZOOM), rng.uniform(-CROP_SHIFT, CROP_SHIFT, 2)
    return prepare_reference(*reference, side, zoom=float(zoom), shift=(float(down), float(across)))


def _encode_references(
    pairs: Sequence[TrainingPair], is_mirrored: list[bool], backbone: Backbone
) -> Float[Tensor, "rows channels_and_subject h w"]:
    """Encode the references of pairs and of their mirror images, which are mirrored and cut out anew."""
    side, rows = pairs[0].source.shape[1], []
    shown = [(pair, False) for pair in pairs] + [
        (pair, True) for pair, has_image in zip(pairs, is_mirrored, strict=True) if has_image
    ]
    for pair, is_image in shown:
        cut = _cut_out(pair.reference, side, derive_seed("reference crop", pair.prompt.id, int(is_image)))
        rows.append(cut.flip(-1) if is_image else cut)
    encoded = []
    for part in torch.stack(rows).split(ENCODE_BATCH_SIZE):
        latents = backbone.encode_images(part[:, :3]).cpu()
        subject = functional.adaptive_avg_pool2d(part[:, 3:], (latents.shape[2], latents.shape[3]))
        # What an empty picture looks like in latents is to be no sign of anything.
        is_there = subject.flatten(1).amax(dim=1)[:, None, None, None] > 0
        encoded.append(torch.cat([latents * is_there, subject], dim=1).to(torch.float16))
    return torch.cat(encoded)


def _encode_images(pairs: Sequence[TrainingPair], is_mirrored: list[bool], backbone: Backbone) -> dict[str, Tensor]:
    def with_mirror_images(images: Iterable[Tensor]) -> Tensor:
        stacked = torch.stack(list(images))
        return torch.cat([stacked, stacked[is_mirrored].flip(-1)])

    def encode(images: Iterable[Tensor]) -> Tensor:
        # The latents of a mirror image are not the mirrored latents, since the autoencoder is not symmetric.
        parts = with_mirror_images(images).split(ENCODE_BATCH_SIZE)
        return torch.cat([backbone.encode_images(part).cpu() for part in parts]).to(torch.float16)

    source, edited = encode(pair.source for pair in pairs), encode(pair.edited for pair in pairs)
    masks = with_mirror_images(changed_mask(pair) for pair in pairs)[:, None]
    masks = functional.adaptive_avg_pool2d(masks, (source.shape[-2], source.shape[-1]))[:, 0].to(torch.float16)
    return {"source": source, "edited": edited, "masks": masks}


def _encode_chunk(
    pairs: Sequence[TrainingPair],
    is_mirrored: list[bool],
    backbone: Backbone,
    folder: Path,
    fingerprint: str,
    *,
    with_references: bool,
) -> ChunkFile:
    """Encode some pairs, and the mirror images of those marked after them, unless the same ones were encoded before."""
    # The name follows from weights and pixels, not from ids, so that pairs that came out differently are encoded anew.
    digest = hashlib.sha256(canonical_json([fingerprint, is_mirrored]).encode())
    for pair in pairs:
        if pair.source.shape != pair.edited.shape or pair.mask.shape != pair.source.shape[1:]:
            raise InputError(
                f"source, edited and mask of a pair must have one size, got {tuple(pair.source.shape)}, "
                f"{tuple(pair.edited.shape)} and {tuple(pair.mask.shape)} ({pair.prompt.instruction!r})"
            )
        images = [pair.source, pair.edited, pair.mask]
        if with_references:
            digest.update(pair.prompt.id.encode())  # where the reference is cut depends on it
            images += [image for image in pair.reference or () if image is not None]
        for image in images:
            digest.update(image.cpu().contiguous().numpy().tobytes())
    path = folder / f"latents-{digest.hexdigest()[:16]}.safetensors"

    def encode() -> dict[str, Tensor]:
        encoded = _encode_images(pairs, is_mirrored, backbone)
        return encoded | ({"references": _encode_references(pairs, is_mirrored, backbone)} if with_references else {})

    return check_or_make(path, encode)


def _encode_texts(texts: Sequence[str], backbone: Backbone, folder: Path, fingerprint: str) -> StoredRows:
    files, counts = [], []
    for start in range(0, len(texts), TEXT_CHUNK_SIZE):
        chunk = texts[start : start + TEXT_CHUNK_SIZE]
        digest = hashlib.sha256(canonical_json([fingerprint, list(chunk)]).encode())

        def encode(chunk: Sequence[str] = chunk) -> dict[str, Tensor]:
            parts = [chunk[first : first + TEXT_BATCH_SIZE] for first in range(0, len(chunk), TEXT_BATCH_SIZE)]
            return {"texts": torch.cat([backbone.encode_text(list(part)).cpu() for part in parts]).to(torch.float16)}

        files.append(check_or_make(folder / f"texts-{digest.hexdigest()[:16]}.safetensors", encode))
        counts.append(len(chunk))
    return StoredRows("texts", files, [FileRows(index, 0, count) for index, count in enumerate(counts)])


class _Set:
    """What is kept of encoded pairs: a few bytes each, since their number has no limit."""

    def __init__(self, prompts: IO[bytes]) -> None:
        self.prompts = prompts  # their JSON, which the id is made of
        self.files: list[ChunkFile] = []
        self.counts: list[tuple[int, int]] = []  # pairs and mirror images of each file
        self.number_of = {text: number for number, text in enumerate(FIRST_TEXTS)}  # texts, as they come
        self.instructions, self.undos = array("i"), array("i")
        self.is_settled, self.is_undo_settled, self.is_mirrored = bytearray(), bytearray(), bytearray()

    def add(self, file: ChunkFile, prompts: Sequence[PromptPair], is_mirrored: list[bool]) -> None:
        self.files.append(file)
        self.counts.append((len(prompts), sum(is_mirrored)))
        self.is_mirrored.extend(is_mirrored)
        for prompt in prompts:
            self.prompts.write((b"," if self.instructions else b"") + canonical_json(prompt).encode())
            self.is_settled.append(prompt.kind in SETTLED_KINDS)
            self.is_undo_settled.append(prompt.kind in SETTLED_BACKWARDS)
            for numbers, text in ((self.instructions, prompt.instruction), (self.undos, prompt.undo)):
                numbers.append(self.number_of.setdefault(text, len(self.number_of)))

    def id(self) -> str:
        """Return `content_id("examples", [file names, prompts])`, without all prompts in memory."""
        digest = hashlib.sha256(f"[{canonical_json([file.path.name for file in self.files])},[".encode())
        self.prompts.seek(0)
        while block := self.prompts.read(1 << 20):
            digest.update(block)
        digest.update(b"]]")
        return f"examples-{digest.hexdigest()[:16]}"

    def ordered_texts(self) -> tuple[list[str], Int[Tensor, " numbers"]]:
        """Return the texts, in the order of the alphabet after the fixed ones, and the row of each number."""
        numbered = list(self.number_of)
        texts = [*FIRST_TEXTS, *sorted(numbered[len(FIRST_TEXTS) :])]
        return texts, torch.tensor([self.number_of[text] for text in texts]).argsort().int()

    def join(self, texts: StoredRows | Int[Tensor, "texts tokens"], row_of_number: Int[Tensor, " numbers"]) -> Examples:
        """Number the rows: all pairs, and after them the mirror images in the order of their pairs."""
        num_pairs = len(self.instructions)
        with_image = torch.frombuffer(self.is_mirrored, dtype=torch.bool).nonzero()[:, 0].int()
        pair_of = torch.cat([torch.arange(num_pairs, dtype=torch.int32), with_image])
        mirrored = pair_of.clone()
        mirrored[with_image] = torch.arange(num_pairs, len(pair_of), dtype=torch.int32)
        text, undo = (
            row_of_number[torch.frombuffer(numbers, dtype=torch.int32)][pair_of]
            for numbers in (self.instructions, self.undos)
        )
        undo = torch.where(undo == 0, -1, undo)  # row 0 is the empty text
        is_settled, is_undo_settled = (
            torch.frombuffer(marks, dtype=torch.bool)[pair_of] for marks in (self.is_settled, self.is_undo_settled)
        )
        segments = [FileRows(index, 0, pairs) for index, (pairs, _) in enumerate(self.counts)]
        segments += [FileRows(index, pairs, images) for index, (pairs, images) in enumerate(self.counts)]
        return Examples(
            **{name: StoredRows(name, self.files, segments) for name in sorted(self.files[0].tensors)},
            mirrored=mirrored,
            text=text,
            settled_text=torch.where(is_settled, text, -1),
            undo_text=undo,
            settled_undo=torch.where(is_undo_settled, undo, -1),
            texts=texts,
            num_pairs=num_pairs,
            id=self.id(),
        )


def encode_examples(
    pairs: Iterable[TrainingPair],
    backbone: Backbone,
    folder: Path,
    *,
    mirror: bool = True,
    embed_texts: bool = True,
    with_references: bool = False,
) -> Generator[Progress, None, Examples]:
    """Encode image pairs of one size, read a chunk at a time, or find what was encoded into the folder before.

    The examples read latents and embedded texts from the folder's files when they are asked for, so their number is
    not bounded by memory; the files have to stay. With `mirror` the mirror image of each pair whose texts name no side
    is encoded, too. Without `embed_texts` texts become tokens, for a text encoder in training. `with_references` also
    encodes the pictures that instructions refer to. The generator returns the examples.
    """
    fingerprint = _fingerprint(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as prompts:
        encoded, rest = _Set(prompts), iter(pairs)
        while part := list(islice(rest, CHUNK_SIZE)):
            is_mirrored = [mirror and can_be_mirrored(pair.prompt) for pair in part]
            file = _encode_chunk(part, is_mirrored, backbone, folder, fingerprint, with_references=with_references)
            encoded.add(file, [pair.prompt for pair in part], is_mirrored)
            done = len(encoded.instructions)
            yield Progress(stage="train", done=done, total=done, note=f"{done} pairs encoded")
        if not encoded.files:
            raise InputError("there are no accepted pairs to train on; make more pairs or loosen the rule")
        if len({file.tensors["source"].row_shape for file in encoded.files}) != 1:
            raise InputError("the pairs have pictures of different sizes; train on one size at a time")
        texts, rows = encoded.ordered_texts()
        if not embed_texts:
            return encoded.join(backbone.token_ids(texts).cpu().int(), rows)
        return encoded.join(_encode_texts(texts, backbone, folder, fingerprint), rows)
