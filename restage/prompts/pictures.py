"""Checks the pictures that a user's prompt pairs name, and copies them beside the run's prompts.

A copy is named by its content: a run holds all that it is made from, and a picture that changes is another picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from restage.records import InputError, Progress, PromptPair, file_sha256, write_atomically
from restage.scenes.io.images import path_inside, read_image

__all__ = ["PICTURES", "copy_pictures"]

PICTURES = "pictures"
"""Folder beside `prompts.jsonl`."""


def copy_pictures(
    pairs: Sequence[PromptPair], folder: Path, *, to: Path
) -> Iterator[Progress | tuple[PromptPair, ...]]:
    """Copy the pictures of prompt pairs; yields progress, and at the end the pairs with the names of the copies.

    Args:
        pairs: the pairs as they were read.
        folder: folder of the file that they were read from; the pictures lie in it or below.
        to: the run's folder of prompts.

    Raises:
        InputError: a picture is missing, lies elsewhere, or cannot be decoded; the message names it.
    """
    names: dict[str, str] = {"": ""}
    asked = sorted({pair.picture for pair in pairs} - {""})
    for done, name in enumerate(asked, start=1):
        path = path_inside(folder, name, "the picture of a prompt pair")
        if not path.is_file():
            raise InputError(f"{path} does not exist, though a prompt pair names it as its picture")
        read_image(path)
        names[name] = f"{PICTURES}/{file_sha256(path)[:16]}{path.suffix.lower()}"
        copy = to / names[name]
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(copy) as temporary:
                temporary.write_bytes(path.read_bytes())
        yield Progress(stage="pictures", done=done, total=len(asked))
    yield tuple(replace(pair, picture=names[pair.picture]) for pair in pairs)
