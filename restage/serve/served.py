"""A model of this machine as a server has it: what it takes, and batches of edits and pictures made by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import restage
from restage.edit.editors import MenuEditor
from restage.edit.editors.interface import Editor, EditorSource, SeededNoise, ViewBatch, hold_outside
from restage.records import EditRequest, InputError, read_json
from restage.run.models import models_in
from restage.scenes.references import ShownPicture

__all__ = ["EditItem", "PaintItem", "Painting", "ServedEditor", "editor_of_folder", "open_served"]

SERVED = ("edit_model", "grade", "instruct_pix2pix", "pipeline", "text_to_image")
"""Editors that need nothing but a picture and an instruction."""
SAMPLED_BYTES = 1_000_000


class Painting(NamedTuple):
    """A picture that was made, and where it was meant to differ from the one that came."""

    image: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"] | None = None


@dataclass(frozen=True, eq=False)
class EditItem:
    """One picture to edit."""

    picture: Float[Tensor, "3 h w"]
    request: EditRequest
    seed: int
    noise_level: float = 1.0
    start: Float[Tensor, "3 h w"] | None = None
    """What partial noise is added to; None for the picture."""
    region: Float[Tensor, "h w"] | None = None
    references: tuple[ShownPicture, ...] = ()

    @property
    def kind(self) -> Hashable:
        """Equal for items that may be edited in one batch."""
        # References belong to a whole batch, so that items which have some are edited alone.
        alone = id(self) if self.references else 0
        size = tuple(self.picture.shape[1:])
        return "edit", size, self.request, self.noise_level, self.region is None, alone


@dataclass(frozen=True, eq=False)
class PaintItem:
    """One picture to make from a caption."""

    caption: str
    seed: int
    kind: Hashable = field(default="paint", init=False)


@dataclass(frozen=True)
class ServedEditor:
    """An editor that is served."""

    name: str  # of the model, as clients ask for it
    editor: Editor
    editor_name: str
    fingerprint: str
    """Hash of what answers depend on beside the request."""

    @property
    def takes(self) -> list[str]:
        """What it takes beyond the protocol, or as exactly as a client may send it."""
        return ["captions", "mask", "noise_level", "seed", *(["references"] if self.takes_references else [])]

    @property
    def takes_references(self) -> bool:
        """Whether it looks at more pictures than the one to edit."""
        return getattr(self.editor, "takes_references", False)

    @property
    def paints(self) -> bool:
        """Whether it makes pictures from captions."""
        return hasattr(self.editor, "paint")

    def work(self, items: Sequence[Any]) -> list[Painting]:
        """Make the pictures of one batch, whose items are of one kind; see `EditItem.kind`."""
        return self._paint(items) if isinstance(items[0], PaintItem) else self._edit(items)

    def _paint(self, items: Sequence[PaintItem]) -> list[Painting]:
        editor: Any = self.editor
        images = editor.paint([item.caption for item in items], [item.seed for item in items])
        return [Painting(image) for image in images]

    def _edit(self, items: Sequence[EditItem]) -> list[Painting]:
        first, regions = items[0], [item.region for item in items if item.region is not None]
        batch = ViewBatch(
            torch.stack([item.picture if item.start is None else item.start for item in items]),
            torch.stack([item.picture for item in items]),
            request=first.request,
            view_indices=tuple(range(len(items))),
            noise_level=first.noise_level,
            seed=0,
            noise_keys=SeededNoise(tuple(item.seed for item in items)),
            references=first.references,
            regions=torch.stack(regions) if regions else None,
        )
        edited = hold_outside(batch, self.editor.edit(batch))
        return [Painting(image, mask) for image, mask in zip(edited.images, edited.masks, strict=True)]


def editor_of_folder(folder: Path) -> str:
    """Returns the name of the editor that opens a folder of a model."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; name the folder of a model with --model")
    index = folder / "model_index.json"
    if not index.is_file():
        return "edit_model"
    kind = read_json(index, dict).get("_class_name")
    if kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        return "text_to_image"
    return "instruct_pix2pix" if kind == "StableDiffusionInstructPix2PixPipeline" else "pipeline"


def open_served(editor: str, model: Path | None, *, device: str, options: tuple[str, ...] = ()) -> ServedEditor:
    """Open an editor by its name, or the one that a folder is for."""
    name = editor or (editor_of_folder(model) if model else "edit_model")
    if name not in SERVED:
        raise InputError(
            f"expected one of {', '.join(SERVED)}, got {name!r}; others need more than a picture and an instruction"
        )
    opened = MenuEditor(name=name, model=model, device=device).open(EditorSource(options=options))
    defaults = {"edit_model": models_in().edit_model, "text_to_image": models_in().text_to_image}
    folder = model or defaults.get(name)
    facts = [name, restage.__version__, list(options), _sample_files(folder) if folder and folder.is_dir() else []]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return ServedEditor(folder.name if model and folder else name, opened, name, fingerprint)


def _sample_files(folder: Path) -> list[tuple[str, int, str]]:
    """Name, size and hash of the beginning and end of each file, since whole models take minutes to read."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            content = file.read(SAMPLED_BYTES)
            file.seek(max(0, size - SAMPLED_BYTES))
            content += file.read(SAMPLED_BYTES)
        found.append((path.relative_to(folder).as_posix(), size, hashlib.sha256(content).hexdigest()))
    return found
