"""Where the models lie that a run starts from: those that come with the package, or a folder laid out like theirs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from restage.records import InputError, canonical_json, file_sha256, read_json
from restage.run.layout import DESCRIPTION, FIT_RECORD, is_stage_done
from restage.run.reading import FitRecord

__all__ = ["ASSETS", "CLIP_RULE", "Models", "add_on_of", "edit_model_of", "folder_sha256", "is_miniature", "models_in"]

ASSETS = Path(__file__).parents[1] / "assets"
"""The models that come with the package."""
CLIP_RULE = "pair_rule.json"
"""Record in the folder of a CLIP with the thresholds that suit it. It is no part of the folder's hash: what a run uses
of it is part of the run's config, and the same weights stay the same model."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models that a run starts from."""

    text_to_image: Path  # a diffusers folder
    clip: Path  # a transformers folder, which pairs are scored with
    edit_model: Path  # folder of the edit model that training goes on from

    def sha256(self) -> dict[str, str]:
        """Hash of each model's folder."""
        return {name: folder_sha256(path) for name, path in asdict(self).items()}


def models_in(folder: Path | None = None) -> Models:
    """The models in a folder laid out like `restage/assets`, which is the default."""
    folder = folder or ASSETS
    return Models(text_to_image=folder / "text_to_image", clip=folder / "clip", edit_model=folder / "edit_model")


def edit_model_of(run: Path) -> Path:
    """Folder of the edit model that a run's edits use: its own if its training is done, else the shipped one."""
    return run / "train" if is_stage_done(run, "train") else models_in().edit_model


def is_miniature(scene_folder: Path) -> bool:
    """Whether a scene is of the procedural world, which the shipped models know.

    Such are the world's own captures, and what the shipped text-to-image model made from words.
    """
    if (scene_folder / DESCRIPTION).is_file():
        return True
    path = scene_folder / FIT_RECORD
    made = read_json(path, FitRecord) if path.is_file() else None
    if made is None or not made.generated_from:
        return False
    return made.config.get("model_sha256") == folder_sha256(models_in().text_to_image)


def add_on_of(model: Path, name: str) -> Path | None:
    """The add-on `control`, `motion` or `views` that lies beside the model it is for; None if there is none."""
    folder = model.absolute().parent / name
    return folder if (folder / "config.json").is_file() else None


def folder_sha256(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder, except for the thresholds of a CLIP."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; name a folder of models with --models")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CLIP_RULE)
    content = [(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
