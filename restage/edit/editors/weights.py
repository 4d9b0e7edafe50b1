"""What an editor's model is known by in a result's record: a hash of the files that it was opened from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from restage.edit.families import find_model
from restage.records import InputError, content_id, file_sha256, read_json
from restage.run.layout import EDIT_RECORD
from restage.run.models import add_on_of, models_in
from restage.run.reading import EditRecord

__all__ = ["is_made", "model_sha256"]

BLOB = re.compile("[0-9a-f]{64}")
"""Name of a large file in the hub's cache: its SHA-256."""


def model_sha256(name: str, model: Path | None, options: Sequence[str] = ()) -> str:
    """Return one hash over the files of an editor's model, and of control branches among its options.

    Args:
        name: The editor, without what makes a variant of it.
        model: Folder of its model, or its name in the hub's cache; None where the editor has a default or no model.
        options: Options of the editor, as `key=value`.

    Returns:
        The hash as hex, or an empty text for an editor without a folder, such as an endpoint.
    """
    if name == "edit_model":
        from restage.diffusion.edit_models import edit_weights_sha256  # diffusers takes seconds to import

        return edit_weights_sha256(model) if model is not None and (model / "unet").is_dir() else ""
    if name == "text_to_image":
        folder = model or models_in().text_to_image
        branches = [_folder_of(option) for option in options if option.startswith("branch=")]
        beside = add_on_of(folder, "control")
        folders = [folder, *(branches or ([] if beside is None else [beside]))]
        return content_id("model", [_files(one) for one in folders]).removeprefix("model-")
    if model is None:
        return ""
    try:
        folder = find_model(model)
    except InputError:  # a name that an endpoint knows
        return ""
    return content_id("model", _files(folder)).removeprefix("model-")


def is_made(folder: Path, weights_sha256: str, model: Path | None) -> bool:
    """Whether a folder holds a result that is there to be taken; one that failed is not.

    Args:
        folder: Of the result.
        weights_sha256: Hash of the weights that would make it now; records of earlier versions do not have it.
        model: Their folder, for the message.

    Raises:
        InputError: it was made by other weights.
    """
    if not (folder / EDIT_RECORD).exists():
        return False
    record = read_json(folder / EDIT_RECORD, EditRecord)
    if record.status == "failed":
        return False
    made_by = record.inputs.get("model_sha256", "")
    if made_by and weights_sha256 and made_by != weights_sha256:
        raise InputError(
            f"{folder} was made by other weights than {model or 'the editor'} holds now; move it away to have it made "
            "anew, or choose another --seed"
        )
    return True


def _folder_of(option: str) -> Path:
    from restage.diffusion.config import BranchSource

    return BranchSource.parse(option.partition("=")[2]).folder


def _files(folder: Path) -> list[tuple[str, str]]:
    """Names and hashes of the files of a model; those of a training's state are none of it."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "state" not in path.parts)
    return [(path.relative_to(folder).as_posix(), _sha256(path)) for path in paths]


def _sha256(path: Path) -> str:
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if BLOB.fullmatch(blob) else file_sha256(path)
