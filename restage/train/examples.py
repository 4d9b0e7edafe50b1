"""Turns image pairs into what the edit model is trained on: latents, masks on the latent grid, text embeddings.

Pairs are encoded once and kept as safetensors files named by their content, so that a second start only reads them.
Called by `restage.train.stage`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.records import InputError, Progress, PromptPair, canonical_json, content_id, write_atomically

__all__ = ["Examples", "ExactPair", "TrainingPair", "can_be_mirrored", "encode_examples", "hash_tensors"]

CHUNK_SIZE = 128
"""Number of pairs in a cache file, which is what a kill costs at most."""
ENCODE_BATCH_SIZE = 16
CHANGE_THRESHOLD = 0.03
"""Mean absolute difference of the pictures, over channels, at which a place counts as changed."""
TEXT_BATCH_SIZE = 64

LEAVE_ALONE = ("leave it as it is", "change nothing", "keep everything as it is", "do not change anything")
"""Instructions of examples that teach the model to change nothing."""
SETTLED_KINDS = frozenset({"recolour", "reshape", "ground", "time", "remove"})
"""Kinds of edit that ask for a state, so that nothing is left to do if they are asked for again."""
SETTLED_BACKWARDS = SETTLED_KINDS - {"remove"} | {"add"}
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


class ExactPair(NamedTuple):
    """A pair that was rendered rather than generated, to measure what generating costs."""

    source: Float[Tensor, "3 h w"]
    edited: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"]
    prompt: PromptPair


def can_be_mirrored(prompt: PromptPair) -> bool:
    """Whether the mirrored pictures still fit the texts: none of them names a side."""
    texts = (prompt.instruction, prompt.undo, prompt.source, prompt.target)
    return not any(SIDE_WORDS.search(text) for text in texts)


@dataclass(frozen=True, eq=False)
class Examples:
    """All encoded pairs of a training set; a row is a pair or its mirror image."""

    source: Float[Tensor, "rows channels height width"]
    """Unit-variance latents of the pictures before the edit, in half precision."""
    edited: Float[Tensor, "rows channels height width"]
    masks: Float[Tensor, "rows height width"]  # share of each latent pixel that the stored mask covers
    mirrored: Int[Tensor, " rows"]  # row of the mirror image; the row itself if there is none
    text: Int[Tensor, " rows"]  # row of the instruction in `texts`
    settled_text: Int[Tensor, " rows"]
    """Row of an instruction that leaves the edited picture as it is; -1 if there is none but those of `leave_alone`."""
    undo_text: Int[Tensor, " rows"]  # row of the instruction that leads back to the picture before the edit, or -1
    settled_undo: Int[Tensor, " rows"]
    """Row of an instruction that leaves the picture before the edit as it is, or -1."""
    texts: Float[Tensor, "texts tokens width_of_text"] | Int[Tensor, "texts tokens"]
    """Embedded texts in half precision, or their tokens if the text encoder is trained as well; row 0 is the empty
    text, and those of `leave_alone` follow."""
    num_pairs: int  # number of pairs; they are the first rows, and their mirror images follow
    id: str  # content id

    @property
    def leave_alone(self) -> tuple[int, ...]:
        """Rows in `texts` of the instructions that ask for no change."""
        return tuple(range(1, 1 + len(LEAVE_ALONE)))


class _Chunk(NamedTuple):
    name: str  # made of the pictures and of what encoded them
    tensors: dict[str, Tensor]
    """source, edited and masks: the pairs as they came, then the mirror images of those marked."""
    mirrored: tuple[bool, ...]
    prompts: tuple[PromptPair, ...]


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(backbone: Backbone) -> str:
    """Name what the encodings depend on besides the pairs: the weights of VAE and text encoder."""
    hashes = [hash_tensors(module.state_dict()) for module in (backbone.vae, backbone.text_encoder)]
    return canonical_json([backbone.vae.config.get("scaling_factor"), *hashes])


def _read_or_make(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors back that were made before; they say themselves whether they are as they were."""
    if not path.exists():
        tensors = {name: value.cpu().contiguous() for name, value in make().items()}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": hash_tensors(tensors)})
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except Exception as error:  # noqa: BLE001 - of a type that safetensors does not document
        raise InputError(f"{path} is not whole; delete it, and it is made anew: {error}") from None
    if metadata.get("sha256") != hash_tensors(tensors):
        raise InputError(f"{path} is not as it was written, or of an older version; delete it, and it is made anew")
    return tensors


def changed_mask(pair: TrainingPair) -> Float[Tensor, "h w"]:
    """Return the part of a pair's mask in which the pictures really differ, smoothed over 5x5 pixels.

    A mask made from attention says where a pair was allowed to change, and reaches beyond what did change.
    """
    change = (pair.edited - pair.source).abs().mean(dim=0)
    smooth = functional.avg_pool2d(change[None, None], kernel_size=5, stride=1, padding=2)[0, 0]
    return pair.mask * (smooth > CHANGE_THRESHOLD)


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
    pairs: Sequence[TrainingPair], backbone: Backbone, folder: Path, fingerprint: str, mirror: bool
) -> _Chunk:
    """Encode some pairs, or read them back when the same ones were encoded before."""
    # The name follows from weights and pixels, not from ids, so that pairs that came out differently are encoded anew.
    is_mirrored = [mirror and can_be_mirrored(pair.prompt) for pair in pairs]
    digest = hashlib.sha256(canonical_json([fingerprint, is_mirrored]).encode())
    for pair in pairs:
        if pair.source.shape != pair.edited.shape or pair.mask.shape != pair.source.shape[1:]:
            raise InputError(
                f"source, edited and mask of a pair must have one size, got {tuple(pair.source.shape)}, "
                f"{tuple(pair.edited.shape)} and {tuple(pair.mask.shape)} ({pair.prompt.instruction!r})"
            )
        for image in (pair.source, pair.edited, pair.mask):
            digest.update(image.cpu().contiguous().numpy().tobytes())
    path = folder / f"latents-{digest.hexdigest()[:16]}.safetensors"
    tensors = _read_or_make(path, lambda: _encode_images(pairs, is_mirrored, backbone))
    return _Chunk(path.name, tensors, tuple(is_mirrored), tuple(pair.prompt for pair in pairs))


def _encode_texts(texts: Sequence[str], backbone: Backbone, folder: Path, fingerprint: str) -> Tensor:
    digest = hashlib.sha256(canonical_json([fingerprint, list(texts)]).encode())

    def encode() -> dict[str, Tensor]:
        parts = [texts[start : start + TEXT_BATCH_SIZE] for start in range(0, len(texts), TEXT_BATCH_SIZE)]
        return {"texts": torch.cat([backbone.encode_text(list(part)).cpu() for part in parts]).to(torch.float16)}

    return _read_or_make(folder / f"texts-{digest.hexdigest()[:16]}.safetensors", encode)["texts"]


def _order_rows(chunks: Sequence[_Chunk]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the rows of the whole set as (chunk, row in it), pairs first, and the mirror image of each row."""
    rows = [(index, row) for index, chunk in enumerate(chunks) for row in range(len(chunk.prompts))]
    mirrored = list(range(len(rows)))
    position = 0
    for index, chunk in enumerate(chunks):
        next_image = len(chunk.prompts)
        for row, has_image in enumerate(chunk.mirrored):
            if has_image:
                mirrored[position + row] = len(rows)
                mirrored.append(position + row)
                rows.append((index, next_image))
                next_image += 1
        position += len(chunk.prompts)
    return rows, mirrored


def _join(
    chunks: Sequence[_Chunk], backbone: Backbone, folder: Path, *, fingerprint: str, embed_texts: bool
) -> Examples:
    rows, mirrored = _order_rows(chunks)
    prompts = [prompt for chunk in chunks for prompt in chunk.prompts]
    asked = {text for prompt in prompts for text in (prompt.instruction, prompt.undo)}
    texts = ["", *LEAVE_ALONE, *sorted(asked - {"", *LEAVE_ALONE})]
    row_of = {text: row for row, text in enumerate(texts)}
    text = torch.tensor([row_of[prompt.instruction] for prompt in prompts])
    undo = torch.tensor([row_of[prompt.undo] if prompt.undo else -1 for prompt in prompts])
    is_settled, is_undo_settled = (
        torch.tensor([prompt.kind in kinds for prompt in prompts]) for kinds in (SETTLED_KINDS, SETTLED_BACKWARDS)
    )
    pair_of = torch.tensor([min(row, image) for row, image in enumerate(mirrored)])
    starts = torch.tensor([0, *(len(chunk.tensors["source"]) for chunk in chunks)]).cumsum(0)
    order = torch.tensor([int(starts[index]) + row for index, row in rows])
    joined = {name: torch.cat([chunk.tensors[name] for chunk in chunks])[order] for name in chunks[0].tensors}
    return Examples(
        **joined,
        mirrored=torch.tensor(mirrored),
        text=text[pair_of],
        settled_text=torch.where(is_settled, text, -1)[pair_of],
        undo_text=undo[pair_of],
        settled_undo=torch.where(is_undo_settled, undo, -1)[pair_of],
        texts=_encode_texts(texts, backbone, folder, fingerprint) if embed_texts else backbone.token_ids(texts).cpu(),
        num_pairs=len(prompts),
        id=content_id("examples", [[chunk.name for chunk in chunks], prompts]),
    )


def encode_examples(
    pairs: Iterable[TrainingPair], backbone: Backbone, folder: Path, *, mirror: bool = True, embed_texts: bool = True
) -> Generator[Progress, None, Examples]:
    """Encode image pairs of one size, read a chunk at a time, or read what was encoded into the folder before.

    With `mirror` the mirror image of each pair whose texts name no side is encoded, too. Without `embed_texts` texts
    become tokens, for a text encoder in training. The generator returns the examples.
    """
    fingerprint = _fingerprint(backbone)
    chunks, done, rest = [], 0, iter(pairs)
    while part := list(islice(rest, CHUNK_SIZE)):
        chunks.append(_encode_chunk(part, backbone, folder, fingerprint, mirror))
        done += len(part)
        yield Progress(stage="train", done=done, total=done, note=f"{done} pairs encoded")
    if not chunks:
        raise InputError("there are no accepted pairs to train on; make more pairs or loosen the rule")
    if len({chunk.tensors["source"].shape[1:] for chunk in chunks}) != 1:
        raise InputError("the pairs have pictures of different sizes; train on one size at a time")
    return _join(chunks, backbone, folder, fingerprint=fingerprint, embed_texts=embed_texts)
